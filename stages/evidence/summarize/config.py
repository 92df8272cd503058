"""Settings of the summarization stages, as they stand in a study file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.data.pinned import Pin, agreed
from stages.data.summaries import root_of
from stages.stage import Config, StageError

SummaryTask = Literal["continue", "condense"]
Decoding = Literal["sample", "greedy"]


class Pairs(Config):
    """Reference summaries: JSON Lines, Parquet, or a folder of such files, in BookSum's field layout or as plain
    {"text": ..., "summary": ..., "id": optional} (``stages/data/summaries.py``).

    They count by the digest ``pin``, which covers the texts that rows lead to; where they lie is no part of the key.
    """

    path: str = Field(
        description="JSONL or Parquet file or folder, relative to the study file, or hf://datasets/OWNER/NAME@COMMIT"
    )
    texts: str | None = Field(
        default=None, description="folder that book_file, chapter_path, ... start from; none: that of the pairs"
    )
    splits: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="of the rows' column split, or by names of files; none: all"
    )
    pin: Pin | None = Field(default=None, description="digest of what is read")

    def key_fields(self) -> dict[str, Any]:
        return {"pin": self.pin} | ({"splits": list(self.splits)} if self.splits is not None else {})

    @property
    def root(self) -> Path:
        """Folder that names of texts start from (of pinned pairs, whose paths are absolute)."""
        return root_of(self.path, self.texts)


class ItemsConfig(Config):
    """What is summarized and against what: the same for all arms."""

    tasks: tuple[SummaryTask, ...] = Field(default=("continue", "condense"), min_length=1)
    splits: tuple[Literal["validation", "test"], ...] = Field(default=("test",), min_length=1)
    documents: int = Field(default=16, ge=1, description="items per task and level; a stable sample")
    prompt_tokens: int = Field(ge=2, description="tokens of the prompt, the cue included")
    new_tokens: int = Field(ge=1, description="tokens generated; also the length of the true continuation")
    cue: str = Field(default="\n\nSummary:", min_length=1, description="what ends a prompt of condense")
    min_opening_words: int = Field(default=12, ge=1, description="shortest opening paragraph taken as a reference")
    pairs: Pairs | None = Field(default=None, description="condense these texts instead of the held-out documents")


class SummarizeConfig(ItemsConfig):
    """The study file's ``summarize:`` section; temperature and top_p are the paper's (BookSum)."""

    further_lengths: tuple[Annotated[int, Field(ge=2)] | Literal["whole"], ...] = Field(
        default=(),
        description="further lengths of the prompt at which the same texts are condensed; whole: all of them",
    )
    decodings: tuple[Decoding, ...] = Field(
        default=("sample",), min_length=1, description="sample: at temperature and top_p; greedy: the likeliest token"
    )
    temperature: float = Field(default=0.5, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _lengths_mean_something(self) -> SummarizeConfig:
        if self.further_lengths and "condense" not in self.tasks:
            raise ValueError("further_lengths has no effect without the task condense (fix: remove it)")
        if self.prompt_tokens in self.further_lengths:
            raise ValueError(f"further_lengths = {list(self.further_lengths)}: prompt_tokens is asked already")
        return self

    def items(self) -> ItemsConfig:
        """The part that the references are made from."""
        return ItemsConfig(**{name: getattr(self, name) for name in ItemsConfig.model_fields})

    @property
    def lengths(self) -> tuple[str, ...]:
        """Names of the prompt's lengths: prompt_tokens, then the further ones."""
        return (str(self.prompt_tokens), *map(str, self.further_lengths))


def pin_pairs(config: SummarizeConfig, base_dir: Path) -> SummarizeConfig:
    """The config with absolute paths and the digest of its pairs. Raises StageError where they are missing or not the
    pinned ones."""
    if config.pairs is None:
        return config
    from stages.data.summaries import digest, located, placed

    name = placed(config.pairs.path, base_dir)
    path = located(name, "summarize.pairs.path")
    if not path.exists():
        raise StageError(
            "no such file", field="summarize.pairs.path", value=config.pairs.path, fix=f"put a JSONL file at {path}"
        )
    texts = None if config.pairs.texts is None else placed(config.pairs.texts, base_dir)
    pairs = config.pairs.model_copy(update={"path": name, "texts": texts})
    found = agreed(digest(path, pairs.root, "summarize.pairs"), config.pairs.pin, field="summarize.pairs.pin")
    return config.model_copy(update={"pairs": pairs.model_copy(update={"pin": found})})
