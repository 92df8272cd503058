"""How an audit says its numbers, on pages and on the terminal alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.display.numbers import share


def verdict(totals: Mapping[str, Any], books: Sequence[Mapping[str, Any]]) -> str:
    """The finding in a few sentences."""
    limit = totals["parameters"]["coverage_limit"]
    found = [book["coverage"] for book in books if book["coverage"] > 0]
    if not found:
        return f"None of the {len(books)} evaluation documents shares a verified span with a training document."
    over = sum(coverage > limit for coverage in found)
    text = (
        f"{len(found)} of {len(books)} evaluation documents share text with training documents, {over} of them above "
        f"the limit of {100 * limit:.3g}%; the most covered one to {share(max(found))}."
    )
    rescan = totals.get("rescan")
    if rescan is not None:
        left = sum((book["coverage_after"] or 0) > limit for book in books)
        text += (
            f" After cleaning, a second scan of all {rescan['documents']:,} documents that are left finds "
            f"{'more' if rescan['documents_to_act_on'] else 'nothing'} to act on: {left or 'no'} evaluation document"
            f"{'s' if left > 1 else ''} above the limit, at most {share(rescan['coverage_max'])} of any."
        )
    elif totals["parameters"]["action"] == "report_only":
        text += " Nothing was removed: this audit only reports."
    return text
