"""The one table: what became of every training document of the corpus, with the evidence (docs/formats.md).

Rows are made some thousand at a time, in the order in which they are written.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.data.corpus.documents import group_size, rows_at, write_table
from stages.data.corpus.ids import ROWS, matched, sorted_by
from stages.data.dedup.config import DedupConfig
from stages.data.dedup.decide import Decided
from stages.data.dedup.joined import Audited, audited
from stages.data.dedup.numbered import (
    CONTAINED,
    COPY,
    EDITION,
    KEPT,
    LANGUAGE,
    LENGTH,
    NOBODY,
    RULES,
    WORDS,
    Corpus,
    inverse,
)
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
GRAVITY = ("dropped", "cut", "kept")
COPY_OF = "exact copy of "  # how the audit's reason begins for a document it left out as a copy
REASONS = r"a span of |\d+ span\(s\) of |longest span |\d+ shared words |[\d.]+% of |the whole of "
"""How it goes on where the document shares something with an evaluation document too: see ``decide_pair``."""
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


class Table:
    """The rows of ``decisions.parquet`` of a corpus that is decided; A in number."""

    def __init__(self, corpus: Corpus, decided: Decided, documents: Artifact, config: DedupConfig) -> None:
        self._corpus, self._decided, self._config = corpus, decided, config
        self._ids = corpus.table["doc_id"]
        self._audit: Audited = audited(documents, self._ids, corpus.by_id, corpus.spill)
        self._rows = self._audit.rows
        self.rows = self._rows.num_rows
        self.bytes_in = int(pc.sum(self._rows["bytes_in"]).as_py() or 0)
        self._check_sizes()
        self._code = self._codes()
        self._original = self._originals()
        release_memory()

    def write(self, folder: Path) -> Iterator[None]:
        """Write decisions, fates and pairs, ``AT_ONCE`` rows a step: between steps tasks can be looked after."""
        with pq.ParquetWriter(folder / "decisions.parquet", DECISIONS, compression="zstd") as writer:
            order = self._order()
            for start in range(0, max(1, self.rows), AT_ONCE):
                rows = self._decisions(order[start : start + AT_ONCE])
                writer.write_table(rows, row_group_size=group_size(start))
                yield
            del order
            release_memory()
        write_table(pa.Table.from_pylist(list(self._fates()), schema=FATES), folder / "fates.parquet")
        with pq.ParquetWriter(folder / "pairs.parquet", PAIRS, compression="zstd") as writer:
            found = self._pairs_in_order()
            for start in range(0, max(1, len(found)), AT_ONCE):
                writer.write_table(self._pairs(found[start : start + AT_ONCE]), row_group_size=group_size(start))
                yield

    def _check_sizes(self) -> None:
        for start in range(0, self.rows, ROWS):
            number = self._audit.number[start : start + ROWS]
            left = np.flatnonzero(number != NOBODY)
            said = self._rows["bytes_out"].slice(start, ROWS).to_numpy()[left]
            there = rows_at(self._corpus.table["bytes"], number[left]).to_numpy()
            if (wrong := np.flatnonzero(said != there)).size:
                at = int(wrong[0])
                name = self._ids[int(number[left[at]])].as_py()
                raise RuntimeError(f"{name}: the audit left {said[at]} bytes, its documents hold {there[at]}")

    def _codes(self) -> NDArray[np.uint8]:
        """[A] places in ``FATES_OF_ROWS``."""
        table = np.array(
            [
                [_CODE[fate, "decontaminate" if rule else None, rule] for rule in (None, "contamination", "exact copy")]
                for fate in GRAVITY
            ],
            np.uint8,
        )
        of_rule = np.array([0, *(_CODE["dropped", "dedup", name] for name in RULES[1:])], np.uint8)
        codes = np.empty(self.rows, np.uint8)
        for start in range(0, self.rows, ROWS):
            rows, number = self._rows.slice(start, ROWS), self._audit.number[start : start + ROWS]
            left = number != NOBODY
            cut = rows["bytes_out"].to_numpy() < rows["bytes_in"].to_numpy()
            reason = pc.fill_null(rows["reason"], "")
            of_audit = np.where(pc.starts_with(reason, COPY_OF).to_numpy(), 2, 1)
            of_audit[pc.equal(reason, "").to_numpy()] = 0
            code = table[np.where(left, np.where(cut, 1, 2), 0), of_audit]
            rule = np.where(left, self._corpus.rule[number], KEPT)
            codes[start : start + ROWS] = np.where(rule != KEPT, of_rule[rule], code)
        return codes

    def _originals(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """(places of the copies that the audit dropped, ascending; numbers of the documents they are copies of, else
        ``NOBODY``)."""
        copies = np.flatnonzero(self._code == _CODE["dropped", "decontaminate", "exact copy"])
        named = (
            original_of(*(rows_at(self._rows[name], copies[start : start + AT_ONCE]) for name in ("reason", "book_id")))
            for start in range(0, len(copies), AT_ONCE)
        )
        others = pa.chunked_array(list(named), pa.large_string())
        found = np.full(len(copies), NOBODY, np.int32)
        for numbers, places, _ in matched(self._ids, self._corpus.by_id, others, sorted_by(others)):
            found[places] = numbers
        return copies, found

    def _evidence(self, numbers: NDArray[Any]) -> NDArray[np.int64]:
        """The comparisons that dropped the documents ``numbers``."""
        return self._decided.removals[np.searchsorted(self._decided.removed, numbers)]

    def _order(self) -> NDArray[Any]:
        """Places of the audit's rows: the gravest first, then by rule, score and id."""
        by_id = self._audit.by_id
        code = self._code[by_id]
        order = np.empty_like(by_id)
        at = 0
        for which in np.unique(code).tolist():
            places = by_id[code == which]
            score = self._scores(FATES_OF_ROWS[which], places)
            order[at : at + len(places)] = places if score is None else places[np.argsort(-score, kind="stable")]
            at += len(places)
        return order

    def _scores(self, became: Fate, places: NDArray[Any]) -> NDArray[Any] | None:
        """What documents of one fate are ordered by; None: by nothing."""
        _, stage, rule = became
        number = self._audit.number[places]
        if (stage, rule) == ("decontaminate", "contamination"):
            found = rows_at(self._rows["matched_words"], places)
        elif rule in (RULES[EDITION], RULES[CONTAINED]):
            column = "jaccard" if rule == RULES[EDITION] else "containment"
            found = rows_at(self._decided.compared[column], self._evidence(number))
        elif rule in (RULES[LENGTH], RULES[LANGUAGE]):
            found = rows_at(self._corpus.filtered["score"], inverse_of(self._corpus.filtered_numbers, number))
        else:
            return None
        return np.asarray(found.to_numpy())

    def _decisions(self, places: NDArray[np.int64]) -> pa.Table:
        """Rows of places that come fate by fate."""
        code = self._code[places]
        each = np.split(places, np.flatnonzero(np.diff(code)) + 1) if len(places) else []
        return pa.concat_tables([DECISIONS.empty_table(), *map(self._of_one_fate, each)]).combine_chunks()

    def _of_one_fate(self, places: NDArray[np.int64]) -> pa.Table:
        fate, stage, rule = FATES_OF_ROWS[self._code[places[0]]]
        number, rows = self._audit.number[places], taken(self._rows, places)
        columns = {"doc_id": rows["doc_id"], "fate": fate, "stage": stage, "rule": rule}
        columns |= {"contamination": rows["action"], "bytes_in": rows["bytes_in"], "bytes_out": 0}
        if (stage, fate) != ("decontaminate", "dropped"):  # the audit left it
            described = taken(self._corpus.table.select(["words", "language"]), number)
            columns |= {"words": described["words"], "language": none_if_empty(described["language"])}
        if fate != "dropped":
            columns |= {"bytes_out": rows["bytes_out"], "kept_id": rows["doc_id"]}
        if stage == "dedup":
            columns |= self._removals(RULES.index(str(rule)), number)
            columns["kept_id"] = self._kept_ids(number)
        elif rule == "exact copy":
            columns |= {"reason": rows["reason"], "other_id": original_of(rows["reason"], rows["book_id"])}
            if fate == "dropped":
                copies, originals = self._original
                columns["kept_id"] = self._kept_ids(originals[np.searchsorted(copies, places)])
        elif rule == "contamination":
            columns |= {"reason": rows["reason"], "other_id": rows["book_id"]}
            columns |= {"measure": "matched words", "score": rows["matched_words"]}
            pairs = zip(rows["doc_id"].to_pylist(), rows["book_id"].to_pylist(), strict=True)
            texts = zip(*(self._audit.spans.get(pair, ("", "")) for pair in pairs), strict=True)
            for side, said in zip(("text", "other_text"), texts, strict=True):
                columns[side] = none_if_empty(pa.array(said, pa.string()))
        return table_of(columns, DECISIONS, len(places))

    def _kept_ids(self, numbers: NDArray[Any]) -> pa.Array:
        """Ids of the documents of the output that stand for those dropped; null where there is none."""
        kept = self._corpus.kept_for(numbers)
        there = kept != NOBODY
        return rows_at(self._ids, kept[there]).take(pa.array(np.cumsum(there) - 1, mask=~there))

    def _removals(self, rule: int, numbers: NDArray[Any]) -> dict[str, Any]:
        """The columns that a rule of this stage fills in."""
        if rule < COPY:
            filtered = taken(self._corpus.filtered, inverse_of(self._corpus.filtered_numbers, numbers))
            said = {name: filtered[name] for name in FILTERED.names[2:]}
            return said | {"text": none_if_empty(said["text"])}
        found = taken(self._decided.compared, self._evidence(numbers))
        texts = {side: none_if_empty(found[side]) for side in ("text", "other_text")}
        said = texts | {"other_id": rows_at(self._ids, found["other"].to_numpy())}
        if rule in (COPY, WORDS):
            reason = "the same bytes" if rule == COPY else "the same words in other typography"
            return said | {"reason": reason, "measure": "Jaccard", "score": 1.0, "threshold": 1.0}
        if rule == EDITION:
            assert self._config.editions is not None
            measure, threshold = "Jaccard", self._config.editions.threshold
            form = "Jaccard similarity {:.3f}, dropped from {:g}; {}"
        else:
            assert self._config.containment is not None
            measure, threshold = "containment", self._config.containment.threshold
            form = "{:.1%} of its n-grams stand in the other text, dropped from {:.0%}; {}"
        score = found[measure.lower()]
        reasons = map(form.format, score.to_pylist(), itertools.repeat(threshold), self._less_text(found))
        reason = pa.array(reasons, pa.string())
        return said | {"reason": reason, "measure": measure, "score": score, "threshold": threshold}

    def _less_text(self, found: pa.Table) -> Iterator[str]:
        distinct = self._corpus.table["distinct"]
        sides = (rows_at(distinct, found[side].to_numpy()).to_pylist() for side in ("document", "other"))
        for mine, other in zip(*sides, strict=True):
            if mine == other:
                yield "kept is the earlier year, else the smaller id"
            else:
                yield f"it has {mine:,} distinct n-grams, the other {other:,}"

    def _fates(self) -> Iterator[dict[str, Any]]:
        """Documents and bytes by what became of them; every document is in one row."""
        sums = np.zeros((len(FATES_OF_ROWS), 3), np.int64)
        for start in range(0, self.rows, ROWS):
            code, rows = self._code[start : start + ROWS], self._rows.slice(start, ROWS)
            left = np.where(self._audit.number[start : start + ROWS] != NOBODY, rows["bytes_out"].to_numpy(), 0)
            for at, numbers in enumerate((np.ones(len(code), np.int64), rows["bytes_in"].to_numpy(), left)):
                np.add.at(sums[:, at], code, numbers)
        for (fate, stage, rule), (documents, bytes_in, bytes_out) in zip(FATES_OF_ROWS, sums.tolist(), strict=True):
            if documents:
                yield {
                    **{"fate": fate, "stage": stage, "rule": rule, "documents": documents},
                    **{"bytes_in": bytes_in, "bytes_out": 0 if fate == "dropped" else bytes_out},
                }

    def _pairs_in_order(self) -> NDArray[np.int64]:
        """Comparisons of editions and parts, the most similar first: also those that stayed below the thresholds."""
        found = self._decided.compared.slice(self._decided.equal)
        likeness = np.maximum(found["jaccard"].to_numpy(), found["containment"].to_numpy())
        place_of_id = inverse(self._corpus.by_id)
        names = [place_of_id[found[side].to_numpy()] for side in ("other", "document")]
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


def original_of(reasons: Any, books: Any) -> Any:
    """Ids of the documents that the audit's copies repeat, from its reasons; an id may hold anything. Where no
    evaluation document is named (``books`` null) nothing follows the id."""
    alone = pc.utf8_slice_codeunits(reasons, len(COPY_OF))
    found = pc.struct_field(pc.extract_regex(reasons, f"^{COPY_OF}(?P<id>(?s:.*?)); (?:{REASONS})"), "id")
    return pc.if_else(pc.is_null(books), alone, pc.coalesce(found, alone)).cast(pa.large_string())


def none_if_empty(texts: pa.Array) -> pa.Array:
    """Null in the place of empty texts."""
    return pc.if_else(pc.equal(texts, ""), None, texts)


def table_of(columns: Mapping[str, Any], schema: pa.Schema, rows: int) -> pa.Table:
    """Columns in the order of ``schema``; one value is that of all rows, what is missing is null."""
    said = (columns.get(name) for name in schema.names)
    made = [column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.repeat(column, rows) for column in said]
    return pa.table(made, names=schema.names).cast(schema)


def taken(table: pa.Table, places: NDArray[Any]) -> pa.Table:
    """Some rows of a table."""
    return pa.table([rows_at(column, places) for column in table.columns], names=table.column_names)


def inverse_of(numbers: NDArray[np.int64], wanted: NDArray[Any]) -> NDArray[np.int64]:
    """The place of each of ``wanted`` in the ascending ``numbers``, -1 where it is not there."""
    if not len(numbers):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
    return np.where(numbers[at] == wanted, at, -1)
