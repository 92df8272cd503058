"""All summaries of a study side by side: of every arm and seed, and those that no model wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from stages.evidence.summarize.baselines import BASELINES
from stages.evidence.summarize.items import SummaryExample, load
from stages.stage import Artifact, StageError

REFERENCE = "reference"
"""The system that is the first reference: a person's summary of this very text."""
NO_SEED = -1  # of systems that are no model


@dataclass(frozen=True)
class Written:
    """One summary. ``system``: an arm, one of BASELINES, or REFERENCE. ``decoding``: "" where no model wrote it.
    ``measured``: the columns counted of it."""

    system: str
    seed: int
    name: tuple[str, str, str]
    decoding: str
    text: str
    measured: Mapping[str, float | None]


@dataclass(frozen=True)
class Everything:
    """``items``: by their names, in their order. ``written``: at the first length of the prompt."""

    items: dict[tuple[str, str, str], SummaryExample]
    written: list[Written]

    @property
    def arms(self) -> list[str]:
        """Arms in the order of the study."""
        return list(dict.fromkeys(w.system for w in self.written if w.seed != NO_SEED))

    def of(self, decoding: str) -> dict[tuple[str, int, tuple[str, str, str]], Written]:
        """Summaries by (system, seed, item), models' by this decoding alone."""
        return {(w.system, w.seed, w.name): w for w in self.written if w.decoding in ("", decoding)}


def everything(inputs: Mapping[str, Artifact]) -> Everything:
    """What the steps ``references`` and ``summarize/ARM/SEED`` hold. Raises StageError where an arm has the name of a
    baseline."""
    examples = load(inputs["references"])
    items = {example.name: example for example in examples}
    written = [Written(REFERENCE, NO_SEED, example.name, "", example.references[0], {}) for example in examples]
    written += [
        Written(row["system"], NO_SEED, _name(row), "", row["hypothesis"], _measured(row))
        for row in pq.read_table(inputs["references"].path("baselines.parquet")).to_pylist()
    ]
    for step, artifact in inputs.items():
        if step.startswith("summarize/"):
            _, arm, seed = step.split("/")
            if arm in (*BASELINES, REFERENCE):
                raise StageError(
                    "an arm of this name cannot be told from the summaries that no model wrote",
                    field="arms",
                    value=arm,
                    fix="give it another name",
                )
            written += [
                Written(arm, int(seed), _name(row), row["decoding"], row["hypothesis"], _measured(row))
                for row in _of_first_length(artifact)
            ]
    return Everything(items, written)


def _of_first_length(artifact: Artifact) -> Iterator[dict[str, Any]]:
    rows = pq.read_table(artifact.path("summaries.parquet")).to_pylist()
    return (row for row in rows if row["length"] == rows[0]["length"])


def _name(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["task"], row["level"], row["doc_id"]


def _measured(row: Mapping[str, Any]) -> dict[str, float | None]:
    from stages.evidence.summarize.lexical import COLUMNS

    return {name: row[name] for name in COLUMNS}
