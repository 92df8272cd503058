"""The study file's ``finetune`` and ``finetune_summaries`` sections, and the config of their steps."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from model.config import MixerConfig
from stages.data.pinned import Pin, agreed
from stages.data.summaries import root_of
from stages.data.tasks.config import versions
from stages.data.tasks.haystack import Format
from stages.data.tasks.registry import check_worded, task_of
from stages.stage import Config, StageError
from stages.training.pretrain.config import MixtureConfig, PromptPhase
from stages.training.tuning.config import TuningSettings


class TaskPhase(Config):
    """A stretch of the steps, and the prompts in its batches."""

    until: float = Field(gt=0, le=1, description="it ends after this share of the steps")
    length: int = Field(ge=2, description="tokens of a prompt with its answer")
    k: dict[str, tuple[int, ...]] = Field(default={}, description="size of tasks by name (default: the task's own)")


class TaskMixture(Config):
    """Prompts of retrieval tasks with their answers; the loss is that of the answers. A row of the batch holds as many
    prompts as the longest phase's length has room for, so that every batch has as many tokens."""

    format: Format = Field(default="published", description="wording of the prompts; compact fits short contexts")
    tasks: dict[str, int] = Field(
        default={"passkey": 1}, min_length=1, description="names of tasks, and how often each comes in turn"
    )
    phases: tuple[TaskPhase, ...] = Field(min_length=1, description="a curriculum over length and k, in order")
    text_share: float = Field(
        default=0.0, ge=0, lt=1, description="of the batch's tokens that stay training text, against forgetting it"
    )

    @model_validator(mode="after")
    def _check(self) -> TaskMixture:
        for name, times in self.tasks.items():
            task_of(name)
            if not 1 <= times <= 1000:
                raise ValueError(f"tasks.{name} = {times}: allowed are 1 to 1000 (leave a task out to skip it)")
        check_worded(self.format, self.tasks, "format")
        ends = [phase.until for phase in self.phases]
        if ends[-1] != 1 or any(a >= b for a, b in pairwise(ends)):
            raise ValueError(
                f"phases: until = {ends}: allowed are ascending shares of the steps, the last of them 1 "
                "(fix: give each phase its end, and the last one until: 1)"
            )
        for index, phase in enumerate(self.phases):
            if self.length % phase.length:
                raise ValueError(
                    f"phases.{index}.length = {phase.length}: must divide the longest phase's {self.length}, so that "
                    "every batch has as many tokens"
                )
            for name, ks in phase.k.items():
                if name not in self.tasks:
                    raise ValueError(
                        f"phases.{index}.k.{name}: allowed are the names of tasks, {', '.join(self.tasks)}"
                    )
                most = task_of(name).most
                if not ks or any(not 1 <= k <= most for k in ks) or len(set(ks)) < len(ks):
                    raise ValueError(f"phases.{index}.k.{name} = {list(ks)}: allowed are distinct numbers 1 to {most}")
        return self

    @property
    def length(self) -> int:
        """Tokens of a row: the longest prompt's."""
        return max(phase.length for phase in self.phases)

    @property
    def in_turn(self) -> tuple[str, ...]:
        """Every task as often as it comes in turn."""
        return tuple(name for name, times in self.tasks.items() for _ in range(times))

    @property
    def mixture(self) -> MixtureConfig:
        """The same as the training loop knows it."""
        share = 1 - self.text_share
        phases = (PromptPhase(until=phase.until, share=share, length=phase.length) for phase in self.phases)
        return MixtureConfig(prompts=tuple(phases), retrieval_format=self.format, retrieval_tasks=self.in_turn)

    def key_fields(self) -> dict[str, Any]:
        """With the versions of tasks that are not as they first were."""
        return super().key_fields() | versions(self.tasks)


class SummaryPairs(Config):
    """Texts with summaries to learn from, in any layout that ``summarize.pairs`` takes (``stages/data/summaries.py``).
    Rows of other splits are left out, as are rows without text or summary and rows that hold text of what is asked
    (``tuningaudit``), and counted. A prompt is the text and the cue; the loss is that of the summary."""

    path: str = Field(
        description="JSON Lines or Parquet file or folder, relative to the study file, or "
        "hf://datasets/OWNER/NAME@COMMIT"
    )
    texts: str | None = Field(
        default=None, description="folder that book_file, chapter_path, ... start from; none: that of the pairs"
    )
    splits: tuple[str, ...] = Field(
        default=("train",),
        min_length=1,
        description="of the rows' column split, or by names of files; what names none is train",
    )
    pin: Pin | None = Field(default=None, description="digest of what is read; filled in by the plan")
    cue: str = Field(default="\n\nSummary:", min_length=1, description="what ends a prompt, as in summarize")
    max_tokens: int = Field(ge=8, description="of prompt and summary; a longer text is cut at its end")
    summary_tokens: int = Field(ge=1, description="most tokens of a summary; rows with a longer one are left out")

    @model_validator(mode="after")
    def _room(self) -> SummaryPairs:
        if self.summary_tokens > self.max_tokens // 2:
            raise ValueError(
                f"summary_tokens = {self.summary_tokens}: allowed is at most half of max_tokens = {self.max_tokens}: "
                "there must be a text to summarize"
            )
        return self

    @property
    def root(self) -> Path:
        """Folder that names of texts start from (of pinned pairs, whose paths are absolute)."""
        return root_of(self.path, self.texts)

    def key_fields(self) -> dict[str, Any]:
        """Where files lie does not count, their bytes do."""
        uncounted = {"path", "texts"} | ({"splits"} if self.splits == ("train",) else set())
        return {name: value for name, value in super().key_fields().items() if name not in uncounted}


class FinetuneSettings(TuningSettings):
    """A further training of every arm and of the base, all alike, before they are evaluated: on prompts of retrieval
    tasks (``tasks``), as the paper's 400 steps of passkeys at 5K tokens, or on summaries (``pairs``)."""

    tasks: TaskMixture | None = None
    pairs: SummaryPairs | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> FinetuneSettings:
        if (self.tasks is None) == (self.pairs is None):
            said = "neither" if self.tasks is None else "both"
            raise ValueError(f"tasks, pairs: {said} given, exactly one of them is what is trained on")
        if self.tasks is not None:
            rows = self.tasks.text_share * self.batch_sequences
            if self.tasks.text_share and rows < 1:
                raise ValueError(
                    f"tasks.text_share = {self.tasks.text_share}: less than one of {self.batch_sequences} rows. "
                    "Fix: raise it or batch_sequences"
                )
        return self

    @property
    def length(self) -> int:
        """Most tokens of a row."""
        if self.tasks is not None:
            return self.tasks.length
        assert self.pairs is not None
        return self.pairs.max_tokens

    def key_fields(self) -> dict[str, Any]:
        """Only the kind of data that there is."""
        return {name: value for name, value in super().key_fields().items() if name not in ("tasks", "pairs") or value}


class FinetuneConfig(FinetuneSettings):
    """One model. The seed sets the order of examples. ``mixer``: what a base is trained under; None: its own arm's."""

    seed: int = Field(ge=0)
    mixer: MixerConfig | None = None


def pin_finetune(section: FinetuneSettings, folder: Path, name: str) -> FinetuneSettings:
    """``section`` with absolute paths and the digest of its pairs. Raises StageError where they are missing or not the
    pinned ones."""
    if section.pairs is None:
        return section
    from stages.data.summaries import digest, located, placed

    pairs, field = section.pairs, f"{name}.pairs"
    said = placed(pairs.path, folder)
    path = located(said, f"{field}.path")
    if not path.exists():
        fix = f"put a JSON Lines or Parquet file, or a folder of such, at {path}"
        raise StageError("no such file", field=f"{field}.path", value=pairs.path, fix=fix)
    texts = None if pairs.texts is None else placed(pairs.texts, folder)
    pairs = pairs.model_copy(update={"path": said, "texts": texts})
    found = agreed(digest(path, pairs.root, field), pairs.pin, field=f"{field}.pin")
    return section.model_copy(update={"pairs": pairs.model_copy(update={"pin": found})})
