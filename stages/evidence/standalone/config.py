"""What one checkpoint is asked, as it stands on the command line."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator

from model.config import MixerConfig
from stages.data.pinned import digest_of
from stages.data.tasks.config import Grid, PromptFile, check_distinct, checked_names
from stages.data.tasks.haystack import Format
from stages.data.tasks.registry import RULER, TASKS, check_worded, task_of
from stages.evidence.evaluate.config import PerplexityConfig
from stages.stage import Config, StageError

Dtype = Literal["float32", "bfloat16", "float16"]
GROUPS = {"ruler": tuple(task.name for task in RULER), "all": tuple(TASKS)}
"""Names that stand for several tasks."""

ANSWER_TOKENS = 128
"""Kept free for an answer to a prompt of a file: RULER's most."""

DEFAULT_TASKS = ("passkey", "bindings", "niah_multikey_1", "niah_multivalue", "vt")


class Questions(Config):
    """Tasks at some lengths, prompts of files, and text. ``samples``: prompts of each task, length and k."""

    tasks: tuple[str, ...] = DEFAULT_TASKS
    lengths: tuple[int, ...] = Field(default=(1024,), min_length=1)
    samples: int = Field(default=50, ge=1)
    format: Format = Field(default="published", validate_default=True)
    seed: int = Field(default=0, ge=0)
    threshold: float = Field(default=0.9, gt=0, lt=1, description="score that counts towards the effective length")
    chat_template: bool = False
    files: dict[str, PromptFile] = Field(default={}, description="pinned files of prompts, by name")
    perplexity: PerplexityConfig = PerplexityConfig()

    @field_validator("tasks")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        every = [one for name in names for one in GROUPS.get(name, (name,))]
        for name in every:
            task_of(name)
        return tuple(dict.fromkeys(every))

    @field_validator("files")
    @classmethod
    def _named(cls, files: dict[str, PromptFile]) -> dict[str, PromptFile]:
        return checked_names(files)

    @field_validator("lengths")
    @classmethod
    def _distinct(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        check_distinct("lengths", lengths, "numbers of tokens >= 1", 1)
        return tuple(sorted(lengths))

    @field_validator("format")
    @classmethod
    def _worded(cls, format: Format, info: ValidationInfo) -> Format:
        check_worded(format, info.data.get("tasks", ()), "format")
        return format

    @property
    def grids(self) -> tuple[Grid, ...]:
        """A task each, with its own k."""
        return tuple(
            Grid(task := task_of(name), self.lengths, task.ks, self.samples, 0, "lengths") for name in self.tasks
        )


def prompt_files(said: list[str], answer_tokens: int) -> dict[str, PromptFile]:
    """``FILE`` or ``NAME=FILE`` of each option ``--prompts``, pinned; a file's name is its own without suffix. Outputs
    are alternatives where the name begins with ``qa``, as RULER's do and as ``infini-study score`` reads them. Raises
    StageError for a file that cannot be read and a name that stands twice."""
    found: dict[str, PromptFile] = {}
    for one in said:
        name, given, place = one.rpartition("=")
        path = Path(place).expanduser()
        name = name if given else path.stem.lower()
        if name in found:
            raise StageError("this name stands twice", field="--prompts", value=one, fix="give NAME=FILE")
        try:
            pin = digest_of(path.read_bytes())
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = getattr(error, "strerror", None) or str(error)
            raise StageError(reason, field="--prompts", value=place, fix="name a JSON Lines file") from error
        match: Literal["all", "part"] = "part" if name.split("_")[0] == "qa" else "all"
        found[name] = PromptFile(path=str(path), pin=pin, match=match, budget=answer_tokens)
    return found


class CheckpointSource(Config):
    """Which checkpoint, and how it is read. ``model``: a folder. ``named``: what the user called it. ``arm``: the mixer
    that a checkpoint of a Llama-like family is read under; None: its own. ``tokenizer``: a folder or tokenizer.json
    where the model's has none. ``key``: of the artifact that it is."""

    model: Path
    named: str
    arm: MixerConfig | None = None
    tokenizer: Path | None = None
    key: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Dtype | None = Field(default=None, description="none: float32 on a CPU, as stored on a GPU")


def parse_arm(said: str, separator: str = ",") -> MixerConfig:
    """``KIND,OPTION=VALUE,...`` as a mixer; full attention needs no segment_length. Raises StageError."""
    kind, *options = [part.strip() for part in said.split(separator)]
    known = [field.name for field in fields(MixerConfig) if field.name != "kind"]
    given: dict[str, Any] = {"kind": kind}
    for option in options:
        name, separated, value = option.partition("=")
        if not separated or name not in known:
            raise StageError(
                "no such option", field="--arm", value=option, allowed=f"{', '.join(known)}, each as OPTION=VALUE"
            )
        if name in given:
            raise StageError(f"gives {name} twice", field="--arm", value=said, fix="remove one of them")
        try:
            given[name] = json.loads(value)
        except (ValueError, RecursionError):  # a word
            given[name] = value
    if kind == "full":
        given.setdefault("segment_length", 1)
    try:
        return TypeAdapter(MixerConfig).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        name, reason = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise StageError(
            f"{name} is missing" if first["type"] == "missing" else f"{name}: {reason}" if name else reason,
            field="--arm",
            value=said,
            fix="such as local,segment_length=2048",
        ) from error
