"""What must stand in front of a refutation, before any run: a positive control, ceiling and floor beside the arms, and
for the claims that name a threshold (C3, C4) full attention ahead on the same prompts.

How accurate full attention will be is taken from the study's last run, or is ``claims.pilot.accuracy``. That the
control passes, that local attention fails and that full attention gains on text is taken for granted where those arms
are there. The prompts of both arms are simulated as independent, though the same ones are asked of both: that errs on
the side of fewer refutations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from stages.verdict.claims.bracket import CEILING, FLOOR
from stages.verdict.claims.config import ClaimsConfig, PilotConfig
from stages.verdict.claims.effects import Decisions, Floats
from stages.verdict.claims.size import Size

if TYPE_CHECKING:
    from stages.statistics.power import Decides, Pilot

OTHER_STREAM = 1_000_003  # added to the seed: the ceiling's answers are not those of the arm


def lacking(size: Size, *, ceiling: bool) -> str:
    """Why no claim of this study can be refuted, in words; "" where nothing lacks. ``ceiling``: full attention must
    be among its arms, too."""
    kinds = {mixer.kind for mixer in (size.control_arms or {}).values()}
    asked = size.rules.positive_control.pairs
    if size.control is None or not {CEILING, FLOOR} <= kinds or not set(asked) <= set(size.control.pairs):
        return "no positive control"
    if ceiling and all(mixer.kind != CEILING for mixer in size.arms.values()):
        return f"no arm of kind {CEILING}"
    return ""


@dataclass(frozen=True)
class Ceiling:
    """Full attention on the prompts of a memory arm; ``seen``: its spread and, as ``estimate``, its accuracy."""

    seen: Pilot

    @classmethod
    def of(cls, plan: PilotConfig, tables: Sequence[Floats]) -> Ceiling:
        """The best of ``tables`` [seeds, items] of an earlier run, or of the plan where there is none."""
        from stages.statistics.power import pilot

        usable = [table for table in tables if min(table.shape) >= 2]
        if usable:
            return cls(replace(pilot(max(usable, key=lambda table: float(table.mean()))), binary=True))
        return cls(expected(plan))

    def behind(
        self, fails: Decides, rules: ClaimsConfig, arms: int, learned: float, threshold: float | None = None
    ) -> Decides:
        """``fails`` of ``arms`` memory arms (so many tables in a row are a study) where full attention in the same
        study is shown above ``learned``, is not shown below ``threshold``, and is ahead of the arm."""
        from stages.statistics.intervals import accuracy_many, hierarchical_many

        def decides(tables: Floats, weights: Floats) -> Decisions:
            count, seeds, items = tables.shape
            top, _ = self.seen.tables(
                effect=self.seen.estimate,
                seeds=seeds,
                items=items,
                draws=-(-count // arms),
                seed=rules.seed + OTHER_STREAM,
            )
            low, high = accuracy_many(top, level=1 - rules.alpha)
            stands = low >= learned
            if threshold is not None:
                stands &= high >= threshold
            of_study = np.arange(count) // arms
            ahead, _ = hierarchical_many(top[of_study] - tables, level=1 - rules.alpha)
            decided: Decisions = fails(tables, weights) & stands[of_study] & (ahead > 0)
            return decided

        return decides


def expected(plan: PilotConfig) -> Pilot:
    """Answers, right or wrong, before there is a run."""
    from stages.statistics.power import Pilot

    return Pilot(plan.accuracy, plan.accuracy_seed_sd, plan.accuracy_item_sd, plan.accuracy_residual_sd, binary=True)
