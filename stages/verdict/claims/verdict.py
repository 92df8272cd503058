"""What a rule returns: numbers with their provenance, and a verdict computed from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

VerdictDecision = Literal["supported", "refuted", "inconclusive", "not measured"]
DECISIONS: tuple[VerdictDecision, ...] = ("supported", "refuted", "inconclusive", "not measured")


@dataclass(frozen=True)
class Source:
    """Where a number comes from: rows of one table of one artifact.

    step: step id of this study. key: artifact key. table: file inside the artifact. filter: row filter, readable and
    in pandas ``query`` form where there is one.
    """

    step: str
    key: str
    table: str
    filter: str = ""


@dataclass(frozen=True)
class Number:
    """One number of the report with its interval and the rows behind it. No interval (None), or one without an end on
    either side, as of a single seed: none."""

    name: str  # unique dotted path, e.g. "perplexity.infini-linear"
    label: str
    estimate: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    unit: str = ""
    method: str = ""
    sources: tuple[Source, ...] = ()
    decision: VerdictDecision | None = None  # of this row, where a rule looked at it
    qualifier: str = ""  # why an undecided row is so
    note: str = ""  # the reason for the decision, with its numbers
    short: str = ""  # the same in a few words
    about: tuple[tuple[str, str | int], ...] = field(default=(), compare=False)
    """What it is of, by field (kind, arm, k, ...), for those who draw or print it."""

    def __post_init__(self) -> None:
        if self.low == -math.inf and self.high == math.inf:
            object.__setattr__(self, "low", None)
            object.__setattr__(self, "high", None)

    def of(self, **about: str | int) -> Number:
        """The same number with these fields."""
        return replace(self, about=tuple(about.items()))

    def text(self, name: str) -> str:
        """A field; "" where it has none of that name."""
        return str(dict(self.about).get(name, ""))

    def integer(self, name: str) -> int:
        """A field that is a number. Raises KeyError where it has none of that name."""
        return int(dict(self.about)[name])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for report.json."""
        return {**asdict(self), "about": dict(self.about)}


@dataclass(frozen=True)
class Verdict:
    """The outcome of one claim. ``summary``: why, in one line; ``reason``: why, with every arm's numbers;
    ``qualifier``: why it is inconclusive; ``numbers``: what it rests on."""

    claim: str
    name: str
    question: str
    hypothesis: str
    decision: VerdictDecision
    rule: str
    reason: str
    summary: str
    qualifier: str = ""
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    unit: str = ""
    numbers: tuple[Number, ...] = ()
    sources: tuple[Source, ...] = ()

    @property
    def label(self) -> str:
        """``inconclusive (underpowered)`` and the like."""
        return f"{self.decision} ({self.qualifier})" if self.qualifier else self.decision

    def to_dict(self) -> dict[str, Any]:
        """Plain data for report.json."""
        return {**asdict(self), "numbers": [n.to_dict() for n in self.numbers], "label": self.label}


@dataclass(frozen=True)
class Finding:
    """What a rule function hands back; ``stages.verdict.claims.table`` adds id, name, question and rule text."""

    decision: VerdictDecision
    reason: str
    qualifier: str = ""
    headline: Number | None = None
    numbers: tuple[Number, ...] = ()
    summary: str = ""  # the reason in one line, where the whole is longer than that


def not_measured(reason: str, numbers: Sequence[Number] = ()) -> Finding:
    """A claim whose evidence is absent, with the reason."""
    return Finding("not measured", reason, numbers=tuple(numbers))


def combine(rows: Sequence[Number]) -> VerdictDecision:
    """One decision from one per memory arm: some arm supports -> supported, every arm refutes -> refuted.

    Family-wise error of "some arm" is held by the Holm correction inside the rows; "every arm" needs none
    (intersection-union test).
    """
    decisions = [row.decision for row in rows]
    if "supported" in decisions:
        return "supported"
    if decisions and all(decision == "refuted" for decision in decisions):
        return "refuted"
    return "inconclusive"


def headline(rows: Sequence[Number], decision: VerdictDecision) -> Number | None:
    """The row that carries the decision (the first of its kind), or the first row."""
    return next((row for row in rows if row.decision == decision), rows[0] if rows else None)


def decided(row: Number, decision: VerdictDecision, note: str, qualifier: str = "", short: str = "") -> Number:
    """``row`` with its own decision, the reason for it (also in a few words) and, where undecided, why."""
    return replace(row, decision=decision, note=note, qualifier=qualifier, short=short or note)


def conclude(rows: Sequence[Number], others: Sequence[Number] = ()) -> Finding:
    """The finding of a claim that has one decided row per memory arm; ``others`` are printed beside them."""
    decision = combine(rows)
    lead = headline(rows, decision)
    qualifier = next((row.qualifier for row in rows if row.decision == "inconclusive" and row.qualifier), "")
    reason = "; ".join(f"{row.label}: {row.note}" for row in rows)
    if decision != "inconclusive":
        qualifier = ""
    return Finding(decision, reason, qualifier, lead, (*rows, *others), _in_short(rows, lead))


def _in_short(rows: Sequence[Number], lead: Number | None) -> str:
    """The reason of the row that carries the decision; with its label where the rows differ."""
    if lead is None:
        return ""
    same = len({row.short for row in rows}) == 1
    return lead.short if same else f"{lead.label}: {lead.short}"


def unique_sources(numbers: Iterable[Number]) -> tuple[Source, ...]:
    """Every source of ``numbers`` once, in order of appearance."""
    return tuple(dict.fromkeys(source for number in numbers for source in number.sources))
