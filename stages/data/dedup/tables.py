"""The one table: what became of every training document of the corpus, with the evidence (docs/formats.md).

Rows are made some thousand at a time, in the order in which they are written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.data.corpus.documents import rows_at, write_table
from stages.data.dedup.config import DedupConfig
from stages.data.dedup.decide import Decided
from stages.data.dedup.joined import Audited, audited, matched, sorted_by
from stages.data.dedup.numbered import CONTAINED, COPY, EDITION, KEPT, NOBODY, RULES, WORDS, Corpus, inverse
from stages.data.dedup.signatures import FILTERED
from stages.data.matching.shards import release_memory
from stages.stage import Artifact

STRINGS = ("doc_id", "fate", "stage", "rule", "reason", "other_id", "kept_id", "measure")
DECISIONS = pa.schema(
    [
        *((name, pa.string()) for name in STRINGS),
        *((name, pa.float64()) for name in ("score", "threshold")),
        *((name, pa.string()) for name in ("text", "other_text", "contamination", "language")),
        *((name, pa.int64()) for name in ("words", "bytes_in", "bytes_out")),
    ]
)
FATES = pa.schema(
    [
        *((name, pa.string()) for name in ("fate", "stage", "rule")),
        *((name, pa.int64()) for name in ("documents", "bytes_in", "bytes_out")),
    ]
)
PAIRS = pa.schema(
    [
        *((name, pa.string()) for name in ("doc_id", "other_id", "rule")),
        *((name, pa.float64()) for name in ("jaccard", "containment", "containment_of_other")),
        ("shared_ngrams", pa.int64()),
        *((name, pa.string()) for name in ("text", "other_text")),
    ]
)
GRAVITY = ("dropped", "excised", "kept")
COPY_OF = "exact copy of "  # how the audit's reason begins for a document it left out as a copy
AT_ONCE = 4096  # rows written at a time

Fate = tuple[str, str | None, str | None]
"""What became of a document, in which stage, by which rule."""
FATES_OF_ROWS: list[Fate] = sorted(
    [
        *((GRAVITY[0], "dedup", rule) for rule in RULES[1:]),
        *((fate, "decontaminate", rule) for fate in GRAVITY for rule in ("contamination", "exact copy")),
        *((fate, None, None) for fate in GRAVITY),
    ],
    key=lambda fate: (GRAVITY.index(fate[0]), fate[1] or "~", fate[2] or ""),
)
"""In the order of the table."""
_CODE = {fate: code for code, fate in enumerate(FATES_OF_ROWS)}
_UNTOUCHED = _CODE["kept", None, None]


class Table:
    """The rows of ``decisions.parquet`` of a corpus that is decided; A in number."""

    def __init__(self, corpus: Corpus, decided: Decided, documents: Artifact, config: DedupConfig) -> None:
        self._corpus, self._decided, self._config = corpus, decided, config
        self._ids = corpus.table["doc_id"]
        by_id = sorted_by(self._ids)
        self._place_of_id = inverse(by_id)
        self._audit: Audited = audited(documents, self._ids, by_id, corpus.spill)
        self._rows = self._audit.rows
        self.rows = self._rows.num_rows
        self.bytes_in = int(pc.sum(self._rows["bytes_in"]).as_py() or 0)
        self._check_sizes()
        self._code = self._codes()
        self._original = self._originals(by_id)
        release_memory()

    def write(self, folder: Path) -> None:
        """Write decisions, fates and pairs."""
        with pq.ParquetWriter(folder / "decisions.parquet", DECISIONS, compression="zstd") as writer:
            order = self._order()
            for start in range(0, max(1, self.rows), AT_ONCE):
                writer.write_table(self._decisions(order[start : start + AT_ONCE]), row_group_size=256)
            del order
            release_memory()
        write_table(pa.Table.from_pylist(list(self._fates()), schema=FATES), folder / "fates.parquet")
        with pq.ParquetWriter(folder / "pairs.parquet", PAIRS, compression="zstd") as writer:
            found = self._pairs_in_order()
            for start in range(0, max(1, len(found)), AT_ONCE):
                writer.write_table(self._pairs(found[start : start + AT_ONCE]), row_group_size=256)

    def _check_sizes(self) -> None:
        left = np.flatnonzero(self._audit.number != NOBODY)
        number = self._audit.number[left]
        said, there = self._rows["bytes_out"].to_numpy()[left], self._corpus.column("bytes")[number]
        if (wrong := np.flatnonzero(said != there)).size:
            at = int(wrong[0])
            name = self._ids[int(number[at])].as_py()
            raise RuntimeError(f"{name}: the audit left {said[at]} bytes, its documents hold {there[at]}")

    def _codes(self) -> NDArray[np.uint8]:
        """[A] places in ``FATES_OF_ROWS``."""
        left = self._audit.number != NOBODY
        cut = self._rows["bytes_out"].to_numpy() < self._rows["bytes_in"].to_numpy()
        of_audit = np.empty(self.rows, np.uint8)
        at = 0
        for chunk in self._rows["reason"].chunks:
            reason, here = pc.fill_null(chunk, ""), of_audit[at : at + len(chunk)]
            here[:] = np.where(pc.starts_with(reason, COPY_OF).to_numpy(zero_copy_only=False), 2, 1)
            here[pc.equal(reason, "").to_numpy(zero_copy_only=False)] = 0
            at += len(chunk)
        table = np.array(
            [
                [_CODE[fate, "decontaminate" if rule else None, rule] for rule in (None, "contamination", "exact copy")]
                for fate in GRAVITY
            ],
            np.uint8,
        )
        code = table[np.where(left, np.where(cut, 1, 2), 0), of_audit]
        rule = np.where(left, self._corpus.rule[self._audit.number], KEPT)
        dropped = rule != KEPT
        of_rule = np.array([0, *(_CODE["dropped", "dedup", name] for name in RULES[1:])], np.uint8)
        code[dropped] = of_rule[rule[dropped]]
        return np.asarray(code)

    def _originals(self, by_id: NDArray[np.int64]) -> dict[int, int]:
        """Place of a copy that the audit dropped -> number of the document it is a copy of, where that is there."""
        copies = np.flatnonzero(self._code == _CODE["dropped", "decontaminate", "exact copy"])
        reasons = rows_at(self._rows["reason"], copies)
        others = pc.struct_field(pc.extract_regex(reasons, f"^{COPY_OF}(?P<id>[^;]*)"), "id").cast(pa.large_string())
        others = pa.chunked_array([others])
        found: dict[int, int] = {}
        for numbers, places, _ in matched(self._ids, by_id, others, sorted_by(others)):
            found.update(zip(copies[places].tolist(), numbers.tolist(), strict=True))
        return found

    def _evidence(self, numbers: NDArray[Any]) -> NDArray[np.int64]:
        """The comparisons that dropped the documents ``numbers``."""
        return self._decided.removals[np.searchsorted(self._decided.removed, numbers)]

    def _order(self) -> NDArray[np.int64]:
        """Places of the audit's rows: the gravest first, then by rule, score and id."""
        score = np.zeros(self.rows)
        audit = np.isin(self._code, [_CODE[fate, "decontaminate", "contamination"] for fate in GRAVITY])
        score[audit] = self._rows["matched_words"].filter(pa.array(audit)).to_numpy()
        compared, number = self._decided.compared, self._audit.number
        for rule, column in ((COPY, None), (WORDS, None), (EDITION, "jaccard"), (CONTAINED, "containment")):
            at = np.flatnonzero(self._code == _CODE["dropped", "dedup", RULES[rule]])
            score[at] = rows_at(compared[column], self._evidence(number[at])).to_numpy() if column else 1.0
        filtered = inverse_of(self._corpus.filtered_numbers, number)
        at = np.flatnonzero(filtered >= 0)
        score[at] = rows_at(self._corpus.filtered["score"], filtered[at]).to_numpy()
        by_id = self._audit.by_id
        return np.asarray(by_id[np.lexsort((-score[by_id], self._code[by_id]))])

    def _decisions(self, places: NDArray[np.int64]) -> pa.Table:
        code, number = self._code[places], self._audit.number[places]
        rows = taken(self._rows, places)
        if len(places) and (code == _UNTOUCHED).all():
            described = taken(self._corpus.table.select(["language", "words"]), number)
            columns = {
                "doc_id": rows["doc_id"],
                "fate": pa.repeat("kept", len(places)),
                "kept_id": rows["doc_id"],
                "contamination": rows["action"],
                "language": pc.if_else(pc.equal(described["language"], ""), None, described["language"]),
                "words": described["words"],
                "bytes_in": rows["bytes_in"],
                "bytes_out": rows["bytes_out"],
            }
            nothing = pa.nulls(len(places))
            arrays = [
                pa.chunked_array([columns.get(f.name, nothing)])
                if f.name not in columns or not isinstance(columns[f.name], pa.ChunkedArray)
                else columns[f.name]
                for f in DECISIONS
            ]
            return pa.table(arrays, names=DECISIONS.names).cast(DECISIONS).combine_chunks()
        made = [
            self._row(place, FATES_OF_ROWS[kind], at, row)
            for place, kind, at, row in zip(
                places.tolist(), code.tolist(), number.tolist(), rows.to_pylist(), strict=True
            )
        ]
        return pa.Table.from_pylist(made, schema=DECISIONS)

    def _row(self, place: int, became: Fate, number: int, earlier: dict[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(DECISIONS.names)
        row["fate"], row["stage"], row["rule"] = became
        row |= {"doc_id": earlier["doc_id"], "contamination": earlier["action"], "bytes_in": earlier["bytes_in"]}
        row["bytes_out"] = earlier["bytes_out"] if number != NOBODY else 0
        if number != NOBODY:
            described = {name: self._corpus.table[name][number].as_py() for name in ("words", "language")}
            row |= {"words": described["words"], "language": described["language"] or None}
        if became[1] == "dedup":
            row |= self._removal(number) | {"bytes_out": 0}
        elif became[2] == "exact copy":
            row |= {"reason": earlier["reason"]}
            row["other_id"] = earlier["reason"].removeprefix(COPY_OF).split(";")[0]
        elif became[2] == "contamination":
            row |= {"reason": earlier["reason"], "other_id": earlier["book_id"]}
            row |= {"measure": "matched words", "score": float(earlier["matched_words"])}
            texts = self._audit.spans.get((earlier["doc_id"], earlier["book_id"]), ("", ""))
            row |= {"text": texts[0] or None, "other_text": texts[1] or None}
        row["kept_id"] = self._kept_id(row, number if became[1] == "dedup" else self._original.get(place, NOBODY))
        return row

    def _kept_id(self, row: dict[str, Any], number: int) -> str | None:
        if row["fate"] != "dropped":
            return str(row["doc_id"])
        kept = NOBODY if number == NOBODY else int(self._corpus.kept_for(np.array([number]))[0])
        return None if kept == NOBODY else str(self._ids[kept].as_py())

    def _removal(self, number: int) -> dict[str, Any]:
        """The columns that a rule of this stage fills in."""
        rule = int(self._corpus.rule[number])
        if rule < COPY:
            at = int(inverse_of(self._corpus.filtered_numbers, np.array([number]))[0])
            said = {name: self._corpus.filtered[name][at].as_py() for name in FILTERED.names[2:]}
            return said | {"text": said["text"] or None}
        (found,) = self._decided.compared.slice(int(self._evidence(np.array([number]))[0]), 1).to_pylist()
        measure, score, threshold = "Jaccard", 1.0, 1.0
        if rule == COPY:
            reason = "the same bytes"
        elif rule == WORDS:
            reason = "the same words in other typography"
        elif rule == EDITION:
            assert self._config.editions is not None
            score, threshold = found["jaccard"], self._config.editions.threshold
            reason = f"Jaccard similarity {score:.3f}, dropped from {threshold:g}; {self._less_text(found)}"
        else:
            assert self._config.containment is not None
            measure, score, threshold = "containment", found["containment"], self._config.containment.threshold
            reason = (
                f"{score:.1%} of its n-grams stand in the other text, dropped from {threshold:.0%}; "
                f"{self._less_text(found)}"
            )
        return {
            "reason": reason,
            "measure": measure,
            "score": score,
            "threshold": threshold,
            "text": found["text"] or None,
            "other_text": found["other_text"] or None,
            "other_id": self._ids[found["other"]].as_py(),
        }

    def _less_text(self, found: dict[str, Any]) -> str:
        mine, other = (self._corpus.table["distinct"][found[side]].as_py() for side in ("document", "other"))
        if mine == other:
            return "kept is the earlier year, else the smaller id"
        return f"it has {mine:,} distinct n-grams, the other {other:,}"

    def _fates(self) -> Iterator[dict[str, Any]]:
        """Documents and bytes by what became of them; every document is in one row."""
        bytes_in, bytes_out = (self._rows[name].to_numpy() for name in ("bytes_in", "bytes_out"))
        there = self._audit.number != NOBODY
        for code in np.unique(self._code).tolist():
            fate, stage, rule = FATES_OF_ROWS[code]
            mine = self._code == code
            left = 0 if fate == "dropped" else int(bytes_out[mine & there].sum())
            yield {
                **{"fate": fate, "stage": stage, "rule": rule, "documents": int(mine.sum())},
                **{"bytes_in": int(bytes_in[mine].sum()), "bytes_out": left},
            }

    def _pairs_in_order(self) -> NDArray[np.int64]:
        """Comparisons of editions and parts, the most similar first: also those that stayed below the thresholds."""
        found = self._decided.compared.slice(self._decided.equal)
        likeness = np.maximum(found["jaccard"].to_numpy(), found["containment"].to_numpy())
        names = [self._place_of_id[found[side].to_numpy()] for side in ("other", "document")]
        return np.asarray(np.lexsort((*names, -likeness)) + self._decided.equal)

    def _pairs(self, at: NDArray[np.int64]) -> pa.Table:
        found = taken(self._decided.compared, at)
        documents, others = found["document"].to_numpy(), found["other"].to_numpy()
        rule = np.where(self._corpus.other[documents] == others, self._corpus.rule[documents], KEPT)
        names = [RULES[kind] or None for kind in rule.tolist()]
        columns = [rows_at(self._ids, documents), rows_at(self._ids, others), pa.array(names, pa.string())]
        columns += [found[name] for name in ("jaccard", "containment", "containment_of_other", "shared")]
        columns += [found["text"], found["other_text"]]
        return pa.table(columns, names=PAIRS.names).cast(PAIRS).combine_chunks()


def taken(table: pa.Table, places: NDArray[Any]) -> pa.Table:
    """Some rows of a table."""
    return pa.table([rows_at(column, places) for column in table.columns], names=table.column_names)


def inverse_of(numbers: NDArray[np.int64], wanted: NDArray[Any]) -> NDArray[np.int64]:
    """The place of each of ``wanted`` in the ascending ``numbers``, -1 where it is not there."""
    if not len(numbers):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
    return np.where(numbers[at] == wanted, at, -1)
