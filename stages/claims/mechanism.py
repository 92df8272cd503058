"""C6: capacity of the mechanism alone, random associations written into the real memory module."""

from __future__ import annotations

from stages.claims.evidence import Evidence
from stages.claims.verdict import Finding, Number, conclude, decided, not_measured


def capacity_point(evidence: Evidence, rule: str, feature_map: str, accuracy: float) -> Number | None:
    """Number of associations at which mean recall falls below ``accuracy``; bootstrap over seeds."""
    from stages.statistics.curves import interpolated_crossing

    table = evidence.table("capacity", "capacity.parquet")
    if not len(table):
        return None
    rows = table[(table["rule"] == rule) & (table["feature_map"] == feature_map)]
    curves = rows.pivot_table(index="seed", columns="associations", values="accuracy").dropna(axis=1)
    if curves.shape[1] < 2:
        return None
    rules = evidence.rules
    found = interpolated_crossing(
        curves.columns.to_numpy(float),
        curves.to_numpy(float),
        accuracy,
        level=1 - rules.alpha,
    )
    source = evidence.source("capacity", "capacity.parquet", f"rule == '{rule}' and feature_map == '{feature_map}'")
    return Number(
        f"capacity.{rule}.{feature_map}.{round(100 * accuracy)}",
        f"{feature_map}, {rule}: {accuracy:.0%} recall",
        found.estimate,
        found.low,
        found.high,
        found.n,
        "associations",
        found.method,
        (source,),
    )


def capacity(evidence: Evidence) -> Finding:
    """C6: does the memory hold as many associations as its rank bound, under every deciding rule?"""
    rules, rule = evidence.rules, evidence.rules.capacity
    table = evidence.table("capacity", "capacity.parquet")
    if not len(table):
        return not_measured("the capacity stage is not part of this study")
    mapped = table[table["feature_map"] == rule.feature_map]
    if not len(mapped):
        return not_measured(f"no capacity rows for feature map {rule.feature_map!r} (claims.capacity.feature_map)")
    rows, others = [], []
    for update in rule.rules:
        row = capacity_point(evidence, update, rule.feature_map, rule.accuracy)
        if row is None:
            continue
        bound, most = int(mapped["feature_dim"].iloc[0]), int(mapped["associations"].max())
        half = capacity_point(evidence, update, rule.feature_map, 0.5)
        others += [half] if half is not None else []
        low, high = row.low or 0.0, row.high or 0.0
        shown = f"{row.estimate:.0f}" if row.estimate != float("inf") else f"more than {most}"
        text = f"up to {shown} associations, rank bound {bound}"
        if row.n < rules.minimum_seeds:
            row = decided(row, "inconclusive", f"{text}; {row.n} of {rules.minimum_seeds} seeds", "too few seeds")
        elif low >= bound:
            row = decided(row, "supported", text)
        elif high < bound:
            row = decided(row, "refuted", text)
        else:
            row = decided(row, "inconclusive", f"{text} inside the interval", "underpowered")
        rows.append(row)
    if not rows:
        return not_measured("the capacity table has fewer than two numbers of associations per rule")
    finding = conclude(rows, others)
    if len({row.decision for row in rows}) > 1:
        summary = "; ".join(f"{row.label.partition(':')[0]}: {row.note}" for row in rows)
        return Finding("inconclusive", finding.reason, "rules differ", finding.headline, finding.numbers, summary)
    return finding
