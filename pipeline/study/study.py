"""The study file's sections, as a type."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from model.config import MixerConfig, TrunkConfig
from pipeline.study.match import MatchSettings
from stages.data.certify.config import CertifyConfig
from stages.data.corpus.config import IngestConfig
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.dedup.config import DedupConfig
from stages.data.taskaudit.config import TaskAuditSettings
from stages.data.tokens.config import TokenizeConfig, TokenizerConfig
from stages.evidence.ablate.config import AblateConfig
from stages.evidence.ablate.stage import RECORD as ABLATE
from stages.evidence.calibrate.config import CalibrateConfig
from stages.evidence.calibrate.stage import RECORD as CALIBRATE
from stages.evidence.capacity.config import CapacityConfig
from stages.evidence.capacity.stage import RECORD as CAPACITY
from stages.evidence.control.stage import ControlSettings
from stages.evidence.evaluate.config import EvaluateSettings
from stages.evidence.evaluate.stage import RECORD as EVALUATE
from stages.evidence.human.config import HumanConfig
from stages.evidence.human.stage import RECORD as HUMAN
from stages.evidence.judge.config import JudgeConfig
from stages.evidence.judge.stage import RECORD as JUDGE
from stages.evidence.rate.config import RateConfig
from stages.evidence.rate.stage import RECORD as RATE
from stages.evidence.summarize.config import SummarizeConfig
from stages.evidence.summarize.stage import RECORD as SUMMARIZE
from stages.record import Record, configs
from stages.stage import Config, Execution
from stages.training.align.config import AlignSettings
from stages.training.finetune.config import FinetuneSettings
from stages.training.pretrain.schedule import ScheduleSettings
from stages.training.pretrain.stage import BaseSettings, PretrainSettings
from stages.verdict.claims.config import ClaimsConfig

LONGEST_NAME = 100  # characters; they become names of files and runs

BASE_ARM = "base"
"""Under this arm's name the base is evaluated: what every arm has been before its training."""

RECORDS = (CALIBRATE, CAPACITY, EVALUATE, ABLATE, SUMMARIZE, RATE, JUDGE, HUMAN)
"""Stages with a section of their name in every study file, in the order of the plan."""


class StudyConfig(Config):
    """A whole study. A section that is left out (``ablate``, ``align``, ``calibrate``, ``capacity``, ``control``,
    ``summarize``, ``rate``, ``judge``, ``human``) is not run, and the claims that need it are reported as not measured;
    without ``dedup`` repeats stay in the text. With ``finetune`` the arms and the base are evaluated after that
    training, with ``finetune_summaries`` summaries are of models that were trained on them."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=LONGEST_NAME)
    description: str = ""
    seeds: tuple[Annotated[int, Field(ge=0, le=2**31 - 1)], ...] = Field(min_length=1, max_length=1000)
    corpus: IngestConfig
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    dedup: DedupConfig | None = None
    certify: CertifyConfig = CertifyConfig()
    task_audit: TaskAuditSettings | None = None
    tokenizer: TokenizerConfig
    tokenize: TokenizeConfig
    trunk: TrunkConfig
    base: BaseSettings
    arms: dict[str, MixerConfig] = Field(min_length=1, max_length=1000)
    pretrain: PretrainSettings
    match: MatchSettings = MatchSettings()
    schedules: dict[str, ScheduleSettings] = Field(
        default={}, max_length=100, description="other schedules that arms are trained on too, by name"
    )
    finetune: FinetuneSettings | None = None
    finetune_summaries: FinetuneSettings | None = None
    align: AlignSettings | None = None
    evaluate: EvaluateSettings
    ablate: AblateConfig | None = None
    calibrate: CalibrateConfig | None = None
    capacity: CapacityConfig | None = None
    control: ControlSettings | None = None
    summarize: SummarizeConfig | None = None
    rate: RateConfig | None = None
    judge: JudgeConfig | None = None
    human: HumanConfig | None = None
    extra: dict[str, Any] = Field(default={}, description="sections of stages that plug-ins add, by the stage's name")
    claims: ClaimsConfig = ClaimsConfig()
    execution: Execution = Execution()

    @field_validator("extra")
    @classmethod
    def _extra_stages(cls, extra: dict[str, Any]) -> dict[str, Any]:
        configs(extra)
        if own := sorted(set(extra) & set(cls.model_fields)):
            raise ValueError(f"{own[0]}: a section of the study has this name (fix: another name for the stage)")
        return extra

    @field_validator("arms")
    @classmethod
    def _arm_names(cls, arms: dict[str, MixerConfig]) -> dict[str, MixerConfig]:
        for name in arms:
            if len(name) > LONGEST_NAME:
                raise ValueError(f"arm name {name[:40]!r}...: characters allowed: at most {LONGEST_NAME}")
            if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
                raise ValueError(f"arm name {name!r}: allowed are lower-case letters, digits and '-'")
            if name == BASE_ARM:
                raise ValueError(f"arm name {name!r}: kept for what the arms start from (fix: another name)")
        return arms

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds {list(seeds)} repeat: each must stand once")
        return seeds

    @property
    def asked(self) -> list[tuple[Record, Config]]:
        """The stages of ``RECORDS`` and of plug-ins that the study has a section for, each with its section."""
        own = [(record, getattr(self, record.stage.name)) for record in RECORDS]
        return [(record, section) for record, section in own if section is not None] + configs(self.extra)

    @property
    def base_seeds(self) -> tuple[int, ...]:
        """Seeds of the bases: the study's, or the one of ``base.seed``."""
        return self.seeds if self.base.per_seed else (self.base.seed,)

    @property
    def base_mixer(self) -> MixerConfig:
        """What a base is evaluated under: the arms' local attention, which they all had before they learned more."""
        lengths = {arm.segment_length for arm in self.arms.values()}
        segment = lengths.pop() if len(lengths) == 1 else self.tokenize.segment_length
        return MixerConfig(kind="local", segment_length=segment)

    @model_validator(mode="after")
    def _lengths_agree(self) -> StudyConfig:
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
