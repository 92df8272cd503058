"""Do the numbers add up? In = kept + cut + dropped, by documents and bytes, counted from the files themselves.

What the audit decided is joined with the documents that went in and those that came out: some files at a time by a task
(``compare``), then id by id in order of the ids, of which the driver holds places alone. A document that vanished
without a decision, or changed without a cut, is a bug of the cleaning: then nothing is committed.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.storage import join
from stages.data.corpus.documents import rows_at
from stages.data.corpus.ids import ROWS, matched, sorted_by, spilled
from stages.data.saved import mapped, spread_saved

FATES = ("kept", "cut", "dropped")
LOTS = 1024  # tasks, at most: so many files are mapped
FORMAT = 1
COMPARED_FILE = "compared.arrow"
COMPARED = pa.schema(
    [
        ("doc_id", pa.large_string()),
        ("train", pa.bool_()),
        *((f"split_{side}", pa.string()) for side in ("in", "out")),
        *((f"sha256_{side}", pa.string()) for side in ("in", "out")),
        *((f"bytes_{side}", pa.int64()) for side in ("in", "out")),
    ]
)
"""Every document that went in or came out; null: not on that side. train: on either side a training document."""
_TAB, _END, _NOTHING = (pa.scalar(sign, pa.large_string()) for sign in ("\t", "\n", ""))
WRONG = (
    "came out but never went in",
    "has no decision",
    "is gone without a decision to drop it",
    "has another size than its decision says",
    "came out with another size than its decision says",
    "was changed without a decision to cut it",
)


class Imbalance(Exception):
    """The documents that came out are not those that went in less what was decided: a bug, never the user's fault."""


class File(Protocol):
    """A file of the documents table, and what its content goes by."""

    def on_disk(self) -> AbstractContextManager[Path]:
        """On this machine's disk."""

    def digest(self) -> str:
        """Hex digest of ids and texts, or of what they follow from."""


@dataclass(frozen=True)
class Balanced:
    """fates: {in, kept, cut, dropped, out: {documents, bytes, bytes_removed}} of the training documents; input, output:
    sha256 over id, split and sha256 of the text of every document, in the order of ids."""

    fates: Mapping[str, Mapping[str, int]]
    input: str
    output: str


def compare(sides: Sequence[tuple[File, File]], work_url: str, spill: Path, worth_it: bool) -> pa.Table:
    """What went in beside what came out of it, ``COMPARED``, mapped: a task reads some of the pairs of files."""
    each = -(-len(sides) // LOTS) or 1
    lots = [tuple(sides[at : at + each]) for at in range(0, len(sides), each)]
    parts = spread_saved(_compare, lots, join(work_url, "compared"), identity=_identity, worth_it=worth_it)
    return pa.concat_tables([COMPARED.empty_table(), *(mapped(join(part.url, COMPARED_FILE), spill) for part in parts)])


def _identity(lot: Sequence[tuple[File, File]]) -> str:
    said = [f"{before.digest()} {after.digest()}" for before, after in lot]
    return hashlib.sha256(f"{FORMAT} {said}".encode()).hexdigest()


def _compare(lot: Sequence[tuple[File, File]], folder: Path) -> None:
    """One task."""
    with pa.OSFile(str(folder / COMPARED_FILE), "wb") as file, pa.ipc.new_file(file, COMPARED) as writer:
        for before, after in lot:
            with before.on_disk() as one, after.on_disk() as other:
                writer.write_table(beside(one, other))


def beside(source: Path, output: Path) -> pa.Table:
    """``COMPARED`` of two files of the documents table."""
    went_in, came_out = _described(source, "in"), _described(output, "out")
    table = went_in.join(came_out, "doc_id", join_type="full outer").sort_by("doc_id")
    train = [pc.fill_null(pc.equal(table[f"split_{side}"], "train"), False) for side in ("in", "out")]
    return table.append_column("train", pc.or_(*train)).select(COMPARED.names).cast(COMPARED)


def _described(path: Path, side: str) -> pa.Table:
    names = ["doc_id", f"split_{side}", f"sha256_{side}", f"bytes_{side}"]
    columns = [COMPARED.field(name).type for name in names]
    parts = [pa.table([pa.array([], kind) for kind in columns], names)]
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(16, columns=["doc_id", "split", "text", "sha256"]):
            size = pc.binary_length(batch["text"]).cast(pa.int64())
            ids = batch["doc_id"].cast(pa.large_string())
            parts.append(pa.table([ids, batch["split"], batch["sha256"], size], names))
    return pa.concat_tables(parts).combine_chunks()


def balance(compared: pa.Table, decisions: Path, spill: Path) -> Balanced:
    """``compared``: as ``compare`` gives it; ``decisions``: the Parquet table. In memory are some 20 bytes a document.

    Raises Imbalance where a document's fate is not the one decided, or the sums differ.
    """
    by_id = sorted_by(compared["doc_id"])
    digests = _digests(compared, by_id)
    decided = spilled(decisions, ["doc_id", "action", "bytes_in", "bytes_out"], spill / "decided.arrow")
    train = compared["train"].to_numpy()
    by_id = by_id[train[by_id]]
    sums = {fate: {"documents": 0, "bytes": 0, "bytes_removed": 0} for fate in FATES}
    wrong: dict[str, list[str]] = defaultdict(list)
    counted: dict[str, int] = defaultdict(int)
    for batch in compared.select(["doc_id", "train", "split_in"]).to_batches():
        new = pc.and_(batch["train"], pc.invert(pc.fill_null(pc.equal(batch["split_in"], "train"), False)))
        _found(wrong, counted, WRONG[0], batch["doc_id"].filter(new))
    unseen = np.ones(len(decided), bool)
    for places, numbers, lost in matched(decided["doc_id"], sorted_by(decided["doc_id"]), compared["doc_id"], by_id):
        unseen[places] = False
        _found(wrong, counted, WRONG[1], lost)
        _settle(_rows(decided, places), _rows(compared, numbers), sums, wrong, counted)
    _found(wrong, counted, WRONG[0], rows_at(decided["doc_id"], np.flatnonzero(unseen)))
    for what in WRONG:
        if counted[what]:
            names = ", ".join(wrong[what][:3])
            raise Imbalance(f"the audit does not balance: {counted[what]} document(s) {what}: {names}")
    before, after = _total(compared, "in"), _total(compared, "out")
    _check(before, after, sums)
    return Balanced({"in": before, **sums, "out": after}, *digests)


def _rows(table: pa.Table, places: NDArray[Any]) -> dict[str, Any]:
    return {name: rows_at(table[name], places) for name in table.column_names}


def _settle(
    decided: dict[str, Any],
    found: dict[str, Any],
    sums: dict[str, dict[str, int]],
    wrong: dict[str, list[str]],
    counted: dict[str, int],
) -> None:
    """Add some documents to their fate's sums, each checked against its decision."""
    there = [pc.equal(found[f"split_{side}"], "train").fill_null(False) for side in ("in", "out")]
    sizes = [pc.if_else(here, found[f"bytes_{side}"], 0) for here, side in zip(there, ("in", "out"), strict=True)]
    before, out = sizes
    gone = pc.invert(there[1])
    same = pc.fill_null(pc.equal(found["sha256_in"], found["sha256_out"]), False)
    cut = pc.and_(there[1], pc.invert(same))
    action = decided["action"]
    may_go = pc.or_(pc.equal(action, "drop"), pc.equal(action, "cut"))  # cut, and nothing left
    for what, rows in (
        (WRONG[2], pc.and_(gone, pc.invert(may_go))),
        (WRONG[3], pc.not_equal(before, decided["bytes_in"])),
        (WRONG[4], pc.not_equal(out, decided["bytes_out"])),
        (WRONG[5], pc.and_(cut, pc.not_equal(action, "cut"))),
    ):
        _found(wrong, counted, what, found["doc_id"].filter(rows))
    for fate, rows in (("kept", pc.and_(same, there[1])), ("cut", cut), ("dropped", gone)):
        bytes_in, bytes_out = (pc.sum(size.filter(rows)).as_py() or 0 for size in sizes)
        sums[fate]["documents"] += pc.sum(rows).as_py() or 0
        sums[fate]["bytes"] += bytes_in
        sums[fate]["bytes_removed"] += bytes_in - bytes_out


def _found(wrong: dict[str, list[str]], counted: dict[str, int], what: str, ids: pa.Array) -> None:
    counted[what] += len(ids)
    if len(wrong[what]) < 3:
        wrong[what] += ids[:3].to_pylist()


def _total(compared: pa.Table, side: str) -> dict[str, int]:
    documents = size = 0
    for split, sizes in zip(compared[f"split_{side}"].chunks, compared[f"bytes_{side}"].chunks, strict=True):
        mine = pc.fill_null(pc.equal(split, "train"), False)
        documents += pc.sum(mine).as_py() or 0
        size += pc.sum(sizes.filter(mine)).as_py() or 0
    return {"documents": documents, "bytes": size}


def _check(before: Mapping[str, int], after: Mapping[str, int], sums: Mapping[str, Mapping[str, int]]) -> None:
    documents = sum(sums[fate]["documents"] for fate in FATES)
    left = sums["kept"]["documents"] + sums["cut"]["documents"]
    size = sum(sums[fate]["bytes"] for fate in FATES)
    kept = size - sum(sums[fate]["bytes_removed"] for fate in FATES)
    for what, one, other in (
        ("documents in", before["documents"], documents),
        ("documents out", after["documents"], left),
        ("bytes in", before["bytes"], size),
        ("bytes out", after["bytes"], kept),
    ):
        if one != other:
            raise Imbalance(f"the audit does not balance: {one} {what} were counted, {other} are accounted for")


def _digests(compared: pa.Table, by_id: NDArray[Any]) -> Iterator[str]:
    """Of what went in, and of what came out."""
    for side in ("in", "out"):
        digest = hashlib.sha256()
        for at in range(0, len(by_id), ROWS):
            names = ("doc_id", f"split_{side}", f"sha256_{side}")
            columns = [rows_at(compared[name], by_id[at : at + ROWS]) for name in names]
            there = columns[-1].is_valid()
            ids, splits, texts = (column.filter(there).cast(pa.large_string()) for column in columns)
            if len(ids):
                lines = pc.binary_join_element_wise(ids, _TAB, splits, _TAB, texts, _END, _NOTHING)
                _, ends, data = lines.buffers()
                digest.update(memoryview(data)[: np.frombuffer(ends, np.int64)[len(lines)]])
        yield digest.hexdigest()
