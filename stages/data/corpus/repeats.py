"""Documents of one id anywhere in the corpus: the same text twice is a repeat, other texts are told apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.data.corpus.config import SPLITS
from stages.data.corpus.documents import rows_at
from stages.data.corpus.groups import problem_row

ROWS = 2**16  # looked at together
_HELD_OUT_FIRST = {"test": 0, "validation": 1, "train": 2}


@dataclass
class Repeats:
    """``lost``: documents left out, by number, with a problem for each in ``repeated``; ``names``: the new ids of
    others, with a problem for each in ``renamed``."""

    lost: list[int] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    repeated: list[tuple[str, ...]] = field(default_factory=list)
    renamed: list[tuple[str, ...]] = field(default_factory=list)

    def name(self, table: pa.Table, number: int) -> str:
        """The id under which the document stays."""
        return self.names.get(number) or str(table["doc_id"][number].as_py())


def find_repeats(table: pa.Table) -> Repeats:
    """Of several with one id and text an evaluation document is kept before a training one: so the copy that goes is
    the one that would leak. In the same order those of one id and different texts are named ``id``, ``id#2``, ``id#3``.

    ``table``: ``groups.IDS`` of the whole corpus, mapped; beside it 8 bytes a document are in memory.
    """
    found = Repeats()
    taken: set[str] | None = None  # what a new name could run into
    for name, places in _same_ids(table["doc_id"]):
        splits = {place: SPLITS[table["split"][place].as_py()] for place in places}
        source = name.split("/")[0]
        first: dict[bytes, int] = {}
        number = 1
        for place in sorted(splits, key=lambda place: (_HELD_OUT_FIRST[splits[place]], place)):
            digest = table["sha256"][place].as_py()
            if (kept := first.setdefault(digest, place)) != place:
                found.lost.append(place)
                said = f"the copy in {splits[kept]} was kept, this one ({splits[place]}) not"
                row = problem_row(name, source, "duplicate_id", f"the same id and text: {said}")
                found.repeated.append(tuple(row.values()))
            elif len(first) > 1:
                taken = _with_number(table["doc_id"]) if taken is None else taken
                number += 1
                while f"{name}#{number}" in taken:
                    number += 1
                found.names[place] = f"{name}#{number}"
                detail = f"another document has the id {name} and another text"
                row = problem_row(found.names[place], source, "same_id", detail, "renamed")
                found.renamed.append(tuple(row.values()))
    return found


def _same_ids(ids: pa.ChunkedArray) -> Iterator[tuple[str, list[int]]]:
    """(id, documents that have it, ascending) of those that several have, in order of the ids."""
    by_id = pc.sort_indices(pa.table({"id": ids}), sort_keys=[("id", "ascending")]).to_numpy().view(np.int64)
    waiting: list[int] = []
    name = ""
    for start in range(0, len(by_id), ROWS):
        places = by_id[start : start + ROWS + 1]
        values = rows_at(ids, places)
        same = pc.equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
        for at in np.flatnonzero(same).tolist():
            if waiting and (waiting[-1] != places[at]):
                yield name, sorted(waiting)
                waiting = []
            name = name if waiting else values[at].as_py()
            waiting = waiting or [int(places[at])]
            waiting.append(int(places[at + 1]))
    if waiting:
        yield name, sorted(waiting)


def _with_number(ids: pa.ChunkedArray) -> set[str]:
    """The ids that look as if a number had been added."""
    found: set[str] = set()
    for chunk in ids.chunks:
        found.update(chunk.filter(pc.match_substring(chunk, "#")).to_pylist())
    return found


def is_in(values: pa.ChunkedArray, among: pa.Array) -> NDArray[np.bool_]:
    """Which of ``values`` are ``among`` some few."""
    found = [pc.is_in(chunk, among).to_numpy(zero_copy_only=False) for chunk in values.chunks]
    return np.concatenate([np.empty(0, bool), *found])
