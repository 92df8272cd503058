"""The figures in the order of the page, by section."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from stages.verdict.claims.evidence import Evidence
from stages.verdict.report.figures import (
    calibration,
    capacity,
    control,
    data,
    memory,
    perplexity,
    retrieval,
    schedules,
    summaries,
)
from stages.verdict.report.figures.style import Drawing, FinishedFigure, Numbers, finish, settings

Draw = Callable[[Evidence, Numbers], Drawing | None]

FIGURES: tuple[tuple[str, Draw], ...] = (
    ("calibration", control.by_pairs),
    ("calibration", control.by_distance),
    ("calibration", control.by_knockout),
    ("calibration", calibration.schlag),
    ("calibration", calibration.mqar),
    ("retrieval", retrieval.positions),
    ("retrieval", retrieval.lengths),
    ("retrieval", retrieval.bindings),
    ("memory", memory.knockouts),
    ("memory", memory.heads),
    ("memory", memory.gates),
    ("memory", memory.saturation),
    ("perplexity", perplexity.differences),
    ("perplexity", schedules.gaps),
    ("perplexity", perplexity.by_position),
    ("mechanism", capacity.by_keys),
    ("mechanism", capacity.rewriting),
    ("data", data.contamination),
    ("summaries", summaries.rouge),
    ("summaries", summaries.by_length),
    ("cost", data.cost),
    ("training", perplexity.training),
)


def draw(
    evidence: Evidence, numbers: Numbers, folder: Path, sections: Collection[str] | None = None
) -> Iterator[tuple[str, FinishedFigure | None]]:
    """(section, figure) one by one; None where its tables are absent. ``numbers``: every number by its name;
    ``sections``: those drawn, None for all."""
    with settings():
        for section, function in FIGURES:
            if sections is not None and section not in sections:
                continue
            drawing = function(evidence, numbers)
            yield section, None if drawing is None else finish(drawing, folder)
