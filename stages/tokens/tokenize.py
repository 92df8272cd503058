"""Documents to Arrow shards: Ray tasks encode pieces of text, this process packs the tokens in order.

Which pieces a task gets, which rows share a shard, all depends on the documents alone, so the shards are the same bytes
with any number of workers. A few tasks are in flight for each CPU and a batch of rows is open for each split: memory is
bounded by that and by one file of the documents table, not by the corpus and not by its longest document.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.corpus.documents import Text, document_files, read_texts
from stages.corpus.parallel import running_ray, spread
from stages.stage import Artifact, Context, StageError, Summary
from stages.tokens.pack import Counts, Rows
from stages.tokens.pieces import pieces, splits_between_words
from stages.tokens.stage import TokenizeConfig
from stages.tokens.statistics import Statistics, write

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

SPLITS = ("train", "validation", "test")
UNIT = 2**20  # characters for one task: some tenths of a second
ROWS_AT_ONCE = 2**14  # of documents.parquet

Encoded = tuple["NDArray[np.int32]", list[int], list[int]]
"""Tokens of a task's pieces, one after the other; tokens of each piece; words of each piece."""


@dataclass
class Document:
    """A document on its way; what was counted of it so far."""

    doc_id: str
    source: str
    split: str
    bytes: int
    words: int = 0
    tokens: int = 0


@dataclass
class Unit:
    """One task's pieces of text, and of each its document, whether it goes on inside a word, whether it is last."""

    texts: list[str] = field(default_factory=list)
    layout: list[tuple[Document, bool, bool]] = field(default_factory=list)
    size: int = 0


def tokenize(
    config: TokenizeConfig, documents: Artifact, tokenizer: Artifact, output: Path, context: Context
) -> Summary:
    """Write the shards of every split, documents.parquet, sources.parquet, lengths.parquet and meta.json.

    Raises StageError where the training or both evaluation splits come out empty.
    """
    import numpy as np

    meta = json.loads(tokenizer.path("meta.json").read_text())
    tokenizer_json = tokenizer.path("tokenizer.json").read_text()
    folder = documents.path("documents")
    between_words = splits_between_words(_tokenizer(tokenizer_json))
    if not between_words:
        context.log("the tokenizer is given whole documents: its tokens reach across the spaces between words")
    least_tail = {"train": config.min_tail_share * config.sequence_length}
    rows = {
        name: Rows(output / name, config.sequence_length, meta["pad_id"], least_tail.get(name, 0), config.shard_bytes)
        for name in SPLITS
    }
    found: dict[tuple[str, str], Statistics] = {}
    total, done, made = _text_bytes(folder), 0, 0
    eos = np.array([meta["eos_id"]], np.int32)
    waiting: deque[Unit] = deque()
    one_core = running_ray() is not None  # each task has a core of its own; without tasks the library may use all
    encoded = spread(encode, _texts(_units(read_texts(folder), between_words), waiting), tokenizer_json, one_core)
    with _DocumentTable(output / "documents.parquet") as table:
        for tokens, lengths, words in encoded:
            unit, start = waiting.popleft(), 0
            for (document, inside, last), length, count in zip(unit.layout, lengths, words, strict=True):
                document.words += count - inside
                document.tokens += length
                writer = rows[document.split]
                writer.add(document.doc_id, document.source, tokens[start : start + length])
                start += length
                if last:
                    writer.add(document.doc_id, document.source, eos)
                    document.tokens += 1
                    statistics = found.setdefault((document.source, document.split), Statistics())
                    _count(statistics, document, *writer.end())
                    table.add(document)
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
        "splits": {name: vars(counts) for name, counts in splits.items()},
    }
    (output / "meta.json").write_text(json.dumps(described, indent=1))
    return _summary(splits, found, config)


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


def _units(documents: Iterator[Text], between_words: bool) -> Iterator[Unit]:
    """The documents' pieces in order, about ``UNIT`` characters at a time."""
    unit = Unit()
    for text in documents:
        document = Document(text.doc_id, text.source, text.split, len(text.data))
        before: tuple[str, bool] | None = None
        for piece in pieces(text.data, between_words):
            if before is not None:
                unit = _fed(unit, document, *before, False)
                if unit.size >= UNIT:
                    yield unit
                    unit = Unit()
            before = piece
        unit = _fed(unit, document, *(before or ("", False)), True)
        if unit.size >= UNIT:
            yield unit
            unit = Unit()
    if unit.texts:
        yield unit


def _fed(unit: Unit, document: Document, piece: str, inside: bool, last: bool) -> Unit:
    unit.texts.append(piece)
    unit.layout.append((document, inside, last))
    unit.size += len(piece)
    return unit


def _texts(units: Iterator[Unit], waiting: deque[Unit]) -> Iterator[list[str]]:
    """The texts go to the tasks; what belongs to them waits here."""
    for unit in units:
        texts, unit.texts = unit.texts, []
        waiting.append(unit)
        yield texts


def encode(texts: list[str], tokenizer_json: str, one_core: bool) -> Encoded:
    """See ``Encoded``. No special tokens are added."""
    import numpy as np

    tokenizer = _tokenizer(tokenizer_json)
    with _threads(not one_core):
        found = [
            np.asarray(encoding.ids, dtype=np.int32)
            for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ]
    tokens = np.concatenate(found) if found else np.empty(0, np.int32)
    return tokens, [len(ids) for ids in found], [len(text.split()) for text in texts]


@lru_cache(maxsize=2)
def _tokenizer(tokenizer_json: str) -> Tokenizer:
    """Kept between the tasks of a worker: a large vocabulary takes as long to read as a megabyte to encode."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(tokenizer_json)


@contextmanager
def _threads(allowed: bool) -> Iterator[None]:
    """``tokenizers`` reads this variable at every call."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if allowed else "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


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
        self._rows.append(vars(document).copy())
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
