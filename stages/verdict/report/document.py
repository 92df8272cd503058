"""Everything the report says, as plain data: what report.json holds and the page and Markdown are made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stages.verdict.claims.verdict import DECISIONS, Number, Verdict
from stages.verdict.report.config import ReportConfig
from stages.verdict.report.figures.style import FinishedFigure
from stages.verdict.report.numbers import CostRow

SCHEMA_VERSION = 2

SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "calibration",
        "Calibration: what this instrument measures where the answer is known",
        ("control", "control learned", "control by distance", "control knocked out", "calibration"),
    ),
    ("comparison", "Paired differences", ("scores compared", "texts compared")),
    ("retrieval", "Retrieval and binding", ("passkey", "bindings", "tasks", "effective length")),
    ("memory", "Is the memory used?", ("gates", "probes")),
    (
        "perplexity",
        "Perplexity",
        ("perplexity", "perplexity by corpus", "perplexity differences", "schedules", "perplexity by position"),
    ),
    ("tuning", "Fine-tuning and alignment: before and after, on the same items", ("fine-tuning", "alignment")),
    ("mechanism", "Capacity of the mechanism", ("capacity",)),
    ("data", "Data", ()),
    ("summaries", "Summaries", ("summarization",)),
    ("cost", "Cost", ("cost",)),
    ("training", "Training", ()),
)
"""(id, title, sections of numbers) in the order of the page; the first stands before the verdicts."""

IN_WORDS = {
    "supported": "The evidence supports this.",
    "refuted": "The evidence contradicts this.",
    "inconclusive": "The evidence does not decide this.",
    "not measured": "Nothing in this study measures this.",
}
"""A verdict for a reader who has never seen the table."""


def document(
    config: ReportConfig,
    verdicts: Sequence[Verdict],
    numbers: Mapping[str, Sequence[Number]],
    figures: Sequence[tuple[str, FinishedFigure]],
    costs: Sequence[CostRow],
    setup: Mapping[str, Any],
    *,
    recipe: Sequence[Mapping[str, str]] = (),
    calibration: Sequence[str] = (),
    pages: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """The content of report.json. Infinite or undefined values are null.

    recipe: rows of base and arms. calibration: sentences. pages: title and path of pages beside the report.
    """
    return assembled(
        study=config.study,
        title=config.title or config.study,
        description=config.description,
        setup=setup,
        numbers=numbers,
        figures=figures,
        verdicts=verdicts,
        costs=costs,
        recipe=recipe,
        calibration=calibration,
        pages=pages,
    )


def assembled(
    *,
    study: str,
    title: str,
    description: str,
    setup: Mapping[str, Any],
    numbers: Mapping[str, Sequence[Number]],
    figures: Sequence[tuple[str, FinishedFigure]],
    verdicts: Sequence[Verdict] = (),
    costs: Sequence[CostRow] = (),
    recipe: Sequence[Mapping[str, str]] = (),
    calibration: Sequence[str] = (),
    pages: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """The same from its parts, with or without verdicts."""
    value = {
        "schema_version": SCHEMA_VERSION,
        "study": study,
        "title": title,
        "description": description,
        "setup": dict(setup),
        "recipe": list(recipe),
        "calibration": list(calibration),
        "pages": list(pages),
        "counts": {decision: sum(v.decision == decision for v in verdicts) for decision in DECISIONS},
        "verdicts": [verdict.to_dict() | {"words": IN_WORDS[verdict.decision]} for verdict in verdicts],
        "numbers": {section: [number.to_dict() for number in rows] for section, rows in numbers.items()},
        "costs": [asdict(row) for row in costs],
        "figures": [{"section": section, **asdict(figure)} for section, figure in figures],
        "place": {"options": "", "runs": {}, "facts": [], "file": "{}"},
    }
    plain = finite(value)
    assert isinstance(plain, dict)
    return plain


def finite(value: Any) -> Any:
    """Deep copy with tuples as lists, and numbers JSON cannot hold as null."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None
