"""Settings of the stage ``judge``, as they stand in a study file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from stages.evidence.rate.config import LocalModel, pinned
from stages.evidence.summarize.config import Decoding, SummaryTask
from stages.stage import Config

Baseline = Literal["lead", "central", "shuffled"]


def home() -> Path:
    """Folder of paid answers where none is named: below the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "infini-study" / "judge"


class Budget(Config):
    """What a run may spend, over what earlier runs have paid already; reached, it ends with an error and keeps every
    answer it has."""

    tokens: int | None = Field(default=None, ge=1, description="of prompts and answers together")
    money: float | None = Field(default=None, gt=0, description="in the currency of the prices")


class Endpoint(Config):
    """A server that speaks OpenAI's chat completions. Only the model's name counts in the key: not where it is served,
    nor how fast and at what price it is asked. The API key is read from the environment and is written nowhere."""

    url: str = Field(description="base address, with /v1 where the server wants it")
    model: str = Field(min_length=1, description="the pinned name of the model")
    key_env: str | None = Field(
        default="OPENAI_API_KEY", description="environment variable with the API key; null: the server wants none"
    )
    concurrency: int = Field(default=8, ge=1, le=1000, description="requests under way at the same time")
    requests_per_minute: float | None = Field(default=None, ge=0.01, description="no more are begun in a minute")
    timeout_s: float = Field(default=120.0, gt=0, description="seconds after which an answer is given up")
    attempts: int = Field(default=6, ge=1, le=100, description="times that a request is sent before the run ends")
    price_input: float | None = Field(default=None, ge=0, description="money per million tokens read")
    price_output: float | None = Field(default=None, ge=0, description="money per million tokens written")
    budget: Budget = Budget()

    @field_validator("url")
    @classmethod
    def _an_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("allowed is an address that begins with http:// or https://")
        if parts.query or parts.fragment or not url.isprintable() or " " in url:
            raise ValueError("allowed is http(s)://HOST:PORT/PATH, without ?, # and blanks (fix: take it out)")
        try:
            port = parts.port
            parts.hostname.encode("idna")
        except ValueError as error:  # a part of a name that is too long, and what is no number, among them
            raise ValueError(f"no address: {error}") from error
        if port == 0:
            raise ValueError("no address: port 0")
        if parts.username or parts.password:
            raise ValueError("holds a password (fix: take it out, and name the variable that holds the key)")
        return url.rstrip("/")

    @field_validator("key_env")
    @classmethod
    def _a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(  # perhaps the key itself: it is not repeated
                "not the name of an environment variable (fix: export the key under a name, and give the name)"
            )
        return name

    @model_validator(mode="after")
    def _prices_for_money(self) -> Endpoint:
        if (self.price_input is None) != (self.price_output is None):
            given, lacks = ("output", "input") if self.price_input is None else ("input", "output")
            raise ValueError(f"price_{given} has no effect without price_{lacks} (fix: give both, 0 where it is free)")
        if self.budget.money is not None and (self.price_input is None or self.price_output is None):
            raise ValueError("budget.money has no effect without price_input and price_output (fix: give both)")
        return self

    def key_fields(self) -> dict[str, Any]:
        return {"model": self.model}


class JudgeConfig(Config):
    """The study file's ``judge:`` section: one of ``endpoint`` and ``local``.

    Compared are every arm with every arm of ``against`` and with the ``baselines``, and, as the truth that is known,
    people's references with those of other books. Every comparison is asked in both orders.
    """

    endpoint: Endpoint | None = None
    local: LocalModel | None = None
    tasks: tuple[SummaryTask, ...] = Field(default=("condense",), min_length=1)
    decoding: Decoding = "sample"
    documents: int = Field(default=50, ge=1, description="items per task and level, from the first on")
    arms: tuple[str, ...] | None = Field(default=None, min_length=1, description="arms that are judged; none: all")
    against: tuple[str, ...] = Field(default=("local",), description="arms that the others are compared with")
    baselines: tuple[Baseline, ...] = ("lead", "shuffled")
    sentences: bool = Field(default=True, description="ask which sentences of each summary confuse")
    repeats: int = Field(default=1, ge=1, le=20, description="times that the same is asked: self-consistency from 2 on")
    temperature: float = Field(default=0.0, ge=0, le=2)
    answer_tokens: int = Field(default=400, ge=8, description="tokens of an answer at most")
    source_words: int = Field(default=1500, ge=0, description="words of the text that the judge is shown")
    reference_words: int = Field(default=1500, ge=0, description="words of the reference that the judge is shown")
    cache: str | None = Field(
        default=None, description="folder or fsspec URL of paid answers; none: below the user's cache folder"
    )

    @model_validator(mode="after")
    def _one_judge(self) -> JudgeConfig:
        if (self.endpoint is None) == (self.local is None):
            raise ValueError("judge: allowed is one of endpoint and local")
        if self.repeats > 1 and self.temperature == 0 and self.local is not None:
            raise ValueError(
                "repeats has no effect: a local judge at temperature 0 answers the same (fix: temperature)"
            )
        if not self.source_words and not self.reference_words:
            raise ValueError("source_words, reference_words: the judge sees neither text nor reference")
        most = self.endpoint.budget.tokens if self.endpoint is not None else None
        if most is not None and most <= self.answer_tokens:
            raise ValueError(
                f"endpoint.budget.tokens = {most}: no question fits, an answer alone may take answer_tokens = "
                f"{self.answer_tokens} (fix: raise the budget, or lower answer_tokens)"
            )
        return self

    def key_fields(self) -> dict[str, Any]:
        return {name: value for name, value in super().key_fields().items() if name != "cache"}


def pin_judge(config: JudgeConfig, base_dir: Path) -> JudgeConfig:
    """The config with the local model's absolute path and digest, and the cache's absolute path."""
    cache = config.cache
    if cache is not None and "://" not in cache:
        cache = str((base_dir / Path(cache).expanduser()).absolute())
    return config.model_copy(update={"local": pinned(config.local, base_dir, "judge.local"), "cache": cache})
