"""ROUGE F1 with stemming, by the ``rouge-score`` package (the scores papers report)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
MEAN_OF = ("rouge1", "rouge2", "rougeL")
MEAN = "rouge"
"""The paper's single number: the geometric mean of ROUGE-1, -2 and -L."""


def rouge(references: str | Sequence[str], hypothesis: str) -> dict[str, float]:
    """F1 of each of KINDS and their MEAN, 0 to 1; of several references the best for each kind. rougeLsum compares
    sentence by sentence: the package wants one a line."""
    several = [references] if isinstance(references, str) else list(references)
    found = [_scorer().score(_lines(reference), _lines(hypothesis)) for reference in several]
    scores = {kind: max(float(one[kind].fmeasure) for one in found) for kind in KINDS}
    product = 1.0
    for kind in MEAN_OF:
        product *= scores[kind]
    return scores | {MEAN: product ** (1 / len(MEAN_OF))}


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(KINDS), use_stemmer=True)


def _lines(text: str) -> str:
    return "\n".join(sentences(text))


def sentences(text: str) -> list[str]:
    """Sentences of ``text``, by their ends and by line breaks."""
    return [s for s in re.split(r"(?<=[.!?])\s+|\n+", text.strip()) if s]
