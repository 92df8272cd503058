"""The figures in the order of the page, by section."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from stages.data.parallel import spread
from stages.verdict.claims.evidence import Evidence
from stages.verdict.report.figures import (
    calibration,
    capacity,
    control,
    data,
    memory,
    perplexity,
    probes,
    retrieval,
    schedules,
    summaries,
)
from stages.verdict.report.figures.style import Drawing, FinishedFigure, Numbers, finish, settings

Draw = Callable[[Evidence, Numbers], Drawing | None]

FIGURES: tuple[tuple[str, Draw], ...] = (
    ("calibration", control.by_pairs),
    ("calibration", control.by_steps),
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
    ("memory", probes.gates_over_training),
    ("memory", probes.recall),
    ("memory", memory.saturation),
    ("memory", probes.spectrum),
    ("memory", probes.windows),
    ("perplexity", perplexity.differences),
    ("perplexity", schedules.gaps),
    ("perplexity", perplexity.by_position),
    ("perplexity", perplexity.by_corpus),
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
    ``sections``: those drawn, None for all. Drawn wherever there is room: same files for any number of workers."""
    wanted = [place for place, (section, _) in enumerate(FIGURES) if sections is None or section in sections]
    for place, (figure, files) in zip(wanted, spread(_drawn, wanted, evidence, numbers), strict=True):
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield FIGURES[place][0], figure


def _drawn(place: int, evidence: Evidence, numbers: Numbers) -> tuple[FinishedFigure | None, dict[str, bytes]]:
    """One of FIGURES and its files by their names."""
    with settings(), tempfile.TemporaryDirectory() as folder:
        drawing = FIGURES[place][1](evidence, numbers)
        if drawing is None:
            return None, {}
        figure = finish(drawing, Path(folder))
        names = (figure.png, figure.svg, figure.narrow, figure.data)
        return figure, {name: (Path(folder) / name).read_bytes() for name in names}
