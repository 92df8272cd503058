"""Ceiling and floor: a study that finds nothing must show that it could have found something.

The ceiling is full attention, which can do the task; the floor is local attention, which cannot. Where the ceiling, in
the same budget and on the same items, does not find what is asked, or the floor finds it too, nothing is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.display.numbers import percent, points, signed_percent
from stages.verdict.claims.effects import accuracy, effect, nested_accuracy
from stages.verdict.claims.evidence import Evidence, paired
from stages.verdict.claims.verdict import Number, decided

if TYPE_CHECKING:
    import pandas as pd

CEILING, FLOOR = "full", "local"
BELOW = "ceiling below threshold"


@dataclass(frozen=True)
class Bracket:
    """``passed``: None where ceiling or floor was not run. ``note``: what was seen. ``lack``: in two words, why not."""

    passed: bool | None
    note: str
    lack: str = ""


def control_bracket(evidence: Evidence) -> Bracket:
    """The positive control: the ceiling recalls at every deciding k, the floor only guesses."""
    rules, rule = evidence.rules, evidence.rules.positive_control
    table = evidence.control_trained()
    if not len(table):
        return Bracket(None, "the positive control was not run", "no positive control")
    read: dict[str, list[Number]] = {}
    for kind in (CEILING, FLOOR):
        for arm in evidence.control_arms_of_kind(kind):
            for k in rule.pairs:
                rows = table[(table["arm"] == arm) & (table["k"] == k)]
                if len(rows):
                    read.setdefault(kind, []).append(nested_accuracy("", "", rows, sources=(), rules=rules))
    absent = [kind for kind in (CEILING, FLOOR) if len(read.get(kind, ())) < len(rule.pairs)]
    if absent:
        note = f"the positive control has no {absent[0]} attention at k = {', '.join(map(str, rule.pairs))}"
        return Bracket(None, note, "no positive control")
    guess = float(table["guess"].iloc[0])
    high, low = min(n.low or 0.0 for n in read[CEILING]), max(n.high or 1.0 for n in read[FLOOR])
    passed = high >= rule.ceiling and low < guess + rule.floor
    asked = (
        ""
        if passed
        else (
            f"; asked for: full attention at {percent(rule.ceiling, 0)} or more (shown: {percent(high)}), local "
            f"attention below {percent(guess + rule.floor)} (shown: {percent(low)})"
        )
    )
    return Bracket(
        passed,
        f"positive control {'passed' if passed else 'failed'}: at k = {', '.join(map(str, rule.pairs))} full attention "
        f"recalls {_each(read[CEILING])}, local attention {_each(read[FLOOR])} (a guess: {percent(guess)}){asked}",
        "" if passed else "positive control failed",
    )


def task_bracket(evidence: Evidence, task: str, length: int, ks: Sequence[int], least: float) -> Bracket:
    """The language models' own: the full arm finds the needle beyond the last segment (lower bound at least ``least``
    at every k), the local arm does not, on the same prompts."""
    table = evidence.retrieval
    seen: dict[str, list[Number]] = {}
    for kind in (CEILING, FLOOR):
        for arm in evidence.arms_of_kind(kind)[:1]:
            for k in ks:
                rows = table[
                    (table["arm"] == arm)
                    & (table["task"] == task)
                    & (table["length"] == length)
                    & (table["rivals"] == k)
                    & table["beyond_local"].astype(bool)
                ]
                if len(rows):
                    seen.setdefault(kind, []).append(accuracy("", "", rows, sources=(), rules=evidence.rules))
    return _bracket(seen, len(ks), least)


def cell_bracket(evidence: Evidence, rows: pd.DataFrame, least: float) -> Bracket:
    """The same of one cell of a compositional task; ``rows``: all arms' at one k and length, seed, item, correct."""
    seen: dict[str, list[Number]] = {}
    for kind in (CEILING, FLOOR):
        for arm in evidence.arms_of_kind(kind)[:1]:
            of = rows[rows["arm"] == arm]
            if len(of):
                seen[kind] = [accuracy("", "", of, sources=(), rules=evidence.rules)]
    return _bracket(seen, 1, least)


def ceiling_bracket(evidence: Evidence, rows: pd.DataFrame, arm: str, threshold: float | None = None) -> Bracket:
    """Is a failure the memory's? Full attention is ahead of ``arm`` on the same prompts and, where a ``threshold`` is
    asked for, not itself shown to stay below it: what nobody learned so well in this budget refutes nobody. ``rows``:
    seed, item, correct of all arms."""
    ceilings = evidence.arms_of_kind(CEILING)[:1]
    top = rows[rows["arm"] == ceilings[0]] if ceilings else rows[:0]
    pair = paired(top, rows[rows["arm"] == arm], "item", "correct") if len(top) else None
    if pair is None:
        return Bracket(None, "no arm of kind full was asked the same prompts", "no ceiling arm")
    own = accuracy("", "", top, sources=(), rules=evidence.rules)
    if threshold is not None and own.high is not None and own.high < threshold:
        shown = f"{percent(own.estimate, 0)}, at most {percent(own.high, 0)}"
        note = f"full attention itself stays below {threshold:.0%} on these prompts ({shown})"
        return Bracket(False, note, BELOW)
    ahead = effect(pair, evidence.rules)
    note = f"full attention is {points(ahead.estimate)} ahead on the same prompts"
    if ahead.exceeds:
        return Bracket(True, note)
    note = f"full attention is not shown to be ahead on the same prompts ({points(ahead.estimate)})"
    return Bracket(False, note, "as good as full attention")


def _bracket(seen: Mapping[str, Sequence[Number]], count: int, least: float) -> Bracket:
    for kind, name in ((CEILING, "ceiling"), (FLOOR, "floor")):
        if len(seen.get(kind, ())) < count:
            return Bracket(None, f"no arm of kind {kind} was asked the same prompts", f"no {name} arm")
    found, guessed = min(n.low or 0.0 for n in seen[CEILING]), max(n.high or 1.0 for n in seen[FLOOR])
    note = f"on these prompts full attention finds {_each(seen[CEILING])}, local attention {_each(seen[FLOOR])}"
    if found < least:
        return Bracket(False, f"{note}: the task itself was not learned in this budget", "task not learned")
    if guessed >= least:
        return Bracket(False, f"{note}: it can be done without a memory", "no memory needed")
    return Bracket(True, note)


def perplexity_bracket(evidence: Evidence, table: pd.DataFrame) -> Bracket:
    """Does long context help at all here: full attention gains at least the margin of C2 over the local arm. ``table``:
    arm, seed + ``perplexity.parquet`` of the models that are compared."""
    rule = evidence.rules.perplexity_from_memory
    full, local = evidence.arms_of_kind(CEILING)[:1], evidence.arms_of_kind(FLOOR)[:1]
    pair = None
    if full and local and len(table):
        pair = paired(table[table["arm"] == local[0]], table[table["arm"] == full[0]], "doc_id", "nll_sum", "tokens")
    if pair is None:
        return Bracket(None, "no full attention was trained beside it", "no ceiling arm")
    found = effect(pair, evidence.rules)
    gain = -math.expm1(-found.estimate)
    passed = found.exceeds and gain >= rule.margin
    note = f"full attention: {signed_percent(-gain)} perplexity against local"
    if passed:
        return Bracket(True, note)
    return Bracket(False, f"{note}: what lies beyond a segment is worth less than {rule.margin:.0%}", "ceiling too low")


def behind(row: Number, *brackets: Bracket) -> Number:
    """A refusal counts only where every ceiling and floor stand as they must; else the row is open, and says why."""
    if row.decision != "refuted":
        return row
    notes = "; ".join(bracket.note for bracket in brackets)
    failed = next((bracket for bracket in brackets if not bracket.passed), None)
    if failed is None:
        return decided(row, "refuted", f"{row.note} ({notes})", short=row.short)
    return decided(
        row, "inconclusive", f"{row.note}, but {failed.note}", failed.lack, f"{row.short}, but {failed.note}"
    )


def _each(numbers: Sequence[Number]) -> str:
    return " / ".join(percent(number.estimate, 0) for number in numbers)
