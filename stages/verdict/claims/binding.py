"""C5 binding: is the asked needle found among rivals, by the recall models of the control (a) and on text (b).

The null is the best reader that does not bind: it knows every needle of the prompt and answers by position or value
alone. Asked needles are drawn at random, so each such reader is right about once in k; on the prompts at hand one of
them may be luckier, and the arm must beat that one too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stages.display.numbers import percent, points
from stages.evidence.control.stage import deciding
from stages.verdict.claims.bracket import Bracket, behind, control_bracket, task_bracket
from stages.verdict.claims.effects import Effect, accuracy, effect, family, needed, nested_accuracy
from stages.verdict.claims.evidence import BEYOND, Evidence, Paired, paired
from stages.verdict.claims.verdict import Finding, Number, Source, conclude, decided, not_measured

if TYPE_CHECKING:
    import pandas as pd

TABLE = "retrieval.parquet"
UNIT = "accuracy above the best reader that does not bind"
READERS = ("first", "last", "most frequent")


@dataclass(frozen=True)
class Rivals:
    """One arm at one k: its accuracy above 1/k, and above each other reader, on the same prompts."""

    k: int
    chance: Effect
    readers: dict[str, Effect]
    best: Effect  # against the reader that is right most often on these prompts, whatever the arm says

    @property
    def least(self) -> Effect:
        """The comparison in which the arm does worst."""
        return min((self.chance, *self.readers.values()), key=lambda one: one.estimate)


@dataclass(frozen=True)
class Known:
    """What one arm was seen to do: by k, its accuracy for a single needle, and the rows behind it."""

    rivals: tuple[Rivals, ...]
    single: Number | None
    sources: tuple[Source, ...]


def read(values: Sequence[str], reader: str) -> str:
    """The answer of a reader that knows the needles' ``values`` in order of position, and not what was asked."""
    if reader == "first":
        return values[0]
    if reader == "last":  # which is also the nearest to the question
        return values[-1]
    return Counter(values).most_common(1)[0][0]


def binding_control(evidence: Evidence) -> Finding:
    """C5a: the small recall models, one task, the memory the only path to the answer."""
    arms = deciding(evidence.control_arms, evidence.arms)
    table = evidence.control_trained()
    if not len(table) or not arms:
        return not_measured("the positive control is not part of this study")
    seen = {arm: known for arm in arms if (known := _of_control(evidence, table[table["arm"] == arm], arm)) is not None}
    others = [number for arm in evidence.control_arms for number in control_accuracies(evidence, arm)]
    return _conclude(evidence, seen, others, [control_bracket(evidence)], "control")


def _of_control(evidence: Evidence, table: pd.DataFrame, arm: str) -> Known | None:
    """Fresh sequences per seed: one number per seed and k. Its readers are right 1 in k by construction."""
    rivals = []
    for k, rows in table[table["k"] >= 2].groupby("k"):
        by_seed = rows.groupby("seed")[["hits", "trials"]].sum()
        share = (by_seed["hits"] / by_seed["trials"]).to_numpy(float)[:, None]
        pair = Paired(share, np.full_like(share, 1 / int(k)), np.ones(1), tuple(map(int, by_seed.index)), (f"k={k}",))
        found = effect(pair, evidence.rules, null=evidence.rules.binding.margin)
        rivals.append(Rivals(int(k), found, {}, found))
    if not rivals:
        return None
    single = table[table["k"] == 1]
    number = nested_accuracy("", "", single, sources=(), rules=evidence.rules) if len(single) else None
    sources = evidence.sources("control", "control.parquet", _control_filter(evidence, "k >= 2"), arm)
    return Known(tuple(rivals), number, sources)


def binding_models(evidence: Evidence) -> Finding:
    """C5b: the trained arms on text, needle beyond the last segment."""
    if not evidence.memory_arms:
        return not_measured("the study has no arm with a compressive memory")
    table = evidence.retrieval
    asked = table[(table["task"] == "bindings") & table["beyond_local"].astype(bool)] if len(table) else table
    if not len(asked) or not (asked["rivals"] >= 2).any():
        return not_measured("no evaluation has the task 'bindings' with k >= 2 rivals beyond the last segment")
    length = int(asked["length"].max())
    asked = asked[asked["length"] == length]
    seen = {}
    for arm in evidence.memory_arms:
        rows = asked[asked["arm"] == arm]
        if (known := _of_models(evidence, rows, arm, length)) is not None:
            seen[arm] = known
    ks = sorted(int(k) for k in asked["rivals"].unique() if k >= 2)
    rule = evidence.rules.binding
    bracket = task_bracket(evidence, "bindings", length, ks, rule.learned) if ks else Bracket(None, "")
    return _conclude(evidence, seen, [], [control_bracket(evidence), bracket], "model")


def _of_models(evidence: Evidence, rows: pd.DataFrame, arm: str, length: int) -> Known | None:
    table, margin = evidence.retrieval, evidence.rules.binding.margin
    rivals = []
    for k, many in rows[rows["rivals"] >= 2].groupby("rivals"):
        against = {"any": many.assign(correct=1.0 / int(k))}
        for reader in READERS:
            said = [read(list(values), reader) for values in many["values"]]
            against[reader] = many.assign(correct=(np.array(said) == many["expected"].to_numpy()).astype(float))
        absent = table[
            (table["arm"] == arm)
            & (table["task"] == "bindings_absent")
            & (table["rivals"] == k)
            & (table["length"] == length)
        ]
        if len(absent):  # how often the arm says a rival's number although its word was not asked
            share = absent.groupby("seed")["correct"].mean()
            against["absent word"] = many.assign(correct=many["seed"].map(share).astype(float)).dropna()
        effects = {
            name: effect(pair, evidence.rules, null=margin)
            for name, other in against.items()
            if (pair := paired(many, other, "item", "correct")) is not None
        }
        luckiest = max(("any", *READERS), key=lambda name: float(against[name]["correct"].mean()))
        best = effects[luckiest]
        rivals.append(Rivals(int(k), effects.pop("any"), effects, best))
    if not rivals:
        return None
    single = rows[rows["rivals"] == 1]
    number = accuracy("", "", single, sources=(), rules=evidence.rules) if len(single) else None
    condition = f"task == 'bindings' and length == {length} and rivals >= 2 and {BEYOND}"
    return Known(tuple(rivals), number, evidence.sources("evaluate", TABLE, condition, arm))


def _conclude(
    evidence: Evidence, seen: dict[str, Known], others: list[Number], brackets: Sequence[Bracket], kind: str
) -> Finding:
    if not seen:
        return not_measured("no memory arm was asked among k >= 2 rivals", others)
    effects = {
        arm: [one for rivals in known.rivals for one in (rivals.chance, *rivals.readers.values())]
        for arm, known in seen.items()
    }
    adjusted = family(effects)
    rows = [_judge(evidence, arm, known, adjusted[arm], brackets, kind, len(seen)) for arm, known in seen.items()]
    return conclude(rows, others)


def _judge(
    evidence: Evidence, arm: str, known: Known, p: float, brackets: Sequence[Bracket], kind: str, arms: int
) -> Number:
    rules, rule = evidence.rules, evidence.rules.binding
    worst = min((rivals.least for rivals in known.rivals), key=lambda one: one.estimate)
    row = Number(
        f"binding.{kind}.{arm}",
        f"{arm}, worst of k = {', '.join(str(rivals.k) for rivals in known.rivals)}",
        worst.estimate,
        worst.low,
        worst.high,
        worst.items * worst.seeds,
        UNIT,
        worst.method,
        known.sources,
    )
    each = ", ".join(f"{points(rivals.least.estimate)} at k = {rivals.k}" for rivals in known.rivals)
    one_needle = "no single needle (k = 1) asked" if known.single is None else f"k = 1 {percent(known.single.estimate)}"
    text = f"above the best reader that does not bind: {each}; {one_needle}"
    if worst.seeds < rules.minimum_seeds:
        few = f"{worst.seeds} of {rules.minimum_seeds} seeds"
        return decided(row, "inconclusive", f"{text}; {few}", "too few seeds", few)
    bound = [rivals.k for rivals in known.rivals if _binds(rivals)]
    if p < rules.alpha and len(bound) == len(known.rivals):
        short = f"more than {rule.margin:.0%} above every reader that does not bind, at every k to {bound[-1]}"
        return decided(row, "supported", f"{text}, Holm p = {p:.2g}", short=short)
    if known.single is None or (known.single.low or 0.0) < rule.learned:
        return decided(
            row,
            "inconclusive",
            f"{text}: not even one needle is found",
            "task not learned",
            "not even one needle is found",
        )
    if all(rivals.best.below(rule.margin) for rivals in known.rivals):
        short = "the set of values is known, their binding to keys is not (TOST)"
        return behind(decided(row, "refuted", f"{text}: {short}", short=short), *brackets)
    if bound and len(bound) < len(known.rivals):
        short = f"binding is shown at k = {', '.join(map(str, bound))} only"
        return decided(row, "inconclusive", f"{text}; {short}", "not at every k", short)
    short = needed(worst, rules, limit=rule.margin, arms=arms, unit="prompts")
    return decided(row, "inconclusive", f"{text}, Holm p = {p:.2g}; {short}", "underpowered", short)


def _binds(rivals: Rivals) -> bool:
    return rivals.chance.exceeds and all(one.exceeds for one in rivals.readers.values())


def control_accuracies(evidence: Evidence, arm: str) -> list[Number]:
    """Accuracy of one arm of the positive control per k, at the trained number of segments, intact."""
    table = evidence.control_trained()
    if not len(table):
        return []
    numbers = []
    for k, rows in table[table["arm"] == arm].groupby("k"):
        sources = evidence.sources("control", "control.parquet", _control_filter(evidence, f"k == {k}"), arm)
        label = f"{arm}, control, k = {k}"
        number = nested_accuracy(f"control.{arm}.k{k}", label, rows, sources=sources, rules=evidence.rules)
        numbers.append(number.of(kind="control", arm=arm, k=int(k)))
    return numbers


def _control_filter(evidence: Evidence, condition: str) -> str:
    segments = int(evidence.control_trained()["segments"].min())
    return (
        f"{condition} and step == step.max() and knockout == 'none' and between == 'filler' and segments == {segments}"
    )
