"""C6: how many associations the memory holds: read exactly (a), recalled by argmax (b), with trained models' keys (c).

Rank bounds what can be read back exactly: n associations need n independent features. Argmax recall asks less (the
right value must only be the nearest) and is bounded by interference, which depends on the keys: random ones overlap and
hold few, learned ones far more. So keys are named in every row, and no row speaks for another's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.verdict import Finding, Number, Source, conclude, decided, not_measured

if TYPE_CHECKING:
    import pandas as pd

TABLE = "capacity.parquet"
BEST_KEYS = {"accuracy": ("learned", "orthogonal"), "exact": ("learned-exact", "orthogonal")}
"""Keys made for what the column measures; orthogonal ones exist up to the feature dimension only."""
UNIT = "associations"


def point(
    evidence: Evidence,
    rows: pd.DataFrame,
    column: str,
    level: float,
    *,
    name: str,
    label: str,
    sources: tuple[Source, ...],
) -> Number | None:
    """Number of associations at which the mean of ``column`` falls below ``level``; interval over seeds."""
    from stages.statistics.curves import interpolated_crossing

    curves = rows.pivot_table(index="seed", columns="associations", values=column).dropna(axis=1)
    if curves.shape[1] < 2:
        return None
    found = interpolated_crossing(
        curves.columns.to_numpy(float), curves.to_numpy(float), level, level=1 - evidence.rules.alpha
    )
    return Number(name, label, found.estimate, found.low, found.high, found.n, UNIT, found.method, sources)


def capacity_point(
    evidence: Evidence, keys: str, rule: str, feature_map: str, accuracy: float, column: str = "accuracy"
) -> Number | None:
    """The same for one curve of the mechanism alone. ``column``: accuracy (argmax) or exact."""
    table = evidence.table("capacity", TABLE)
    if not len(table):
        return None
    rows = table[(table["keys"] == keys) & (table["rule"] == rule) & (table["feature_map"] == feature_map)]
    what = "recalled" if column == "accuracy" else "read exactly"
    condition = f"keys == '{keys}' and rule == '{rule}' and feature_map == '{feature_map}'"
    return point(
        evidence,
        rows,
        column,
        accuracy,
        name=f"capacity.{column}.{keys}.{rule}.{feature_map}.{round(100 * accuracy)}",
        label=f"{keys} keys, {feature_map}, {rule}: {accuracy:.0%} {what}",
        sources=(evidence.source("capacity", TABLE, condition),),
    )


def exact_readout(evidence: Evidence) -> Finding:
    """C6a."""
    return _mechanism(evidence, "exact")


def recall(evidence: Evidence) -> Finding:
    """C6b."""
    return _mechanism(evidence, "accuracy")


def _mechanism(evidence: Evidence, column: str) -> Finding:
    rules, rule = evidence.rules, evidence.rules.capacity
    table = evidence.table("capacity", TABLE)
    if not len(table):
        return not_measured("the capacity stage is not part of this study")
    mapped = table[table["feature_map"] == rule.feature_map]
    if not len(mapped):
        return not_measured(f"no capacity rows for feature map {rule.feature_map!r} (claims.capacity.feature_map)")
    rows, others = [], []
    for update in rule.rules:
        found = {
            keys: number
            for keys in dict.fromkeys(mapped["keys"])
            if (number := capacity_point(evidence, keys, update, rule.feature_map, rule.accuracy, column)) is not None
        }
        best = {keys: found[keys] for keys in BEST_KEYS[column] if keys in found}
        if best:
            tried = {keys: mapped[(mapped["keys"] == keys) & (mapped["rule"] == update)] for keys in best}
            judged = {keys: _against(row, tried[keys], rules.minimum_seeds) for keys, row in best.items()}
            lead = max(judged, key=lambda keys: judged[keys].low or 0.0)
            half = capacity_point(evidence, lead, update, rule.feature_map, 0.5, column)
            others += [half] if half is not None else []
            found.pop(lead)
            rows.append(judged[lead])
        others += found.values()
    if not rows:
        names = " or ".join(BEST_KEYS[column])
        return not_measured(f"no capacity curve with {names} keys for rules {', '.join(rule.rules)}", others)
    return _agree(rows, others)


def trained_models(evidence: Evidence) -> Finding:
    """C6c: keys taken from the trained memory arms on held-out text, mean over their heads."""
    rules, rule = evidence.rules, evidence.rules.capacity
    table = evidence.trained_capacity
    if not len(table):
        return not_measured("no ablation measured the capacity of trained keys")
    rows, others = [], []
    for arm in evidence.memory_arms:
        mine = table[(table["arm"] == arm) & (table["keys"] == "trained") & (table["rule"] == evidence.arms[arm].rule)]
        if not len(mine):
            continue
        means = mine.groupby(["seed", "associations"], as_index=False)[["accuracy", "exact"]].mean()
        sources = evidence.sources("ablate", TABLE, f"keys == 'trained' and rule == '{evidence.arms[arm].rule}'", arm)
        found = point(
            evidence,
            means,
            "accuracy",
            rule.accuracy,
            name=f"capacity.trained.{arm}",
            label=f"{arm}, its own keys: {rule.accuracy:.0%} recalled",
            sources=sources,
        )
        half = point(
            evidence,
            means,
            "accuracy",
            0.5,
            name=f"capacity.trained.{arm}.50",
            label=f"{arm}, its own keys: 50% recalled",
            sources=sources,
        )
        others += [half] if half is not None else []
        if found is not None:
            rows.append(_against(found, mine, rules.minimum_seeds))
    if not rows:
        return not_measured("the ablations have fewer than two numbers of associations with trained keys")
    return _agree(rows, others)


def _against(row: Number, tried: pd.DataFrame, minimum_seeds: int) -> Number:
    """``row`` decided against the feature dimension of the rows it was read from. A curve that never falls ends at the
    most associations that were tried, one that starts below the level has no lower bound; the text says so."""
    bound, most = int(tried["feature_dim"].iloc[0]), int(tried["associations"].max())
    low, high = row.low or 0.0, float("inf") if row.high is None else row.high
    endless = row.estimate == float("inf")
    least = int(tried["associations"].min())
    shown = f"{most} and more" if endless else f"{row.estimate:.3g}" if row.estimate > least else f"fewer than {least}"
    low = 0.0 if row.estimate <= least else min(low, float(most))
    row = replace(row, estimate=min(row.estimate, float(most)), low=low, high=None if endless else row.high)
    text = f"{shown} associations, feature dimension {bound}"
    if row.n < minimum_seeds:
        few = f"{row.n} of {minimum_seeds} seeds"
        return decided(row, "inconclusive", f"{text}; {few}", "too few seeds", few)
    if low >= bound:
        return decided(row, "supported", text)
    if high < bound:
        return decided(row, "refuted", text)
    return decided(row, "inconclusive", f"{text} inside the interval", "underpowered")


def _agree(rows: list[Number], others: list[Number]) -> Finding:
    """One finding where the rules of update agree; open, with each one's outcome, where they differ."""
    finding = conclude(rows, others)
    if len({row.decision for row in rows}) > 1:
        summary = "; ".join(f"{row.label}: {row.note} ({row.decision})" for row in rows)
        return Finding("inconclusive", finding.reason, "arms differ", finding.headline, finding.numbers, summary)
    return finding
