"""Published points that the report draws beside the measured curves."""

from __future__ import annotations

from typing import Any

# Schlag, Irie & Schmidhuber (2021), "Linear Transformers Are Secretly Fast Weight Programmers", sec. 6.1: d_key = 64,
# learned keys, sum update. ``holds``: largest number of associations solved (loss at most 0.001); ``fails``: the next
# one tried, which is not. From the paper and the logs published with its code (ischlag/fast-weight-transformers,
# synthetic/logs), where numbers go in steps of 20.
SCHLAG_2021 = "Schlag et al. 2021, sec. 6.1"
POINTS: tuple[tuple[str, int, int, int], ...] = (
    ("elu1", 64, 40, 60),
    ("dpfp1", 128, 100, 120),
    ("dpfp2", 256, 240, 260),
    ("dpfp3", 384, 340, 360),
)


def rows() -> list[dict[str, Any]]:
    """The reference points, one dict per row."""
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
