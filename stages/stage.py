"""The contract every stage keeps: committed inputs in, one output folder and a small summary out.

A stage knows nothing of MLflow, of where artifacts live, or of other stages. It declares a name, an
integer ``code_version``, a frozen config and the names of its inputs; ``run`` reads only its inputs and
config and writes only below ``output``. Everything a run needs from the outside world (progress, log
lines, a folder that survives a crash, how many workers it may use) comes through the ``Context``.

Declarations must stay cheap: the module that holds a ``Stage`` imports neither torch, ray, pyarrow nor
numpy at top level (``plan`` and a fully cached ``run`` import every declaration); the work is imported
inside ``run``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Config(BaseModel):
    """Base of every config in a study file: frozen, unknown keys refused, no silent type coercion of strings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def key_fields(self) -> dict[str, Any]:
        """The part of the config that makes up the key: everything, unless a config says that a field (the
        place where pinned bytes happen to lie, an option of other kinds of arms) cannot change the result."""
        fields: dict[str, Any] = self.model_dump(mode="json")
        for name, dumped in fields.items():
            value = getattr(self, name)
            if isinstance(value, dict):
                fields[name] = {key: _key_fields(item, dumped[key]) for key, item in value.items()}
            else:
                fields[name] = _key_fields(value, dumped)
        return fields


def _key_fields(value: Any, dumped: Any) -> Any:
    """What a config within a config (a ``Config``, a plain dataclass of ``model.config``) says its key is made of, else
    what was dumped of it."""
    return value.key_fields() if hasattr(value, "key_fields") else dumped


class Execution(Config):
    """The ``execution:`` block: how a study is carried out. Nothing here may change a result or a key."""

    jobs: int = Field(default=2, ge=1, le=1000, description="steps that may run at the same time")
    train_workers: int = Field(default=1, ge=1, le=10_000, description="workers of a training run (its world size)")
    sequence_parallel: int = Field(
        default=1,
        ge=1,
        description="training workers that share each sequence, a part each (arms that need every token, and bases, "
        "keep whole sequences)",
    )
    cpus_per_worker: float = Field(default=1.0, gt=0, le=10_000, description="CPU cores a training worker asks for")
    gpus_per_worker: float = Field(
        default=0.0, ge=0, le=1000, description="GPUs a worker of training or evaluation asks for"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="device of the torch work")
    micro_batch: int | None = Field(
        default=None, ge=1, le=10**6, description="sequences per forward pass; the global batch is split"
    )
    max_failures: int = Field(
        default=3, ge=0, le=10_000, description="worker or node losses a training run survives by itself"
    )
    task_cpus: float = Field(default=1.0, gt=0, le=10_000, description="CPU cores of a non-training step")
    allow_world_size_change: bool = Field(default=False, description="resume a scored run on another world size")
    recompute_activations: bool | None = Field(
        default=None,
        description="keep a layer's inputs alone and make the rest again in the backward pass, a third more time for a "
        "fraction of the memory (default: where a worker's part of a row has 16,384 tokens)",
    )
    compile: bool = Field(default=False, description="training compiles each layer (torch.compile)")
    async_checkpoints: bool = Field(
        default=False, description="resume points are written while training goes on, from a copy in memory"
    )
    keep_checkpoints: int = Field(
        default=2, ge=1, le=10_000, description="resume points kept: the newest, and those before it"
    )

    @model_validator(mode="after")
    def _workers_share_sequences(self) -> Execution:
        if self.train_workers % self.sequence_parallel:
            raise ValueError(
                f"sequence_parallel = {self.sequence_parallel}: allowed are divisors of train_workers = "
                f"{self.train_workers} (fix: change one of them)"
            )
        if self.compile and self.sequence_parallel > 1:
            raise ValueError(
                f"compile = True: what workers that share sequences exchange is not compiled (sequence_parallel = "
                f"{self.sequence_parallel}; allowed: 1; fix: remove one of them)"
            )
        return self


@dataclass(frozen=True)
class Resources:
    """What the step's own Ray task asks for; a stage that only waits for its own Ray workers asks for 0 CPUs."""

    cpus: float = 1.0
    gpus: float = 0.0


class Artifact(Protocol):
    """A committed input. Files are local on first use, whatever the store's URL."""

    @property
    def key(self) -> str:
        """64 hex digits: the identity of the artifact."""

    @property
    def summary(self) -> Mapping[str, Any]:
        """``Summary.metrics`` of the step that made it."""

    def path(self, name: str = "") -> Path:
        """Local path of the file or folder ``name`` (the whole artifact for ``""``), fetched if remote.

        Raises FileNotFoundError naming artifact and file where there is none.
        """

    def sizes(self, name: str = "") -> Mapping[str, int]:
        """Bytes of every file below the folder ``name``, by its path in the artifact, in order; nothing is fetched."""


class Context(Protocol):
    """A step's line to the engine."""

    @property
    def execution(self) -> Execution:
        """How the step may use the machine."""

    @property
    def work_url(self) -> str:
        """fsspec URL (or local path) that outlives a crash of this step and is the same for the next attempt
        at the same key: checkpoints, per-shard results. Not part of the artifact; removed after the commit."""

    def progress(self, done: float, total: float, unit: str, **numbers: float) -> None:
        """Report ``done`` of ``total`` units; ``numbers`` (loss, ...) are shown beside. Cheap: call often."""

    def metrics(self, step: int, **values: float) -> None:
        """Numbers by training step for the tracking server. May be repeated for the same step after a retry."""

    def log(self, message: str) -> None:
        """One line for the step's log (shown with --verbose)."""

    def warn(self, message: str) -> None:
        """A line the user must see at the end of the run: a skipped document, a fallback."""


@dataclass
class Summary:
    """What a finished stage says of itself, for the tracking server and the terminal.

    metrics: name -> number. tables: title -> Parquet file below the output folder. figures: PNG, HTML or
    Markdown files below the output folder. headline: one line for the terminal.
    """

    headline: str
    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    figures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where the readers of a published copy of an artifact are.

    options: what leads a command to the store (" --root DIR"; "" for the default). runs: artifact key -> address of the
    tracking run that made it. facts: (name, value) of the study's run: commit, machines, time, key. file: address of
    another file of the same artifact, ``{}`` standing for its path; "" where a page cannot lead to another file (MLflow
    shows each in a frame of its own), so that a page must hold all that its readers need.
    """

    options: str = ""
    runs: Mapping[str, str] = field(default_factory=dict)
    facts: tuple[tuple[str, str], ...] = ()
    file: str = "{}"


ConfigT = TypeVar("ConfigT", bound=Config)


class Stage(ABC, Generic[ConfigT]):
    """One kind of step. Subclasses set the class variables and write ``run``."""

    name: ClassVar[str]
    code_version: ClassVar[int]
    """Raised by hand whenever the same config and inputs would give another output."""
    deterministic: ClassVar[bool] = True
    """False where wall-clock measurements are part of the output (then digests differ between runs)."""
    inputs: ClassVar[tuple[str, ...] | None] = None
    """Names under which ``run`` finds its inputs; None where they are the plan's steps themselves (the report)."""

    def resources(self, config: ConfigT, execution: Execution) -> Resources:
        """What the step's own Ray task asks for (default: ``execution.task_cpus``)."""
        return Resources(cpus=execution.task_cpus)

    def changes(self, config: ConfigT, before: Artifact) -> list[str]:
        """What differs outside the config since the artifact ``before`` was made (changed external files), a line
        each; shown as the reason of a plan. Must be cheap."""
        return []

    def needs(self, config: ConfigT, execution: Execution) -> Resources:
        """What the step and its own Ray workers ask for at the same time: more than a machine has is refused early."""
        return self.resources(config, execution)

    def missing(self, config: ConfigT, *, at_once: bool) -> StageError | None:
        """What the step cannot do without and this machine does not have: a variable of the environment, a package,
        rows in a file that can be used. Asked before a run starts anything, of the steps that it would make, so that
        nobody learns of it hours later. ``at_once``: are all its inputs made, so that it would say so itself now?"""
        return None

    def publish(self, folder: Path, place: Place) -> None:
        """Adapt ``folder``, a copy of an artifact's files, to where its readers are: commands that work when pasted,
        links that lead somewhere. Most artifacts are the same everywhere."""

    @abstractmethod
    def run(self, config: ConfigT, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """Make the artifact: read ``inputs``, write below ``output`` (exists, empty), return the summary.

        Raises StageError for a fault of the input a user can mend; anything else is a bug and keeps its traceback.
        """


class StageError(Exception):
    """A fault the user can mend. ``field``/``value``/``allowed``/``fix`` make up the one-line message."""

    def __init__(self, message: str, *, field: str = "", value: object = "", allowed: str = "", fix: str = "") -> None:
        self.message, self.field, self.value, self.allowed, self.fix = message, field, value, allowed, fix
        parts = [message]
        if field:
            parts.insert(0, f"{field} = {value!r}:")
        if allowed:
            parts.append(f"(allowed: {allowed})")
        text = " ".join(parts)
        super().__init__(f"{text.rstrip('.')}. Fix: {fix}" if fix else text)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild_stage_error, (self.message, self.field, self.value, self.allowed, self.fix))


def _rebuild_stage_error(message: str, field: str, value: object, allowed: str, fix: str) -> StageError:
    return StageError(message, field=field, value=value, allowed=allowed, fix=fix)
