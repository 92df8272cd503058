"""Documents to Arrow shards: Ray tasks encode pieces of text, this process packs the tokens in order.

Which rows share a shard depends on the documents alone, so the shards are the same bytes with any number of workers. A
few tasks are in flight for each CPU and a batch of rows is open for each split: memory is bounded by that and by one
file of the documents table, not by the corpus and not by its longest document. What a task gave is kept (``saved``): an
interrupted run encodes only what is not done.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage import join
from stages.data.corpus.documents import TableWriter, document_files, file_texts
from stages.data.parallel import running_ray
from stages.data.saved import Saved, spread_saved
from stages.data.tokens.config import TokenizeConfig
from stages.data.tokens.encode import Encoded, encode, known_chunks, library
from stages.data.tokens.pack import Counts, RowWriter
from stages.data.tokens.pieces import pieces, splits_between_words
from stages.data.tokens.seams import Seams, find_seams
from stages.data.tokens.statistics import Statistics, write
from stages.data.tokens.units import CountedDocument, Unit, units
from stages.stage import Artifact, Context, StageError, Summary

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "validation", "test")
ROWS_AT_ONCE = 2**14  # of documents.parquet
WORTH_KNOWING = 4 * 2**20  # bytes of text; of fewer the library makes tokens before the kernels are loaded
WORTH_TASKS = 16 * 2**20  # bytes of text; fewer are done before workers have started
NAMED = 3  # documents in a warning
_ENCODED = "encoded.npy"
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
        name: RowWriter(
            output / name, config.sequence_length, meta["pad_id"], least_tail.get(name, 0), config.shard_bytes
        )
        for name in SPLITS
    }
    found: dict[tuple[str, str], Statistics] = {}
    folder = documents.path("documents")
    total, done, made = _text_bytes(folder), 0, 0
    eos = np.array([meta["eos_id"]], np.int32)
    bos = np.array([] if meta.get("bos_id") is None else [meta["bos_id"]], np.int32)
    begun: CountedDocument | None = None
    with_control: list[str] = []
    control = 0
    files = [path for path in document_files(folder) if pq.read_metadata(path).num_rows]
    encoded = _encoded(files, total, tokenizer.path("tokenizer.json").read_text(encoding="utf-8"), context)
    with TableWriter(output / "documents.parquet", _document_schema(), rows=ROWS_AT_ONCE) as table:
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
                    table.add({name: value for name, value in vars(document).items() if name != "controls"})
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
    """The units of the corpus in order and what they give, that of an interrupted run included."""
    between_words = splits_between_words(library(tokenizer_json))
    if not between_words:
        context.log("the tokenizer is given whole documents: its tokens reach across the spaces between words")
    seams = _seams(files[0], tokenizer_json) if between_words and total >= WORTH_KNOWING else None
    waiting: deque[Unit] = deque()

    def texts() -> Iterator[list[str]]:
        """They go to the tasks; what belongs to them waits here."""
        for file in files:
            for unit in units(file_texts(file), between_words):
                waiting.append(unit)
                yield unit.texts
                unit.texts = []

    one_core = running_ray() is not None  # each task has a core of its own; without tasks the library may use all
    shared = (tokenizer_json, seams, one_core)
    parts = spread_saved(
        _encode_part,
        texts(),
        join(context.work_url, "tokens"),
        *shared,
        identity=_identity,
        worth_it=total >= WORTH_TASKS,
    )
    resumed = made = 0
    try:
        for part in parts:
            made, resumed = made + 1, resumed + part.resumed
            yield waiting.popleft(), _read(part)
    finally:
        known_chunks.cache_clear()
    if resumed:
        context.log(f"{resumed} of {made} parts of the text were encoded by an earlier attempt")


def _identity(texts: list[str], tokenizer_json: str, *_: Any) -> str:
    digest = hashlib.sha256(_digest(tokenizer_json).encode())
    for text in texts:
        data = text.encode()
        digest.update(b"%d " % len(data) + data)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _digest(tokenizer_json: str) -> str:
    return hashlib.sha256(tokenizer_json.encode()).hexdigest()


def _encode_part(texts: list[str], folder: Path, tokenizer_json: str, seams: Seams | None, one_core: bool) -> None:
    """One task."""
    import numpy as np

    with (folder / _ENCODED).open("wb") as file:
        for array in encode(texts, tokenizer_json, seams, one_core):
            np.save(file, array)


def _read(part: Saved) -> Encoded:
    import numpy as np

    with part.on_disk(_ENCODED) as path, path.open("rb") as file:
        tokens, lengths, words, controls = (np.load(file) for _ in range(4))
    return tokens, lengths.tolist(), words.tolist(), controls.tolist()


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


def _count(statistics: Statistics, document: CountedDocument, sequences: int, dropped: int) -> None:
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


def _document_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [("doc_id", pa.string()), ("split", pa.string()), ("source", pa.string())]
        + [(name, pa.int64()) for name in ("tokens", "words", "bytes")]
    )
