"""What sections of a study say of each other: names that must exist, lists without repeats, options without effect.

Each is found before anything runs; many would otherwise show after hours of training, or never.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.errors import suggestion
from stages.control.stage import CONTROL_ARMS

if TYPE_CHECKING:
    from pipeline.study import Study


def disagreements(study: Study) -> list[str]:
    """All of them, one line each: field, value, what is wrong, the fix."""
    return [*_repeats(study.model_dump(mode="json"), ""), *_mixture(study), *_arms(study), *_claims(study)]


def _repeats(value: Any, place: str) -> Iterator[str]:
    """Lists in which an entry stands twice: a document, a prompt or a trial would count twice."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _repeats(item, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        plain = [item for item in value if not isinstance(item, dict | list)]
        if len(set(map(repr, plain))) != len(plain):
            yield f"{place} = {value}: an entry stands twice. Fix: keep one of each"
        for index, item in enumerate(value):
            yield from _repeats(item, f"{place}.{index}")


def _mixture(study: Study) -> Iterator[str]:
    known = [source.name for source in study.corpus.sources]
    for section, mixture in (("base", study.base.mixture), ("pretrain", study.pretrain.mixture)):
        for name in mixture.sources:
            if name not in known:
                yield f"{section}.mixture.sources.{name}: the corpus has no such source{suggestion(name, known)}"


def _arms(study: Study) -> Iterator[str]:
    """Sections that would make no step, and prompts too short to tell memory from the local segment."""
    for name, arm in study.arms.items():
        if arm.memory_layer is not None and arm.memory_layer >= study.trunk.layers:
            yield (
                f"arms.{name}.memory_layer = {arm.memory_layer}: the trunk has layers 0 to {study.trunk.layers - 1}. "
                "Fix: name one of them, or leave it out"
            )
    memories = {name: arm for name, arm in study.arms.items() if arm.kind == "infini"}
    if study.ablate is not None and not memories:
        yield "ablate: has no effect, no arm has kind infini. Fix: add one to arms, or remove the section"
    if study.control is not None:
        for name, arm in memories.items():
            if (kind := CONTROL_ARMS.get(name, "infini")) != "infini":
                yield (
                    f"arms.{name}.kind = {arm.kind!r}: in the positive control {name!r} is the arm of kind {kind!r}. "
                    "Fix: give the arm another name"
                )
    if study.ablate is not None and memories:
        asked = study.ablate.retrieval
        name, arm = max(memories.items(), key=lambda item: item[1].segment_length)
        short = [n for n in (*asked.lengths, *asked.lengths_of_bindings) if n <= arm.segment_length]
        if short:
            yield (
                f"ablate.retrieval.lengths = {list(asked.lengths)}: a prompt of {short[0]} tokens lies within a "
                f"segment of arms.{name} ({arm.segment_length}), its memory is never read. Fix: ask longer prompts"
            )


def _claims(study: Study) -> Iterator[str]:
    """Decision rules that name what the study does not measure; a default that is not measured is no fault."""
    claims = study.claims
    measured = (
        ("retrieval", "length", "evaluate.retrieval.lengths", study.evaluate.retrieval.lengths),
        ("memory_is_used", "knockouts", "ablate.knockouts", study.ablate and study.ablate.knockouts),
        ("positive_control", "pairs", "control.pairs", study.control and study.control.pairs),
        ("capacity", "feature_map", "capacity.feature_maps", study.capacity and study.capacity.feature_maps),
        ("capacity", "rules", "capacity.rules", study.capacity and study.capacity.rules),
        ("summarization", "task", "summarize.tasks", study.summarize and study.summarize.tasks),
    )
    for claim, field, section, allowed in measured:
        rule = getattr(claims, claim)
        if field not in rule.model_fields_set or allowed is None:
            continue
        value = getattr(rule, field)
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None and item not in allowed:
                yield f"claims.{claim}.{field} = {item!r}: not measured (allowed: {section} = {list(allowed)})"
