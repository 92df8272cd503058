"""ROUGE F1 with stemming, by the ``rouge-score`` package (the scores papers report)."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(reference: str, hypothesis: str) -> dict[str, float]:
    """F1 of each of KINDS, 0 to 1. rougeLsum compares sentence by sentence: the package wants one a line."""
    scores = _scorer().score(_lines(reference), _lines(hypothesis))
    return {kind: float(scores[kind].fmeasure) for kind in KINDS}


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(KINDS), use_stemmer=True)


def _lines(text: str) -> str:
    return "\n".join(s for s in re.split(r"(?<=[.!?])\s+|\n+", text.strip()) if s)
