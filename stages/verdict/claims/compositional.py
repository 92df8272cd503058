"""C4 compositional: tasks that ask more than one needle, each at the longest length that it was asked at.

A cell is a task at one k and length. Scores are shares of what was asked; seeds and prompts are both drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stages.data.tasks.registry import TASKS
from stages.data.tasks.scoring import all_in, any_in, any_whole_in, first_said, whole_in
from stages.data.tasks.task import CONTROL, Task
from stages.display.numbers import percent, points
from stages.verdict.claims.bracket import (
    BELOW,
    FLOOR,
    Bracket,
    behind,
    ceiling_bracket,
    cell_bracket,
    control_bracket,
)
from stages.verdict.claims.effects import Effect, accuracy, effect, needed_to_clear
from stages.verdict.claims.evidence import Evidence, paired
from stages.verdict.claims.verdict import Finding, Number, Source, conclude, decided, not_measured

if TYPE_CHECKING:
    import pandas as pd

TABLE = "tasks.parquet"
RIVALS = (FLOOR, "window")  # kinds of arm without a memory that reaches further


@dataclass(frozen=True)
class TaskCell:
    """One arm's rows of a task at one k and length, with what was read off them. ``score``: its interval at 1 - alpha;
    ``clears``: the one-sided lower bound, Bonferroni over memory arms, reaches the threshold; ``fails``: the upper
    bound, Bonferroni over the cells, stays below it; ``above``: the difference to the floor on the same prompts."""

    task: str
    k: int
    length: int
    rows: pd.DataFrame
    score: Number
    clears: bool
    fails: bool
    above: Effect | None

    @property
    def name(self) -> str:
        return cell_name(self.task, self.k)


def cell_name(task: str, k: int) -> str:
    """A task at one k, in words."""
    return f"{task} (k = {k})"


def composed(evidence: Evidence) -> pd.DataFrame:
    """arm, seed + ``tasks.parquet``, rows of compositional tasks, without controls. ``correct``: their score, but where
    that counts what was said anywhere, of the first that were said: who says every needle has not found the asked."""
    table = evidence.tasks
    if not len(table):
        return table
    deciding = evidence.rules.compositional.tasks
    names = [
        name
        for name in table["task"].unique()
        if not name.endswith(CONTROL) and name in TASKS and TASKS[name].composes and name in (deciding or (name,))
    ]
    rows = table[table["task"].isin(names)]
    return rows.assign(
        correct=[
            _strict(TASKS[task], answer, list(answers), score)
            for task, answer, answers, score in zip(
                rows["task"], rows["answer"], rows["answers"], rows["score"], strict=True
            )
        ]
    )


def _strict(task: Task, answer: str, answers: list[str], score: float) -> float:
    if task.score in (all_in, whole_in):
        return first_said(answer, answers)
    if task.score in (any_in, any_whole_in):
        return max(first_said(answer, [each]) for each in answers)
    return score


def compositional(evidence: Evidence) -> Finding:
    """C4: every compositional task that was asked, at its deciding length, in some memory arm."""
    if not evidence.memory_arms:
        return not_measured("the study has no arm with a compressive memory")
    table = composed(evidence)
    if not len(table):
        return not_measured("no compositional task was asked (evaluate.retrieval.tasks)")
    rule = evidence.rules.compositional
    if rule.length is None:
        longest = table.groupby(["task", "k"])["length"].transform("max")
        at = table[table["length"] == longest]
    else:
        at = table[table["length"] == rule.length]
        absent = sorted(set(table["task"]) - set(at["task"]))
        if absent:
            return not_measured(f"{absent[0]} was not asked at {rule.length:,} tokens (claims.compositional.length)")
    cells = {arm: _cells(evidence, at, arm) for arm in evidence.memory_arms}
    scores = [cell.score for found in cells.values() for cell in found]
    others = [*scores, *reaches(evidence, table), *differences(evidence, table)]
    rows = [_judge(evidence, arm, found, at) for arm, found in cells.items() if found]
    if not rows:
        return not_measured("no memory arm was asked a compositional task", others)
    return conclude(rows, others)


def reaches(evidence: Evidence, table: pd.DataFrame) -> list[Number]:
    """Per task, k and arm the longest length, all shorter ones included, whose lower bound clears the threshold."""
    from stages.statistics.curves import effective_length

    rules, rule = evidence.rules, evidence.rules.compositional
    found = []
    for (task, k), rows in table.groupby(["task", "k"], sort=False):
        for arm in evidence.arms:
            of = rows[rows["arm"] == arm]
            if not len(of):
                continue
            reached = effective_length(
                of["length"],
                of["correct"],
                seeds=of["seed"],
                items=of["item"],
                threshold=rule.threshold,
                level=1 - rules.alpha,
            )
            found.append(
                Number(
                    f"task_effective.{task}.k{k}.{arm}",
                    f"{arm}: longest prompt of {cell_name(task, k)} with {rule.threshold:.0%}",
                    float(reached.unbroken or 0),
                    n=reached.n,
                    unit="tokens",
                    method=f"{reached.method}; tested up to {reached.longest_tested:,}",
                    sources=_sources(evidence, task, int(k), arm),
                    note="none of the lengths tested" if reached.unbroken is None else "",
                )
            )
    return found


def differences(evidence: Evidence, table: pd.DataFrame) -> list[Number]:
    """Every memory arm against local and window in every cell, with Benjamini and Hochberg's p over the grid."""
    from stages.statistics.tests import benjamini_hochberg

    found, p = [], []
    for (task, k, length), rows in table.groupby(["task", "k", "length"], sort=False):
        for arm in evidence.memory_arms:
            for other in evidence.arms_of_kind(*RIVALS):
                above = _above(evidence, rows, arm, other)
                if above is None:
                    continue
                p.append(above.p)
                found.append(
                    Number(
                        f"task_gain.{task}.k{k}.{length}.{arm}.{other}",
                        f"{arm} above {other}, {cell_name(task, k)} at {length:,} tokens",
                        above.estimate,
                        above.low,
                        above.high,
                        above.items * above.seeds,
                        "score difference",
                        above.method,
                        _sources(evidence, task, int(k), arm, int(length))
                        + _sources(evidence, task, int(k), other, int(length)),
                    )
                )
    adjusted = benjamini_hochberg(p)
    return [
        replace(number, note=f"Benjamini-Hochberg p = {q:.2g} over {len(p)} cells")
        for number, q in zip(found, adjusted, strict=True)
    ]


def _above(evidence: Evidence, rows: pd.DataFrame, arm: str, other: str) -> Effect | None:
    pair = paired(rows[rows["arm"] == arm], rows[rows["arm"] == other], "item", "correct")
    return None if pair is None else effect(pair, evidence.rules)


def _sources(evidence: Evidence, task: str, k: int, arm: str, length: int | None = None) -> tuple[Source, ...]:
    where = f"task == '{task}' and k == {k}" + ("" if length is None else f" and length == {length}")
    return evidence.sources("evaluate", TABLE, where, arm)


def _cells(evidence: Evidence, at: pd.DataFrame, arm: str) -> list[TaskCell]:
    rules, rule = evidence.rules, evidence.rules.compositional
    asked = at.groupby(["task", "k", "length"], sort=False)
    groups = [(key, rows) for key, rows in asked if (rows["arm"] == arm).any()]
    family = rules.model_copy(update={"alpha": min(rules.alpha, 2 * rules.alpha / len(evidence.memory_arms))})
    strict = rules.model_copy(update={"alpha": rules.alpha / max(1, len(groups))})
    floor = evidence.arms_of_kind(FLOOR)[:1]
    made = []
    for (task, k, length), every in groups:
        rows = every[every["arm"] == arm]
        score = accuracy(
            f"composed.{arm}.{task}.k{k}.{length}",
            f"{arm}, {cell_name(task, k)} at {length:,} tokens",
            rows,
            sources=_sources(evidence, task, int(k), arm, int(length)),
            rules=rules,
        )
        low = accuracy("", "", rows, sources=(), rules=family).low or 0.0
        high = accuracy("", "", rows, sources=(), rules=strict).high
        above = _above(evidence, every, arm, floor[0]) if floor else None
        made.append(
            TaskCell(
                str(task),
                int(k),
                int(length),
                rows,
                score,
                clears=low >= rule.threshold,
                fails=high is not None and high < rule.threshold,
                above=above,
            )
        )
    return made


def _judge(evidence: Evidence, arm: str, cells: Sequence[TaskCell], at: pd.DataFrame) -> Number:
    rules, rule = evidence.rules, evidence.rules.compositional
    worst = min(cells, key=lambda cell: cell.score.estimate)
    row = replace(
        worst.score,
        name=f"composed.{arm}",
        label=f"{arm}, worst of {len(cells)} tasks ({worst.name} at {worst.length:,} tokens)",
        sources=tuple(source for cell in cells for source in cell.score.sources),
    )
    text = ", ".join(f"{cell.name} {percent(cell.score.estimate, 0)}" for cell in cells)
    seeds = min(cell.rows["seed"].nunique() for cell in cells)
    if seeds < rules.minimum_seeds:
        few = f"{seeds} of {rules.minimum_seeds} seeds"
        return decided(row, "inconclusive", f"{text}; {few}", "too few seeds", few)
    failing = [cell for cell in cells if cell.fails]
    if failing:
        brackets = {cell.name: _bracket(evidence, at, cell, arm) for cell in failing}
        shown = min(failing, key=lambda cell: _telling(brackets[cell.name]))
        short = f"{shown.name} stays below {rule.threshold:.0%}: {percent(shown.score.estimate, 0)}"
        row = decided(row, "refuted", f"{text}; {short}", short=short)
        return behind(row, control_bracket(evidence), brackets[shown.name])
    kinds = sorted({TASKS[cell.task].composes for cell in cells})
    if len(kinds) < rule.kinds:
        short = f"only {', '.join(kinds)} asked, {rule.kinds} kinds of task are needed"
        return decided(row, "inconclusive", f"{text}; {short}", "too few tasks", short)
    prompts = min(cell.rows["item"].nunique() for cell in cells)
    if prompts < rule.minimum_trials:
        few = f"{prompts} of {rule.minimum_trials} prompts"
        return decided(row, "inconclusive", f"{text}; {few}", "underpowered", few)
    straddling = [cell for cell in cells if not cell.clears]
    if straddling:
        first = straddling[0]
        more = needed_to_clear(first.rows, rules, rule.threshold)
        short = f"the interval of {first.name} straddles {rule.threshold:.0%}; {more}"
        return decided(row, "inconclusive", f"{text}; {short}", "underpowered", short)
    alone = next((cell for cell in cells if cell.above is None), None)
    if alone is not None:
        short = "no arm of kind local was asked the same prompts"
        return decided(row, "inconclusive", f"{text}; {short}", "no floor arm", short)
    known = next((cell for cell in cells if cell.above is not None and not cell.above.exceeds), None)
    if known is not None:
        assert known.above is not None
        short = f"{known.name} is done without a memory ({points(known.above.estimate)} above local)"
        return decided(row, "inconclusive", f"{text}; {short}", "no memory needed", short)
    short = f"at least {rule.threshold:.0%} in every task at its longest length, above local"
    return decided(row, "supported", f"{text}: {short}", short=short)


def _telling(bracket: Bracket) -> int:
    """Which of several failures to name: one that counts, one that full attention learned, any other."""
    return 0 if bracket.passed else 1 if bracket.lack == BELOW else 2


def _bracket(evidence: Evidence, at: pd.DataFrame, cell: TaskCell, arm: str) -> Bracket:
    rule = evidence.rules.compositional
    rows = at[(at["task"] == cell.task) & (at["k"] == cell.k) & (at["length"] == cell.length)]
    learned = cell_bracket(evidence, rows, rule.learned)
    return ceiling_bracket(evidence, rows, arm, rule.threshold) if learned.passed else learned
