"""Documents to Arrow shards: groups of documents are encoded by Ray tasks, written in order by this process.

Which documents share a shard depends on their sizes and order alone, so the shards are the same bytes with any
number of workers. A few groups are in flight for each CPU: memory is bounded by shards, not by the corpus.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.corpus.documents import read_documents
from stages.corpus.parallel import spread
from stages.stage import Artifact, Context, StageError, Summary
from stages.tokens.stage import TokenizeConfig

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to encode a group of documents."""

    tokenizer_json: str
    sequence_length: int
    min_tail_share: float
    eos_id: int
    pad_id: int


@dataclass
class Split:
    """Counts of one split."""

    documents: int = 0
    sequences: int = 0
    tokens: int = 0
    bytes: int = 0
    dropped_tail_tokens: int = 0
    shards: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        return {name: value for name, value in vars(self).items() if name != "shards"}


def tokenize(
    config: TokenizeConfig, documents: Artifact, tokenizer: Artifact, output: Path, context: Context
) -> Summary:
    """Write the shards of every split, documents.parquet and meta.json.

    Raises StageError where the training or both evaluation splits come out empty.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    meta = json.loads(tokenizer.path("meta.json").read_text())
    recipe = Recipe(
        tokenizer.path("tokenizer.json").read_text(),
        config.sequence_length,
        config.min_tail_share,
        meta["eos_id"],
        meta["pad_id"],
    )
    splits = {name: Split() for name in SPLITS}
    rows: list[Row] = []
    total = sum(path.stat().st_size for path in documents.path("documents").glob("*.parquet"))
    for name, sequences, counted, dropped in spread(encode_group, groups(documents, config.shard_bytes), recipe):
        split = splits[name]
        if sequences.num_rows:
            _write_shard(output / name, sequences, split)
        split.documents += len(counted)
        split.sequences += sequences.num_rows
        split.tokens += sum(row["tokens"] for row in counted)
        split.bytes += sum(row["bytes"] for row in counted)
        split.dropped_tail_tokens += dropped
        rows += counted
        done = sum(s.bytes for s in splits.values())
        context.progress(done, max(done, total), "bytes", tokens=float(sum(s.tokens for s in splits.values())))
    _check_not_empty(splits, config)
    for name, split in splits.items():
        _describe(output / name, name, split)
    rows.sort(key=lambda row: row["doc_id"])
    pq.write_table(pa.Table.from_pylist(rows, schema=_document_schema()), output / "documents.parquet")
    statistics = {
        "sequence_length": config.sequence_length,
        "segment_length": config.segment_length,
        "vocab_size": meta["vocab_size"],
        "eos_id": meta["eos_id"],
        "pad_id": meta["pad_id"],
        "splits": {name: split.counts() for name, split in splits.items()},
    }
    (output / "meta.json").write_text(json.dumps(statistics, indent=1))
    train = splits["train"]
    metrics = {f"{name}_{key}": float(n) for name, split in splits.items() for key, n in split.counts().items()}
    return Summary(
        f"{train.tokens:,} training tokens in {train.sequences:,} sequences of {config.sequence_length}, "
        f"{train.bytes / max(1, train.tokens):.2f} bytes per token",
        metrics | {"bytes_per_token": train.bytes / max(1, train.tokens)},
        {"documents": "documents.parquet"},
    )


def groups(documents: Artifact, shard_bytes: int) -> Iterator[tuple[str, list[Row]]]:
    """(split, documents) of about ``shard_bytes`` bytes of text each, in document order within a split."""
    waiting: dict[str, list[Row]] = defaultdict(list)
    size: dict[str, int] = defaultdict(int)
    for row in read_documents(documents.path("documents"), columns=["doc_id", "source", "split", "text"]):
        split = row["split"]
        waiting[split].append(row)
        size[split] += len(row["text"])
        if size[split] >= shard_bytes:
            yield split, waiting.pop(split)
            size[split] = 0
    for name in SPLITS:
        if waiting[name]:
            yield name, waiting[name]


def encode_group(group: tuple[str, list[Row]], recipe: Recipe) -> tuple[str, pa.Table, list[Row], int]:
    """The group's split, its sequences, a row of counts per document, and the number of dropped tail tokens."""
    import numpy as np
    import pyarrow as pa
    from tokenizers import Tokenizer

    split, rows = group
    tokenizer = Tokenizer.from_str(recipe.tokenizer_json)
    length = recipe.sequence_length
    pieces: list[Any] = []
    masks: list[Any] = []
    doc_ids: list[str] = []
    sources: list[str] = []
    offsets: list[int] = []
    counted: list[Row] = []
    dropped = 0
    encodings = tokenizer.encode_batch_fast([row["text"] for row in rows], add_special_tokens=False)
    for row, encoding in zip(rows, encodings, strict=True):
        tokens = np.append(np.asarray(encoding.ids, dtype=np.int32), np.int32(recipe.eos_id))
        whole, tail = divmod(len(tokens), length)
        keep_tail = tail > 0 and (split != "train" or tail >= recipe.min_tail_share * length)
        count = whole + keep_tail
        dropped += 0 if keep_tail else tail
        padded = np.full(count * length, recipe.pad_id, dtype=np.int32)
        kept = min(len(tokens), count * length)
        padded[:kept] = tokens[:kept]
        mask = np.zeros(count * length, dtype=np.uint8)
        mask[:kept] = 1
        pieces.append(padded)
        masks.append(mask)
        doc_ids += [row["doc_id"]] * count
        sources += [row["source"]] * count
        offsets += range(0, count * length, length)
        counted.append({
            "doc_id": row["doc_id"], "split": split, "source": row["source"], "tokens": len(tokens),
            "words": len(row["text"].split()), "bytes": len(row["text"].encode()),
        })  # fmt: skip
    flat = np.concatenate(pieces) if pieces else np.empty(0, np.int32)
    flat_mask = np.concatenate(masks) if masks else np.empty(0, np.uint8)
    table = pa.table(
        [
            pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.int32()), length),
            pa.FixedSizeListArray.from_arrays(pa.array(flat_mask, pa.uint8()), length),
            pa.array(doc_ids, pa.string()),
            pa.array(offsets, pa.int64()),
            pa.array(sources, pa.string()),
        ],
        names=["tokens", "loss_mask", "doc_id", "offset", "source"],
    )
    return split, table, counted, dropped


def _check_not_empty(splits: dict[str, Split], config: TokenizeConfig) -> None:
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


def _write_shard(folder: Path, sequences: pa.Table, split: Split) -> None:
    import datasets
    import pyarrow as pa

    folder.mkdir(exist_ok=True)
    name = f"data-{len(split.shards):05d}.arrow"
    described = sequences.cast(_features(datasets, sequences.schema.field("tokens").type.list_size).arrow_schema)
    with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, described.schema) as writer:
        writer.write_table(described, max_chunksize=1024)
    split.shards.append(name)


def _features(datasets: Any, length: int) -> Any:
    value = datasets.Value
    return datasets.Features({
        "tokens": datasets.List(value("int32"), length=length),
        "loss_mask": datasets.List(value("uint8"), length=length),
        "doc_id": value("string"),
        "offset": value("int64"),
        "source": value("string"),
    })  # fmt: skip


def _describe(folder: Path, name: str, split: Split) -> None:
    """The two JSON files by which ``datasets.load_from_disk`` knows the folder; none for an empty split."""
    import hashlib

    import datasets
    import pyarrow as pa

    if not split.shards:
        return
    with pa.memory_map(str(folder / split.shards[0])) as file:
        length = pa.ipc.open_stream(file).schema.field("tokens").type.list_size
    datasets.DatasetInfo(features=_features(datasets, length)).write_to_directory(str(folder))
    fingerprint = hashlib.sha256("".join(split.shards).encode() + str(split.counts()).encode()).hexdigest()[:16]
    state = {
        "_data_files": [{"filename": shard} for shard in split.shards],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": name,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=1))


def _document_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [("doc_id", pa.string()), ("split", pa.string()), ("source", pa.string())]
        + [(name, pa.int64()) for name in ("tokens", "words", "bytes")]
    )
