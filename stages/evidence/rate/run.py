"""Carries out ``rate``: every model over every summary, one after another, so that one is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.pinned import unchanged
from stages.evidence.rate.config import LocalModel, RateConfig
from stages.evidence.summarize.written import Everything, Written, everything
from stages.stage import Artifact, Context, StageError, Summary
from stages.training.device import torch_device

SCHEMA = pa.schema(
    [("system", pa.string()), ("seed", pa.int64()), ("decoding", pa.string())]
    + [(name, pa.string()) for name in ("doc_id", "book", "task", "level")]
    + [(name, pa.float64()) for name in ("embedding", "bertscore", "nli", "nli_faithful", "nli_covered")]
)

Scores = dict[str, float | None]


def rate(config: RateConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
    """ratings.parquet: one row per summary with the score of each model, null where it is not asked."""
    found = everything(inputs)
    device = str(torch_device(context.execution))
    scores: list[Scores] = [{} for _ in found.written]
    steps: list[tuple[LocalModel, str, Callable[[Everything, Callable[[int], None]], list[Scores]]]] = []
    if config.embedding is not None:
        from stages.evidence.rate.embedding import similarities

        steps.append((config.embedding, "embedding", similarities(config.embedding, device)))
    if config.bertscore is not None:
        from stages.evidence.rate.bertscore import bertscores

        steps.append((config.bertscore, "bertscore", bertscores(config.bertscore, device)))
    if config.nli is not None:
        from stages.evidence.rate.nli import entailments

        steps.append((config.nli, "nli", entailments(config.nli, device)))
    total = len(steps) * len(found.written)
    for done, (model, name, step) in enumerate(steps):
        _check(model, f"rate.{name}")

        def progress(n: int, before: int = done) -> None:
            context.progress(before * len(found.written) + n, total, "ratings")

        for row, values in zip(scores, step(found, progress), strict=True):
            row.update(values)
    rows = [_row(found, written, score) for written, score in zip(found.written, scores, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), output / "ratings.parquet", compression="zstd")
    metrics = {}
    for system in dict.fromkeys(w.system for w in found.written):
        for _, name, _ in steps:
            known = [value for r in rows if r["system"] == system and isinstance(value := r[name], float)]
            if known:
                metrics[f"{system}.{name}"] = sum(known) / len(known)
    return Summary(
        headline=f"{len(rows)} summaries by {', '.join(name for _, name, _ in steps)}",
        metrics=metrics,
        tables={"ratings": "ratings.parquet"},
    )


def _row(found: Everything, written: Written, score: Scores) -> dict[str, object]:
    item = found.items[written.name]
    named = {"doc_id": item.doc_id, "book": item.book, "task": item.task, "level": item.level}
    return {"system": written.system, "seed": written.seed, "decoding": written.decoding, **named, **score}


def _check(model: LocalModel, field: str) -> None:
    from stages.data.pinned import folder_digest

    if not Path(model.path).is_dir():
        raise StageError(
            "no such folder on this node", field=field, value=model.path, fix="put it there, or plan again"
        )
    unchanged(folder_digest(Path(model.path)), model.pin, field=f"{field}.pin", what="the folder")
