"""Settings of the retrieval tasks, as they stand in a study file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stages.data.pinned import Pin
from stages.data.tasks.haystack import Format
from stages.data.tasks.needles import BINDINGS, MOST_RIVALS, PASSKEY
from stages.data.tasks.registry import TASKS, check_worded, task_of
from stages.data.tasks.task import CONTROL, Task
from stages.stage import Config


@dataclass(frozen=True)
class Asked:
    """One prompt of a grid: the ``trial``-th of its length and k, or of their controls."""

    length: int
    k: int
    trial: int
    absent: bool = False


@dataclass(frozen=True)
class Grid:
    """The prompts of one task that a model is asked: ``trials`` and ``control_trials`` for every length (tokens) and k.
    ``depths``: where needles lie that a task places; None: spread evenly. ``field``: of the study file, for errors.
    ``shared``: prompts that differ in depth, or in which needle they ask for, have one haystack."""

    task: Task
    lengths: tuple[int, ...]
    ks: tuple[int, ...]
    trials: int
    control_trials: int
    field: str
    depths: tuple[float, ...] | None = None
    shared: bool = False

    def prompts(self) -> Iterator[Asked]:
        """All, in the order of their rows."""
        for length in self.lengths:
            for k in self.ks:
                yield from (Asked(length, k, trial) for trial in range(self.trials))
                yield from (Asked(length, k, trial, absent=True) for trial in range(self.control_trials))

    def shared_by(self, asked: Asked) -> tuple[int | None, int | None]:
        """Number of the haystack that a prompt has in common with others, and which of its needles it asks for; None
        where that is the prompt's own."""
        if not self.shared or asked.absent:
            return None, None
        if self.task.by_depth and self.depths:
            return asked.trial // len(self.depths), None
        if self.task.told_needle:
            return asked.trial // asked.k, asked.trial % asked.k
        return None, None

    @property
    def tokens(self) -> int:
        """Tokens of all prompts, at most."""
        return sum(self.lengths) * len(self.ks) * (self.trials + self.control_trials)

    def depth_of(self, trial: int) -> float | None:
        """On the grid in turn, or spread evenly; None where the task draws its places."""
        if not self.task.by_depth:
            return None
        return spread(trial) if self.depths is None else self.depths[trial % len(self.depths)]


class TaskSettings(Config):
    """How a further task is asked."""

    lengths: tuple[int, ...] | None = Field(default=None, min_length=1, description="default: those of the passkeys")
    trials: int | None = Field(default=None, ge=1, description="prompts per length and k (default: as many passkeys)")
    k: tuple[int, ...] | None = Field(default=None, min_length=1, description="default: the task's own")
    control_trials: int = Field(default=0, ge=0, description="prompts without an answer, per length and k")


class PromptFile(Config):
    """Prompts in RULER's form, from a JSON Lines file: one object a line with ``input``, ``outputs`` (a list) and
    perhaps ``answer_prefix``, which ends the prompt."""

    path: str = Field(description="from the study file's folder")
    pin: Pin | None = Field(default=None, description="sha256 of the file; filled in by the plan")
    match: Literal["all", "part"] = Field(
        default="all", description="score: share of the outputs that were said, or whether one of them was"
    )
    budget: int = Field(default=128, ge=1, description="tokens of the answer")

    def key_fields(self) -> dict[str, Any]:
        """Where the file lies does not count, its bytes do."""
        return {name: value for name, value in super().key_fields().items() if name != "path"}


class RetrievalConfig(Config):
    """Which prompts are asked. Lengths are tokens *including* question and generation budget.

    ``published``: the lines of each task's paper, of the passkey those of Landmark Attention (Mohtashami and Jaggi,
    2023) word for word, k in 1..50000. ``compact``: one short sentence and a two-digit number, for small or byte
    vocabularies whose contexts cannot hold the published lines; chance is 1/90 instead of 1/50000, and the two are
    never mixed in one table. ``terse``: a word and such a number on a line, of tasks that ask for numbers.
    """

    format: Format = Field(default="published", description="wording of needle and question")
    lengths: tuple[int, ...] = Field(min_length=1, description="prompt lengths of the passkey grid, tokens")
    depths: tuple[float, ...] | None = Field(
        default=None,
        min_length=1,
        description="passkey positions, a grid from 0 (start) to 1 (end); default: spread evenly over all of them",
    )
    trials: int = Field(ge=1, description="passkey prompts per length, with depths: per (length, depth) cell")
    haystacks: Literal["own", "shared"] = Field(
        default="own",
        description="shared: a passkey's depths, and the questions after each rival, in one haystack, read once",
    )
    rivals: tuple[int, ...] = Field(
        default=(1, 2, 4, 8), min_length=1, description="cue-number pairs k of the bindings task"
    )
    binding_lengths: tuple[int, ...] | None = Field(default=None, description="lengths of bindings (default: longest)")
    binding_trials: int = Field(default=20, ge=0, description="bindings prompts per (length, k)")
    control_trials: int = Field(default=20, ge=0, description="absent-needle prompts per length, absent-cue per k")
    tasks: dict[str, TaskSettings] = Field(default={}, description="further tasks, by name, and how each is asked")

    files: dict[str, PromptFile] = Field(default={}, description="further tasks whose prompts stand in files, by name")

    @field_validator("files")
    @classmethod
    def _names(cls, files: dict[str, PromptFile]) -> dict[str, PromptFile]:
        return checked_names(files)

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: dict[str, TaskSettings]) -> dict[str, TaskSettings]:
        for name, settings in tasks.items():
            task = task_of(name)
            if task in (PASSKEY, BINDINGS):
                raise ValueError(f"{name}: is asked anyway, its settings stand beside this section (fix: remove it)")
            check_distinct(f"{name}.lengths", settings.lengths or (), "numbers of tokens >= 1", 1)
            check_distinct(f"{name}.k", settings.k or (), f"numbers from 1 to {task.most}", 1, task.most)
            if settings.control_trials and task.control_k is None:
                raise ValueError(f"{name}.control_trials = {settings.control_trials}: the task has no controls")
        return tasks

    @model_validator(mode="after")
    def _check(self) -> RetrievalConfig:
        for name, values in (("lengths", self.lengths), ("binding_lengths", self.binding_lengths or ())):
            check_distinct(name, values, "numbers of tokens >= 1", 1)
        check_distinct("depths", self.depths or (), "numbers from 0 (start) to 1 (end)", 0, 1)
        check_worded(self.format, self.tasks, "format")
        check_distinct("rivals", self.rivals, f"numbers from 1 to {MOST_RIVALS}", 1, MOST_RIVALS)
        return self

    def key_fields(self) -> dict[str, Any]:
        """Further tasks count where there are some, and the versions of tasks that are not as they first were."""
        fields = super().key_fields()
        if self.haystacks == "own":
            fields.pop("haystacks")
        if not self.files:
            fields.pop("files")
        if not self.tasks:
            fields.pop("tasks")
        if self.tasks or self.files:
            fields["task_rows"] = 2  # with budget, offsets and segments
        return fields | versions(grid.task.name for grid in (*self.needles, *self.further))

    @property
    def needles(self) -> tuple[Grid, ...]:
        """Passkeys and bindings, which the claims are decided on."""
        field, shared = "lengths" if self.binding_lengths is None else "binding_lengths", self.haystacks == "shared"
        return (
            Grid(
                PASSKEY, self.lengths, (1,), self.trials_per_length, self.control_trials, "lengths", self.depths, shared
            ),
            Grid(
                BINDINGS,
                self.lengths_of_bindings,
                self.rivals,
                self.binding_trials,
                self.control_trials,
                field,
                self.depths,
                shared,
            ),
        )

    @property
    def further(self) -> tuple[Grid, ...]:
        """The tasks of ``tasks``."""
        return tuple(
            Grid(
                task := task_of(name),
                one.lengths or self.lengths,
                one.k or task.ks,
                one.trials or self.trials_per_length,
                one.control_trials,
                "lengths" if one.lengths is None else f"tasks.{name}.lengths",
                self.depths,
                self.haystacks == "shared",
            )
            for name, one in self.tasks.items()
        )

    @property
    def trials_per_length(self) -> int:
        return self.trials * len(self.depths or (0.0,))

    @property
    def lengths_of_bindings(self) -> tuple[int, ...]:
        return self.binding_lengths if self.binding_lengths is not None else (max(self.lengths),)


def checked_names(files: dict[str, PromptFile]) -> dict[str, PromptFile]:
    """ValueError for a name that is a task's, or would not be one."""
    for name in files:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) or name.endswith(CONTROL) or name in TASKS:
            raise ValueError(
                f"{name}: allowed are names of lower-case letters, digits, '_' and '-' that no task has "
                "(fix: another name)"
            )
    return files


def versions(tasks: Iterable[str]) -> dict[str, dict[str, int]]:
    """What the key of an artifact says of its tasks: the versions above the first, nothing if there are none."""
    raised = {name: version for name in tasks if (version := task_of(name).version) > 1}
    return {"task_versions": raised} if raised else {}


def check_distinct(name: str, values: Sequence[float], allowed: str, low: float, high: float = math.inf) -> None:
    """ValueError unless all lie from ``low`` to ``high``, each once."""
    if any(not low <= value <= high for value in values) or len(set(values)) != len(values):
        raise ValueError(f"{name} = {list(values)}: allowed are distinct {allowed}")


def spread(trial: int) -> float:
    """The golden ratio's multiples: they fill [0, 1) evenly, however many there are (a low-discrepancy sequence)."""
    return round(trial * 0.6180339887498949 % 1.0, 6)


class PromptsConfig(Config):
    """All prompts of an evaluation: alike for every model that is asked them."""

    retrieval: RetrievalConfig
    seed: int = Field(ge=0)
