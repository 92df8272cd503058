"""Long lists of ids side by side, none of them in memory: in order by sorting places, matched a block at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.data.corpus.documents import rows_at

ROWS = 2**16  # of a table in memory at a time


def sorted_by(ids: pa.ChunkedArray) -> NDArray[Any]:
    """Places in the order of ``ids``, in the fewest bytes."""
    order = np.asarray(pc.sort_indices(pa.table({"id": ids}), sort_keys=[("id", "ascending")]).to_numpy())
    return order.astype(np.int32 if len(order) < 2**31 else np.int64)


def spilled(path: Path, columns: Sequence[str], target: Path) -> pa.Table:
    """Columns of the Parquet file ``path``, mapped from ``target``: uncompressed, a batch in memory at a time."""
    with pq.ParquetFile(path) as file:
        fields = [file.schema_arrow.field(name) for name in columns]
        schema = pa.schema([f.with_type(pa.large_string()) if f.name == "doc_id" else f for f in fields])
        with pa.OSFile(str(target), "wb") as out, pa.ipc.new_file(out, schema) as writer:
            for batch in file.iter_batches(ROWS, columns=list(columns)):
                writer.write_table(pa.Table.from_batches([batch]).select(columns).cast(schema))
    return pa.ipc.open_file(pa.memory_map(str(target))).read_all()


def matched(
    ids: pa.ChunkedArray, order: NDArray[Any], wanted: pa.ChunkedArray, wanted_order: NDArray[Any]
) -> Iterator[tuple[NDArray[Any], NDArray[Any], pa.Array]]:
    """Two lists of ids, each with its order, side by side: (places in ``ids``, places in ``wanted`` of the same, those
    of ``wanted`` that have none)."""
    at = 0
    for start in range(0, len(order), ROWS):
        places = order[start : start + ROWS]
        some = rows_at(ids, places)
        last = start + ROWS >= len(order)
        while at < len(wanted_order):
            mine = wanted_order[at : at + ROWS]
            values = rows_at(wanted, mine)
            if not last:
                reached = int(pc.sum(pc.less_equal(values, some[-1])).as_py())
                mine, values = mine[:reached], values[:reached]
            found = pc.index_in(values, value_set=some)
            there = pc.is_valid(found).to_numpy(zero_copy_only=False)
            yield places[found.filter(pa.array(there)).to_numpy()], mine[there], values.filter(pa.array(~there))
            at += len(mine)
            if len(mine) < ROWS:
                break
    if at < len(wanted_order):  # there are no rows at all
        yield np.empty(0, np.int64), np.empty(0, np.int64), rows_at(wanted, wanted_order[at:])
