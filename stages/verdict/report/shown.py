"""Numbers as they are shown: with their unit, their interval, a true minus sign."""

from __future__ import annotations

import math

SIGNED = ("relative", "accuracy above")


PERCENT_UNITS = ("accuracy", "share", "relative perplexity", "F1")


POINTS = ("accuracy lost", "accuracy above")
"""Beginnings of units that are differences of shares: shown in points, so that nobody takes them for relative
changes."""


def shown(value: float | None, unit: str) -> str:
    """A number as people read it: shares in percent, their differences in points, sizes with thousands, capacities to
    two digits, the rest to four."""
    if value is None or not math.isfinite(value):
        return "–"
    if any(word in unit for word in PERCENT_UNITS):
        hundredfold = round(100 * value, 1) + 0.0  # no negative zero
        signed = hundredfold != 0 and (unit.startswith(SIGNED) or unit.endswith("difference"))
        text = f"{hundredfold:+.1f}" if signed else f"{hundredfold:.1f}"
        text += "" if shown_unit(unit).startswith("points") else "%"
    elif abs(value) >= 1e9 or (unit == "associations" and abs(value) < 10):  # an interval without bounds to speak of
        text = f"{value:.2g}"
    elif abs(value) >= 1000 or (unit == "associations" and abs(value) >= 10):
        text = f"{value:,.0f}"
    elif value == int(value) and abs(value) < 1000:
        text = f"{value:.0f}"
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−")


def shown_unit(unit: str) -> str:
    """The unit as it stands beside ``shown``: differences of shares become points."""
    if unit.endswith(" difference") and "relative" not in unit:
        return f"points of {unit.removesuffix(' difference')}"
    return f"points of {unit}" if unit.startswith(POINTS) else unit


def interval(low: float | None, high: float | None, unit: str) -> str:
    """'[low, high]', or nothing where there is none."""
    return "" if low is None and high is None else f"[{shown(low, unit)}, {shown(high, unit)}]"
