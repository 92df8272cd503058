"""The figures in the order of the page, by section."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from stages.claims.evidence import Evidence
from stages.claims.verdict import Number
from stages.report.figures import data, memory, perplexity, retrieval, summaries
from stages.report.figures.style import Figure, begin

Draw = Callable[[Evidence, Mapping[str, Sequence[Number]], Path], Figure | None]

FIGURES: tuple[tuple[str, Draw], ...] = (
    ("perplexity", perplexity.differences),
    ("perplexity", perplexity.by_position),
    ("memory", memory.knockouts),
    ("memory", memory.gates),
    ("retrieval", retrieval.curve),
    ("retrieval", retrieval.heatmap),
    ("retrieval", retrieval.bindings),
    ("mechanism", retrieval.control),
    ("mechanism", memory.capacity),
    ("data", data.contamination),
    ("summaries", summaries.rouge),
    ("cost", data.cost),
    ("training", perplexity.training),
)


def draw(
    evidence: Evidence, numbers: Mapping[str, Sequence[Number]], folder: Path
) -> Iterator[tuple[str, Figure | None]]:
    """(section, figure) one by one; None where its tables are absent."""
    begin()
    for section, function in FIGURES:
        yield section, function(evidence, numbers, folder)
