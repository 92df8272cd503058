"""Every training of a study: its arms, and its arms on other schedules, with the steps that ``match`` allows each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from model.config import check_reach
from pipeline.errors import suggestion
from stages.training.pretrain.config import MixtureConfig, PretrainConfig
from stages.training.pretrain.schedule import ScheduleSettings, scheduled

if TYPE_CHECKING:
    from pipeline.study.study import StudyConfig

CHANGELESS_WITH_LENGTH = ("linear", "llama3", "yarn")
"""Scalings that a schedule may use: the others depend on the length of the text."""


def own_training(study: StudyConfig, arm: str, mixture: MixtureConfig | None = None) -> PretrainConfig:
    """An arm's training as the ``pretrain`` section has it, for seed 0; ``mixture``: in place of the section's."""
    section = study.pretrain
    fields = {name: getattr(section, name) for name in type(section).model_fields}
    return PretrainConfig(**fields | ({"mixture": mixture} if mixture else {}), mixer=study.arms[arm], seed=0)


def variants(study: StudyConfig) -> dict[str, list[str]]:
    """Schedule -> the arms that are trained on it too, in the order of the study file."""
    return {
        name: [arm for arm, mixer in study.arms.items() if schedule.covers(arm, mixer)]
        for name, schedule in study.schedules.items()
    }


def trained_arms(study: StudyConfig) -> list[str]:
    """The study's arms, then ``arm@schedule``."""
    return [*study.arms, *(scheduled(arm, name) for name, arms in variants(study).items() for arm in arms)]


def trainings(study: StudyConfig, mixture: MixtureConfig, vocabulary: int | None) -> dict[str, PretrainConfig]:
    """name -> config for seed 0: the arms, then ``arm@schedule``. Raises StageError where ``match`` leaves no steps."""
    own = {arm: own_training(study, arm, mixture) for arm in study.arms}
    made = {arm: (arm, config) for arm, config in own.items()}
    for name, arms in variants(study).items():
        made |= {scheduled(arm, name): (arm, study.schedules[name].apply(own[arm])) for arm in arms}
    return study.match.matched(made, study.match.reference_of(study.arms), study.trunk, vocabulary)


def faults(study: StudyConfig) -> Iterator[str]:
    """Schedules that cannot be, or change nothing: a line each with field, value, what is allowed and the fix."""
    for name, schedule in study.schedules.items():
        place = f"schedules.{name}"
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,49}", name):
            yield f"schedule name {name[:60]!r}: allowed are at most 50 lower-case letters, digits and '-'"
            continue
        unknown = [arm for arm in schedule.arms or () if arm not in study.arms]
        for arm in unknown:
            known = list(study.arms)
            yield f"{place}.arms: {arm!r} is no arm of the study (allowed: {', '.join(known)}){suggestion(arm, known)}"
        if unknown:
            continue
        covered = [arm for arm, mixer in study.arms.items() if schedule.covers(arm, mixer)]
        if not covered:
            yield f"{place}: no arm has kind local, window, full or infini. Fix: name its arms"
        yield from _positions(study, place, schedule, covered)
        yield from _changes(study, name, schedule, covered)
    yield from _rule(study)


def _rule(study: StudyConfig) -> Iterator[str]:
    """What claim C12 is to be decided from must be there."""
    rule, kinds = study.claims.schedule, {mixer.kind for mixer in study.arms.values()}
    if not study.schedules and rule.model_fields_set:
        yield "claims.schedule: has no effect without schedules, on which it is decided. Fix: add some, or remove it"
    for kind in rule.baselines if study.schedules and "baselines" in rule.model_fields_set else ():
        if kind not in kinds:
            yield f"claims.schedule.baselines = {kind!r}: no arm has this kind (allowed: {', '.join(sorted(kinds))})"


def _positions(study: StudyConfig, place: str, schedule: ScheduleSettings, arms: list[str]) -> Iterator[str]:
    scaling = schedule.rope_scaling
    if scaling is not None and scaling.type not in CHANGELESS_WITH_LENGTH:
        yield (
            f"{place}.rope_scaling.type = {scaling.type!r}: changes with the length of the text (allowed: "
            f"{', '.join(CHANGELESS_WITH_LENGTH)})"
        )
    elif scaling is not None or schedule.rope_theta is not None:
        for arm in arms:
            try:
                check_reach(study.trunk.with_positions(schedule.rope_theta, scaling), study.arms[arm])
            except ValueError as error:
                yield f"{place}: arms.{arm}: {error}"


def _changes(study: StudyConfig, name: str, schedule: ScheduleSettings, arms: list[str]) -> Iterator[str]:
    """Each arm's training must be another than its own and than its others."""
    for arm in arms:
        try:
            own = own_training(study, arm)
            changed = schedule.apply(own)
        except ValueError as error:
            yield f"schedules.{name}: {_said(error)}"
            return
        if changed.warmup_steps > changed.steps:
            yield (
                f"schedules.{name}.warmup_steps = {changed.warmup_steps}: training ends before, at pretrain.steps = "
                f"{changed.steps} (allowed: at most that many)"
            )
            return
        earlier = list(study.schedules)[: list(study.schedules).index(name)]
        twins = [other for other in earlier if study.schedules[other].covers(arm, study.arms[arm])]
        same = next((other for other in twins if _applied(study.schedules[other], own) == changed), None)
        if changed == own:
            yield (
                f"schedules.{name}: changes nothing for arms.{arm} ({study.arms[arm].kind}). Fix: another value, or "
                "name the arms that it changes (arms: [...])"
            )
        elif same is not None:
            yield f"schedules.{name}: for arms.{arm} the same as schedules.{same}. Fix: remove one of them"


def _applied(schedule: ScheduleSettings, own: PretrainConfig) -> PretrainConfig | None:
    try:
        return schedule.apply(own)
    except ValueError:
        return None  # said of that schedule


def _said(error: ValueError) -> str:
    """One finding of pydantic, or of a plain check, in its own words."""
    errors = getattr(error, "errors", None)
    return str(errors()[0]["msg"]).removeprefix("Value error, ") if errors else str(error)
