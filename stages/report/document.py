"""Everything the report says, as plain data: what report.json holds and the page and Markdown are made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stages.claims.verdict import DECISIONS, Number, Verdict
from stages.report.config import ReportConfig
from stages.report.figures.style import Figure
from stages.report.numbers import CostRow

SCHEMA_VERSION = 1

SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("perplexity", "Perplexity", ("perplexity", "perplexity differences", "perplexity by position")),
    ("memory", "Is the memory used?", ("gates",)),
    ("retrieval", "Retrieval and binding", ("passkey", "bindings")),
    ("mechanism", "Mechanism and positive control", ("control", "capacity")),
    ("data", "Data", ()),
    ("summaries", "Summaries", ("summarization",)),
    ("cost", "Cost", ("cost",)),
    ("training", "Training", ()),
)
"""(id, title, sections of numbers) in the order of the page."""


def document(
    config: ReportConfig,
    verdicts: Sequence[Verdict],
    numbers: Mapping[str, Sequence[Number]],
    figures: Sequence[tuple[str, Figure]],
    costs: Sequence[CostRow],
    setup: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of report.json. Infinite or undefined values are null."""
    value = {
        "schema_version": SCHEMA_VERSION,
        "study": config.study,
        "title": config.title or config.study,
        "description": config.description,
        "setup": dict(setup),
        "counts": {decision: sum(v.decision == decision for v in verdicts) for decision in DECISIONS},
        "verdicts": [verdict.to_dict() for verdict in verdicts],
        "numbers": {section: [asdict(number) for number in rows] for section, rows in numbers.items()},
        "costs": [asdict(row) for row in costs],
        "figures": [
            {"section": section, **{k: v for k, v in asdict(figure).items() if k != "svg"}}
            for section, figure in figures
        ],
    }
    plain = _finite(value)
    assert isinstance(plain, dict)
    return plain


def _finite(value: Any) -> Any:
    """Deep copy with tuples as lists, and numbers JSON cannot hold as null."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


SIGNED = ("relative", "accuracy lost", "accuracy above")
PERCENT_UNITS = ("accuracy", "share", "relative perplexity", "F1")


def shown(value: float | None, unit: str) -> str:
    """A number as people read it: shares in percent, sizes with thousands, the rest to four digits."""
    if value is None or not math.isfinite(value):
        return "–"
    if any(word in unit for word in PERCENT_UNITS):
        signed = unit.startswith(SIGNED) or unit.endswith("difference") or value < 0
        text = f"{100 * value:+.1f}%" if signed else f"{100 * value:.1f}%"
    elif abs(value) >= 1000 or (unit == "associations" and abs(value) >= 10):
        text = f"{value:,.0f}"
    elif value == int(value) and abs(value) < 1000:
        text = f"{value:.0f}"
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−")


def interval(low: float | None, high: float | None, unit: str) -> str:
    """'[low, high]', or nothing where there is none."""
    return "" if low is None and high is None else f"[{shown(low, unit)}, {shown(high, unit)}]"
