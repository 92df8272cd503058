"""Published points that the report draws beside the measured curves."""

from __future__ import annotations

from typing import Any

# Schlag, Irie & Schmidhuber (2021), "Linear Transformers Are Secretly Fast Weight Programmers", sec. 6.1: d_key = 64,
# learned keys, sum update. ``holds``: largest number of associations without loss; ``fails``: smallest with it.
SCHLAG_2021 = "Schlag et al. 2021"
POINTS: tuple[tuple[str, int, int, int | None], ...] = (
    ("elu1", 64, 40, 60),
    ("dpfp1", 128, 100, None),
    ("dpfp2", 256, 240, None),
    ("dpfp3", 384, 340, None),
)


def rows() -> list[dict[str, Any]]:
    """The reference points, one dict per row; ``fails`` is None where the paper names no such number."""
    return [
        {
            "source": SCHLAG_2021,
            "feature_map": name,
            "feature_dim": dim,
            "d_key": 64,
            "rule": "linear",
            "holds": holds,
            "fails": fails,
        }
        for name, dim, holds, fails in POINTS
    ]
