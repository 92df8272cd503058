"""Accuracy curves of the report: one way to fit a spline over positions and a logistic over lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.statistics.curves import Curve, accuracy_curve
from stages.verdict.claims.evidence import Evidence

if TYPE_CHECKING:
    import pandas as pd

POINTS = 41


def fitted(evidence: Evidence, rows: pd.DataFrame, axis: str) -> Curve | None:
    """P(correct) over ``depth`` (natural spline) or ``length`` (logistic in its logarithm) of one arm's prompts, with
    the band of the study's level; None where the rows have a single place."""
    if not len(rows) or rows[axis].nunique() < 2:
        return None
    rules, log = evidence.rules, axis == "length"
    low, high = float(rows[axis].min()), float(rows[axis].max())
    at = np.geomspace(low, high, POINTS) if log else np.linspace(low, high, POINTS)
    return accuracy_curve(
        rows[axis].to_numpy(float),
        rows["correct"].to_numpy(float),
        seeds=rows["seed"].tolist(),
        items=rows["item"].tolist(),
        at=at,
        shape="linear" if log else "spline",
        log=log,
        level=1 - rules.alpha,
    )
