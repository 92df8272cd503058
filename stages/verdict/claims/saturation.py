"""C7 saturation: is the delta rule stable, over training and along documents longer than those."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.verdict import Finding, Number, Source, conclude, decided, not_measured

if TYPE_CHECKING:
    import pandas as pd


def saturation(evidence: Evidence) -> Finding:
    """C7: largest erase eigenvalue and growth of the memory norm per delta arm; the worst seed decides."""
    rules, rule = evidence.rules, evidence.rules.saturation
    arms = [arm for arm in evidence.memory_arms if evidence.arms[arm].rule == "delta"]
    training, reading = evidence.training, evidence.saturation
    if not arms:
        return not_measured("the study has no arm with the delta rule")
    rows, others = [], []
    for arm in arms:
        logged = _readings(training, arm)
        read = reading[(reading["arm"] == arm) & reading["erase_lambda_max"].notna()] if len(reading) else reading
        if not len(logged) and not len(read):
            continue
        parts = []
        if len(logged):
            sources = evidence.sources("pretrain", "train_log.parquet", "erase_lambda_max.notna()", arm)
            growth = logged.groupby("seed")["memory_norm"].apply(_growth)
            parts.append(_Part("training", logged.groupby("seed")["erase_lambda_max"].max(), growth, sources))
        if len(read):
            sources = evidence.sources("ablate", "saturation.parquet", "erase_lambda_max.notna()", arm)
            # a memory that sums what it reads grows with the tokens; its readout does not, if |M| grows no faster
            read = read.assign(norm_per_token=read["memory_norm"] / read["tokens"])
            along = read.groupby(["seed", "doc_id", "layer", "head"])["norm_per_token"].apply(_growth)
            growth = along.groupby("seed").max()
            tokens = int(read["tokens"].max())
            parts.append(
                _Part(f"reading {tokens:,} tokens", read.groupby("seed")["erase_lambda_max"].max(), growth, sources)
            )
        worst = max(parts, key=lambda part: float(part.peaks.max()))
        row = _range(
            f"saturation.lambda.{arm}", f"{arm}: largest eigenvalue", worst.peaks, "erase λ_max", worst.sources
        )
        for part in parts:
            name = "norm" if part.name == "training" else "norm_reading"
            others.append(
                _range(
                    f"saturation.{name}.{arm}", f"{arm}: growth of |M|, {part.name}", part.growth, "times", part.sources
                )
            )
        for name, table, step in (("z", logged, "pretrain"), ("z_reading", read, "ablate")):
            if len(table) and "z_min" in table and table["z_min"].notna().any():
                lowest = table.groupby("seed")["z_min"].min()
                where = evidence.sources(step, "train_log.parquet" if name == "z" else "saturation.parquet", "", arm)
                others.append(_range(f"saturation.{name}.{arm}", f"{arm}: smallest σ(q)z", lowest, "σ(q)z", where))
        most = max(float(part.growth.max()) for part in parts)
        peak = float(worst.peaks.max())
        text = (
            f"λ_max {peak:.3g} of {rule.erase_lambda_max:g}, norm grew {most:.3g}x of {rule.norm_growth:g}x "
            f"({' and '.join(part.name for part in parts)})"
        )
        seeds = min(len(part.peaks) for part in parts)
        if not math.isfinite(row.estimate) or peak > rule.erase_lambda_max or most > rule.norm_growth:
            rows.append(decided(row, "refuted", f"{text}: a limit is passed", short=f"a limit is passed: {text}"))
        elif seeds < rules.minimum_seeds:
            few = f"{seeds} of {rules.minimum_seeds} seeds"
            rows.append(decided(row, "inconclusive", f"{text}; {few}", "too few seeds", few))
        elif not len(read):
            why = "read at the lengths of training only"
            rows.append(decided(row, "inconclusive", f"{text}; {why}", "not read beyond training", why))
        else:
            rows.append(decided(row, "supported", f"{text}, {len(logged) + len(read):,} readings", short=text))
    if not rows:
        return not_measured("neither training logs nor ablations of the delta arms hold readings of the memory")
    return conclude(rows, others)


class _Part:
    """Readings of one kind: peaks and growth by seed."""

    def __init__(self, name: str, peaks: pd.Series, growth: pd.Series, sources: tuple[Source, ...]) -> None:
        self.name, self.peaks, self.growth, self.sources = name, peaks, growth, sources


def _readings(table: pd.DataFrame, arm: str) -> pd.DataFrame:
    if not len(table) or "erase_lambda_max" not in table:
        return table.iloc[:0]
    return table[(table["arm"] == arm) & table["erase_lambda_max"].notna()].sort_values(["seed", "step"])


def _growth(norm: pd.Series) -> float:
    """Largest reading over the median of the first tenth of them."""
    return float(norm.max() / norm.iloc[: max(1, len(norm) // 10)].median())


def _range(name: str, label: str, values: pd.Series, unit: str, sources: tuple[Source, ...]) -> Number:
    """Mean over seeds, with the smallest and largest seed as limits."""
    return Number(
        name,
        label,
        float(values.mean()),
        float(values.min()),
        float(values.max()),
        len(values),
        unit,
        "mean, lowest and highest seed",
        sources,
    )
