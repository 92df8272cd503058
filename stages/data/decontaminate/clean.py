"""Writing the cleaned corpus, one task a shard: cut and drop as decided, then scan the very file that was written.

Like the scan's, results lie below ``work_url`` under the digest of what they follow from, so that an interrupted
cleaning goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster import storage
from stages.data.corpus.documents import write_documents
from stages.data.corpus.parallel import spread
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.decide import cut, decide_document, without_notes
from stages.data.matching.index import Index
from stages.data.matching.shards import ShardScan, Text, release_memory, scan_shard, texts_of

Actions = dict[int, tuple[tuple[int, int], ...] | None]
"""Training document by number in its shard -> byte ranges to cut out, None: leave it out. Others stay as they are."""


@dataclass(frozen=True)
class Verdict:
    """What holds for the whole corpus when a shard is cleaned."""

    over: Mapping[int, float] = field(default_factory=dict)  # see ``decide.without_notes``
    only_copies: bool = False  # the contaminated evaluation documents go, not the training documents
    removed: frozenset[str] = frozenset()  # ids of those evaluation documents
    drop_all: bool = False  # the last round: whatever would be cut is dropped


@dataclass(frozen=True)
class Job:
    """One shard to clean: its Parquet file (``on_disk()``), its scan, and which documents are exact copies."""

    shard: Any
    scan: ShardScan
    copies: tuple[int, ...]


@dataclass(frozen=True)
class CleanedShard:
    """A cleaned Parquet file below ``work_url``; a ``Shard`` itself, so that it can be scanned and cleaned again.

    ``rows``, ``sizes``: training documents of the shard before that were changed, and their bytes now, 0 for left out.
    """

    name: str
    url: str
    size: int
    documents: int
    bytes: int
    rows: tuple[int, ...]
    sizes: tuple[int, ...]

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[Path]:
        """The file on this machine's disk; fetched, and removed afterwards, where storage is remote."""
        place = storage.local_path(self.url)
        if place is not None:
            yield place
            return
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder, "cleaned.parquet")
            storage.get_file(*storage.filesystem(self.url), place)
            yield place

    def digest(self) -> str:
        return hashlib.sha256(self.url.encode()).hexdigest()  # the name holds the digest of all it follows from

    def texts(self) -> Iterator[Text]:
        with self.on_disk() as path:
            yield from texts_of(path, ("train",))


def clean_shards(
    jobs: Sequence[Job],
    index: Index,
    rule: DecontaminateConfig,
    verdict: Verdict,
    work_url: str,
    basis: str,
    worth_it: bool,
    progress: Callable[[ShardScan], None],
) -> list[tuple[CleanedShard, ShardScan]]:
    """(cleaned file, scan of that file) per job, in order."""
    results = []
    for cleaned, scan in spread(clean_shard, jobs, index, rule, verdict, work_url, basis, worth_it=worth_it):
        results.append((cleaned, scan))
        progress(scan)
    return results


def clean_shard(
    job: Job, index: Index, rule: DecontaminateConfig, verdict: Verdict, work_url: str, basis: str
) -> tuple[CleanedShard, ShardScan]:
    """One task: write the shard without what must go, then scan what was written."""
    actions: Actions = dict.fromkeys(job.copies)
    if not verdict.only_copies:
        actions = {**_decided(job.scan, index, rule, verdict), **actions}
    parts = [job.scan.url.rsplit("/", 1)[-1], sorted(actions.items()), sorted(verdict.removed)]
    identity = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
    url = storage.join(work_url, "clean", f"{job.shard.name}-{identity}")
    fs, path = storage.filesystem(url)
    known = storage.read_json(fs, f"{path}.json")
    if known is None:
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        known = _write(job.shard, actions, verdict.removed, fs, f"{path}.parquet")
        storage.write_atomic(fs, f"{path}.json", storage.to_json(known))
    known = {**known, "rows": tuple(known["rows"]), "sizes": tuple(known["sizes"])}
    cleaned = CleanedShard(name=job.shard.name, url=f"{url}.parquet", **known)
    return cleaned, scan_shard(cleaned, index, rule, work_url, basis)


def _decided(scan: ShardScan, index: Index, rule: DecontaminateConfig, verdict: Verdict) -> Actions:
    words = index.book_words
    actions: Actions = {}
    for document in scan.found():
        decision = without_notes(decide_document(document.scanned, words, rule), verdict.over)
        if decision.action == "drop" or (decision.action == "excise" and verdict.drop_all):
            actions[document.row] = None
        elif decision.action == "excise":
            actions[document.row] = decision.cuts
    return actions


def _write(shard: Any, actions: Actions, removed: frozenset[str], fs: Any, path: str) -> dict[str, Any]:
    """Write the file; the fields of ``CleanedShard`` but name and URL."""
    with shard.on_disk() as file:
        table = pq.read_table(file, memory_map=False).combine_chunks()
    release_memory()  # reading takes four times the text
    training = np.flatnonzero(pc.equal(table["split"], "train").to_numpy())
    keep = ~pc.is_in(table["doc_id"], pa.array(sorted(removed), pa.string())).to_numpy()
    new: dict[int, bytes] = {}
    rows, sizes = [], []
    for row, cuts in sorted(actions.items()):
        at = int(training[row])
        left = b"" if cuts is None else cut(memoryview(table["text"][at].as_buffer()), cuts)
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
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, "cleaned.parquet")
        write_documents(table, draft)
        put_whole(fs, draft, path)
        size = draft.stat().st_size
    train = table.filter(pc.equal(table["split"], "train"))
    total = pc.sum(pc.binary_length(train["text"])).as_py() or 0
    release_memory()
    return {"size": size, "documents": len(train), "bytes": total, "rows": rows, "sizes": sizes}


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


def put_whole(fs: Any, file: Path, path: str) -> None:
    """Copy a local file to ``path``, where it appears whole or not at all."""
    if not storage.is_local(fs):
        fs.put_file(str(file), path)
        return
    draft = Path(f"{path}.{os.urandom(6).hex()}.part")
    shutil.copyfile(file, draft)
    draft.replace(path)
