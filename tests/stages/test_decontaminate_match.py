"""Words, index and chains: the same passage is found whatever its typography, and chance is not."""

from __future__ import annotations

import random
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.decide import covered, decide, decide_pair, merged, without_ranges
from stages.data.dedup.shingles import shingle
from stages.data.matching.chain import Scanned, Span, scan
from stages.data.matching.index import Index, build, hidden, ngrams
from stages.data.matching.normalize import words
from tests.stages.words_reference import words_reference

ODD = "ไเกาำ่ှာـाी𑀸aZé-‐–'’`_ \n\t.\u00ad\u0301ßŁøæ½²日ア한𝔘😀\u200b1"
ODD += "ガｶﾞ゙゛ｰ・ﾊﾟ⼘⑴ⓐ㎏™℃㌔㈱㋿－｀Ŀ\ufeff\u2060\u3164\U000e0061\U0002f808\U00030000ꦏꦤᬓ𑜀ꀀ𗀀ໜຫນກ"


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(st.sampled_from(ODD), max_size=60), st.text(max_size=60)))
def test_the_fast_normaliser_agrees_with_the_slow_one(text: str) -> None:
    text = text.encode(errors="ignore").decode()
    fast = words(text.encode())
    slow = words_reference(text)
    assert [(int(h), int(s), int(e)) for h, s, e in zip(*fast, strict=True)] == [entry[1:] for entry in slow]


def test_offsets_point_at_the_original_bytes() -> None:
    text = "  «Don’t go!» he—said; co-\n  operate to-day, naïve -- Ωmega 日本"
    raw = text.encode()
    found = words(raw)
    spelled = [raw[s:e].decode() for s, e in zip(found.starts, found.ends, strict=True)]
    assert spelled == ["Don’t", "go", "he", "said", "co-\n  operate", "to-day", "naïve", "Ωmega", "日", "本"]
    folded = [word for word, *_ in words_reference(text)]
    assert folded == ["dont", "go", "he", "said", "cooperate", "today", "naive", "ωmega", "日", "本"]


def test_typography_does_not_matter() -> None:
    one = "The cooperation of Caesar's dont-care friends, to-day; he said --goodbye Aether"
    two = "THE coopera-\ntion of Cæsar’s dontcare friends. Today he said goodbye Æther"
    assert words(one.encode()).hashes.tolist() == words(two.encode()).hashes.tolist()


def prose(seed: int, count: int, vocabulary: int = 4000) -> list[str]:
    """Words drawn with Zipf-like frequencies, so that common ones repeat as in a language."""
    chance = random.Random(seed)
    names = [f"{'bcdfglmnprst'[i % 12]}{'aeiou'[i % 5]}{'bdklmnrst'[i % 9]}{i:x}" for i in range(vocabulary)]
    return chance.choices(names, [1 / (rank + 2) for rank in range(vocabulary)], k=count)


def text_of(tokens: list[str]) -> bytes:
    return " ".join(tokens).encode()


BOOK = prose(1, 3000)


@pytest.fixture(scope="module")
def index() -> Index:
    return build([("book", text_of(BOOK)), ("other", text_of(prose(2, 3000)))], 5, 2)


def found(tokens: list[str], index: Index) -> list[Span]:
    return scan(text_of(tokens), index, 25, 25, 30).spans


def test_unrelated_text_of_the_same_language_gives_nothing(index: Index) -> None:
    assert found(prose(3, 50_000), index) == []


def test_a_planted_passage_is_found_word_for_word(index: Index) -> None:
    (span,) = found(prose(4, 700) + BOOK[1000:1200] + prose(5, 300), index)
    assert (span.book, span.matched) == (0, 200)
    assert (span.doc_first, span.doc_last, span.book_first, span.book_last) == (700, 900, 1000, 1200)


@pytest.mark.parametrize("damage", ["replace", "lose", "insert"])
def test_a_damaged_copy_stays_one_span(index: Index, damage: str) -> None:
    """Every tenth word goes wrong."""
    copy: list[str] = []
    for i, word in enumerate(BOOK[500:1500]):
        if i % 10 != 9:
            copy.append(word)
        elif damage == "replace":
            copy.append("smudge")
        elif damage == "insert":
            copy += [word, "smudge"]
    (span,) = found(copy, index)
    assert span.matched >= (1000 if damage == "insert" else 895)
    assert span.identity == pytest.approx(1000 / 1100 if damage == "insert" else 0.9, abs=0.01)


def test_a_gap_wider_than_allowed_splits_the_span(index: Index) -> None:
    for lost in (0, 40):  # words inserted, words replaced
        spans = found(BOOK[:200] + prose(6, 40) + BOOK[200 + lost : 400], index)
        assert [(s.book_first, s.book_last) for s in spans] == [(0, 200), (200 + lost, 400)]


def test_shuffled_paragraphs_are_found_each(index: Index) -> None:
    order = list(range(0, 3000, 100))
    random.Random(0).shuffle(order)
    spans = found([word for start in order for word in BOOK[start : start + 100]], index)
    assert covered((span.book_first, span.book_last) for span in spans) > 2950


def test_text_common_to_many_works_is_no_evidence_but_editions_of_one_work_are() -> None:
    licence, novel = prose(7, 200), prose(8, 2000)
    works = [(f"w{i}", text_of(licence + prose(20 + i, 1000))) for i in range(4)]
    editions = [(f"e{i}", text_of(prose(30 + i, 20) + novel)) for i in range(4)]
    index = build(works + editions, 5, 2)
    assert found(prose(9, 300) + licence + prose(10, 300), index) == []
    assert {span.book for span in found(prose(9, 300) + novel[:300], index)} == {4, 5, 6, 7}
    assert {(a, b) for a, b, share in index.shared if share > 0.5} == {
        (a, b) for a in range(4, 8) for b in range(a + 1, 8)
    }


def test_documents_shorter_than_an_ngram_break_nothing() -> None:
    index = build([("tiny", b"one two"), ("empty", b"?!"), ("book", text_of(BOOK))], 5, 2)
    assert scan(b"", index, 25, 25, 30) == (0, 0, [])
    assert found(["one", "two"], index) == []
    assert len(found(BOOK[:100], index)) == 1


def span(first: int, last: int, matched: int | None = None, at: int = 0, near: int = 0) -> Span:
    size = last - first
    return Span(0, first, last, at, at + size, size - near if matched is None else matched, 0, 1, 0, 1, near)


QUOTATIONS = [span(18_000 * i, 18_000 * i + 52, at=3000 * i) for i in range(11)]


@pytest.mark.parametrize(
    ("spans", "document_words", "book_words", "action"),
    [
        ([span(0, 49)], 100, 100, "note"),  # short, whatever its share
        ([span(0, 50)], 1000, 10_000, "cut"),
        ([span(0, 50)], 250, 10_000, "drop"),  # 20% of the document
        ([span(0, 50)], 1000, 1000, "cut"),  # 5% of the evaluation document, but one quotation
        ([span(0, 200)], 10_000, 4000, "drop"),  # the same of a longer passage
        ([span(0, 90), span(120, 210, at=500)], 10_000, 3000, "cut"),  # two quotations side by side
        ([span(0, 300), span(400, 600, at=400)], 100_000, 100_000, "drop"),  # 500 words together
        ([span(0, 300), span(900, 1200, at=400)], 100_000, 100_000, "cut"),  # more other words between them
        (QUOTATIONS, 990_000, 40_000, "cut"),  # 572 words, each by itself
        (QUOTATIONS, 990_000, 5_000, "cut"),  # 11% of the evaluation document
        (QUOTATIONS, 2_000, 40_000, "drop"),  # a document made of quotations
        ([span(0, 60, near=25)], 10_000, 100_000, "cut"),  # misread
        ([span(0, 600, near=250)], 100_000, 100_000, "drop"),
        ([span(1000 * i, 1000 * i + 80, matched=55, at=1000 * i) for i in range(22)], 24_000, 24_000, "note"),
        ([span(800 * i, 800 * i + 500, matched=340, at=800 * i) for i in range(30)], 24_000, 24_000, "drop"),
        ([span(500, 512)], 10_000, 12, "cut"),  # the whole of a short item
        ([span(500, 511)], 10_000, 12, "note"),
        ([span(0, 300), span(400, 599, at=400)], 100_000, 100_000, "cut"),
        ([span(0, 300), span(0, 300, at=5000)], 100_000, 100_000, "cut"),  # the same words twice count once
        ([span(0, 600, matched=300)], 100_000, 100_000, "note"),  # half of the words are others
    ],
)
def test_the_rule(spans: list[Span], document_words: int, book_words: int, action: str) -> None:
    assert decide_pair(0, spans, document_words, book_words, DecontaminateConfig()).action == action


@pytest.mark.parametrize(("book_words", "action"), [(4000, "cut"), (8100, "note")])
def test_loose_spans_of_many_documents_are_cut_where_they_cover_a_tenth(book_words: int, action: str) -> None:
    scanned = [Scanned(60_000, 10_000, [span(100, 180, matched=55, at=100 * i)]) for i in range(10)]
    decisions = decide(scanned, [book_words], DecontaminateConfig())
    assert {decision.action for decision in decisions} == {action}
    assert all(bool(decision.cut) == (action == "cut") for decision in decisions)


def test_an_abridgement_goes_with_the_sentences_that_were_shortened() -> None:
    """One sentence stands word for word, of the others a third is left out; without it all are a translation."""
    loose = [span(2000 + 300 * i, 2080 + 300 * i, matched=55, at=1000 * i) for i in range(10)]
    whole = Scanned(60_000, 100_000, [span(1000, 1090, at=50_000), *loose])
    cut, kept = decide([whole, Scanned(60_000, 100_000, loose)], [160_000], DecontaminateConfig())
    assert (cut.action, len(cut.pairs[0].copies)) == ("cut", 11)
    assert (kept.action, kept.cut) == ("note", ())


def test_a_badly_read_passage_is_found_to_its_ends(index: Index) -> None:
    chance = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    passage = " ".join(BOOK[1000:1200])
    misread = "".join(chance.choice(letters) if c != " " and chance.random() < 0.08 else c for c in passage).split()
    found_spans = found(prose(4, 700) + misread + prose(5, 300), index)
    assert max(span.alike for span in found_spans) >= 180
    assert all(span.doc_first >= 695 and span.doc_last <= 905 for span in found_spans)


def test_other_words_are_none_that_nearly_agree(index: Index) -> None:
    words_of = BOOK[1000:1200]
    words_of[3::8] = ["throughout"] * len(words_of[3::8])
    (span,) = found(prose(4, 700) + words_of + prose(5, 300), index)
    assert span.near <= 2 and span.matched >= 170


@pytest.mark.parametrize("length", [8, 12, 25, 29])
def test_a_short_item_is_found_as_a_whole_only(length: int) -> None:
    item = prose(60 + length, length, 100_000)
    index = build([("item", text_of(item)), ("book", text_of(BOOK))], 5, 2)
    (span,) = found(prose(4, 300) + item + prose(5, 300), index)
    assert (span.book, span.doc_first, span.doc_last, span.matched) == (0, 300, 300 + length, length)
    assert found(prose(4, 300) + item[:-1] + prose(5, 300), index) == []
    assert hidden(index, 30) == {}


def test_what_cannot_be_found_is_known() -> None:
    texts = [("smile", "😀 🚀 🌱".encode()), ("seven", b"one two three four five six seven"), ("one", b"one")]
    texts += [("quoted", text_of(prose(70, 40))), ("book", text_of(BOOK))]
    index = build(texts, 5, 2, np.unique(ngrams(words(text_of(prose(70, 40))).hashes, 5)))
    said = {index.book_ids[book]: why for book, why in hidden(index, 30).items()}
    assert set(said) == {"smile", "seven", "one", "quoted"}
    assert said["smile"] == "no words" and said["seven"] == "7 words, too few" and said["one"] == "1 word, too few"
    assert "exclusion lists" in said["quoted"]


def test_an_arabic_stroke_and_vowel_signs_do_not_matter() -> None:
    for one, two in (("كتـــاب جميل", "كتاب جميل"), ("किताब", "कताब"), ("น้ำ", "นํ้า"), ("𝓗𝓮𝓵𝓵𝓸", "hello")):
        assert words(one.encode()).hashes.tolist() == words(two.encode()).hashes.tolist(), one


@pytest.mark.parametrize(
    "sign", ["\u200b", "\u200c", "\u200d", "\u00ad", "\u2060", "\ufeff", "\u3164", "\u034f", "\U000e0061"]
)
def test_what_is_not_seen_neither_joins_nor_splits_words(sign: str) -> None:
    plain = "the international congress met to-day at the co-operative society"
    for hidden_ in (
        plain.replace("national", f"{sign}national"),
        plain.replace(" ", f" {sign}"),
        plain.replace("-", f"{sign}-{sign}"),
        plain.replace("-", f"-{sign}\n {sign}"),
        sign + plain + sign,
    ):
        assert words(hidden_.encode()).hashes.tolist() == words(plain.encode()).hashes.tolist(), ascii(hidden_)


def test_a_soft_hyphen_at_the_end_of_a_line_joins_as_a_hyphen_does() -> None:
    plain = words(b"the international congress").hashes.tolist()
    assert words("the inter\u00ad\n  national congress".encode()).hashes.tolist() == plain
    assert words("the international\u00ad congress\u00ad\n".encode()).hashes.tolist() == plain


COMPATIBLE = [
    ("ｶﾀｶﾅ", "カタカナ"),
    ("ｶﾞｷﾞｸﾞﾊﾟﾋﾟ", "ガギグパピ"),
    ("ﾃﾞｰﾀ･ﾍﾞｰｽ", "データ・ベース"),
    ("がぎぱ", unicodedata.normalize("NFD", "がぎぱ")),
    ("ﾡﾢ", "ㄱㄲ"),
    ("Ｔｈｅ　Ｏｆｆｉｃｅ　ｔｏ－ｄａｙ", "The Office to-day"),
    ("ﬁre oﬃce ﬆone", "fire office stone"),
    ("ⓣⓗⓔ 🅃🄷🄴 ①", "the the 1"),
    ("5㎏ № 7", "5kg No 7"),
    ("20℃ ⒯⒣⒠ ⑴text ㈱", "20 C (t)(h)(e) (1) text (株)"),
    ("Python™ code", "Python code"),
    ("⼈⼝", "人口"),
    ("\uf9dc\U0002f808", "隆偺"),
    ("邊\U000e0101の", "邊の"),
    ("ໜັງສື ໝາ", "ຫນັງສື ຫມາ"),
    ("ᾳ", unicodedata.normalize("NFD", "ᾳ")),
]


@pytest.mark.parametrize(("one", "two"), COMPATIBLE)
def test_what_unicode_calls_compatible_gives_the_same_words(one: str, two: str) -> None:
    assert [w for w, *_ in words_reference(one)] == [w for w, *_ in words_reference(two)]
    assert words(one.encode()).hashes.tolist() == words(two.encode()).hashes.tolist()


EXPANDED = [chr(c) for c in range(sys.maxunicode + 1) if len(unicodedata.normalize("NFKC", chr(c))) > 1]
FRAMES = ("{}", "a{}b", "a {} b", "1{}2", "{0}{0}", "to-{}y", "to-\n {}y", "{}-y", "{}\u00ad\u200b{}", "ก{}ม", "漢{}字")


@pytest.mark.parametrize("frame", FRAMES)
def test_a_character_that_stands_for_several_is_at_most_one_word_of_its_own_bytes(frame: str) -> None:
    """½ is no 1 and 2, ㌔ no キ and ロ: a word never begins or ends inside a character."""
    assert len(EXPANDED) > 1000
    for character in EXPANDED:
        text = frame.replace("{0}", "{}").replace("{}", character)
        found = words(text.encode())
        slow = [entry[1:] for entry in words_reference(text)]
        assert [tuple(map(int, word)) for word in zip(*found, strict=True)] == slow, ascii(text)
        assert shingle(text.encode(), 1).words == len(slow) <= len(text)
        borders = {len(text[:at].encode()) for at in range(len(text) + 1)}
        edges = np.stack([found.starts, found.ends], 1).ravel().tolist()
        assert set(edges) <= borders and edges == sorted(edges) and (found.starts < found.ends).all()


def test_a_passage_in_half_width_letters_is_found() -> None:
    chance = random.Random(2)
    names = ["カメラ", "データ", "パソコン", "ガラス", "ピアノ", "ベッド", "トマト", "ゲーム", "ロボット", "バナナ"]
    book, other = ["".join(chance.choices(names, k=600)) for _ in range(2)]
    half = {unicodedata.normalize("NFKC", chr(c)): chr(c) for c in range(0xFF65, 0xFF9E)}
    half |= {unicodedata.normalize("NFKC", a + m): a + m for a in [*half.values()] for m in "ﾞﾟ"}
    index = build([("book", book.encode())], 5, 2)
    copy = "".join(half.get(c, c) for c in book[300:600])
    (span,) = scan((other + "。" + copy + "。" + other).encode(), index, 1, 1, 200).spans
    assert span.matched >= 300


UNSPACED = {
    "Thai": "กขคงจฉชซญดตถทนบปผพฟมยรลวสหอ",
    "Lao": "ກຂຄງຈຊຍດຕຖທນບປຜຝພຟມຢຣລວສອຮ",
    "Khmer": "កខគឃងចឆជឈញដឋឌឍណតថទធនបផពភមយរលវសហ",
    "Burmese": "ကခဂဃငစဆဇဈညဋဌဍဎဏတထဒဓနပဖဗဘမယရလဝသဟ",
    "Shan": "ၵၶၷꧠၸꧡၹꧢတထꧣꧤꧥၼပၽၾၿမယ",
    "Tai Le": "ᥐᥑᥒᥓᥔᥕᥖᥗᥘᥙᥚᥛᥜᥝᥞᥟ",
    "New Tai Lue": "ᦀᦁᦂᦃᦄᦅᦆᦇᦈᦉᦊᦋᦌᦍᦎᦏ",
    "Tai Tham": "ᨠᨡᨢᨣᨤᨥᨦᨧᨨᨩᨪᨫᨬᨭᨮᨯ",
    "Tai Viet": "ꪀꪁꪂꪃꪄꪅꪆꪇꪈꪉꪊꪋꪌꪍꪎꪏ",
    "Javanese": "ꦏꦐꦑꦒꦓꦔꦕꦖꦗꦘꦙꦚꦛꦜꦝꦞꦟꦠ",
    "Balinese": "ᬓᬔᬕᬖᬗᬘᬙᬚᬛᬜᬝᬞᬟᬠᬡᬢ",
    "Buginese": "ᨀᨁᨂᨃᨄᨅᨆᨇᨈᨉᨊᨋᨌᨍᨎᨏ",
    "Batak": "ᯀᯂᯄᯅᯆᯇᯉᯊᯌᯎᯐᯑᯒᯔᯖᯗ",
    "Ahom": "𑜀𑜁𑜂𑜃𑜄𑜅𑜆𑜇𑜈𑜉𑜊𑜋𑜌𑜍𑜎𑜏",
    "Yi": "ꀀꀁꀂꀃꀄꀅꀆꀇꀈꀉꀊꀋꀌꀍꀎꀏ",
    "Vai": "ꔀꔁꔂꔃꔄꔅꔆꔇꔈꔉꔊꔋꔌꔍꔎꔏ",
    "Tangut": "𗀀𗀁𗀂𗀃𗀄𗀅𗀆𗀇𗀈𗀉𗀊𗀋𗀌𗀍𗀎𗀏",
    "Tibetan": "ཀཁགངཅཆཇཉཏཐདནཔཕབམཙཚཛཝཞཟའཡརལཤསཧཨ",
}


@pytest.mark.parametrize("script", UNSPACED)
def test_a_passage_in_a_script_without_spaces_is_found(script: str) -> None:
    """Tibetan alone marks its syllables. What stands around a passage moves its first and last cuts."""
    chance = random.Random(script)
    mark = "་" if script == "Tibetan" else ""
    lexicon = ["".join(chance.choices(UNSPACED[script], k=chance.randint(2, 5))) for _ in range(400)]

    def text(count: int) -> str:
        return "".join(word + mark for word in chance.choices(lexicon, k=count))

    passage = text(300)
    index = build([("book", (text(500) + passage + text(500)).encode())], 5, 2)
    spans = scan((text(400) + passage + text(400)).encode(), index, 25, 25, 30).spans
    assert max((span.doc_end - span.doc_start for span in spans), default=0) >= 0.9 * len(passage.encode())
    parted = "\u200b".join(passage[i : i + 7] for i in range(0, len(passage), 7))  # as some editors break lines
    assert words(parted.encode()).hashes.tolist() == words(passage.encode()).hashes.tolist()


def test_thai_is_cut_in_the_same_places_whatever_stands_around_it() -> None:
    chance = random.Random(1)
    syllables = ["กา", "เรา", "ที่", "น้ำ", "บ้าน", "ไป", "มา", "โลก", "คน", "ดี", "ฟ้า", "ชื่อ", "รัก", "แม่", "พ่อ", "ปลา"]

    def thai(count: int) -> str:
        return "".join(chance.choice(syllables) for _ in range(count))

    book, passage = thai(3000), thai(300)
    index = build([("book", (book + passage + thai(200)).encode())], 5, 2)
    assert index.words_in(0) > 1500
    found_spans = scan((thai(2000) + passage + thai(2000)).encode(), index, 25, 25, 30).spans
    text = (thai(0) + passage).encode()
    assert max(span.doc_end - span.doc_start for span in found_spans) >= len(text) - 40
    spaced = "\u200b".join(passage[i : i + 7] for i in range(0, len(passage), 7))  # as some editors break lines
    assert words(spaced.encode()).hashes.tolist() == words(passage.encode()).hashes.tolist()


def test_cuts_leave_whole_paragraphs() -> None:
    assert merged([(5, 9), (0, 2), (8, 12), (2, 3)]) == [(0, 3), (5, 12)]
    assert without_ranges(b"one two three four", [(4, 7)]) == b"one\n\nthree four"
    assert without_ranges(b"one two three", [(0, 3), (8, 13)]) == b"two"
    assert without_ranges(b" as it was ", []) == b" as it was "


@pytest.mark.parametrize(("copied", "action"), [(78, "cut"), (40, "cut"), (0, "note")])
def test_a_passage_that_is_copied_inside_another_translation_is_found(index: Index, copied: int, action: str) -> None:
    """Around it four words in five are the same: one span, of which too little agrees, and in it a copy. (40 words go
    because they are more than a hundredth of the book.)"""
    chance = random.Random(3)
    reworded = [word if chance.random() < 0.78 else f"other{i}" for i, word in enumerate(BOOK[1000:1400])]
    reworded[200 : 200 + copied] = BOOK[1200 : 1200 + copied]
    host = prose(7, 20_000, 40_000)
    scanned = scan(text_of([*host, *reworded, *prose(8, 20_000, 40_000)]), index, 25, 25, 30)
    (decision,) = decide([scanned], [20_000], DecontaminateConfig())
    assert decision.action == action
    assert any(s.alike < 0.85 * s.longer for s in scanned.spans), "the translation is a span too"
    assert [s.alike for s in scanned.spans if s.alike > 0.95 * s.longer and s.alike >= copied > 0] != [] or not copied
