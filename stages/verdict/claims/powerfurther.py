"""The same of claims that rest on further tasks (C4), alignments (C11) and other schedules (C12); all claims together.

C4: every cell (task, k) must clear the threshold, in one arm, at the first Holm-like step over the arms. Cells are
simulated as independent and their scores as right or wrong, which shares of answers are not: both err on the side of a
larger effect. C12: an arm must be ahead of every schedule of the baseline (an intersection-union test), the first Holm
step being over all schedules of the memory arms. C11 is supported where nothing is lost: its column says how often
that is shown, and its smallest effect is the loss that is called one. Both measures of every row are simulated as
independent, which errs on the side of fewer verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from stages.verdict.claims.alignment import perplexity_added, retrieval_lost
from stages.verdict.claims.bracket import CEILING, FLOOR
from stages.verdict.claims.compositional import composed
from stages.verdict.claims.config import Compositional
from stages.verdict.claims.effects import Decisions, Floats, comparison
from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.power import (
    DRAWS,
    Sensitivity,
    answers,
    difference,
    earlier_run,
    jointly,
    losses,
    refuted_accuracy,
    relative,
    sensitivities,
    widest,
)
from stages.verdict.claims.powerceiling import Ceiling, expected, lacking
from stages.verdict.claims.size import Size

if TYPE_CHECKING:
    from stages.statistics.power import Pilot


def every_sensitivity(size: Size, earlier: Evidence | None = None) -> Iterator[Sensitivity]:
    """One row per claim; see ``stages.verdict.claims.power.sensitivities``."""
    yield from sensitivities(size, earlier)
    for row in (_compositional, _aligned, _schedule):
        if (found := row(size, earlier)) is not None:
            yield found


def _compositional(size: Size, earlier: Evidence | None) -> Sensitivity | None:
    """C4: the true score of every task that is shown to clear the threshold."""
    from stages.statistics.intervals import accuracy_many
    from stages.statistics.power import smallest_effect

    cells, rules, rule = size.cells(), size.rules, size.rules.compositional
    if not cells:
        return None
    arms, seeds, items = len(size.memory_arms), len(size.seeds), min(cell.prompts for cell in cells)
    seen, origin = _spread_of_cells(size, earlier, items)
    ceilings = [name for name, mixer in size.arms.items() if mixer.kind == CEILING][:1]
    top = Ceiling.of(rules.pilot, _answered(earlier, ceilings, rule))
    alpha = min(rules.alpha, 2 * rules.alpha / arms)
    kinds = len({cell.kind for cell in cells})

    def clears(tables: Floats, weights: Floats) -> Decisions:
        decided: Decisions = accuracy_many(tables, level=1 - alpha)[0] >= rule.threshold
        return decided

    def fails(tables: Floats, weights: Floats) -> Decisions:
        decided: Decisions = accuracy_many(tables, level=1 - rules.alpha / len(cells))[1] < rule.threshold
        return decided

    up, down = (
        smallest_effect(
            jointly(one, together),
            seen,
            seeds=seeds,
            items=items,
            null=rule.threshold,
            largest=largest,
            power=rules.power,
            draws=DRAWS,
            seed=rules.seed,
        )
        for one, together, largest in (
            (clears, len(cells), 1.0),
            (top.behind(fails, rules, arms, rule.learned, rule.threshold), arms, 0.0),
        )
    )
    unseen = lacking(size, ceiling=True)
    lack = ""
    if kinds < rule.kinds:
        lack = f"none: {kinds} of {rule.kinds} kinds of task"
    elif items < rule.minimum_trials:
        lack = f"none: {items} of claims.compositional.minimum_trials = {rule.minimum_trials} prompts"
    elif not math.isfinite(up):
        lack = "none"
    return Sensitivity(
        "C4",
        "compositional",
        ("evaluate", "control"),
        seeds,
        items,
        f"prompts in each of {len(cells)} tasks",
        math.inf if lack else up,
        lack or f"{up:.1%} in every task is shown to reach {rule.threshold:.0%}",
        -math.inf if unseen else down,
        refuted_accuracy(unseen, down, "in one task is shown to stay below", top),
        origin,
    )


def _spread_of_cells(size: Size, earlier: Evidence | None, items: int) -> tuple[Pilot, str]:
    from stages.statistics.power import pilot

    tables = _answered(earlier, size.memory_arms, size.rules.compositional)
    usable = [replace(pilot(table), binary=True) for table in tables if min(table.shape) >= 2 and 0 < table.mean() < 1]
    if usable:
        widest = max(usable, key=lambda one: one.seed_sd**2 + (one.item_sd**2 + one.residual_sd**2) / items)
        return widest, earlier_run(widest)
    return expected(size.rules.pilot), "claims.pilot"


def _answered(earlier: Evidence | None, arms: Sequence[str], rule: Compositional) -> list[Floats]:
    """Scores [seeds, items] of each arm in each cell of an earlier run that would decide."""
    table = composed(earlier) if earlier is not None else None
    if table is None or not len(table):
        return []
    longest = table.groupby(["task", "k"])["length"].transform("max")
    at = table[table["arm"].isin(arms) & (table["length"] == (rule.length or longest))]
    return [
        rows.pivot_table(index="seed", columns="item", values="correct").dropna(axis=1).to_numpy(float)
        for _, rows in at.groupby(["arm", "task", "k"])
    ]


def _aligned(size: Size, earlier: Evidence | None) -> Sensitivity | None:
    """C11: how often losses of both margins are excluded in every row where nothing is lost."""
    from stages.statistics.power import Pilot, power_of, smallest_effect

    rules, rule = size.rules, size.rules.alignment
    rows = [(arm, variant) for variant in size.alignments for arm in size.memory_arms]
    lengths = [n for n in size.evaluate.retrieval.lengths if rule.length is None or n <= rule.length]
    prompts = sum(size.passkeys(size.evaluate.retrieval, length) for length in lengths)
    if not rows or prompts < 2:
        return None
    local = next(name for name, mixer in size.arms.items() if mixer.kind == FLOOR)
    found, text = [], []
    for arm, variant in rows if earlier is not None else ():
        assert earlier is not None
        lost = retrieval_lost(earlier, arm, variant, longest=rule.length)
        added = perplexity_added(earlier, arm, variant, local)
        found += [lost[1].pair] if lost is not None else []
        text += [added[1].pair] if added is not None else []
    between_arms, origin, documents = losses(size, earlier)
    if found and widest(found) is None:  # not one answer differed: taken as one of them
        seen_found = Pilot(0.0, 0.0, 0.0, found[0].a.size ** -0.5)
    else:
        seen_found, _ = widest(found) or (answers(rules.pilot), "")
    seen_text, origin = widest(text) or (between_arms, origin)
    smallest, kept = [], 1.0
    for seen, items, limit, largest in (
        (seen_found, prompts, rule.margin, 1.0),
        (seen_text, documents, math.log1p(rule.perplexity_margin), None),
    ):
        sample = {"seeds": len(size.seeds), "items": items, "draws": DRAWS, "seed": rules.seed}
        shown = comparison(rules, null=limit, limit=-math.inf, arms=2 * len(rows))
        smallest.append(smallest_effect(shown, seen, null=limit, largest=largest, power=rules.power, **sample))
        excluded = jointly(comparison(rules, null=math.inf, limit=limit, arms=1), len(rows))
        kept *= power_of(excluded, seen, effect=0.0, **sample)
    points, nats = smallest
    said = [f"{100 * points:.1f} points of passkeys"] if math.isfinite(points) else []
    said += [f"{math.expm1(nats):.2%} perplexity"] if math.isfinite(nats) else []
    return Sensitivity(
        "C11",
        "alignment",
        ("evaluate", "align"),
        len(size.seeds),
        documents,
        f"documents and {prompts:,} passkeys, {len(rows)} aligned arms",
        nats,
        f"{' or '.join(said)} lost" if said else "none",
        kept,
        f"supported {kept:.0%} if nothing is lost",
        origin,
    )


def _schedule(size: Size, earlier: Evidence | None) -> Sensitivity | None:
    """C12: the gap to every schedule of the baseline, in perplexity."""
    rule = size.rules.schedule
    floors = size.baselines
    baselines = [name for arm in floors for name in size.schedules_of(arm)]
    candidates = [name for arm in size.memory_arms for name in size.schedules_of(arm)]
    if not size.schedules or len(baselines) == len(floors):
        return None
    seen, origin, items = losses(size, earlier)
    found = difference(
        size,
        "C12",
        "schedule",
        ("evaluate", "control", "schedules"),
        seen,
        origin,
        items,
        f"documents, {len(baselines)} schedules of {' and '.join(floors)}",
        null=0.0,
        limit=-math.log1p(-rule.margin),
        comparisons=len(baselines),
        arms=len(candidates),
        show=relative,
    )
    if (others := size.other_schedules) < rule.minimum:
        return replace(found, smallest=math.inf, shown=f"none: {others} of {rule.minimum} other schedules")
    return found
