"""C7 saturation: is the delta rule stable, over training and along documents longer than those."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.display.numbers import LARGEST
from stages.verdict.claims.config import ClaimsConfig
from stages.verdict.claims.effects import MOST_SEEDS
from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.verdict import Finding, Number, Source, conclude, decided, not_measured

if TYPE_CHECKING:
    import pandas as pd


def saturation(evidence: Evidence) -> Finding:
    """C7: per delta arm and seed the largest erase eigenvalue and the largest growth of the memory norm; a t interval
    over the seeds' logarithms decides: one seed alone says neither that the rule is stable nor that it is not."""
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
            parts.append(_OfKind("training", logged.groupby("seed")["erase_lambda_max"].max(), growth, sources))
        if len(read):
            sources = evidence.sources("ablate", "saturation.parquet", "erase_lambda_max.notna()", arm)
            # a memory that sums what it reads grows with the tokens; its readout does not, if |M| grows no faster
            read = read.assign(norm_per_token=read["memory_norm"] / read["tokens"])
            along = read.groupby(["seed", "doc_id", "layer", "head"])["norm_per_token"].apply(_growth)
            growth = along.groupby("seed").max()
            tokens = int(read["tokens"].max())
            parts.append(
                _OfKind(f"reading {tokens:,} tokens", read.groupby("seed")["erase_lambda_max"].max(), growth, sources)
            )
        peaks, growths = _largest([part.peaks for part in parts]), _largest([part.growth for part in parts])
        sources = tuple(dict.fromkeys(source for part in parts for source in part.sources))
        row = _interval(f"saturation.lambda.{arm}", f"{arm}: largest eigenvalue", peaks, "erase λ_max", sources, rules)
        grown = _interval(f"saturation.growth.{arm}", f"{arm}: growth of |M|", growths, "times", sources, rules)
        others.append(grown)
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
        passed = (peaks > rule.erase_lambda_max) | (growths > rule.norm_growth) | ~np.isfinite(peaks + growths)
        text = (
            f"λ_max {_spread(peaks)} of {rule.erase_lambda_max:g}, norm grew {_spread(growths)}x of "
            f"{rule.norm_growth:g}x by seed ({' and '.join(part.name for part in parts)})"
        )
        seeds = len(peaks)
        bounds = ((row, rule.erase_lambda_max), (grown, rule.norm_growth))
        beyond = any((number.low or 0.0) > limit for number, limit in bounds) or not np.isfinite(peaks).any()
        within = all((number.high or math.inf) <= limit for number, limit in bounds) and not passed.any()
        if seeds < rules.minimum_seeds:
            few = f"{seeds} of {rules.minimum_seeds} seeds"
            rows.append(decided(row, "inconclusive", f"{text}; {few}", "too few seeds", few))
        elif beyond:
            rows.append(decided(row, "refuted", f"{text}: a limit is passed", short=f"a limit is passed: {text}"))
        elif not len(read):
            why = "read at the lengths of training only"
            rows.append(decided(row, "inconclusive", f"{text}; {why}", "not read beyond training", why))
        elif within:
            rows.append(decided(row, "supported", f"{text}, {len(logged) + len(read):,} readings", short=text))
        else:
            why = f"a limit is passed in {int(passed.sum())} of {seeds} seeds" if passed.any() else "close to a limit"
            why += f"; {_seeds_needed(peaks, growths, rules)}"
            rows.append(decided(row, "inconclusive", f"{text}; {why}", "seeds differ", f"{why}: {text}"))
    if not rows:
        return not_measured("neither training logs nor ablations of the delta arms hold readings of the memory")
    return conclude(rows, others)


class _OfKind:
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


def _largest(by_seed: Sequence[pd.Series]) -> NDArray[np.float64]:
    """Over the parts, one value a seed that all of them have; what is not finite stays so."""
    import pandas as pd

    table = pd.concat(by_seed, axis=1, join="inner").to_numpy(dtype=float)
    return np.asarray(np.where(np.isfinite(table).all(1), table.max(1), np.inf), dtype=np.float64)


def _interval(
    name: str, label: str, values: NDArray[np.float64], unit: str, sources: tuple[Source, ...], rules: ClaimsConfig
) -> Number:
    """Geometric mean over seeds, t interval of the logarithms. Each limit lies on one side of it: alpha / 2."""
    from stages.statistics.tests import paired_t

    found = paired_t(np.log(np.maximum(values, 1e-30)), level=1 - rules.alpha)
    low: float | None = math.exp(min(found.low, LARGEST))
    high: float | None = math.exp(min(found.high, LARGEST))
    if len(values) < 2:
        low = high = None
    elif not np.isfinite(values).all():
        low, high = 0.0, math.inf
    method = f"geometric mean over seeds, {found.method} of the logarithms, {found.level:.0%}"
    return Number(name, label, math.exp(min(found.estimate, LARGEST)), low, high, len(values), unit, method, sources)


def _seeds_needed(peaks: NDArray[np.float64], growths: NDArray[np.float64], rules: ClaimsConfig) -> str:
    """How many seeds would decide, if they are spread as those measured."""
    if not np.isfinite(peaks + growths).all():
        return "no number of seeds is known that would decide it"
    from scipy import stats

    rule = rules.saturation
    limits = ((np.log(peaks), math.log(rule.erase_lambda_max)), (np.log(growths), math.log(rule.norm_growth)))
    for seeds in range(len(peaks) + 1, MOST_SEEDS + 1):
        factor = float(stats.t.ppf(1 - rules.alpha / 2, seeds - 1)) / math.sqrt(seeds)
        gaps = [(limit - logs.mean(), factor * logs.std(ddof=1)) for logs, limit in limits]
        if all(gap > half for gap, half in gaps) or any(-gap > half for gap, half in gaps):
            return f"{seeds} seeds would decide it, if they are spread as these"
    return f"as measured, not even {MOST_SEEDS} seeds would decide it"


def _spread(values: NDArray[np.float64]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


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
