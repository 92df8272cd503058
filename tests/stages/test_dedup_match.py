"""Fast kernels against slow references; candidates and decisions against trying every pair."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.dedup_accuracy import KINDS, measure
from stages.data.corpus.ids import sorted_by
from stages.data.dedup import candidates
from stages.data.dedup.candidates import Components, Groups, contained_pairs, groups, proposals
from stages.data.dedup.compare import Compared
from stages.data.dedup.decide import editions, greedy
from stages.data.dedup.numbered import preference
from stages.data.dedup.shingles import (
    MULTIPLIER,
    bands,
    common,
    fingerprints,
    located,
    minhash,
    passage,
    permutations,
    shingle,
)
from stages.data.dedup.signatures import BINS
from tests.stages.test_decontaminate_match import prose
from tests.stages.words_reference import words_reference

MASK = 2**64 - 1
PARTS = (
    "cat",
    "Cat,",
    "naïve",
    "to-day",
    "don't",
    "don’t",
    "line-\n  break",
    "漢字",
    "Æsop",
    "-",
    "--",
    "1859",
    "\n",
    "é",
)
TEXTS = st.lists(st.sampled_from(PARTS), max_size=40).map(" ".join) | st.text(max_size=60)


def utf8(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).copy()


def mixed(h: int) -> int:
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & MASK
    return h ^ (h >> 31)


def grams_reference(text: str, n: int) -> list[int]:
    """The hash of every n-gram of words in order, as said in ``shingles``: polynomial, then mix."""
    hashes = [h for _, h, _, _ in words_reference(text)]
    return [
        mixed(sum(h * pow(MULTIPLIER, n - 1 - k, 2**64) for k, h in enumerate(hashes[i : i + n])) & MASK)
        for i in range(len(hashes) - n + 1)
    ]


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(2, 6))
def test_the_set_of_ngrams_is_that_of_the_slow_reference(text: str, n: int) -> None:
    text = text.encode(errors="ignore").decode()
    expected = grams_reference(text, n)
    found = shingle(utf8(text), n)
    assert found.words == len(words_reference(text))
    assert found.grams.tolist() == sorted(set(expected))
    assert [gram for _, grams in located(utf8(text), n) for gram in grams.tolist()] == expected


def test_texts_longer_than_a_block_are_rolled_across_its_border() -> None:
    text, expected = " ".join(prose(1, 9000)), grams_reference(" ".join(prose(1, 9000)), 5)
    assert shingle(utf8(text), 5).grams.tolist() == sorted(set(expected))
    blocks = list(located(utf8(text), 5))
    assert len(blocks) == 3 and [gram for _, grams in blocks for gram in grams.tolist()] == expected
    starts = [start for begins, _ in blocks for start in begins.tolist()]
    assert starts == [start for _, _, start, _ in words_reference(text)][:-4]


def test_typography_makes_no_difference_and_order_does() -> None:
    one, other = "Don't stop -- to-day, naïve Cat!", "DONT STOP: to-\nday; naive cat"
    assert shingle(utf8(one), 3).same == shingle(utf8(other), 3).same
    assert shingle(utf8("a b c a"), 2).same != shingle(utf8("a c b a"), 2).same


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, MASK), max_size=50), st.integers(1, 12))
def test_minhash_is_the_smallest_permuted_value(values: list[int], count: int) -> None:
    grams, by = np.array(sorted(set(values)), np.uint64), permutations(count)
    expected = [
        min(((f * (g & 0xFFFFFFFF) + o) & 0xFFFFFFFF for g in grams.tolist()), default=0xFFFFFFFF)
        for f, o in zip(by.factors.tolist(), by.offsets.tolist(), strict=True)
    ]
    assert minhash(grams, by).tolist() == expected
    assert all(f % 2 for f in by.factors.tolist()), "an even factor would be no permutation"


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.7, 0.9])
def test_minhash_estimates_the_jaccard_similarity(similarity: float) -> None:
    """With 1000 permutations the estimate scatters by at most 0.016; four of those are allowed."""
    rng, size = np.random.default_rng(0), 3000
    shared = round(2 * size * similarity / (1 + similarity))
    pool = rng.integers(0, MASK, 2 * size, dtype=np.uint64)
    a, b = pool[:size], np.concatenate([pool[:shared], pool[size : 2 * size - shared]])
    true = shared / (2 * size - shared)
    by = permutations(1000)
    estimate = float(np.mean(minhash(a, by) == minhash(b, by)))
    assert abs(estimate - true) < 0.065


def test_bands_agree_only_where_all_their_rows_do() -> None:
    values = np.arange(20, dtype=np.uint32)
    other = values.copy()
    other[7] = 99
    assert (bands(values, 5) == bands(other, 5)).tolist() == [True, False, True, True]
    same = np.full(20, 3, np.uint32)
    assert len(set(bands(same, 5).tolist())) == 1


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_common_is_the_size_of_the_intersection(a: set[int], b: set[int]) -> None:
    assert common(np.array(sorted(a), np.uint64), np.array(sorted(b), np.uint64)) == len(a & b)


def test_fingerprints_of_a_part_are_fingerprints_of_the_whole() -> None:
    part = prose(1, 4000)
    whole = shingle(utf8(" ".join(prose(2, 3000) + part + prose(3, 3000))), 5).grams
    inside = shingle(utf8(" ".join(part)), 5).grams
    sample = fingerprints(inside, 16)
    assert set(sample.tolist()) <= set(fingerprints(whole, 16).tolist())
    assert 150 < len(sample) < 350, "one in sixteen of four thousand"


def test_the_evidence_is_the_longest_shared_passage_on_both_sides() -> None:
    middle = prose(5, 60)
    one = " ".join([*prose(6, 300), "Begin", *middle[:40], "end", *prose(7, 30), *middle[50:]])
    other = "\n".join([*prose(8, 200), "BEGIN,", *(w.upper() for w in middle[:40]), "end", *prose(9, 100)])
    text, other_text = passage(utf8(one), utf8(other), shingle(utf8(other), 5).grams, 5, 10_000)
    assert text == " ".join(["Begin", *middle[:40], "end"])
    assert other_text == "\n".join(["BEGIN,", *(w.upper() for w in middle[:40]), "end"])
    shortened, _ = passage(utf8(one), utf8(other), shingle(utf8(other), 5).grams, 5, 20)
    assert shortened == text[:20] + " …"


@pytest.mark.parametrize("before", [3000, 4080, 4096, 4100, 8000])
def test_a_shared_passage_is_followed_over_the_border_of_blocks(before: int) -> None:
    middle, other = prose(5, 5000), utf8(" ".join(prose(5, 5000)))
    text = [*(f"w{k}" for k in range(before)), *middle, *(f"v{k}" for k in range(200)), *middle[:4000]]
    shown, there = passage(utf8(" ".join(text)), other, shingle(other, 5).grams, 5, 10**6)
    assert shown.split() == there.split() == middle


def test_evidence_is_cut_between_characters() -> None:
    text = utf8("aé漢字仮名交" * 9)
    for characters in range(1, 9):
        shown, there = passage(text, text, shingle(text, 3).grams, 3, characters)
        assert shown == there == ("aé漢字仮名交" * 2)[:characters] + " …"


def test_texts_that_share_nothing_show_how_they_begin() -> None:
    one, other = utf8("  a b"), utf8("c d e f g")
    assert passage(one, other, shingle(other, 5).grams, 5, 3) == ("a b", "c d …")


class World:
    """Documents with given similarities, all in one bucket: what is decided is compared with trying every pair."""

    def __init__(self, size: int, seed: int) -> None:
        chance = random.Random(seed)
        self.size = size
        self.distinct = [chance.randrange(1000, 1010) for _ in range(size)]
        self.years = [chance.choice([None, 1850, 1851]) for _ in range(size)]
        self.jaccard = {(i, j): chance.choice([0.1, 0.72, 0.9]) for i in range(size) for j in range(i)}
        for i in range(size):
            for j in range(i):
                if chance.random() < 0.8:
                    self.jaccard[i, j] = 0.0
        self.asked = 0

    def compare(self, pairs: Iterable[tuple[int, int]]) -> list[Compared]:
        found = []
        for other, document in pairs:
            self.asked += 1
            similar = self.jaccard[max(other, document), min(other, document)]
            found.append(Compared(document, other, similar, similar, similar, 0, "", ""))
        return found

    def order(self) -> np.ndarray:
        """Documents by preference."""
        ids = pa.array([f"d{i:03}" for i in range(self.size)], pa.large_string())
        years = pa.array(self.years, pa.int32())
        return preference(pa.table({"distinct": self.distinct, "year": years}), sorted_by(pa.chunked_array([ids])))

    def settle(self) -> dict[int, Compared]:
        """Dropped document -> the comparison that dropped it."""
        order, ranks = self.order(), np.arange(self.size, dtype=np.int32)
        given = (np.tile(ranks, 3), np.full(3, self.size), ranks, order, np.array(0.7))
        return {found.document: found for found, removes in editions(given, self.compare) if removes}


@pytest.mark.parametrize("seed", range(8))
def test_decisions_are_those_of_comparing_every_pair(seed: int) -> None:
    world = World(60, seed)
    dropped = world.settle()
    kept: list[int] = []
    key = lambda d: (-world.distinct[d], world.years[d] or 9999, d)  # noqa: E731
    assert world.order().tolist() == sorted(range(60), key=key)
    for document in sorted(range(60), key=key):
        if all(world.jaccard[max(k, document), min(k, document)] < 0.7 for k in kept):
            kept.append(document)
    assert sorted(set(range(60)) - set(dropped)) == sorted(kept)
    for document, found in dropped.items():
        assert found.other in kept, "each dropped document names a kept one it is similar to itself"
        assert world.jaccard[max(document, found.other), min(document, found.other)] == found.jaccard >= 0.7


@pytest.mark.parametrize("seed", range(8))
def test_parts_are_dropped_as_trying_every_pair_would(seed: int) -> None:
    """The compiled rule beside the plain one; documents are numbered by rank."""
    world = World(60, seed)
    pairs = sorted((j, i) for i in range(60) for j in range(i) if world.jaccard[i, j] >= 0.7)  # i is preferred
    rank = {document: 59 - document for document in range(60)}
    pairs = sorted((rank[j], rank[i]) for j, i in pairs)
    documents, others = (np.array(side) for side in zip(*pairs, strict=True))
    scores = np.array([world.jaccard[59 - o, 59 - d] for d, o in pairs])
    chosen = greedy(documents, others, scores, 60)
    kept: list[int] = []
    best: dict[int, int] = {}
    for document in range(60):
        similar = [o for d, o in pairs if d == document and o in kept]
        if similar:
            best[document] = max(similar, key=lambda o: world.jaccard[59 - o, 59 - document])
        else:
            kept.append(document)
    assert dict(zip(documents[chosen].tolist(), others[chosen].tolist(), strict=True)) == best


def test_many_copies_of_one_text_cost_one_comparison_each() -> None:
    world = World(300, 0)
    world.jaccard = dict.fromkeys(world.jaccard, 0.95)
    assert len(world.settle()) == 299 and world.asked == 299


def test_the_preferred_document_has_most_text_then_the_earliest_year_then_the_smallest_id() -> None:
    table = pa.table(
        {
            "distinct": [9, 10, 9, 9, 9],
            "year": pa.array([1800, 1900, None, 1850, 1850], pa.int32()),
            "doc_id": pa.array(["e", "d", "c", "b", "a"], pa.large_string()),
        }
    )
    assert preference(table, sorted_by(table["doc_id"])).tolist() == [1, 0, 4, 3, 2]


def test_buckets_hold_documents_that_share_a_band_and_no_others() -> None:
    def found(columns: list[list[int]], ranks: list[int]) -> list[list[int]]:
        made = groups([np.array(column, np.uint64) for column in columns], np.array(ranks, np.int32))
        return [group.tolist() for group in made.each()]

    assert found([[1, 2, 1, 3, 4]], [0, 1, 2, 3, 4]) == [[0, 2]]
    assert found([[5, 6, 7, 6, 8]], [4, 3, 2, 1, 0]) == [[1, 3]], "ascending by rank"
    assert found([[1, 1, 1, 1], [5, 6, 5, 6]], [0, 1, 2, 3]) == [[0, 2], [1, 3]], "both numbers agree"
    assert found([[]], []) == []


@pytest.mark.parametrize("seed", range(5))
def test_components_are_what_a_walk_along_the_groups_reaches(seed: int) -> None:
    chance = random.Random(seed)
    lists = [sorted(chance.sample(range(60), chance.randrange(2, 5))) for _ in range(20)]
    connected = Components(60)
    for some in (lists[:7], lists[7:]):
        members = np.array([rank for group in some for rank in group], np.int32)
        connected.join(Groups(members, np.array([len(group) for group in some], np.int32)))
    reached = {rank: {rank} for rank in range(60)}
    for _ in lists:
        for group in lists:
            union = set().union(*(reached[rank] for rank in group))
            for rank in union:
                reached[rank] = union
    ranks = np.arange(60, dtype=np.int32)
    assert connected.roots(ranks).tolist() == [min(reached[rank]) for rank in range(60)]


def test_large_buckets_propose_the_pairs_of_one_document_at_a_time() -> None:
    bucket = np.arange(20)
    first = set(proposals(bucket, set()))
    assert first == {(0, k) for k in range(1, 20)}
    assert set(proposals(bucket, first)) == {(1, k) for k in range(2, 20)}
    assert len(set(proposals(bucket[:5], set()))) == 10


@pytest.mark.parametrize("seed", range(5))
def test_candidates_of_containment_are_those_of_counting_every_pair(seed: int) -> None:
    chance = random.Random(seed)
    sets = [set(chance.sample(range(2000), chance.randrange(20, 120))) for _ in range(12)]
    sets[5] |= sets[9]
    sets[2] |= set(sorted(sets[7])[:-3])
    small = np.array([3, 7, 9, 11], np.int32)
    expected = {
        (a, b)
        for b in small.tolist()
        for a in range(b)
        if len(sets[a] & sets[b]) >= 0.8 * len(sets[b]) - 3 * (0.16 * len(sets[b])) ** 0.5
    }
    assert pairs_of(sets, small) == expected >= {(5, 9), (2, 7)}
    assert pairs_of(sets, small, one_run=False) == expected


def test_a_common_phrase_neither_hides_a_containment_nor_makes_one() -> None:
    """Fingerprints 0 to 39 stand in a hundred documents; 99 stands in 98, which is not among the longest."""
    own = {d: set(range(1000 * d + 40, 1000 * d + 70)) for d in range(100)}
    own[99] = set(sorted(own[98])[:25])
    assert common_phrases(own) == [(98, 99)]


def test_a_text_of_nothing_but_common_fingerprints_is_still_looked_for_in_the_longest_documents() -> None:
    own: dict[int, set[int]] = {d: set() for d in range(70)}
    assert {other for other, document in common_phrases(own) if document == 69} == set(range(64))


def common_phrases(own: dict[int, set[int]]) -> list[tuple[int, int]]:
    return sorted(pairs_of([own[d] | set(range(40)) for d in own], np.arange(len(own))))


class Printed:
    """A run of documents of which only the fingerprints count; borders of its ranges at every thousandth of 2^17."""

    def __init__(self, sets: list[set[int]], first: int) -> None:
        owned = sorted((value, first + owner) for owner, values in enumerate(sets) for value in values)
        self.values = np.array([value for value, _ in owned], np.uint64)
        self.owners = np.array([owner for _, owner in owned], np.int64)
        self.bins = np.searchsorted(self.values, np.arange(BINS + 1) * np.uint64(2**17 // BINS))

    def printed(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        return self.values[self.bins[start] : self.bins[end]], self.owners[self.bins[start] : self.bins[end]]


def pairs_of(sets: list[set[int]], small: np.ndarray, one_run: bool = True) -> set[tuple[int, int]]:
    """Candidates among documents in order of preference; in two runs and many ranges of fingerprints, or in one."""
    half = len(sets) // 2
    runs = [Printed(sets, 0)] if one_run else [Printed(sets[:half], 0), Printed(sets[half:], half)]
    rank, prints = np.arange(len(sets), dtype=np.int32), np.array([*map(len, sets)], np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "PRINTS", 2**25 if one_run else 10)
        longer, document = contained_pairs(runs, rank, prints, np.isin(rank, small), 0.8, False)
    return set(zip(longer.tolist(), document.tolist(), strict=True))


def test_planted_repeats_are_found_and_other_texts_left_alone() -> None:
    texts = [" ".join(prose(100 + k, 3001 * 4)) for k in range(26)]
    results, alone, wrong = measure(texts)
    assert len(results) == len(KINDS) and alone > 0 and wrong == 0
    for result in results:
        if result.kind.repeat:
            assert result.found == result.planted >= 3, result
    quoted = next(result for result in results if "quoted" in result.kind.name)
    assert quoted.found == 0
