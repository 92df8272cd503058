"""Settings of the summarization stage, as they stand in a study file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stages.data.pinned import Pin, pin_file
from stages.stage import Config


class Pairs(Config):
    """Reference summaries: a JSONL file, one {"text": ..., "summary": ..., "id": optional} a line.

    The file counts by its digest ``pin``; where it lies does not stand in the key.
    """

    path: str = Field(description="JSONL file, relative to the study file")
    pin: Pin | None = Field(default=None, description="digest of the file")


class SummarizeConfig(Config):
    """The study file's ``summarize:`` section; temperature and top_p are the paper's (BookSum)."""

    tasks: tuple[Literal["continue", "condense"], ...] = Field(default=("continue", "condense"), min_length=1)
    splits: tuple[Literal["validation", "test"], ...] = Field(default=("test",), min_length=1)
    documents: int = Field(default=16, ge=1, description="documents per task; a stable sample by hashed id")
    prompt_tokens: int = Field(ge=2, description="tokens of the prompt, the cue included")
    new_tokens: int = Field(ge=1, description="tokens generated; also the length of the true continuation")
    cue: str = Field(default="\n\nSummary:", min_length=1, description="what ends a prompt of condense")
    min_opening_words: int = Field(default=12, ge=1, description="shortest opening paragraph taken as a reference")
    pairs: Pairs | None = Field(default=None, description="condense these texts instead of the held-out documents")
    temperature: float = Field(default=0.5, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    seed: int = Field(default=0, ge=0)

    def key_fields(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"pairs": {"path"}})


def pin_pairs(config: SummarizeConfig, base_dir: Path) -> SummarizeConfig:
    """The config with the digest of its pairs file. Raises StageError where that is missing or not the pinned one."""
    if config.pairs is None:
        return config
    path, digest = pin_file(config.pairs.path, base_dir, config.pairs.pin, field="summarize.pairs", kind="JSONL")
    return config.model_copy(update={"pairs": Pairs(path=path, pin=digest)})
