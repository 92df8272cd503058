"""Documents to Arrow shards: Ray tasks encode pieces of text, this process packs the tokens in order.

Which rows share a shard depends on the documents alone, so the shards are the same bytes with any number of workers. A
few tasks are in flight for each CPU and a batch of rows is open for each split: memory is bounded by that and by one
file of the documents table, not by the corpus and not by its longest document. What a file gave is kept (``saved``): an
interrupted run goes on with the files that are not done.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.data.corpus.documents import document_files, file_texts
from stages.data.corpus.parallel import running_ray, spread
from stages.data.tokens.config import TokenizeConfig
from stages.data.tokens.encode import Encoded, encode, known_chunks, library
from stages.data.tokens.pack import Counts, Rows
from stages.data.tokens.pieces import pieces, splits_between_words
from stages.data.tokens.saved import Saved
from stages.data.tokens.seams import Seams, find_seams
from stages.data.tokens.statistics import Statistics, write
from stages.data.tokens.units import Document, Unit, units
from stages.stage import Artifact, Context, StageError, Summary

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "validation", "test")
ROWS_AT_ONCE = 2**14  # of documents.parquet
WORTH_KNOWING = 4 * 2**20  # bytes of text; of fewer the library makes tokens before the kernels are loaded
WORTH_TASKS = 16 * 2**20  # bytes of text; fewer are done before workers have started
NAMED = 3  # documents in a warning
_SAMPLE = 2**14  # characters of the corpus on which seams are tried


def tokenize(
    config: TokenizeConfig, documents: Artifact, tokenizer: Artifact, output: Path, context: Context
) -> Summary:
    """Write the shards of every split, documents.parquet, sources.parquet, lengths.parquet and meta.json.

    Raises StageError where the training or both evaluation splits come out empty.
    """
    import numpy as np
    import pyarrow.parquet as pq

    meta = json.loads(tokenizer.path("meta.json").read_text())
    least_tail = {"train": config.min_tail_share * config.sequence_length}
    rows = {
        name: Rows(output / name, config.sequence_length, meta["pad_id"], least_tail.get(name, 0), config.shard_bytes)
        for name in SPLITS
    }
    found: dict[tuple[str, str], Statistics] = {}
    folder = documents.path("documents")
    total, done, made = _text_bytes(folder), 0, 0
    eos = np.array([meta["eos_id"]], np.int32)
    bos = np.array([] if meta.get("bos_id") is None else [meta["bos_id"]], np.int32)
    begun: Document | None = None
    with_control: list[str] = []
    control = 0
    files = [path for path in document_files(folder) if pq.read_metadata(path).num_rows]
    encoded = _encoded(files, total, tokenizer.path("tokenizer.json").read_text(), context)
    with _DocumentTable(output / "documents.parquet") as table:
        for unit, (tokens, lengths, words, controls) in encoded:
            start = 0
            pieces_of = zip(unit.layout, lengths, words, controls, strict=True)
            for (document, inside, last), length, count, strings in pieces_of:
                document.words += count - inside
                document.tokens += length
                document.controls += strings
                writer = rows[document.split]
                if document is not begun:
                    begun = document
                    writer.add(document.doc_id, document.source, bos)
                    document.tokens += len(bos)
                writer.add(document.doc_id, document.source, tokens[start : start + length])
                start += length
                if last:
                    writer.add(document.doc_id, document.source, eos)
                    document.tokens += 1
                    statistics = found.setdefault((document.source, document.split), Statistics())
                    _count(statistics, document, *writer.end())
                    table.add(document)
                    control += document.controls
                    if document.controls and (len(with_control) < NAMED):
                        with_control.append(document.doc_id)
            done, made = done + unit.size, made + len(tokens)
            context.progress(min(done, total), total, "bytes", tokens=float(made))
    for writer in rows.values():
        writer.close()
    splits = {name: Counts() for name in SPLITS}
    for (_, split), statistics in found.items():
        splits[split].add(statistics.counts)
    _check_not_empty(splits, config)
    write(found, output)
    described = {
        "sequence_length": config.sequence_length,
        "segment_length": config.segment_length,
        "vocab_size": meta["vocab_size"],
        "eos_id": meta["eos_id"],
        "pad_id": meta["pad_id"],
        "bos_id": meta.get("bos_id"),
        "control_strings": control,
        "splits": {name: vars(counts) for name, counts in splits.items()},
    }
    (output / "meta.json").write_text(json.dumps(described, indent=1))
    if control:
        context.warn(
            f"tokenize: {control} string(s) that look like control tokens stand in documents and were kept as text: "
            f"{', '.join(with_control)}{', ...' if len(with_control) == NAMED else ''}"
        )
    summary = _summary(splits, found, config)
    summary.metrics["control_strings"] = float(control)
    return summary


def _encoded(files: list[Path], total: int, tokenizer_json: str, context: Context) -> Iterator[tuple[Unit, Encoded]]:
    """The units of the corpus in order and what they give: first of the files that an interrupted run has done."""
    saved = [Saved(context.work_url, file, tokenizer_json) for file in files[:-1]]
    before = list(takewhile(Saved.exists, saved))
    if before:
        context.log(f"{len(before)} of {len(files)} files were encoded by an earlier run")
    for done in before:
        yield from done.read()
    between_words = splits_between_words(library(tokenizer_json))
    if not between_words:
        context.log("the tokenizer is given whole documents: its tokens reach across the spaces between words")
    seams = _seams(files[0], tokenizer_json) if between_words and total >= WORTH_KNOWING else None
    waiting: deque[tuple[Unit, Saved | None]] = deque()

    def texts() -> Iterator[list[str]]:
        """They go to the tasks; what belongs to them waits here."""
        for file, result in list(zip(files, [*saved, None], strict=True))[len(before) :]:
            for unit in units(file_texts(file), between_words):
                waiting.append((unit, result))
                yield unit.texts
                unit.texts = []

    one_core = running_ray() is not None  # each task has a core of its own; without tasks the library may use all
    current: Saved | None = None
    try:
        for encoded in spread(encode, texts(), tokenizer_json, seams, one_core, worth_it=total >= WORTH_TASKS):
            unit, result = waiting.popleft()
            if current is not None and result is not current:
                current.close()
            current = result
            if result is not None:
                result.add(unit, encoded)
            yield unit, encoded
    finally:
        known_chunks.cache_clear()


def _seams(file: Path, tokenizer_json: str) -> Seams | None:
    """Those of the tokenizer, tried also on the beginning of the corpus."""
    texts = (text for document in file_texts(file) for text, _ in pieces(document.data, True))
    sample, size = list[str](), 0
    for text in texts:
        sample.append(text)
        if (size := size + len(text)) >= _SAMPLE:
            break
    return find_seams(library(tokenizer_json), sample)


def _summary(splits: dict[str, Counts], found: dict[tuple[str, str], Statistics], config: TokenizeConfig) -> Summary:
    train = splits["train"]
    metrics = {f"{name}_{key}": float(n) for name, counts in splits.items() for key, n in vars(counts).items()}
    metrics["bytes_per_token"] = train.bytes / max(1, train.tokens)
    for (source, split), statistics in found.items():
        if split == "train":
            metrics[f"bytes_per_token_{source}"] = statistics.row()["bytes_per_token"]
    dropped = f"; {train.dropped_documents} documents too short for a sequence" if train.dropped_documents else ""
    return Summary(
        f"{train.tokens:,} training tokens in {train.sequences:,} sequences of {config.sequence_length}, "
        f"{metrics['bytes_per_token']:.2f} bytes per token{dropped}",
        metrics,
        {"Sources": "sources.parquet", "Document lengths": "lengths.parquet", "documents": "documents.parquet"},
        ["lengths.png"],
    )


def _count(statistics: Statistics, document: Document, sequences: int, dropped: int) -> None:
    statistics.lengths.append(document.tokens)
    statistics.counts.add(
        Counts(
            documents=1,
            sequences=sequences,
            tokens=document.tokens,
            bytes=document.bytes,
            words=document.words,
            dropped_tail_tokens=dropped,
            dropped_documents=int(not sequences),
        )
    )


def _text_bytes(folder: Path) -> int:
    """Bytes of all texts, about, from the files' footers."""
    import pyarrow.parquet as pq

    total = 0
    for path in document_files(folder):
        meta = pq.read_metadata(path)
        place = meta.schema.names.index("text")
        total += sum(meta.row_group(i).column(place).total_uncompressed_size for i in range(meta.num_row_groups))
    return total


def _check_not_empty(splits: dict[str, Counts], config: TokenizeConfig) -> None:
    if not splits["train"].sequences:
        raise StageError(
            f"no training document fills {config.min_tail_share:.0%} of one sequence",
            field="tokenize.sequence_length",
            value=config.sequence_length,
            fix="shorten sequence_length, lower min_tail_share or add documents",
        )
    if not splits["validation"].sequences + splits["test"].sequences:
        raise StageError(
            "there is no evaluation document", field="corpus.sources", fix="add validation or test documents"
        )


class _DocumentTable:
    """Writes documents.parquet some rows at a time."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._rows: list[dict[str, Any]] = []
        self._writer = pq.ParquetWriter(path, _document_schema())

    def __enter__(self) -> _DocumentTable:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, document: Document) -> None:
        self._rows.append({name: value for name, value in vars(document).items() if name != "controls"})
        if len(self._rows) == ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=_document_schema()))
        self._rows = []


def _document_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [("doc_id", pa.string()), ("split", pa.string()), ("source", pa.string())]
        + [(name, pa.int64()) for name in ("tokens", "words", "bytes")]
    )
