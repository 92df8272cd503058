"""C8 data-are-clean: the audit as evidence, with its own planted canaries as positive control."""

from __future__ import annotations

from stages.claims.effects import percent
from stages.claims.evidence import Evidence
from stages.claims.verdict import Finding, Number, not_measured

STEP = "decontaminate"


TASKS = "taskaudit"


def clean_data(evidence: Evidence) -> Finding:
    """C8: coverage of every evaluation document by training documents, before and after the audit."""
    rule = evidence.rules.clean_data
    books = evidence.table(STEP, "books.parquet")
    if not len(books):
        absent = "lists no evaluation document" if evidence.has(STEP) else "is not part of this study"
        return not_measured(f"the contamination audit {absent}")
    before, after = books["coverage"].astype(float), books["coverage_after"].astype(float)
    over_before, over_after = int((before > rule.coverage_limit).sum()), int((after > rule.coverage_limit).sum())
    source = evidence.source(STEP, "books.parquet", f"coverage_after > {rule.coverage_limit}")
    worst = Number(
        "contamination.after", "largest coverage after the audit", float(after.max()), None, None, len(books),
        "share of words", "largest over evaluation documents", (source,),
    )  # fmt: skip
    found = Number(
        "contamination.before",
        "largest coverage before the audit",
        float(before.max()),
        n=len(books),
        unit="share of words",
        method="largest over evaluation documents",
        sources=(evidence.source(STEP, "books.parquet", f"coverage > {rule.coverage_limit}"),),
    )
    numbers = [worst, found]
    canaries = evidence.table(STEP, "canaries.parquet")
    recall = None
    planted = int(canaries["planted"].sum()) if len(canaries) else 0
    if planted:
        recall = float(canaries["acted"].sum()) / planted
        numbers.append(
            Number(
                "contamination.canaries",
                "planted canaries acted on",
                recall,
                n=planted,
                unit="share",
                method="count",
                sources=(evidence.source(STEP, "canaries.parquet"),),
            )
        )
    text = (
        f"{over_before} of {len(books)} evaluation documents were covered above {percent(rule.coverage_limit, 0)} by "
        f"training documents (at most {percent(float(before.max()))}); after the audit {over_after} "
        f"(at most {percent(float(after.max()))})"
    )
    short = (
        f"{over_before} of {len(books)} were covered above {percent(rule.coverage_limit, 0)}, {over_after} still are"
    )
    tasks = _tasks(evidence, numbers)
    if over_after:
        reason = f"{text}; these are left out of every score{tasks}"
        return Finding("refuted", reason, headline=worst, numbers=tuple(numbers), summary=short)
    if recall is None:
        reason = f"{text}; no canaries were planted, so the audit is not shown to find what it should{tasks}"
        return Finding("inconclusive", reason, "no canaries", worst, tuple(numbers), f"{short}; no canaries planted")
    text += f"; canaries acted on: {percent(recall)}"
    short += f"; {percent(recall, 0)} of the planted canaries acted on"
    if recall < rule.canary_recall:
        text += f", below {rule.canary_recall:.0%}{tasks}"
        return Finding("inconclusive", text, "audit misses", worst, tuple(numbers), short)
    return Finding("supported", text + tasks, headline=worst, numbers=tuple(numbers), summary=short)


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
                sources=(evidence.source(TASKS, "tasks.parquet", f"task == {task!r} and found != 'no'"),),
            )
        )
        clauses.append(f"of the {len(rows)} items of {task} {int(found.sum())} are in the training text")
    return "".join(f"; {clause}" for clause in clauses)
