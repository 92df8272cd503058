"""A study seen by those who only look: its steps and their keys, without the study file.

``run`` records the plan of every study in the store under the study's name. What is recorded is enough to find, show
and compare artifacts; it is not enough to run anything, since it names no file and no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

from pipeline.errors import IntegrityError, StudyError, UnknownName

if TYPE_CHECKING:
    from pipeline.engine.control import Commit
    from pipeline.engine.plan import Plan
    from pipeline.engine.store import Store


@dataclass(frozen=True)
class RecordedStep:
    """One step of a study. ``stage`` is its stage's name, ``inputs`` maps input names to keys."""

    id: str
    stage: str
    key: str
    code_version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    arm: str | None
    seed: int | None

    def record(self) -> dict[str, Any]:
        """The fields that ``plan.differences`` compares, and arm and seed."""
        return {
            "code_version": self.code_version,
            "config": dict(self.config),
            "inputs": dict(self.inputs),
            "arm": self.arm,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class RecordedStudy:
    """The steps of a study by id, in an order in which they can run. ``study_key``: the key over all of them."""

    study: str
    study_key: str
    steps: Mapping[str, RecordedStep]

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> RecordedStudy:
        """What ``Store.study_record`` gave. Raises KeyError or CycleError for something else."""
        fields = ("stage", "key", "code_version", "config", "inputs", "arm", "seed")
        steps = {
            step: RecordedStep(step, **{field: value[field] for field in fields})
            for step, value in record["steps"].items()
        }
        by_key = {step.key: step.id for step in steps.values()}
        needs = {step.id: [by_key[key] for key in step.inputs.values()] for step in steps.values()}
        in_order = TopologicalSorter(needs).static_order()  # the file's own order is that of the alphabet
        return cls(record["study"], record["study_key"], {step: steps[step] for step in in_order})

    @classmethod
    def of_plan(cls, plan: Plan) -> RecordedStudy:
        """The same of a plan just made from a study file."""
        steps = {
            step.id: RecordedStep(
                step.id,
                step.stage.name,
                step.key,
                step.stage.code_version,
                step.config.key_fields(),
                step.input_keys,
                step.arm,
                step.seed,
            )
            for step in plan.steps
        }
        return cls(plan.study, plan.study_key, steps)

    def step(self, step_id: str) -> RecordedStep:
        """Raises UnknownName with the closest steps: those below ``step_id`` where it is the beginning of some."""
        if step_id not in self.steps:
            below = [step for step in self.steps if step.startswith(step_id.rstrip("/") + "/")]
            raise UnknownName("step", step_id, below or self.steps)
        return self.steps[step_id]

    def commits(self, store: Store) -> dict[str, Commit]:
        """The artifacts that are made, by step id: one small read a step."""
        found = store.lookup_many([(step.stage, step.key) for step in self.steps.values()])
        return {step.id: found[step.key] for step in self.steps.values() if step.key in found}

    def commit(self, store: Store, step_id: str) -> Commit:
        """The artifact of one step. Raises UnknownName, and StudyError where it is not made yet."""
        step = self.step(step_id)
        commit = store.lookup_many([(step.stage, step.key)]).get(step.key)
        if commit is None:
            raise StudyError(f"step {step_id!r} of {self.study!r} is not made yet. Fix: infini-study run it first")
        return commit


def recorded(store: Store, name: str) -> RecordedStudy:
    """The study of this name as its last run recorded it. Raises UnknownName with the closest recorded names, and
    IntegrityError for a damaged record."""
    known = store.studies()
    if name not in known:
        raise UnknownName("study", name, known)
    try:
        return RecordedStudy.of_record(store.study_record(name))
    except (KeyError, CycleError) as error:
        raise IntegrityError(
            f"{store.root}/studies/{name}.json: not readable (the inputs of its steps are not its steps: {error}). "
            "Fix: delete it; the next run writes it anew"
        ) from error
