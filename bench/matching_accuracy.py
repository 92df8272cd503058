"""What is found of contamination planted on purpose: ``python -m bench.matching_accuracy [FOLDER]``.

The texts are those of ``FOLDER/**/*.txt``, or the manuals that come with Python and its packages. Every third text of
sufficient length is an evaluation document; the others are training documents, in copies of which evaluation text is
planted in the ways it gets into a corpus. Hosts that share text with an evaluation document by themselves are set
aside and counted. Wanted is what the audit's rule promises: ``drop``, ``cut`` (or drop), ``only cut``, or ``nothing``.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.decide import decide
from stages.data.decontaminate.exclude import excluded_hashes
from stages.data.matching.chain import scan
from stages.data.matching.index import build
from stages.statistics.intervals import wilson

EVALUATION_WORDS, HOST_WORDS = 20_000, 4_000  # of a text at most; longer ones teach nothing more
LEAST_WORDS = 1_500
LEAST_TEXTS, MOST_TEXTS = 3, 60

Text = list[str]  # words with their punctuation
Wanted = Literal["drop", "cut", "only cut", "nothing"]


@dataclass(frozen=True)
class Kind:
    """One way of planting: (evaluation text, host, chance) -> training document."""

    name: str
    plant: Callable[[Text, Text, random.Random], Text]
    wanted: Wanted


@dataclass(frozen=True)
class Result:
    """How many documents of a kind were planted, showed a verified span, were cut or dropped, were dropped."""

    kind: Kind
    planted: int
    found: int
    acted: int
    dropped: int

    @property
    def right(self) -> int:
        """Documents treated as wanted."""
        cut = self.acted - self.dropped
        as_wanted = {"drop": self.dropped, "cut": self.acted, "only cut": cut, "nothing": self.planted - self.acted}
        return as_wanted[self.kind.wanted]


def misread(share: float) -> Callable[[Text, random.Random], Text]:
    """Optical character recognition that takes this share of the letters for others."""

    def change(text: Text, chance: random.Random) -> Text:
        return [
            "".join(chance.choice("abcdefghilmnorstu") if c.isalpha() and chance.random() < share else c for c in word)
            for word in text
        ]

    return change


def modernised(text: Text, chance: random.Random) -> Text:
    """Another spelling of one word in eight, the same wherever it stands, and another typography."""
    return [word[:-1] + "ee" if len(word) > 3 and _number(word) % 8 == 0 else word.replace("'", "’") for word in text]


def translated(text: Text, chance: random.Random) -> Text:
    """Word for word into a language that has none of these words."""
    return [f"q{_number(word):x}" for word in text]


def another_translation(text: Text, chance: random.Random) -> Text:
    """One word in five is the same, and in one stretch of 80 words in every 1,100 two in three; the others are words of
    the same text."""
    return [
        word if chance.random() < (0.68 if i % 1100 < 80 else 0.2) else chance.choice(text)
        for i, word in enumerate(text)
    ]


def verbatim(text: Text, chance: random.Random) -> Text:
    return text


def passage(length: int, change: Callable[[Text, random.Random], Text] = verbatim, times: int = 1) -> Kind:
    """``times`` passages of ``length`` words, each somewhere in the host."""

    def plant(book: Text, host: Text, chance: random.Random) -> Text:
        out = host
        for _ in range(times):
            start = chance.randrange(len(book) - length + 1)
            at = chance.randrange(len(out))
            out = [*out[:at], *change(book[start : start + length], chance), *out[at:]]
        return out

    name = change.__name__ if change is not verbatim else "verbatim"
    return Kind(f"{times} x {length} words, {name}", plant, "cut" if length >= 50 else "nothing")


def quotations(length: int, times: int, hosts: int) -> Kind:
    """``times`` verbatim passages in a document as long as ``hosts`` hosts."""
    inner = passage(length, times=times)
    name = f"{times} quotations of {length} words, long document"
    return Kind(name, lambda book, host, chance: inner.plant(book, host * hosts, chance), "only cut")


def whole(name: str, change: Callable[[Text, random.Random], Text], wanted: Wanted = "drop") -> Kind:
    """The whole evaluation document, changed."""
    return Kind(name, lambda book, host, chance: change(book, chance), wanted)


def shuffled(text: Text, chance: random.Random) -> Text:
    """In paragraphs of 120 words, in another order."""
    parts = [text[i : i + 120] for i in range(0, len(text), 120)]
    chance.shuffle(parts)
    return [word for part in parts for word in part]


def _named(name: str, kind: Kind) -> Kind:
    return Kind(name, kind.plant, kind.wanted)


KINDS = (
    _named("passage of 60 words", passage(60)),
    *(_named(f"60 words, {p}% of letters misread", passage(60, misread(p / 100))) for p in (1, 3, 5, 8, 10)),
    _named("passage of 200 words", passage(200)),
    _named("200 words, modernised spelling", passage(200, modernised)),
    *(_named(f"200 words, {p}% of letters misread", passage(200, misread(p / 100))) for p in (1, 3, 5, 8, 10)),
    whole("whole, under other metadata", verbatim),
    whole("whole, modernised spelling", modernised),
    *(whole(f"whole, {p}% of letters misread", misread(p / 100)) for p in (1, 3, 5, 10)),
    whole("whole, paragraphs shuffled", shuffled),
    Kind("whole, inside an anthology", lambda book, host, chance: [*host, *host, *book, *host], "drop"),
    _named("one quotation of 25 words", passage(25)),
    _named("five quotations of 25 words", passage(25, times=5)),
    quotations(52, 11, 12),
    quotations(90, 20, 40),
    whole("another translation", another_translation, "nothing"),
    whole("translated word by word", translated, "nothing"),
    Kind("clean", lambda book, host, chance: host, "nothing"),
)


def measure(
    texts: Iterable[str], rule: DecontaminateConfig, count: int = 40, seed: int = 0
) -> tuple[list[Result], int, int]:
    """(results per kind, evaluation documents, hosts set aside because they share text by themselves).

    A licence of 150 words, the same in all evaluation documents and in every training document, stands for what must
    not count: it is in the hosts of every kind.
    """
    long_enough = [words for text in texts if len(words := text.split()) >= LEAST_WORDS][:MOST_TEXTS]
    licence = random.Random(seed).sample([f"clause{n}" for n in range(1000)], 150)
    evaluation = [text[:EVALUATION_WORDS] for text in long_enough[::3]]
    hosts = [[*licence, *text[:HOST_WORDS]] for n, text in enumerate(long_enough) if n % 3]
    if len(evaluation) < LEAST_TEXTS:
        fix = f"name a folder with at least {3 * LEAST_TEXTS} .txt files of {LEAST_WORDS} words or more"
        raise SystemExit(f"{len(long_enough)} texts are long enough, too few. Fix: {fix}")
    books = [(str(n), " ".join([*licence, *text]).encode()) for n, text in enumerate(evaluation)]
    index = build(books, rule.ngram, rule.max_books_per_ngram, excluded_hashes(rule))

    def fate(document: Text) -> tuple[bool, str]:
        scanned = scan(" ".join(document).encode(), index, rule.max_gap, rule.max_drift, rule.min_span_words)
        decision = decide([scanned], index.book_words, rule.model_copy(update={"coverage_limit": 1.0}))[0]
        return bool(decision.pairs), decision.action

    clean = [host for host in hosts if not fate(host)[0]]
    if not clean:
        raise SystemExit("every training text shares text with an evaluation text. Fix: name another folder")
    results = []
    for kind in KINDS:
        chance = random.Random(f"{seed} {kind.name}")
        fates = []
        for n in range(count):
            host = clean[n % len(clean)]
            fates.append(fate(kind.plant(evaluation[n % len(evaluation)], host, chance)))
        acted = sum(action in ("cut", "drop") for _, action in fates)
        dropped = sum(action == "drop" for _, action in fates)
        results.append(Result(kind, count, sum(found for found, _ in fates), acted, dropped))
    return results, len(evaluation), len(hosts) - len(clean)


def _number(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.lower().encode()).digest()[:6])


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    from bench.dedup_accuracy import texts_at_hand

    results, books, aside = measure(texts_at_hand(arguments[0] if arguments else None), DecontaminateConfig())
    print(f"{books} evaluation documents; {aside} training documents set aside: they share text by themselves")
    print(f"{'planted':40}{'n':>5}{'found':>7}{'acted':>7}{'dropped':>9}   {'wanted':9}{'as wanted, 95% interval'}")
    for r in results:
        share = wilson(r.right, r.planted)
        print(
            f"{r.kind.name:40}{r.planted:5}{r.found:7}{r.acted:7}{r.dropped:9}   {r.kind.wanted:9}"
            f"{share.estimate:6.1%}  {share.low:.1%} to {share.high:.1%}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
