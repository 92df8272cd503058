"""Documents to Arrow shards in two passes of Ray tasks: lots of documents to tokens, and tokens to shards.

Which rows share a shard depends on the documents alone, so the shards are the same bytes with any number of workers.
No text and no token passes through this process: it holds the length of every document (8 bytes) and writes the tables.
What a task gave is kept (``saved``): an interrupted run goes on with what is not done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage import join
from stages.data.corpus.documents import document_names, file_texts
from stages.data.parallel import running_ray, spread
from stages.data.saved import spread_saved
from stages.data.tokens import lots as encoding
from stages.data.tokens.config import TokenizeConfig
from stages.data.tokens.encode import known_chunks, library
from stages.data.tokens.lots import NAMED, EncodedLot, Lot, Marks
from stages.data.tokens.pack import Counts, Shape, describe
from stages.data.tokens.pieces import pieces, splits_between_words
from stages.data.tokens.seams import Seams, find_seams
from stages.data.tokens.statistics import Statistics, write
from stages.stage import Artifact, Context, StageError, Summary

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "validation", "test")
ROWS_AT_ONCE = 2**14  # of documents.parquet
WORTH_KNOWING = 4 * 2**20  # bytes of text; of fewer the library makes tokens before the kernels are loaded
WORTH_TASKS = 16 * 2**20  # bytes of text; fewer are done before workers have started
_SAMPLE = 2**14  # characters of the corpus on which seams are tried


def tokenize(
    config: TokenizeConfig, documents: Artifact, tokenizer: Artifact, output: Path, context: Context
) -> Summary:
    """Write the shards of every split, documents.parquet, sources.parquet, lengths.parquet and meta.json.

    Raises StageError where the training or both evaluation splits come out empty.
    """
    meta = json.loads(tokenizer.path("meta.json").read_text())
    names = list(document_names(documents))
    work = [lot for some in spread(encoding.lots_of, names, documents, worth_it=len(names) > 1000) for lot in some]
    total = encoding.total_bytes(work)
    marks = Marks(() if meta.get("bos_id") is None else (meta["bos_id"],), (meta["eos_id"],))
    lots = list(_encoded(work, documents, tokenizer, marks, context))
    found, rows = _counted(lots, config, output / "documents.parquet")
    splits = {name: Counts() for name in SPLITS}
    for (_, split), statistics in found.items():
        splits[split].add(statistics.counts)
    _check_not_empty(splits, config)
    _write_shards(lots, rows, config, meta["pad_id"], output, context, total)
    write(found, output)
    control = sum(lot.controls for lot in lots)
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
        with_control = [name for lot in lots for name in lot.with_control][:NAMED]
        context.warn(
            f"tokenize: {control} string(s) that look like control tokens stand in documents and were kept as text: "
            f"{', '.join(with_control)}{', ...' if len(with_control) == NAMED else ''}"
        )
    summary = _summary(splits, found, config)
    summary.metrics["control_strings"] = float(control)
    return summary


def _encoded(
    work: list[Lot], documents: Artifact, tokenizer: Artifact, marks: Marks, context: Context
) -> Iterator[EncodedLot]:
    """What the lots of the corpus give, in order, that of an interrupted run included."""
    tokenizer_json = tokenizer.path("tokenizer.json").read_text(encoding="utf-8")
    total = encoding.total_bytes(work)
    between_words = splits_between_words(library(tokenizer_json))
    if not between_words:
        context.log("the tokenizer is given whole documents: its tokens reach across the spaces between words")
    seams = None
    if between_words and total >= WORTH_KNOWING:
        seams = _seams(documents.path(work[0].name), tokenizer_json)
    one_core = running_ray() is not None  # each task has a core of its own; without tasks the library may use all
    parts = spread_saved(
        encoding.encode_lot,
        work,
        join(context.work_url, "tokens"),
        documents,
        tokenizer_json,
        marks,
        seams,
        between_words,
        one_core,
        identity=encoding.identity,
        worth_it=total >= WORTH_TASKS,
    )
    resumed = done = made = 0
    try:
        for lot, part in zip(work, parts, strict=True):
            said = part.value
            yield EncodedLot(part.url, said["documents"], said["tokens"], said["controls"], tuple(said["with_control"]))
            done, made, resumed = done + lot.size, made + said["tokens"], resumed + part.resumed
            context.progress(done, 2 * total, "bytes", tokens=float(made))
    finally:
        known_chunks.cache_clear()
    if resumed:
        context.log(f"{resumed} of {len(work)} parts of the text were encoded by an earlier attempt")


def _counted(
    lots: Iterable[EncodedLot], config: TokenizeConfig, path: Path
) -> tuple[dict[tuple[str, str], Statistics], dict[str, list[int]]]:
    """Statistics by source and split in order of the corpus, and the rows of each split in each lot; writes the table
    of documents."""
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from stages.data.tokens.shards import rows_of

    found: dict[tuple[str, str], Statistics] = {}
    rows: dict[str, list[int]] = {split: [] for split in SPLITS}
    length = config.sequence_length
    schema = encoding.document_schema()
    with pq.ParquetWriter(path, schema) as writer:
        waiting = schema.empty_table()
        for lot in lots:
            table = lot.table()
            waiting = _write_full(writer, [waiting, table])
            kinds = table.group_by(["source", "split"], use_threads=False).aggregate([])
            split_rows = dict.fromkeys(SPLITS, 0)
            for source, split in zip(kinds["source"].to_pylist(), kinds["split"].to_pylist(), strict=True):
                mine = table.filter(pc.and_(pc.equal(table["source"], source), pc.equal(table["split"], split)))
                tokens = mine["tokens"].to_numpy()
                made = rows_of(tokens, length, _least_tail(split, config))
                dropped = np.where(tokens // length == made, tokens % length, 0)
                statistics = found.setdefault((source, split), Statistics())
                statistics.lengths.append(tokens.copy())
                statistics.counts.add(
                    Counts(
                        documents=len(tokens),
                        sequences=int(made.sum()),
                        tokens=int(tokens.sum()),
                        bytes=pc.sum(mine["bytes"]).as_py(),
                        words=pc.sum(mine["words"]).as_py(),
                        dropped_tail_tokens=int(dropped.sum()),
                        dropped_documents=int((made == 0).sum()),
                    )
                )
                split_rows[split] += int(made.sum())
            for split, count in split_rows.items():
                rows[split].append(count)
        if len(waiting):
            writer.write_table(waiting.combine_chunks())
    return found, rows


def _write_full(writer: Any, tables: list[pa.Table]) -> pa.Table:
    """Write whole row groups of ``ROWS_AT_ONCE``; what is left."""
    import pyarrow as pa

    table = pa.concat_tables(tables)
    while len(table) >= ROWS_AT_ONCE:
        writer.write_table(table.slice(0, ROWS_AT_ONCE).combine_chunks())
        table = table.slice(ROWS_AT_ONCE)
    return table


def _least_tail(split: str, config: TokenizeConfig) -> float:
    return config.min_tail_share * config.sequence_length if split == "train" else 0


def _write_shards(
    lots: list[EncodedLot],
    rows: dict[str, list[int]],
    config: TokenizeConfig,
    pad_id: int,
    output: Path,
    context: Context,
    total: int,
) -> None:
    import numpy as np

    from stages.data.tokens import shards as packing

    shape = Shape(config.sequence_length, pad_id, config.shard_bytes)
    work = [
        shard
        for split in SPLITS
        for shard in packing.shards_of(split, lots, np.array(rows[split]), shape, _least_tail(split, config))
    ]
    place = join(context.work_url, "shards")
    parts = spread_saved(
        packing.write_shard, work, place, identity=packing.identity, worth_it=total >= WORTH_TASKS and len(work) > 1
    )
    names: dict[str, list[str]] = {}
    for done, (shard, part) in enumerate(zip(work, parts, strict=True), 1):
        listed = names.setdefault(shard.split, [])
        listed.append(f"data-{len(listed):05d}.arrow")
        part.place(packing.SHARD_FILE, output / shard.split / listed[-1])
        context.progress(total + total * done / len(work), 2 * total, "bytes")
    for split, listed in names.items():
        describe(output / split, shape.length, listed, sum(rows[split]))


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
