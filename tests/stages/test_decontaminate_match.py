"""Words, index and chains: the same passage is found whatever its typography, and chance is not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.decide import covered, decide_pair, excise, merged
from stages.data.matching.chain import Span, scan
from stages.data.matching.index import Index, build
from stages.data.matching.normalize import words
from tests.stages.words_reference import words_reference

ODD = "𑀸aZé-‐–'’`_ \n\t.\u00ad\u0301ßŁøæ½²日ア한𝔘😀\u200b1"


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


def span(first: int, last: int, matched: int | None = None, at: int = 0) -> Span:
    size = last - first
    return Span(0, first, last, at, at + size, size if matched is None else matched, 0, 1, 0, 1)


@pytest.mark.parametrize(
    ("spans", "document_words", "book_words", "action"),
    [
        ([span(0, 49)], 100, 100, "note"),  # short, whatever its share
        ([span(0, 50)], 1000, 10_000, "excise"),
        ([span(0, 50)], 250, 10_000, "drop"),  # 20% of the document
        ([span(0, 50)], 1000, 1000, "drop"),  # 5% of the evaluation document
        ([span(0, 300), span(400, 600, at=400)], 100_000, 100_000, "drop"),  # 500 words together
        ([span(0, 300), span(400, 599, at=400)], 100_000, 100_000, "excise"),
        ([span(0, 300), span(0, 300, at=5000)], 100_000, 100_000, "excise"),  # the same words twice count once
        ([span(0, 600, matched=300)], 100_000, 100_000, "excise"),  # only words that agree count
    ],
)
def test_the_rule(spans: list[Span], document_words: int, book_words: int, action: str) -> None:
    assert decide_pair(0, spans, document_words, book_words, DecontaminateConfig()).action == action


def test_cuts_leave_whole_paragraphs() -> None:
    assert merged([(5, 9), (0, 2), (8, 12), (2, 3)]) == [(0, 3), (5, 12)]
    assert excise(b"one two three four", [(4, 7)]) == b"one\n\nthree four"
    assert excise(b"one two three", [(0, 3), (8, 13)]) == b"two"
    assert excise(b" as it was ", []) == b" as it was "
