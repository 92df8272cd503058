"""Settings of the summarization stage, as they stand in a study file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from stages.stage import Config


class Pairs(Config):
    """Reference summaries: a JSONL file (any fsspec URL) of {"text": ..., "summary": ..., "id": optional}.

    ``sha256`` pins its bytes and stands in the key; where the file lies does not.
    """

    url: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


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
        fields = self.model_dump(mode="json")
        if fields["pairs"] is not None:
            del fields["pairs"]["url"]
        return fields
