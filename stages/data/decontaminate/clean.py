"""Writing the cleaned corpus, one task a shard: cut and drop as decided, then scan the very file that was written.

An interrupted cleaning goes on where it was (``saved``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster import storage
from stages.data.corpus.documents import write_documents
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.decide import decide_document, without_notes, without_ranges
from stages.data.matching.index import Index
from stages.data.matching.shards import DocumentsShard, ShardScan, release_memory, scan_into, texts_of
from stages.data.saved import Saved, spread_saved

CLEANED = "cleaned.parquet"
Actions = dict[int, tuple[tuple[int, int], ...] | None]
"""Training document by number in its shard -> byte ranges to cut out, None: leave it out. Others stay as they are."""


@dataclass(frozen=True)
class Terms:
    """What holds for the whole corpus when a shard is cleaned."""

    over: Mapping[int, float] = field(default_factory=dict)  # see ``decide.without_notes``
    only_copies: bool = False  # the contaminated evaluation documents go, not the training documents
    removed: frozenset[str] = frozenset()  # ids of those evaluation documents
    drop_all: bool = False  # the last round: whatever would be cut is dropped


@dataclass(frozen=True)
class ShardToClean:
    """One shard to clean: its Parquet file (``on_disk()``), its scan, and which documents are exact copies."""

    shard: Any
    scan: ShardScan
    copies: tuple[int, ...]


@dataclass(frozen=True)
class CleanedShard:
    """A cleaned Parquet file below ``work_url``, which can be cleaned again.

    ``rows``, ``sizes``: training documents of the shard before that were changed, and their bytes now, 0 for left out.
    """

    name: str
    part: Saved
    rows: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    def on_disk(self) -> contextlib.AbstractContextManager[Path]:
        """The file on this machine's disk."""
        return self.part.on_disk(CLEANED)

    def digest(self) -> str:
        """Of what it follows from."""
        return self.part.url.rsplit("/", 1)[-1].split("-", maxsplit=1)[0]

    def place(self, target: Path) -> None:
        """Make it the output's file ``target``."""
        self.part.place(CLEANED, target)


def clean_shards(
    jobs: Sequence[ShardToClean],
    index: Index,
    rule: DecontaminateConfig,
    terms: Terms,
    work_url: str,
    worth_it: bool,
    progress: Callable[[ShardScan], None],
) -> list[tuple[CleanedShard, ShardScan]]:
    """(cleaned file, scan of that file) per job, in order."""
    results = []
    place = storage.join(work_url, "clean")
    parts = spread_saved(_clean_shard, jobs, place, index, rule, terms, identity=_identity, worth_it=worth_it)
    for job, part in zip(jobs, parts, strict=True):
        rows, sizes = part.value["rows"], part.value["sizes"]
        cleaned = CleanedShard(job.shard.name, replace(part, value=None), tuple(rows), tuple(sizes))
        scan = ShardScan(url=part.url, **part.value["scan"])
        results.append((cleaned, scan))
        progress(scan)
    return results


def copy_shards(shards: Sequence[DocumentsShard], work_url: str, worth_it: bool) -> list[CleanedShard]:
    """The shards as they are, for an output that is not cleaned."""
    place = storage.join(work_url, "copied")
    parts = spread_saved(_copy_shard, shards, place, identity=_identity_of_copy, worth_it=worth_it)
    return [CleanedShard(shard.name, part) for shard, part in zip(shards, parts, strict=True)]


def _copy_shard(shard: DocumentsShard, folder: Path) -> None:
    """One task."""
    with shard.on_disk() as file:
        shutil.copyfile(file, folder / CLEANED)


def _identity_of_copy(shard: DocumentsShard) -> str:
    return hashlib.sha256(f"{shard.name} {shard.digest()}".encode()).hexdigest()


def _identity(job: ShardToClean, index: Index, rule: DecontaminateConfig, terms: Terms) -> str:
    """The scan's name holds the digest of texts and index; round for round it is another scan."""
    scan = job.scan.url.rsplit("/", 1)[-1]
    said = [sorted(terms.over.items()), terms.only_copies, sorted(terms.removed), terms.drop_all]
    return hashlib.sha256(json.dumps([scan, job.copies, rule.model_dump(mode="json"), said]).encode()).hexdigest()


def _clean_shard(
    job: ShardToClean, folder: Path, index: Index, rule: DecontaminateConfig, terms: Terms
) -> dict[str, Any]:
    """One task: write the shard without what must go, then scan what was written."""
    actions: Actions = dict.fromkeys(job.copies)
    if not terms.only_copies:
        actions = {**_decided(job.scan, index, rule, terms), **actions}
    rows, sizes = _write(job.shard, actions, terms.removed, folder / CLEANED)
    scan = scan_into(folder, job.shard.name, texts_of(folder / CLEANED, ("train",)), index, rule)
    return {"rows": rows, "sizes": sizes, "scan": scan}


def _decided(scan: ShardScan, index: Index, rule: DecontaminateConfig, terms: Terms) -> Actions:
    words = index.book_words
    actions: Actions = {}
    for document in scan.found():
        decision = without_notes(decide_document(document.scanned, words, rule), terms.over)
        if decision.action == "drop" or (decision.action == "cut" and terms.drop_all):
            actions[document.row] = None
        elif decision.action == "cut":
            actions[document.row] = decision.cut
    return actions


def _write(shard: Any, actions: Actions, removed: frozenset[str], path: Path) -> tuple[list[int], list[int]]:
    """Write the file; (``rows``, ``sizes``) of ``CleanedShard``."""
    with shard.on_disk() as file:
        table = pq.read_table(file, memory_map=False).combine_chunks()
    release_memory()  # reading takes four times the text
    training = np.flatnonzero(pc.equal(table["split"], "train").to_numpy())
    keep = ~pc.is_in(table["doc_id"], pa.array(sorted(removed), pa.string())).to_numpy()
    new: dict[int, bytes] = {}
    rows, sizes = [], []
    for row, ranges in sorted(actions.items()):
        at = int(training[row])
        left = b"" if ranges is None else without_ranges(memoryview(table["text"][at].as_buffer()), ranges)
        if not left or left.isspace():
            left, keep[at] = b"", False
        else:
            new[at] = left
        rows.append(row)
        sizes.append(len(left))
    if new:
        digests = table["sha256"].to_pylist()
        for at, left in new.items():
            digests[at] = hashlib.sha256(left).hexdigest()
        column = table.schema.get_field_index("text")
        table = table.set_column(column, table.schema.field(column), _replaced(table["text"], new))
        column = table.schema.get_field_index("sha256")
        table = table.set_column(column, table.schema.field(column), pa.array(digests, table.schema.types[column]))
        new.clear()
    if not keep.all():
        table = table.filter(pa.array(keep))
    write_documents(table, path)
    release_memory()
    return rows, sizes


def _replaced(texts: pa.ChunkedArray, new: dict[int, bytes]) -> pa.ChunkedArray:
    """The column with some texts replaced; neither the others nor the new ones are copied."""
    parts, at = [], 0
    for row, text in sorted(new.items()):
        parts += texts.slice(at, row - at).chunks
        offsets = pa.py_buffer(np.array([0, len(text)], np.int64))
        parts.append(pa.LargeStringArray.from_buffers(1, offsets, pa.py_buffer(text)))
        at = row + 1
    parts += texts.slice(at).chunks
    # An empty slice would keep all the texts it was cut from in memory.
    return pa.chunked_array([part for part in parts if len(part)], pa.large_string())
