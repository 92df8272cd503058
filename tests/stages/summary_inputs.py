"""Artifacts of ``references`` and ``summarize`` with texts that are known, for the stages that judge summaries."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.evidence.summarize import baselines
from stages.evidence.summarize.items import SummaryExample, write
from stages.evidence.summarize.lexical import SourceText, measured
from stages.evidence.summarize.write import BASELINES, SUMMARIES
from tests.stages.evaluation_inputs import prose
from tests.support import LocalArtifact

ARMS = ("infini-delta", "local")
SEEDS = (0, 1)


def examples(books: int = 3, chapters: int = 1, references: int = 2) -> list[SummaryExample]:
    return [
        SummaryExample(
            "condense",
            "chapter",
            f"b{b}/{c}",
            f"b{b}",
            f"Book {b}",
            f"Book {b}. {prose(80, 10 * b + c)}",
            tuple(f"Summary {r} of book {b}, chapter {c}: {prose(8, 100 * b + 10 * c + r)}" for r in range(references)),
            rows=(b * chapters + c + 1,),
        )
        for b in range(books)
        for c in range(chapters)
    ]


def artifacts(root: Path, items: list[SummaryExample], arms: tuple[str, ...] = ARMS) -> dict[str, LocalArtifact]:
    """``references`` and ``summarize/ARM/SEED``: every arm writes prose of its own."""
    folder = root / "references"
    folder.mkdir(parents=True)
    write(items, folder / "items.parquet")
    sources = {item.name: SourceText.of(item.text) for item in items}
    others = baselines.shuffled(items)
    rows = [
        {"system": system, **_named(item), "hypothesis": text, **measured(item.references, text, sources[item.name])}
        for item, other in zip(items, others, strict=True)
        for system, text in (("lead", item.text[:120]), ("shuffled", other))
        if text is not None
    ]
    pq.write_table(pa.Table.from_pylist(rows, BASELINES), folder / "baselines.parquet")
    made = {"references": LocalArtifact(folder)}
    for place, arm in enumerate(arms):
        for seed in SEEDS:
            folder = root / f"summarize_{arm}_{seed}"
            folder.mkdir()
            rows = []
            for number, item in enumerate(items):
                text = f"{arm[0].upper()} says: {prose(12, 1000 * place + 100 * seed + number)}"
                rows.append(
                    {**_named(item), "length": "64", "prompt_tokens": 64, "decoding": "sample", "tokens": 40}
                    | {"reference": item.references[0], "hypothesis": text}
                    | measured(item.references, text, sources[item.name])
                )
            pq.write_table(pa.Table.from_pylist(rows, SUMMARIES), folder / "summaries.parquet")
            made[f"summarize/{arm}/{seed}"] = LocalArtifact(folder)
    return made


def _named(item: SummaryExample) -> dict[str, str]:
    return {"doc_id": item.doc_id, "book": item.book, "task": item.task, "level": item.level}
