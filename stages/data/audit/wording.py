"""How an audit says its numbers, on pages and on the terminal alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.display.numbers import share

REPORTED = " Nothing was removed: this audit only reports."


def verdict(totals: Mapping[str, Any], books: Sequence[Mapping[str, Any]]) -> str:
    """The finding in a few sentences."""
    limit = totals["parameters"]["coverage_limit"]
    found = [book["coverage"] for book in books if book["coverage"] > 0]
    before = incomplete(totals.get("problems", ()))
    after = hidden(totals.get("cannot_be_found", ()))
    if not found:
        looked = len(books) - len(totals.get("cannot_be_found", ()))
        none = f"None of the {looked} evaluation documents" + (" that can be found" if after else "")
        return f"{before}{none} shares a verified span with a training document.{after}"
    over = sum(coverage > limit for coverage in found)
    text = before + (
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
        text += REPORTED
    return text + after


def incomplete(problems: Sequence[Mapping[str, str]]) -> str:
    """What of the input was not read, "" where all was; documents without text are none."""
    unread = [problem for problem in problems if problem["problem"] != "empty"]
    if not unread:
        return ""
    names = ", ".join(dict.fromkeys(problem["file"] for problem in unread[:3]))
    more = ", ..." if len(unread) > 3 else ""
    return f"Incomplete: {len(unread)} document(s) or file(s) could not be read ({names}{more}). "


def hidden(books: Sequence[Mapping[str, Any]]) -> str:
    """Which evaluation documents no scan can find, "" where there are none."""
    if not books:
        return ""
    names = ", ".join(f"{book['book_id']}: {book['reason']}" for book in books[:3])
    more = ", ..." if len(books) > 3 else ""
    return f" {len(books)} evaluation document(s) cannot be found, whatever the training text holds ({names}{more})."
