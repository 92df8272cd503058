"""How an audit says its numbers, on pages and on the terminal alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def percent(value: float) -> str:
    """0.0123 -> '1.2%'; what is neither 0 nor 100% never looks so."""
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return f"{value:.0%}" if value in (0, 1) else f"{value:.1%}"


def signed(value: float) -> str:
    """A margin: '+12', '−0.8'."""
    return (f"{value:+,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:+.1f}").replace("-", "−")


def verdict(totals: Mapping[str, Any], books: Sequence[Mapping[str, Any]]) -> str:
    """The finding in a few sentences."""
    limit = totals["parameters"]["coverage_limit"]
    found = [book["coverage"] for book in books if book["coverage"] > 0]
    if not found:
        return f"None of the {len(books)} evaluation documents shares a verified span with a training document."
    over = sum(share > limit for share in found)
    text = (
        f"{len(found)} of {len(books)} evaluation documents share text with training documents, {over} of them above "
        f"the limit of {100 * limit:.3g}%; the most covered one to {percent(max(found))}."
    )
    rescan = totals.get("rescan")
    if rescan is not None:
        left = sum((book["coverage_after"] or 0) > limit for book in books)
        text += (
            f" After cleaning, a second scan of all {rescan['documents']:,} documents that are left finds "
            f"{'more' if rescan['documents_to_act_on'] else 'nothing'} to act on: {left or 'no'} evaluation document"
            f"{'s' if left > 1 else ''} above the limit, at most {percent(rescan['coverage_max'])} of any."
        )
    elif totals["parameters"]["action"] == "report_only":
        text += " Nothing was removed: this audit only reports."
    return text
