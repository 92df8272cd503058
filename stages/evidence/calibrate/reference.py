"""The published numbers beside which the calibration stands."""

from __future__ import annotations

from typing import Any

from stages.evidence.capacity import reference

ZOOLOGY = "Arora et al. 2023 (Zoology), as its text says"
SOLVES = ("full", 0.99)
"""Attention solves MQAR at every width they tried; "solves" is put at 0.99 here, not read off a figure."""


def rows() -> list[dict[str, Any]]:
    """One row per point. Capacity: ``feature_map``, ``feature_dim``, ``d_key``, ``holds``, ``fails`` (associations).
    MQAR: ``arm``, ``dim``, ``pairs``, ``accuracy`` (at least). What a row has not is null."""
    capacity = [
        {
            "source": row["source"],
            "feature_map": row["feature_map"],
            "feature_dim": row["feature_dim"],
            "d_key": row["d_key"],
            "holds": row["holds"],
            "fails": row["fails"],
            "arm": None,
            "dim": None,
            "pairs": None,
            "accuracy": None,
        }
        for row in reference.rows()
    ]
    arm, accuracy = SOLVES
    return capacity + [
        {
            "source": ZOOLOGY,
            "feature_map": None,
            "feature_dim": None,
            "d_key": None,
            "holds": None,
            "fails": None,
            "arm": arm,
            "dim": 64,
            "pairs": pairs,
            "accuracy": accuracy,
        }
        for pairs in (4, 8, 16)
    ]
