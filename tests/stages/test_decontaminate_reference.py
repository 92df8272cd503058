"""The kernels agree with the rule said slowly: no blocks, no prefilter, nothing skipped, every chain aligned."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from stages.data.matching.boilerplate import body
from stages.data.matching.chain import Span, scan
from stages.data.matching.index import MAX_POSTINGS, build
from tests.stages.test_decontaminate_match import prose
from tests.stages.words_reference import words_reference

N, MAX_BOOKS, GAP, DRIFT, LEAST = 5, 2, 25, 25, 30

Chain = list[int]  # book, first and last+1 word in the document, first and last+1 word in the book
Word = tuple[str, int, int, int]
Step = tuple[int, int, int, int, int, int]  # first and last+1 word in a and in b, agreeing and nearly agreeing words


def scan_reference(text: str, books: list[str]) -> list[Span]:
    """The spans of ``chain.scan``: books that are no editions of one another, fewer than 512 chains at a time."""
    document, evaluation = words_reference(text), [words_reference(book) for book in books]
    spans: dict[Span, Span] = {}
    a = [word[0] for word in document]
    for book, i0, i1, j0, j1 in chains_reference(document, evaluation):
        theirs = evaluation[book]
        b = [word[0] for word in theirs]
        before, own_before = grown_reference(a[:i0][::-1], b[:j0][::-1])
        after, own_after = grown_reference(a[i1:], b[j1:])
        d0, d1, b0, b1 = i0 - before, i1 + after, j0 - own_before, j1 + own_after
        steps = agreeing_reference(a[d0:d1], b[b0:b1])
        matched, near = (sum(step[at] for step in steps) for at in (4, 5))
        if matched + near >= LEAST and 2 * matched >= LEAST:
            bytes_ = document[d0][2], document[d1 - 1][3], theirs[b0][2], theirs[b1 - 1][3]
            first, last, own, own_last, same, nearly = stretch_reference(steps)
            inside = (
                document[d0 + first][2],
                document[d0 + last - 1][3],
                theirs[b0 + own][2],
                theirs[b0 + own_last - 1][3],
            )
            best = Span(book, d0 + first, d0 + last, b0 + own, b0 + own_last, same, *inside, nearly)
            spans[Span(book, d0, d1, b0, b1, matched, *bytes_, near)] = best
    kept: list[Span] = []
    for span in sorted(spans, key=lambda s: (-s.alike, s)):
        if not any(k.book == span.book and k.doc_first <= span.doc_first and span.doc_last <= k.doc_last for k in kept):
            kept.append(span)
    copied = {spans[span] for span in kept if span.alike < 0.925 * span.longer}
    return sorted([*kept, *(span for span in copied if span.alike >= LEAST)])


def chains_reference(document: list[Word], evaluation: list[list[Word]]) -> list[Chain]:
    """Every chain as long as a span must be."""
    places: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for book, theirs in enumerate(evaluation):
        for j in range(len(theirs) - N + 1):
            places[tuple(word[0] for word in theirs[j : j + N])].append((book, j))
    live: list[Chain] = []
    done: list[Chain] = []
    for i in range(len(document) - N + 1):
        known = places.get(tuple(word[0] for word in document[i : i + N]), [])
        if not known or len({book for book, _ in known}) > MAX_BOOKS:
            continue
        c = 0
        while c < len(live):
            if i - live[c][2] > GAP:
                done.append(live[c])
                last = live.pop()
                if c < len(live):
                    live[c] = last
            else:
                c += 1
        for book, j in known[:MAX_POSTINGS]:
            best, best_drift = None, DRIFT + 1
            for chain in live:
                ahead = j - chain[4]
                if chain[0] == book and -N < ahead <= GAP + DRIFT and i + N > chain[2]:
                    drift = abs(i - chain[2] - ahead)
                    if drift < best_drift:
                        best, best_drift = chain, drift
            if best is None:
                live.append([book, i, i + N, j, j + N])
            else:
                best[2], best[4] = i + N, j + N
    return [chain for chain in done + live if min(chain[2] - chain[1], chain[4] - chain[3]) >= 2 * LEAST // 3]


def alike_reference(one: str, two: str) -> bool:
    """At most a third of the letters differ; words of ASCII letters."""
    row = list(range(len(two) + 1))
    for x, letter in enumerate(one, 1):
        new = [x]
        for y, other in enumerate(two, 1):
            new.append(min(row[y - 1] + (letter != other), row[y] + 1, new[-1] + 1))
        row = new
    return row[-1] <= max(len(one), len(two)) // 3


def grown_reference(a: list[str], b: list[str]) -> tuple[int, int]:
    """How many words of ``a`` and of ``b`` a chain in front of both takes up."""

    def both(i: int, j: int) -> bool:
        return i + 1 < len(a) and j + 1 < len(b) and a[i : i + 2] == b[j : j + 2]

    i = j = score = best = 0
    end = (0, 0)
    while score > best - 8 and i < len(a) and j < len(b):
        if a[i] == b[j]:
            i, j, score = i + 1, j + 1, score + 1
            if score > best:
                best, end = score, (i, j)
        elif alike_reference(a[i], b[j]):
            i, j, score = i + 1, j + 1, score + 1
        else:
            shifts = [at for s in (1, 2, 3) for at in ((s, 0), (0, s))]
            di, dj = next((at for at in shifts if both(i + at[0], j + at[1])), (1, 1))
            i, j, score = i + di, j + dj, score - 2 * max(di, dj)
    return end


def stretch_reference(steps: list[Step]) -> Step:
    """Of an alignment the steps in a row in which agreement most outweighs 13 times disagreement: the first that begin
    and end with it."""
    most, best = 0, (0, 0, 0, 0, 0, 0)
    for first in range(len(steps)):
        score = same = near = 0
        for i0, i1, j0, j1, matched, nearly in steps[first:]:
            agrees = i1 - i0 == j1 - j0 == 1 and matched + nearly == 1
            score += 1 if agrees else -13 * max(i1 - i0, j1 - j0)
            same, near = same + matched, near + nearly
            if score <= 0:
                break
            if agrees and score > most:
                most, best = score, (steps[first][0], i1, steps[first][2], j1, same, near)
    return best


def agreeing_reference(a: list[str], b: list[str]) -> list[Step]:
    """Two stretches aligned: their words, and how many of them agree and nearly agree."""

    def agree(i: int, j: int) -> bool:
        if i >= len(a) or j >= len(b) or a[i] != b[j]:
            return False
        return i + 1 >= len(a) or j + 1 >= len(b) or a[i + 1] == b[j + 1]

    i = j = 0
    steps: list[Step] = []
    nearest = [at for r in range(1, GAP + N + 1) for k in range(r, -1, -1) for at in ((r, k), (k, r))]
    while i < len(a) and j < len(b):
        same, near, di, dj = int(a[i] == b[j]), 0, 1, 1
        if not same and not (near := int(alike_reference(a[i], b[j]))):
            di, dj = next((at for at in nearest if agree(i + at[0], j + at[1])), (1, 1))
            near = sum(alike_reference(a[i + k], b[j + k]) for k in range(1, di)) if di == dj else 0
        steps.append((i, i + di, j, j + dj, same, near))
        i, j = i + di, j + dj
    return steps


def damaged(tokens: list[str], chance: random.Random, share: float) -> list[str]:
    """Words replaced, lost, doubled."""
    out: list[str] = []
    for word in tokens:
        out += chance.choices([[word], ["smudge"], [], [word, word]], [1 - share, share, share / 2, share / 2])[0]
    return out


def a_document(books: list[list[str]], chance: random.Random) -> list[str]:
    """Passages of every length and state, quoted again and again, between words of the same language."""
    out: list[str] = []
    for _ in range(chance.randrange(4, 14)):
        book = chance.choice(books)
        start, length = chance.randrange(len(book)), chance.choice([8, 20, 29, 30, 31, 60, 200, 900])
        passage = damaged(book[start : start + length], chance, chance.choice([0, 0, 0.02, 0.1, 0.3]))
        between = prose(chance.randrange(1000), chance.choice([0, 3, 24, 25, 26, 60, 700]), 60)
        out += [*passage, *between] if chance.random() < 0.7 else [*passage, *between, *passage[10:], *passage]
    return out


@pytest.mark.parametrize("seed", range(12))
def test_the_kernels_find_what_the_slow_rule_finds(seed: int) -> None:
    """A small vocabulary, refrains and books that quote one another, so that seeds have several places."""
    chance = random.Random(seed)
    books = [prose(100 * seed + k, chance.choice([400, 800, 1500]), 60) for k in range(5)]
    for _ in range(4):
        book = chance.choice(books)
        refrain, at = chance.choice(books)[:70], chance.randrange(len(book))
        book[at:at] = refrain * chance.choice([1, 1, 3])
    texts = [" ".join(book) for book in books]
    index = build([(str(k), text.encode()) for k, text in enumerate(texts)], N, MAX_BOOKS)
    assert not [pair for pair in index.shared if pair[2] >= 0.5], "editions of one work count once: not said slowly"
    found = 0
    for _ in range(3):
        document = " ".join(a_document(books, chance))
        expected = scan_reference(document, texts)
        assert scan(document.encode(), index, GAP, DRIFT, LEAST).spans == expected
        found += len(expected)
    assert found


NAME = "Project Gutenberg"


@pytest.mark.parametrize("before", [0, 1, 2, 3, *range(988, 998)])
@pytest.mark.parametrize("name", [NAME, NAME.upper(), "Project GUTenberg", "project gutenber", NAME.lower()])
def test_boilerplate_is_seen_wherever_it_stands(before: int, name: str) -> None:
    """The name is looked for in fours of bytes, by blocks of 1,024: neither may matter."""
    named = name in (NAME, NAME.upper(), NAME.lower())
    head = f"{'x' * before}\n*** START OF THIS {name} EBOOK ***\n"
    tail = f"\nEnd of {name}'s book\n\nlicence"
    middle = "\n".join(["the text"] * 10_000)  # so long that header and licence are looked for apart
    text = f"{head}{middle}{tail}".encode()
    start, end = body(text)
    assert text[start:end].strip() == (middle.encode() if named else text.strip())
