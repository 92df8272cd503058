"""What this instrument measures where the answer is known: published points, and the control's ceiling and floor."""

from __future__ import annotations

import math
from typing import Any

from stages.evidence.control.stage import deciding
from stages.verdict.claims.effects import nested_accuracy
from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.verdict import Number
from stages.verdict.report import control

STEP = "calibrate"


def numbers(evidence: Evidence) -> list[Number]:
    """Associations every map holds with trained keys, and recall per arm, width and number of pairs."""
    return [*_capacities(evidence), *_recall(evidence)]


def published(evidence: Evidence) -> dict[str, tuple[float | None, float | None]]:
    """Feature map -> (holds, fails) as published; None where the paper names no number."""
    table = evidence.table(STEP, "reference.parquet")
    if not len(table) or "feature_map" not in table:
        return {}
    rows = table[table["feature_map"].notna() & table[["holds", "fails"]].notna().any(axis=1)]
    limits = rows.astype({"holds": float, "fails": float})[["feature_map", "holds", "fails"]].itertuples(index=False)
    return {str(row.feature_map): (_known(row.holds), _known(row.fails)) for row in limits}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _capacities(evidence: Evidence) -> list[Number]:
    table = evidence.table(STEP, "schlag.parquet")
    paper = published(evidence)
    found = []
    for name, rows in table.groupby("feature_map", sort=False) if len(table) else ():
        solved = rows.groupby("associations")["solved"].mean()
        held = [int(n) for n, share in solved.items() if share > 0.5]
        failed = [int(n) for n, share in solved.items() if share <= 0.5]
        holds, fails = paper.get(str(name), (None, None))
        said = [f"{word} {value:.0f}" for word, value in (("holds", holds), ("fails", fails)) if value is not None]
        found.append(
            Number(
                f"calibration.capacity.{name}",
                f"{name}: most associations held with trained keys",
                float(max(held, default=0)),
                high=float(min(failed)) if failed else None,
                n=int(rows["seed"].nunique()),
                unit="associations",
                method="held by most seeds; upper limit: the least that is not",
                sources=(evidence.source(STEP, "schlag.parquet", f"feature_map == '{name}'"),),
                note=f"published: {', '.join(said)}" if said else "",
            )
        )
    return found


def _recall(evidence: Evidence) -> list[Number]:
    table, paper = evidence.table(STEP, "mqar.parquet"), recall_published(evidence)
    found = []
    for (arm, dim, pairs), rows in table.groupby(["arm", "dim", "pairs"], sort=False) if len(table) else ():
        where = f"arm == '{arm}' and dim == {dim} and pairs == {pairs}"
        found.append(
            Number(
                f"calibration.recall.{arm}.{dim}.{pairs}",
                f"{arm}, width {dim}, {pairs} pairs: recall",
                float(rows["accuracy"].mean()),
                float(rows["accuracy"].min()),
                float(rows["accuracy"].max()),
                int(rows["trials"].sum()),
                "accuracy",
                "mean, lowest and highest seed",
                (evidence.source(STEP, "mqar.parquet", where),),
                note=_at_least(paper.get((str(arm), int(dim), int(pairs)))),
            )
        )
    return found


def _at_least(accuracy: float | None) -> str:
    return "" if accuracy is None else f"published: at least {accuracy:.0%}"


def recall_published(evidence: Evidence) -> dict[tuple[str, int, int], float]:
    """(arm, width, pairs) -> accuracy that the paper reports at least."""
    table = evidence.table(STEP, "reference.parquet")
    if not {"arm", "dim", "pairs", "accuracy"} <= set(table):
        return {}
    rows = table[table["arm"].notna() & table["accuracy"].notna()]
    return {(str(row.arm), int(row.dim), int(row.pairs)): float(row.accuracy) for row in rows.itertuples(index=False)}


def distances(evidence: Evidence) -> list[Number]:
    """Control: recall per arm, number of segments read and what lies between."""
    table = control.cells(evidence, "distance")
    if not len(table) or table["segments"].nunique() < 2:
        return []
    found = []
    for (arm, between, segments), rows in table.groupby(["arm", "between", "segments"], sort=False):
        extra = f"k == {rows['k'].iloc[0]} and between == '{between}' and segments == {segments}"
        found.append(
            nested_accuracy(
                f"control_distance.{arm}.{between}.{segments}",
                f"{arm}, {segments} segments, {'other pairs' if between == 'pairs' else 'filler'} between",
                rows,
                sources=control.sources(evidence, "distance", str(arm), extra=extra),
                rules=evidence.rules,
            )
        )
    return found


def learning(evidence: Evidence) -> list[Number]:
    """Control: steps after which each arm first recalls at every k what the ceiling must, mean over seeds; infinite
    where a seed never did."""
    table = control.cells(evidence, "learning")
    if not len(table):
        return []
    level, found = evidence.rules.positive_control.ceiling, []
    for arm, rows in table.groupby("arm", sort=False):
        hardest = rows.groupby(["seed", "step"])["accuracy"].min()
        first = {
            int(seed): min((step for (_, step), share in of.items() if share >= level), default=math.inf)
            for seed, of in hardest.groupby("seed")
        }
        last = int(rows["step"].max())
        said = ", ".join(f"seed {seed}: {f'not in {last}' if step > last else step}" for seed, step in first.items())
        number = Number(
            f"control_learning.{arm}",
            f"{arm}, steps to {level:.0%} at every k",
            sum(first.values()) / len(first),
            n=len(first),
            unit="steps",
            method="mean over seeds",
            sources=control.sources(evidence, "learning", str(arm)),
            note=said,
        )
        found.append(number)
    return found


def knockouts(evidence: Evidence) -> list[Number]:
    """Control: recall per arm and knock-out at the largest k."""
    table = control.cells(evidence, "knockout")
    if not len(table) or table["knockout"].nunique() < 2:
        return []
    table = table[(table["k"] == table["k"].max()) & (table["knockout"] != "none")]
    found = []
    for (arm, knockout), rows in table.groupby(["arm", "knockout"], sort=False):
        k = int(rows["k"].iloc[0])
        sources = control.sources(evidence, "knockout", str(arm), extra=f"k == {k} and knockout == '{knockout}'")
        name, label = f"control_knockout.{arm}.{knockout}", f"{arm}, memory knocked out ({knockout}), k = {k}"
        found.append(nested_accuracy(name, label, rows, sources=sources, rules=evidence.rules))
    return found


def sentences(evidence: Evidence, named: dict[str, Number]) -> list[str]:
    """The calibration in words, one finding a sentence; empty where nothing of it was run."""
    found = []
    ceiling, floor = (_range(evidence, named, kind) for kind in (control.CEILING, control.FLOOR))
    guess = _guess(evidence)
    if ceiling and floor:
        k = ceiling[2]
        found.append(
            "Where the memory is the only path to the answer, full attention, which can do the task, recalls "
            f"{ceiling[0]} "
            f"at {k} pairs, and local attention, which cannot, {floor[0]}"
            + (f" (a blind guess: {guess:.0%})." if guess is not None else ".")
        )
        memory = [
            (arm, seen)
            for arm in deciding(evidence.control_arms, evidence.arms)
            if (seen := _range(evidence, named, arm))
        ]
        if memory:
            each = ", ".join(f"{arm} {seen[0]}" for arm, seen in memory)
            found.append(f"On the same task the memory arms recall: {each}.")
    paper = published(evidence)
    for name in paper:
        number = named.get(f"calibration.capacity.{name}")
        if number is not None:
            end = f", not {number.high:.0f}" if number.high is not None else ""
            found.append(f"With trained keys {name} holds {number.estimate:.0f} associations{end} ({number.note}).")
    return found


def _range(evidence: Evidence, named: dict[str, Number], arm: str) -> tuple[str, float, int] | None:
    """('99.8% [99.1%, 100%]', estimate, k) of an arm of the control at the largest k asked; None where not run."""
    from stages.verdict.report.shown import interval, shown

    asked = [n for n in named.values() if n.text("kind") == "control" and n.text("arm") == arm]
    if not asked:
        return None
    number = max(asked, key=lambda number: number.integer("k"))
    bounds = interval(number.low, number.high, number.unit)
    return f"{shown(number.estimate, number.unit)} {bounds}".strip(), number.estimate, number.integer("k")


def _guess(evidence: Evidence) -> float | None:
    table: Any = control.cells(evidence, "pairs")
    return float(table["guess"].iloc[0]) if len(table) and "guess" in table else None
