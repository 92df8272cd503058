"""The study file: typed, strict, with overrides; and its expansion into a plan.

Precedence is command line, environment, file, default. ``INFINI_STUDY__PRETRAIN__STEPS=10`` in the environment
sets ``pretrain.steps``; ``--set pretrain.steps=10`` does on the command line.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator
from stages.decontaminate.stage import DecontaminateConfig

from model.config import MixerConfig, TrunkConfig
from pipeline.errors import StudyError, suggestion
from pipeline.faults import describe
from pipeline.yamlfile import parse
from stages.ablate.stage import AblateConfig
from stages.capacity.stage import CapacityConfig
from stages.claims.config import ClaimsConfig
from stages.control.stage import ControlSettings
from stages.corpus.config import IngestConfig
from stages.evaluate.stage import EvaluateConfig
from stages.pretrain.stage import BaseSettings, PretrainSettings
from stages.stage import Config, Execution
from stages.summarize.stage import SummarizeConfig
from stages.tokens.stage import TokenizeConfig, TokenizerConfig

ENVIRONMENT_PREFIX = "INFINI_STUDY__"


class Study(Config):
    """A whole study. A section that is left out (``ablate``, ``capacity``, ``control``, ``summarize``) is not
    run, and the claims that need it are reported as not measured."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    description: str = ""
    seeds: tuple[int, ...] = Field(min_length=1)
    corpus: IngestConfig
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    tokenizer: TokenizerConfig
    tokenize: TokenizeConfig
    trunk: TrunkConfig
    base: BaseSettings
    arms: dict[str, MixerConfig] = Field(min_length=1)
    pretrain: PretrainSettings
    evaluate: EvaluateConfig
    ablate: AblateConfig | None = None
    capacity: CapacityConfig | None = None
    control: ControlSettings | None = None
    summarize: SummarizeConfig | None = None
    claims: ClaimsConfig = ClaimsConfig()
    execution: Execution = Execution()

    @field_validator("arms")
    @classmethod
    def _arm_names(cls, arms: dict[str, MixerConfig]) -> dict[str, MixerConfig]:
        for name in arms:
            if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
                raise ValueError(f"arm name {name!r}: allowed are lower-case letters, digits and '-'")
        return arms

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds {list(seeds)} repeat: each must stand once")
        return seeds

    @model_validator(mode="after")
    def _lengths_agree(self) -> Study:
        if self.pretrain.sequence_length != self.tokenize.sequence_length:
            raise ValueError(
                f"pretrain.sequence_length = {self.pretrain.sequence_length}: must be tokenize.sequence_length = "
                f"{self.tokenize.sequence_length} (leave it out)"
            )
        for name, arm in self.arms.items():
            if self.tokenize.sequence_length % arm.segment_length:
                raise ValueError(
                    f"arms.{name}.segment_length = {arm.segment_length}: tokenize.sequence_length = "
                    f"{self.tokenize.sequence_length} must be a multiple of it"
                )
        return self


@dataclass(frozen=True)
class LoadedStudy:
    """A study, where it was read, and where each value came from (dotted path -> origin)."""

    study: Study
    path: Path
    origins: Mapping[str, str]


def load(path: str | Path, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> LoadedStudy:
    """Read and check a study file. Raises StudyError naming field, value, what is allowed and the fix."""
    path = Path(path)
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise StudyError(f"no study file at {str(path)!r}{suggestion(path.name, beside) if beside else ''}")
    raw = parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(raw, dict):
        raise StudyError(f"{path}: a study file is a mapping of sections, not {type(raw).__name__}")
    origins = dict.fromkeys(leaves(raw), "file")
    settings = [("environment", k, v) for k, v in _from_environment(os.environ if environment is None else environment)]
    settings += [("command line", k, v) for k, v in map(_split_override, overrides)]
    for origin, dotted, text in settings:
        value = _from_here(dotted, parse(text, f"--set {dotted}")) if origin == "command line" else parse(text, dotted)
        _assign(raw, dotted, value)
        origins = {k: v for k, v in origins.items() if k != dotted and not k.startswith(dotted + ".")}
        origins |= {f"{dotted}.{leaf}" if leaf else dotted: origin for leaf in leaves(value)}
    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        raise StudyError(describe(error, str(path))) from error
    return LoadedStudy(study, path, origins)


def leaves(value: Any, prefix: str = "") -> Iterator[str]:
    """Dotted paths of the scalar values inside ``value`` (``""`` for a scalar itself)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield prefix
        return
    for name, item in items:
        yield from leaves(item, f"{prefix}.{name}" if prefix else str(name))


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            yield name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."), environment[name]


def _split_override(text: str) -> tuple[str, str]:
    dotted, equals, value = text.partition("=")
    if not equals or not dotted:
        raise StudyError(f"--set {text!r}: allowed is a.b=value, for example --set pretrain.steps=100")
    return dotted.strip(), value


def _from_here(dotted: str, value: Any) -> Any:
    """A path typed on the command line is meant from the working directory, not from the study file's folder."""
    if dotted.rpartition(".")[2] in ("url", "path") and isinstance(value, str) and Path(value).exists():
        return str(Path(value).resolve())
    return value


def _assign(raw: dict[str, Any], dotted: str, value: Any) -> None:
    place: Any = raw
    *parents, last = dotted.split(".")
    for depth, part in enumerate(parents):
        here = ".".join(parents[: depth + 1])
        if isinstance(place, list):
            place = place[_index(place, part, dotted)]
        else:
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        if not isinstance(place, dict | list):
            raise StudyError(f"--set {dotted}: {here!r} is a single value, not a section")
    if isinstance(place, list):
        place[_index(place, last, dotted)] = value
    else:
        place[last] = value


def _index(place: list[Any], part: str, dotted: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise StudyError(
            f"--set {dotted}: {part!r} is not an index of a list of {len(place)} (allowed: 0 to {len(place) - 1})"
        )
    return int(part)
