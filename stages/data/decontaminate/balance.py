"""Do the numbers add up? In = kept + cut + dropped, by documents and bytes, counted from the files themselves.

What the audit decided is joined with the documents that went in and those that came out. A document that vanished
without a decision, or changed without a cut, is a bug of the cleaning: then nothing is committed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

FATES = ("kept", "cut", "dropped")


class Imbalance(Exception):
    """The documents that came out are not those that went in less what was decided: a bug, never the user's fault."""


def balance(source: Path, output: Path, decisions: Path) -> dict[str, dict[str, int]]:
    """{in, kept, cut, dropped, out: {documents, bytes, bytes_removed}} of the training documents.

    ``source`` and ``output`` are folders of documents, ``decisions`` the Parquet table. Raises Imbalance where a
    document's fate is not the one decided, or the sums differ.
    """
    went_in, came_out = _sizes(source, "in"), _sizes(output, "out")
    fates = _fates(went_in, came_out, _decided(decisions))
    found = {fate: _sums(fates.filter(pc.equal(fates["fate"], fate))) for fate in FATES}
    before, after = _total(went_in["bytes_in"]), _total(came_out["bytes_out"])
    documents = sum(found[fate]["documents"] for fate in FATES)
    left = found["kept"]["documents"] + found["cut"]["documents"]
    size = sum(found[fate]["bytes"] for fate in FATES)
    kept = size - sum(found[fate]["bytes_removed"] for fate in FATES)
    for what, one, other in (
        ("documents in", before["documents"], documents),
        ("documents out", after["documents"], left),
        ("bytes in", before["bytes"], size),
        ("bytes out", after["bytes"], kept),
    ):
        if one != other:
            raise Imbalance(f"the audit does not balance: {one} {what} were counted, {other} are accounted for")
    return {"in": before, **found, "out": after}


def _sizes(folder: Path, side: str) -> pa.Table:
    """doc_id, bytes and sha256 of the training documents."""
    names = ["doc_id", f"bytes_{side}", f"sha256_{side}"]
    parts = []
    for batch in _batches(folder, ["doc_id", "split", "text", "sha256"]):
        train = batch.filter(pc.equal(batch["split"], "train"))
        size = pc.binary_length(train["text"]).cast(pa.int64())
        parts.append(pa.table([train["doc_id"], size, train["sha256"]], names))
    empty = pa.table([pa.array([], pa.string()), pa.array([], pa.int64()), pa.array([], pa.string())], names)
    return pa.concat_tables(parts or [empty])


def _total(sizes: Any) -> dict[str, int]:
    return {"documents": len(sizes), "bytes": pc.sum(sizes).as_py() or 0}


def _batches(folder: Path, columns: list[str]) -> Any:
    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(16, columns=columns)


def _decided(decisions: Path) -> pa.Table:
    table = pq.read_table(decisions, columns=["doc_id", "action", "bytes_in", "bytes_out"])
    return table.rename_columns(["doc_id", "action", "decided_in", "decided_out"])


def _fates(before: pa.Table, after: pa.Table, decided: pa.Table) -> pa.Table:
    """doc_id, bytes_in, bytes_out, fate; every document checked against its decision."""
    joined = before.join(after, "doc_id", join_type="full outer").join(decided, "doc_id", join_type="full outer")
    out = pc.fill_null(joined["bytes_out"], 0)
    gone = pc.is_null(joined["bytes_out"])
    same = pc.fill_null(pc.equal(joined["sha256_in"], joined["sha256_out"]), False)
    cut = pc.and_(pc.invert(gone), pc.invert(same))
    may_go = pc.or_(pc.equal(joined["action"], "drop"), pc.equal(joined["action"], "excise"))  # cut, and nothing left
    for wrong, what in (
        (pc.is_null(joined["bytes_in"]), "came out but never went in"),
        (pc.is_null(joined["action"]), "has no decision"),
        (pc.and_(gone, pc.invert(may_go)), "is gone without a decision to drop it"),
        (pc.not_equal(joined["bytes_in"], joined["decided_in"]), "has another size than its decision says"),
        (pc.not_equal(out, joined["decided_out"]), "came out with another size than its decision says"),
        (pc.and_(cut, pc.not_equal(joined["action"], "excise")), "was changed without a decision to cut it"),
    ):
        wrong = pc.fill_null(wrong, False)  # noqa: PLW2901
        if (count := pc.sum(wrong).as_py() or 0) > 0:
            names = ", ".join(map(str, sorted(joined["doc_id"].filter(wrong).to_pylist())[:3]))
            raise Imbalance(f"the audit does not balance: {count} document(s) {what}: {names}")
    fate = pc.if_else(gone, "dropped", pc.if_else(cut, "cut", "kept"))
    return pa.table([joined["doc_id"], joined["bytes_in"], out, fate], ["doc_id", "bytes_in", "bytes_out", "fate"])


def _sums(rows: pa.Table) -> dict[str, int]:
    before, after = pc.sum(rows["bytes_in"]).as_py() or 0, pc.sum(rows["bytes_out"]).as_py() or 0
    return {"documents": rows.num_rows, "bytes": before, "bytes_removed": before - after}


def documents_digest(folder: Path) -> str:
    """sha256 over id, split and sha256 of the text of every document, in the order of ids."""
    names = ["doc_id", "split", "sha256"]
    schema = pa.schema([(name, pa.large_string()) for name in names])
    batches = [pa.Table.from_batches([batch]).cast(schema) for batch in _batches(folder, names)]
    table = pa.concat_tables([schema.empty_table(), *batches])
    order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in names])
    digest = hashlib.sha256()
    for start in range(0, len(order), 2**14):
        some = table.take(order.slice(start, 2**14))
        for row in zip(*(some[name].to_pylist() for name in names), strict=True):
            digest.update("\t".join(row).encode() + b"\n")
    return digest.hexdigest()
