"""Deduplication in pieces: the same tables as ever, as a plain comparison of all pairs, and whatever a task gets."""

from __future__ import annotations

import hashlib
import json
import random
import tracemalloc
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.dedup_accuracy import lines
from bench.scale import Forked, texts
from stages.data import parallel
from stages.data.corpus import documents as documents_module
from stages.data.corpus import ids
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.stage import STAGE as DECONTAMINATE
from stages.data.dedup import buckets, candidates, compare, tables
from stages.data.dedup import run as running
from stages.data.dedup.candidates import Groups
from stages.data.dedup.config import DedupConfig
from stages.data.dedup.shingles import common, shingle
from stages.data.dedup.stage import STAGE
from stages.data.dedup.tables import original_of
from tests.stages.test_decontaminate_match import prose
from tests.stages.test_dedup import Book, audited, corpus, edited, write_documents
from tests.support import LocalArtifact, LocalContext, settled

GOLDEN = "682bd09a2fddc367d4cd417210914d799bf3babcc07b5587ea6783c70034fb31"
"""Of the tables that the first version of the stage made of ``books``, which held everything in one process."""
GOLDEN_FATES = "5b017fb668e53899a83baddb7d5d35a22755fb964f0beb3857175a9b0ace9525"
"""Of those that a version made of ``audited_books`` which wrote the table row by row."""


def books() -> dict[str, Book]:
    """Every kind of repeat by hand, and some hundred short documents with their copies and editions."""
    made = {f"w/{i:04}": Book(text, 1900 + i % 3 if i % 2 else None) for i, text in enumerate(texts(600, 3))}
    return {**corpus(), **made}


def digest(output: Path) -> str:
    """Of what all tables and documents hold, whatever wrote the files."""
    said = {}
    for path in sorted(output.rglob("*.parquet")):
        said[path.relative_to(output).as_posix()] = pq.read_table(path).to_pylist()
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def run(documents: LocalArtifact, folder: Path, work: Path | str, **options: Any) -> Path:
    folder.mkdir()
    config = DedupConfig.model_validate(options)
    STAGE.run(config, {"documents": documents}, folder, LocalContext(str(work)))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_tables_are_those_of_the_first_version(tmp_path: Path) -> None:
    documents = audited(tmp_path / "in", books())
    assert digest(run(documents, tmp_path / "out", tmp_path / "work")) == GOLDEN


def audited_books(folder: Path) -> LocalArtifact:
    """What an audit leaves of documents of every fate."""
    novel = corpus()["s/novel"].text.split()
    made = {
        "a/noted": Book(lines(prose(21, 3000) + novel[:40])),
        "a/passage": Book(lines(prose(22, 2000) + novel[200:400] + prose(23, 2000))),
        "a/passage-too": Book(lines(edited(prose(22, 2000) + novel[200:400] + prose(23, 2000), 0.01))),
        "a/passage-copy": Book(lines(prose(22, 2000) + novel[200:400] + prose(23, 2000))),
        "a/whole": Book(lines(prose(24, 400))),
        "a/whole-copy": Book(lines(prose(24, 400))),
        "a/test": Book(lines(prose(24, 400)), split="test"),
    }
    ingested = write_documents(folder / "ingest", {**corpus(), **made})
    (folder / "audit").mkdir()
    config = DecontaminateConfig.model_validate({"canaries": {"count": 0}})
    DECONTAMINATE.run(config, {"documents": ingested}, folder / "audit", LocalContext(str(folder / "work-audit")))
    return LocalArtifact(folder / "audit")


@pytest.mark.parametrize("at_once", [1, 3, tables.AT_ONCE])
def test_every_fate_is_told_as_ever_however_many_rows_are_written_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    documents = audited_books(tmp_path)
    monkeypatch.setattr(tables, "AT_ONCE", at_once)
    out = run(documents, tmp_path / "out", tmp_path / "work", length={"min_bytes": 8})
    told = {(row["fate"], row["rule"]) for row in pq.read_table(out / "fates.parquet").to_pylist()}
    dropped = {"exact copy", "same words", "edition", "contained", "length", "contamination"}
    assert told == {
        *(("dropped", rule) for rule in dropped),
        *(("kept", rule) for rule in (None, "contamination")),
        ("cut", "contamination"),
    }
    assert digest(out) == GOLDEN_FATES


@pytest.mark.parametrize("tiny", [False, True])
def test_whatever_a_task_gets_the_files_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: bool
) -> None:
    """One task for everything; then part files, columns of hashes, ranges of fingerprints and texts in small lots."""
    monkeypatch.setattr(documents_module, "PART_BYTES", 60_000)
    documents = audited(tmp_path / "in", books())
    plain = run(documents, tmp_path / "plain", tmp_path / "work-plain")
    if tiny:
        monkeypatch.setattr(compare, "LEAST_BYTES", 3000)
        monkeypatch.setattr(candidates, "KEYS", 100)
        monkeypatch.setattr(candidates, "PRINTS", 100)
        monkeypatch.setattr(ids, "ROWS", 7)
        monkeypatch.setattr(tables, "ROWS", 7)
    else:
        monkeypatch.setattr(running, "RUNS", 2)
    assert files(run(documents, tmp_path / "other", tmp_path / "work-other")) == files(plain)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_same_bytes_with_any_number_of_tasks_at_a_time(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(documents_module, "PART_BYTES", 60_000)
    documents = audited(tmp_path / "in", books())
    plain = run(documents, tmp_path / "plain", tmp_path / "work-plain")
    monkeypatch.setattr(running, "WORTH_TASKS", 0)
    monkeypatch.setattr(compare, "LEAST_BYTES", 30_000)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": workers})
    assert files(run(documents, tmp_path / "ray", tmp_path / "work-ray")) == files(plain)


def test_the_driver_reads_no_text_however_few_repeats_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of few repeats all texts are one lot, which a task compares as it does many."""
    documents = audited(tmp_path / "in", books())
    monkeypatch.setattr(running, "WORTH_TASKS", 0)
    monkeypatch.setattr(parallel, "running_ray", Forked)
    reading, read = compare.training_texts, list[Path]()  # by this process: a task's is a child's own
    monkeypatch.setattr(compare, "training_texts", lambda path: read.append(path) or reading(path))
    assert digest(run(documents, tmp_path / "out", tmp_path / "work")) == GOLDEN
    assert not read


def _groups(rng: np.random.Generator, documents: int, groups: int) -> Groups:
    """Of documents of the same third."""
    lengths = rng.integers(2, 4, groups).astype(np.int32)
    third = np.repeat(rng.integers(0, 3, groups), lengths)
    return Groups((rng.integers(0, documents // 3, len(third)) * 3 + third).astype(np.int32), lengths)


@pytest.mark.parametrize("at_once", [1, 7, buckets.AT_ONCE])
def test_buckets_come_by_task_in_the_order_in_which_they_were_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(buckets, "AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    found = [_groups(rng, 300, number) for number in (20, 0, 1, 40)]
    kept = buckets.Buckets(tmp_path, 300)
    for some in found:
        kept.add(some)
    assert set(np.flatnonzero(kept.documents)) == set(np.concatenate([some.members for some in found]))
    given = list(kept.by_task(lambda ranks: ranks.astype(np.int64) % 3, 3))
    assert len(given) == 3
    for task, mine in enumerate(given):
        wanted = [group.tolist() for some in found for group in some.each() if group[0] % 3 == task]
        assert [group.tolist() for group in mine.each()] == wanted


def test_what_bands_find_is_not_held_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kept = buckets.Buckets(tmp_path, 30_000)
    tracemalloc.start()
    try:
        for _ in range(50):
            kept.add(_groups(rng, 30_000, 20_000))
        found = list(kept.by_task(lambda ranks: ranks.astype(np.int64) % 3, 3))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(some.members.nbytes + some.lengths.nbytes for some in found) > 10 * 2**20 > 10 * held


def test_an_interrupted_run_goes_on_and_remote_storage_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_module, "PART_BYTES", 60_000)
    documents = audited(tmp_path / "in", books())
    plain = run(documents, tmp_path / "plain", tmp_path / "work-plain")
    work = f"memory://{tmp_path.name}"
    signing, signed = running.sign, list[str]()

    def sign(parts: Any, *rest: Any) -> Any:
        signed.extend(parts)
        if len(signed) == 5:
            raise RuntimeError("the power fails")
        return signing(parts, *rest)

    monkeypatch.setattr(running, "sign", sign)
    with pytest.raises(RuntimeError):
        run(documents, tmp_path / "torn", work)
    assert files(settled(run(documents, tmp_path / "other", work))) == files(plain)
    parts = [path.name for path in documents_module.document_files(tmp_path / "in" / "documents")]
    assert signed == [f"documents/{name}" for name in (*parts[:5], *parts[4:])], "what was signed is not signed again"


def reference(documents: dict[str, Book], ngram: int = 5) -> dict[str, tuple[str, str]]:
    """Dropped document -> (rule, other), by comparing every pair outright: the rule as docs/corpus.md states it."""
    training = {name: book for name, book in documents.items() if book.split == "train"}
    made = {name: shingle(book.text.encode(), ngram) for name, book in training.items()}
    order = sorted(made, key=lambda name: (-len(made[name].grams), training[name].year or 9999, name))
    dropped: dict[str, tuple[str, str]] = {}
    for rule, key in (("exact copy", lambda name: training[name].text), ("same words", lambda name: made[name].same)):
        first: dict[Any, str] = {}
        for name in order:
            if name in dropped or (rule == "same words" and not made[name].words):
                continue
            if (other := first.setdefault(key(name), name)) != name:
                dropped[name] = rule, other
    share: dict[tuple[str, str], tuple[float, float]] = {}
    for other, name in combinations([name for name in order if name not in dropped], 2):
        a, b = made[name].grams, made[other].grams
        both = common(a, b)
        if both:
            share[other, name] = both / (len(a) + len(b) - both), both / len(a)
    for rule, at, least, words in (("edition", 0, 0.7, 0), ("contained", 1, 0.8, 1000)):
        before = set(dropped)
        for name in order:
            if name in before or made[name].words < words:
                continue
            similar = [o for o in order if o not in dropped and share.get((o, name), (0, 0))[at] >= least]
            if similar:
                dropped[name] = rule, max(similar, key=lambda o: share[o, name][at])
    return dropped


@pytest.mark.parametrize("seed", range(3))
def test_what_is_dropped_is_what_comparing_all_pairs_says(tmp_path: Path, seed: int) -> None:
    """Texts alike enough that the bands cannot miss them."""
    chance = random.Random(seed)
    made: dict[str, Book] = {}
    for i in range(120):
        words = prose(1000 * seed + i, chance.choice([60, 300, 1500, 4000]))
        kind = chance.randrange(8)
        if made and kind < 5:
            words = made[chance.choice(sorted(made))].text.split()
        if kind in (1, 2):
            words = [w.upper() for w in words] if kind == 1 else edited(words, 0.005, i)
        if kind == 3:
            words = words[len(words) // 2 :] if len(words) > 2500 else words
        if kind == 4:
            words = [*words, *prose(5000 + i, 30)]
        made[f"s/{chance.randrange(10**6):06}"] = Book(lines(words), chance.choice([None, 1850, 1900]))
    made["s/held"] = Book(lines(prose(9999, 200)), split="test")
    out = run(audited(tmp_path / "in", made), tmp_path / "out", tmp_path / "work")
    rows = pq.read_table(out / "decisions.parquet").to_pylist()
    found = {row["doc_id"]: (row["rule"], row["other_id"]) for row in rows if row["fate"] == "dropped"}
    assert found == reference(made)
    assert {rule for rule, _ in found.values()} == {"exact copy", "same words", "edition", "contained"}


@pytest.mark.parametrize("name", ["s/a;b", "s/a; longest span of all", "s/x\ny", "s/plain"])
def test_the_original_of_a_copy_is_named_whatever_its_id(name: str) -> None:
    reasons = [f"exact copy of {name}", f"exact copy of {name}; longest span 40 words, acted on from 50"]
    books: list[str | None] = [None, "e/1"]
    if "longest" in name:  # only a name made to look like a reason is taken for one, and only beside one
        reasons, books = reasons[:1], books[:1]
    assert set(original_of(pa.chunked_array([reasons]), pa.chunked_array([books])).to_pylist()) == {name}
