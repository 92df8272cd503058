"""C8 data-are-clean: the audit as evidence, with its own planted canaries as positive control."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.display.numbers import percent
from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.verdict import Finding, Number, VerdictDecision, not_measured

if TYPE_CHECKING:
    import pandas as pd

STEP, TASKS = "decontaminate", "taskaudit"


def clean_data(evidence: Evidence) -> Finding:
    """C8: coverage of every evaluation document by training documents before and after the audit, and a second count
    of what is left, by other code and another rule, since no detector can certify itself."""
    rule = evidence.rules.clean_data
    books = evidence.table(STEP, "books.parquet")
    if not len(books):
        absent = "lists no evaluation document" if evidence.has(STEP) else "is not part of this study"
        return not_measured(f"the contamination audit {absent}")
    before, after = books["coverage"].astype(float), books["coverage_after"].astype(float)
    over_before, over_after = int((before > rule.coverage_limit).sum()), int((after > rule.coverage_limit).sum())
    worst = _largest(evidence, "after", "largest coverage after the audit", after, "coverage_after")
    numbers = [
        worst,
        _largest(evidence, "before", "largest coverage before the audit", before, "coverage"),
    ]
    tasks = _tasks(evidence, numbers)
    recall = _canaries(evidence, numbers)
    left = _second_count(evidence, numbers)
    limit = percent(rule.coverage_limit, 0)
    text = (
        f"{over_before} of {len(books)} evaluation documents were covered above {limit} by training documents (at most "
        f"{percent(float(before.max()))}); after the audit {over_after} (at most {percent(float(after.max()))})"
    )
    short = f"{over_before} of {len(books)} were covered above {limit}, {over_after} still are"
    if left is not None:
        text += (
            f"; an independent count of 13-grams finds {left[0]} above {percent(rule.containment_limit, 0)} "
            f"(at most {percent(left[1])})"
        )
        short += f"; the independent count finds {left[0]}"
    if recall is not None:
        text += f"; canaries acted on: {percent(recall)}"
        short += f"; {percent(recall, 0)} of the planted canaries acted on"

    def finding(decision: VerdictDecision, qualifier: str = "", why: str = "") -> Finding:
        reason = f"{text}{'; ' + why if why else ''}{tasks}"
        return Finding(decision, reason, qualifier, worst, tuple(numbers), f"{short}{'; ' + why if why else ''}")

    if over_after:
        return finding("refuted", why="these are left out of every score")
    if left is not None and left[0]:
        return finding("refuted", why="what the audit calls clean, the second count does not; left out of every score")
    if left is None:
        return finding("inconclusive", "not certified", "no second count certifies what the audit left")
    if recall is None:
        return finding(
            "inconclusive", "no canaries", "no canaries were planted, so the audit is not shown to find them"
        )
    if recall < rule.canary_recall:
        return finding("inconclusive", "audit misses", f"below {rule.canary_recall:.0%} of the canaries")
    if evidence.imported_base and not rule.base_audited:
        why = "nothing is known of what the imported base was trained on before (claims.clean_data.base_audited)"
        return finding("inconclusive", "base not audited", why)
    return finding("supported")


def _largest(evidence: Evidence, name: str, label: str, values: pd.Series, column: str) -> Number:
    return Number(
        f"contamination.{name}",
        label,
        float(values.max()),
        n=len(values),
        unit="share of words",
        method="largest over evaluation documents",
        sources=(evidence.source(STEP, "books.parquet", f"{column} == {column}.max()"),),
    )


def _canaries(evidence: Evidence, numbers: list[Number]) -> float | None:
    """Share of the planted canaries that was acted on; None where none was planted."""
    canaries = evidence.table(STEP, "canaries.parquet")
    planted = int(canaries["planted"].sum()) if len(canaries) else 0
    if not planted:
        return None
    recall = float(canaries["acted"].sum()) / planted
    source = evidence.source(STEP, "canaries.parquet")
    numbers.append(
        Number(
            "contamination.canaries",
            "planted canaries acted on",
            recall,
            n=planted,
            unit="share",
            method="count",
            sources=(source,),
        )
    )
    return recall


def _second_count(evidence: Evidence, numbers: list[Number]) -> tuple[int, float] | None:
    """(evaluation documents above the limit, largest share) by plain 13-gram containment; None where not counted."""
    table, limit = evidence.containment, evidence.rules.clean_data.containment_limit
    if not len(table):
        return None
    share = table["share"].astype(float)
    numbers.append(
        Number(
            "contamination.13grams",
            "largest share of 13-grams in training documents, independent count",
            float(share.max()),
            n=len(table),
            unit="share of 13-grams",
            method="largest over evaluation documents",
            sources=(evidence.source("certify", "containment.parquet", "share == share.max()"),),
        )
    )
    return int((share > limit).sum()), float(share.max())


def _tasks(evidence: Evidence, numbers: list[Number]) -> str:
    """Adds, per evaluation task, the share of its items that are in the training text; the same as a clause."""
    clauses = []
    tasks = evidence.table(TASKS, "tasks.parquet")
    for task, rows in tasks.groupby("task") if len(tasks) else ():
        found = rows["found"] != "no"
        numbers.append(
            Number(
                f"contamination.task.{task}",
                f"items of {task} whose source or reference is in the training text",
                float(found.mean()),
                n=len(rows),
                unit="share",
                method="count, by id or by text",
                sources=(evidence.source(TASKS, "tasks.parquet", f"task == {task!r}"),),
            )
        )
        clauses.append(f"of the {len(rows)} items of {task} {int(found.sum())} are in the training text")
    return "".join(f"; {clause}" for clause in clauses)
