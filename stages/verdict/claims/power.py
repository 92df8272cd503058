"""What a study could see before any of it is run: per claim its seeds, items and the smallest effect it would decide.

The rules are those of the claims themselves, applied to simulated tables; the spreads come from an earlier run of the
same study, or else from ``claims.pilot``. A claim is supported where one memory arm is: it must then pass the first
Holm step and all its own comparisons, which are simulated as independent (they share answers, so this errs on the side
of a larger effect). Spreads are taken to be the same at every effect; a memory that does nothing varies less than one
that works, so it is refuted more often than said here. What stands in front of every refutation is in ``powerceiling``.
C6 to C9 are limits, counts and formulas: no number of seeds or prompts makes them decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.cost import cost
from stages.evidence.control.config import ControlBaseConfig, ControlConfig
from stages.evidence.control.stage import deciding
from stages.stage import Config, StageError
from stages.training.pretrain.config import BaseConfig, PretrainConfig
from stages.verdict.claims.bracket import CEILING, FLOOR
from stages.verdict.claims.config import PilotConfig
from stages.verdict.claims.effects import Decisions, Floats, comparison
from stages.verdict.claims.evidence import KINDS_WITH_MEMORY, Evidence, Paired, crossed, paired
from stages.verdict.claims.memory import retrieval_cost
from stages.verdict.claims.perplexity import pair_of_arms
from stages.verdict.claims.powerceiling import Ceiling, expected, lacking
from stages.verdict.claims.retrieval import passkey
from stages.verdict.claims.size import Size

if TYPE_CHECKING:
    from stages.statistics.power import Decides, Pilot

DRAWS = 1000  # simulated studies per power: exact to 1.3 points at 80%


@dataclass(frozen=True)
class Sensitivity:
    """One claim. ``items``: per seed, ``unit`` says what they are. ``smallest``: the true value that is called
    supported with the asked power; inf where none is. ``refutes``: probability of ``refuted`` where there is no effect
    (for C3 and C4, whose accuracy is never nothing, the largest true accuracy of all memory arms that is called refuted
    with the asked power; -inf where none is), 0 or -inf where what must stand in front of it is not in the study.
    C11 claims that nothing is lost: its ``smallest`` is the loss, in nats per token, that is called refuted, its
    ``refutes`` the probability of ``supported``.
    ``pilot``: where the spreads come from. ``needs``: stages whose steps it takes."""

    claim: str
    name: str
    needs: tuple[str, ...]
    seeds: int
    items: int
    unit: str
    smallest: float
    shown: str
    refutes: float
    refutes_shown: str
    pilot: str


def sensitivities(size: Size, earlier: Evidence | None = None) -> Iterator[Sensitivity]:
    """One row per claim that this study can decide by sampling, each after a second or so of simulation. ``earlier``:
    tables of a finished run.

    Raises StageError for a study whose rules could never decide: too few seeds, no memory arm, no local arm, no items.
    """
    _check(size)
    for row in (_used, _perplexity, _passkey, _control, _binding, _seeds):
        found = row(size, earlier)
        if found is not None:
            yield found


def _check(size: Size) -> None:
    rules, count = size.rules, len(size.seeds)
    if count < rules.minimum_seeds:
        raise StageError(
            f"{count} seed{'s' * (count != 1)}, and the rules decide nothing below claims.minimum_seeds = "
            f"{rules.minimum_seeds}",
            field="seeds",
            value=list(size.seeds),
            fix=f"name at least {rules.minimum_seeds} seeds",
        )
    kinds = sorted({mixer.kind for mixer in size.arms.values()})
    for kind, what in ((KINDS_WITH_MEMORY[0], "compressive memory"), (FLOOR, "local attention, the floor")):
        if kind not in kinds:
            raise StageError(
                f"no arm has {what}, and every claim compares with it",
                field="arms",
                value=list(size.arms),
                fix=f"add an arm of kind {kind!r}",
            )
    asked = size.evaluate.retrieval
    if size.passkeys(asked, size.length) < 2:
        raise StageError(
            f"fewer than two passkey prompts at {size.length:,} tokens have their needle beyond a segment of "
            f"{size.segment:,}",
            field="evaluate.retrieval.trials",
            value=asked.trials,
            fix="ask more prompts, or longer ones",
        )


# --- the claims ---------------------------------------------------------------------------------------------------
def _used(size: Size, earlier: Evidence | None) -> Sensitivity | None:
    """C1: every deciding knock-out costs more than the margin."""
    if size.ablate is None:
        return None
    rule, asked = size.rules.memory_is_used, size.ablate.retrieval
    items = sum(size.passkeys(asked, length) for length in asked.lengths) + sum(
        size.bindings(length, asked.binding_trials) * len(asked.rivals) for length in asked.lengths_of_bindings
    )
    pairs = []
    if earlier is not None:
        costs = [retrieval_cost(earlier, arm, out) for arm in size.memory_arms for out in rule.knockouts]
        pairs = [one[1].pair for one in costs if one is not None]
    seen, origin = widest(pairs) or (answers(size.rules.pilot), "claims.pilot")
    return difference(
        size,
        "C1",
        "memory-is-used",
        ("ablate", "control"),
        seen,
        origin,
        items,
        "prompts",
        null=rule.margin,
        limit=rule.margin,
        comparisons=len(rule.knockouts),
        largest=1.0,
        show=_points("lost"),
        ceiling=False,
    )


def _perplexity(size: Size, earlier: Evidence | None) -> Sensitivity:
    """C2: lower perplexity than local."""
    seen, origin, items = losses(size, earlier)
    limit = -math.log1p(-size.rules.perplexity_from_memory.margin)
    return difference(
        size,
        "C2",
        "perplexity-from-memory",
        ("evaluate", "control"),
        seen,
        origin,
        items,
        "documents",
        null=0.0,
        limit=limit,
        show=relative,
    )


def _seeds(size: Size, earlier: Evidence | None) -> Sensitivity:
    """C13: the same with a margin, and by the spread of the seeds alone."""
    from stages.statistics.intervals import hierarchical_many

    seen, origin, items = losses(size, earlier)
    margin, rules = -math.log1p(-size.rules.seeds.margin), size.rules
    both = comparison(rules, null=margin, limit=-math.inf, arms=len(size.memory_arms))

    def supported(tables: Floats, weights: Floats) -> Decisions:
        gaps = tables.sum(2, keepdims=True) / weights.sum()  # one number a seed: the interval is Student's
        decided: Decisions = both(tables, weights) & (hierarchical_many(gaps, level=1 - rules.alpha)[0] > margin)
        return decided

    def refuted(tables: Floats, weights: Floats) -> Decisions:
        gaps = tables.sum(2, keepdims=True) / weights.sum()
        decided: Decisions = hierarchical_many(gaps, level=1 - 2 * rules.alpha)[1] < margin
        return decided

    return difference(
        size,
        "C13",
        "seeds",
        ("evaluate", "control"),
        seen,
        origin,
        items,
        "documents",
        null=margin,
        limit=margin,
        show=relative,
        supported=supported,
        refuted=refuted,
    )


def _passkey(size: Size, earlier: Evidence | None) -> Sensitivity:
    """C3: accuracy clears the threshold at the deciding length."""
    from stages.statistics.intervals import accuracy_many
    from stages.statistics.power import pilot, smallest_effect

    rules, rule, plan = size.rules, size.rules.retrieval, size.rules.pilot
    length, seeds, arms = size.length, len(size.seeds), len(size.memory_arms)
    items = size.passkeys(size.evaluate.retrieval, length)
    seen, origin = expected(plan), "claims.pilot"

    def answered(asked: Sequence[str]) -> list[Floats]:
        found = []
        for arm in asked if earlier is not None else ():
            assert earlier is not None
            beyond, _ = passkey(earlier, arm)
            rows = beyond[beyond["length"] == length] if len(beyond) else beyond
            if len(rows):
                found.append(crossed(rows, "item", "correct", mean=True)[2])
        return found

    tables = answered(size.memory_arms)
    top = Ceiling.of(plan, answered([name for name, mixer in size.arms.items() if mixer.kind == CEILING][:1]))
    usable = [pilot(table) for table in tables if min(table.shape) >= 2 and 0 < table.mean() < 1]
    if usable:
        seen = max(usable, key=lambda one: one.seed_sd**2 + (one.item_sd**2 + one.residual_sd**2) / items)
        origin = earlier_run(seen)
    alpha = min(rules.alpha, 2 * rules.alpha / arms)
    enough = items >= rule.minimum_trials

    def clears(tables: Floats, weights: Floats) -> Decisions:
        decided: Decisions = (accuracy_many(tables, level=1 - alpha)[0] >= rule.threshold) & enough
        return decided

    def fails(tables: Floats, weights: Floats) -> Decisions:
        decided: Decisions = accuracy_many(tables, level=1 - rules.alpha)[1] < rule.threshold
        return decided

    up, down = (
        smallest_effect(
            one,
            seen,
            seeds=seeds,
            items=items,
            null=rule.threshold,
            largest=largest,
            power=rules.power,
            draws=DRAWS,
            seed=rules.seed,
        )
        for one, largest in ((clears, 1.0), (jointly(top.behind(fails, rules, arms, rule.learned), arms), 0.0))
    )
    lack = lacking(size, ceiling=True)
    why = "none" if enough else f"none: {items} prompts of claims.retrieval.minimum_trials = {rule.minimum_trials}"
    return Sensitivity(
        "C3",
        "retrieval",
        ("evaluate", "control"),
        seeds,
        items,
        f"prompts of {length:,} tokens",
        up,
        f"accuracy {up:.1%} is shown to reach {rule.threshold:.0%}" if math.isfinite(up) else why,
        -math.inf if lack else down,
        refuted_accuracy(lack, down, "is shown to stay below", top),
        origin,
    )


def _control(size: Size, earlier: Evidence | None) -> Sensitivity | None:
    """C5a: fresh sequences per seed, so one number per seed and k."""
    from stages.statistics.power import Pilot

    control, plan = size.control, size.rules.pilot
    arms = deciding(size.control_arms or {}, size.arms)
    ks = [k for k in control.pairs if k >= 2] if control is not None else []
    if control is None or not arms or not ks:
        return None
    variance = plan.accuracy_seed_sd**2 + plan.accuracy * (1 - plan.accuracy) / control.trials
    seen, origin = Pilot(0.0, math.sqrt(variance), 0.0, 0.0), "claims.pilot"
    table = earlier.control_trained() if earlier is not None else None
    if table is not None and len(table):
        table = table.assign(share=table["hits"] / table["trials"])
        spread = table[table["arm"].isin(arms) & table["k"].isin(ks)].groupby(["arm", "k"])["share"]
        found = spread.std(ddof=1)
        if found.notna().any() and float(found.max()) > 0:
            least = int(spread.count().min())
            seen, origin = Pilot(0.0, float(found.max()), 0.0, 0.0), f"earlier run: {least} seeds, widest arm and k"
    margin = size.rules.binding.margin
    row = difference(
        size,
        "C5a",
        "binding-in-control",
        ("control",),
        seen,
        origin,
        1,
        "sequences per k",
        null=margin,
        limit=margin,
        comparisons=len(ks),
        largest=1.0,
        show=_points("above 1/k"),
        arms=len(arms),
        ceiling=False,
    )
    return replace(row, items=control.trials)


def _binding(size: Size, earlier: Evidence | None) -> Sensitivity | None:
    """C5b: the asked needle among rivals, on text, against every reader that does not bind."""
    asked, margin = size.evaluate.retrieval, size.rules.binding.margin
    ks, length = [k for k in asked.rivals if k >= 2], max(asked.lengths_of_bindings)
    items = size.bindings(length, asked.binding_trials)
    if not ks or items < 2:
        return None
    pairs = []
    if earlier is not None and len(earlier.retrieval):
        table = earlier.retrieval
        rows = table[(table["task"] == "bindings") & table["beyond_local"].astype(bool) & (table["length"] == length)]
        rows = rows[rows["arm"].isin(size.memory_arms) & rows["rivals"].isin(ks)]
        for (_, k), many in rows.groupby(["arm", "rivals"]):
            pairs.append(paired(many, many.assign(correct=1 / int(k)), "item", "correct"))
    seen, origin = widest(pairs) or (answers(size.rules.pilot), "claims.pilot")
    # the readers of one k are compared on the very same answers, so they count as one comparison
    return difference(
        size,
        "C5b",
        "binding-in-text",
        ("evaluate", "control"),
        seen,
        origin,
        items,
        f"prompts per k of {length:,} tokens",
        null=margin,
        limit=margin,
        comparisons=len(ks),
        largest=1.0,
        show=_points("above 1/k"),
    )


# --- what they share ----------------------------------------------------------------------------------------------
def difference(
    size: Size,
    claim: str,
    name: str,
    needs: tuple[str, ...],
    seen: Pilot,
    origin: str,
    items: int,
    unit: str,
    *,
    null: float,
    limit: float,
    show: Callable[[float], str],
    comparisons: int = 1,
    largest: float | None = None,
    arms: int | None = None,
    supported: Decides | None = None,
    refuted: Decides | None = None,
    ceiling: bool = True,
) -> Sensitivity:
    """A claim about paired differences: supported above ``null``, refuted below ``limit`` in every arm, where the
    positive control and, with ``ceiling``, full attention among the arms stand in front of it."""
    from stages.statistics.power import power_of, smallest_effect

    rules, seeds, family = size.rules, len(size.seeds), arms or len(size.memory_arms)
    above = supported or comparison(rules, null=null, limit=-math.inf, arms=family)
    below = refuted or comparison(rules, null=math.inf, limit=limit, arms=family)
    smallest = smallest_effect(
        jointly(above, comparisons),
        seen,
        seeds=seeds,
        items=items,
        null=null,
        largest=largest,
        power=rules.power,
        draws=DRAWS,
        seed=rules.seed,
    )
    shown = show(smallest) if math.isfinite(smallest) else "none"
    if lack := lacking(size, ceiling=ceiling):
        return Sensitivity(claim, name, needs, seeds, items, unit, smallest, shown, 0.0, f"none: {lack}", origin)
    refutes = power_of(
        jointly(below, family * comparisons), seen, effect=0.0, seeds=seeds, items=items, draws=DRAWS, seed=rules.seed
    )
    return Sensitivity(
        claim, name, needs, seeds, items, unit, smallest, shown, refutes, f"{refutes:.0%} if there is nothing", origin
    )


def refuted_accuracy(lack: str, down: float, said: str, top: Ceiling) -> str:
    """The column of a claim that names a threshold."""
    if lack:
        return f"none: {lack}"
    ahead = f"full attention at {top.seen.estimate:.0%}"
    return f"{down:.1%} {said}, {ahead}" if math.isfinite(down) else f"none, {ahead}"


def jointly(rule: Decides, comparisons: int) -> Decides:
    """A rule that decides where ``rule`` does for ``comparisons`` tables in a row: all of an arm's, or all arms'.

    Each run of so many tables is one study, and each table of it gets the study's decision.
    """

    def decides(tables: Floats, weights: Floats) -> Decisions:
        one = rule(tables, weights)
        starts = np.arange(0, len(one), comparisons)
        every = np.logical_and.reduceat(one, starts)
        decided: Decisions = np.repeat(every, np.diff(np.append(starts, len(one))))
        return decided

    return decides


def losses(size: Size, earlier: Evidence | None) -> tuple[Pilot, str, int]:
    """Spread of the documents' differences memory arm against local, where it is from, and how many documents."""
    from stages.statistics.power import Pilot

    scored, plan = size.evaluate.perplexity, size.rules.pilot
    local = next(name for name, mixer in size.arms.items() if mixer.kind == FLOOR)
    pairs = [] if earlier is None else [pair_of_arms(earlier, arm, local) for arm in size.memory_arms]
    seen, origin = widest(pairs) or (
        Pilot(0.0, plan.loss_seed_sd, plan.loss_item_sd, plan.loss_residual_sd),
        "claims.pilot",
    )
    if most := scored.max_documents or scored.max_documents_per_source:
        return seen, origin, most * len(scored.splits)
    return seen, origin, seen.items if seen.items else plan.documents


def widest(pairs: Sequence[Paired | None]) -> tuple[Pilot, str] | None:
    """The pilot with the largest standard error among comparisons with two seeds and items, not all equal."""
    from stages.statistics.power import pilot

    seen = [pilot(pair.differences, pair.weights) for pair in pairs if pair is not None and min(pair.a.shape) >= 2]
    seen = [one for one in seen if one.seed_sd or one.item_sd or one.residual_sd]
    if not seen:
        return None
    widest = max(seen, key=lambda one: one.seed_sd**2 + (one.item_sd**2 + one.residual_sd**2) / one.items)
    return widest, earlier_run(widest)


def earlier_run(seen: Pilot) -> str:
    return f"earlier run: {seen.seeds} seeds x {seen.items} items, widest arm"


def answers(plan: PilotConfig) -> Pilot:
    """Of one answer minus another on the same prompt, before there is a run."""
    from stages.statistics.power import Pilot

    return Pilot(0.0, plan.accuracy_seed_sd, plan.accuracy_item_sd, plan.accuracy_residual_sd)


def _points(what: str) -> Callable[[float], str]:
    return lambda value: f"{100 * value:.1f} points {what}"


def relative(value: float) -> str:
    return f"{-math.expm1(-value):.2%} lower perplexity"


# --- what it costs ------------------------------------------------------------------------------------------------
def training_flops(config: Config, trunk: TrunkConfig, vocabulary: int) -> float:
    """Floating-point operations of one training step of the plan (model/cost.py: tokens x FLOPs per token), 0 for a
    config that trains nothing here. Where training may end early, or reads shorter pieces, this is the most."""
    if isinstance(config, BaseConfig):
        if config.steps is None or config.batch_tokens is None or config.sequence_length is None:
            return 0.0  # imported
        full = MixerConfig(kind="full", segment_length=config.sequence_length)
        return config.steps * config.batch_tokens * _per_token(trunk, full, vocabulary, config.sequence_length)
    if isinstance(config, PretrainConfig):
        tokens = config.steps * config.batch_sequences * config.sequence_length
        return tokens * _per_token(trunk, config.mixer, vocabulary, config.sequence_length)
    if isinstance(config, ControlBaseConfig):
        recipe = config.recipe
        length = recipe.segments * config.segment_length
        full = MixerConfig(kind="full", segment_length=length)
        return recipe.steps * recipe.batch * length * _per_token(config.trunk, full, config.vocabulary, length)
    if isinstance(config, ControlConfig):
        length = config.segments * config.segment_length
        tokens = config.graft.steps * config.graft.batch * length
        return tokens * _per_token(config.trunk, config.mixer, config.vocabulary, length)
    return 0.0


def _per_token(trunk: TrunkConfig, mixer: MixerConfig, vocabulary: int, length: int) -> float:
    return cost(ModelConfig(trunk=trunk, mixer=mixer, vocab_size=vocabulary), length).flops_per_token_training
