"""How often a rule decides where its null is exactly true: at most 5%, over all memory arms of the claim together.

``python -m tests.stages.test_verdict_errors [DRAWS]`` prints the table.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from stages.data.tasks.config import RetrievalConfig
from stages.data.tasks.prompts import Item
from stages.statistics.power import Pilot
from stages.verdict.claims.config import ClaimsConfig
from stages.verdict.claims.effects import comparison
from stages.verdict.claims.table import CLAIMS, decide
from tests.stages.readers import any_of, inside, perfect, skilled, sometimes
from tests.stages.synthetic import EFFECT, KNOCKOUTS, LOCAL, MEMORY, SEGMENT, K, Synthetic

RULES = ClaimsConfig()
BEYOND_SHARE = 33_280 / 35_840  # of Synthetic's tokens, where its effects act
FEW = RetrievalConfig(
    format="compact", lengths=(64, 256), trials=100, rivals=(1, 2, 4), binding_trials=60, control_trials=20
)


def gap(relative: float) -> dict[str, Any]:
    """Both memory arms exactly so much better than local, in perplexity."""
    return {"effect": EFFECT | dict.fromkeys(MEMORY, math.log1p(-relative) / BEYOND_SHARE)}


def at_the_margin(item: Item, seed: int, rng: np.random.Generator) -> str:
    """Knows the set, and binds just as often as makes the margin of C5b above 1/k; one needle is always found."""
    if item.k < 2:
        return perfect(item, seed, rng)
    return sometimes(RULES.binding.margin / (1 - 1 / item.k), any_of)(item, seed, rng)


def threshold(spread: float, draw: int) -> dict[str, Any]:
    """Accuracy on average exactly the threshold of C3, seeds apart by ``spread`` logits."""
    z = np.random.default_rng(draw).normal(size=3)
    grid = np.random.default_rng(0).normal(size=20_000) * spread
    low, high = 0.0, 6.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 / (1 + np.exp(-middle - grid))).mean() < 0.9 else (low, middle)
    return {"reader": inside(SEGMENT, skilled({seed: low + spread * z[seed] for seed in range(3)})), "asked": FEW}


def forgetful(share: float) -> dict[str, Any]:
    """After alignment both memory arms miss so many of the passkeys that they found, beyond the last segment."""
    return {"aligned": dict.fromkeys(MEMORY, inside(SEGMENT, sometimes(1 - share))), "asked": FEW}


def dearer() -> dict[str, Any]:
    """After alignment both memory arms have just the margin of C11 more perplexity than before, local the same."""
    more = math.log1p(RULES.alignment.perplexity_margin)
    return {"aligned_nats": dict.fromkeys(MEMORY, more), "asked": FEW}


BOTH = ("supported", "refuted")
NULLS = (
    # claim, wrong decisions, the null that is true, what it is (a function of the draw)
    ("C1", ("supported",), "another's memory costs just the margin",
     lambda draw: {"knocked": {"swap": sometimes(0.95)}}),
    ("C1", ("refuted",), "every knock-out costs just the margin",
     lambda draw: {"knocked": dict.fromkeys(KNOCKOUTS, sometimes(0.95)), "knocked_nats": 0.001}),
    ("C2", ("supported",), "no gap to local", lambda draw: gap(0.0)),
    ("C2", ("refuted",), "a gap of just the margin", lambda draw: gap(RULES.perplexity_from_memory.margin)),
    ("C13", BOTH, "a gap of just the margin", lambda draw: gap(RULES.seeds.margin)),
    ("C3", BOTH, "accuracy of just the threshold", lambda draw: threshold(0.0, draw)),
    ("C3", BOTH, "the same on average, seeds apart by half a logit", lambda draw: threshold(0.5, draw)),
    ("C5b", BOTH, "just the margin above 1/k", lambda draw: {"reader": at_the_margin, "asked": FEW}),
    ("C5a", BOTH, "just the margin above 1/k",
     lambda draw: {"control": {k: 1 / k + (RULES.binding.margin if k > 1 else 0.0) for k in K}}),
    ("C11", BOTH, "alignment costs just the margin of accuracy", lambda draw: forgetful(RULES.alignment.margin)),
    ("C11", BOTH, "alignment adds just the margin of perplexity", lambda draw: dearer()),
)  # fmt: skip


def rates(claim: str, wrong: Sequence[str], truth: Any, draws: int) -> dict[str, float]:
    """Share of ``draws`` simulated studies in which the claim ends in each of the decisions ``wrong``.

    The sample that would decide an open one, itself a simulation, is left out: it changes no decision.
    """
    with mock.patch("stages.statistics.power.deciding_sample", return_value=None):
        found = Counter(decided(claim, truth, draw) for draw in range(1, draws + 1))
    return {decision: found[decision] / draws for decision in wrong}


def decided(claim: str, truth: Any, draw: int) -> str:
    """How the claim ends in one simulated study."""
    rule = next(one for one in CLAIMS if one.id == claim)
    study = Synthetic(Path("."), draw=draw, local=LOCAL, **truth(draw)).positive_control()
    if claim == "C1":
        study.ablate()
    elif claim == "C11":
        study.align()
    elif claim != "C5a":
        study.evaluate(text=claim in ("C2", "C13"), prompts=claim not in ("C2", "C13"))
    return decide(rule, study.evidence(RULES)).decision


@pytest.mark.parametrize("seed_sd", [0.0, 0.02, 0.1])
@pytest.mark.parametrize(("truth", "null", "limit"), [(0.0, 0.0, 0.05), (0.05, 0.05, 0.05), (0.05, 0.0, 0.05)])
def test_the_comparison_that_claims_share_errs_at_its_nulls_as_often_as_it_says(truth, null, limit, seed_sd):
    """Two memory arms, Holm's first step: supported at the null, refuted at the limit, each at most 5%."""
    pilot = Pilot(truth, seed_sd, 0.2, 0.3)
    tables, weights = pilot.tables(effect=truth, seeds=3, items=100, draws=4000)
    supports = comparison(RULES, null=null, limit=-math.inf, arms=2)(tables, weights)
    refutes = comparison(RULES, null=math.inf, limit=limit, arms=2)(tables, weights)
    if truth <= null:
        assert 1 - (1 - supports.mean()) ** 2 <= 0.055  # some arm
    if truth >= limit:
        assert refutes.mean() <= 0.055  # every arm


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("claim", "wrong", "null", "truth"), NULLS, ids=[f"{c}: {null}" for c, _, null, _ in NULLS])
def test_a_rule_errs_at_its_null_no_more_often_than_it_says(claim, wrong, null, truth):
    draws = 200
    found = rates(claim, wrong, truth, draws)
    assert max(found.values()) <= 0.05 + 2.3 * math.sqrt(0.05 * 0.95 / draws), found


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    for claim, wrong, null, truth in NULLS:
        for decision, share in rates(claim, wrong, truth, count).items():
            print(f"{claim:4} {decision:10} {null:60} {share:6.1%} of {count}", flush=True)
