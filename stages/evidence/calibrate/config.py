"""Settings of the calibration, as they stand in a study file."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from model.arms import variants
from model.config import FeatureMap, MixerConfig, TrunkConfig
from stages.stage import Config


class SchlagConfig(Config):
    """Sec. 6.1 of arXiv:2102.11174, with the values of the published code as defaults: Adam at 1e-3, batches of 32,
    an evaluation every 100 steps on 20 sequences, solved at a loss (half the squared error) of 0.001, given up after
    more than 10 evaluations without progress. ``steps`` is smaller than theirs (100,000), and the default cells
    are those that settle by then; the loss is in the table. Just below the limit a seed may take thousands to part its
    last keys: DPFP-1 at 80 and 100 recalled 79 of 80 after 600 steps and 97% after 800, not yet at a loss of 0.001."""

    associations: dict[FeatureMap, tuple[int, ...]] = Field(
        default={"elu1": (40, 60), "dpfp1": (60, 120)}, min_length=1, description="numbers tried per feature map"
    )
    d_key: int = Field(default=64, ge=2)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    steps: int = Field(default=1000, ge=1, description="most steps of one run")
    evaluate_every: int = Field(default=100, ge=1, description="steps")
    evaluation_sequences: int = Field(default=20, ge=1)
    solved_below: float = Field(default=0.001, gt=0)
    patience: int = Field(default=10, ge=1, description="evaluations without progress before giving up")
    batch: int = Field(default=32, ge=1)
    lr: float = Field(default=1e-3, gt=0)

    @field_validator("associations")
    @classmethod
    def _numbers(cls, value: dict[FeatureMap, tuple[int, ...]]) -> dict[FeatureMap, tuple[int, ...]]:
        for name, counts in value.items():
            if not counts or list(counts) != sorted(set(counts)) or counts[0] < 2:
                raise ValueError(f"{name} = {list(counts)}: allowed are ascending, distinct whole numbers from 2 on")
        return value

    @model_validator(mode="after")
    def _evaluated(self) -> SchlagConfig:
        if self.steps < self.evaluate_every:
            raise ValueError(
                f"steps = {self.steps}: nothing is evaluated before evaluate_every = {self.evaluate_every} steps"
            )
        return self

    def cells(self) -> list[tuple[FeatureMap, int, int]]:
        """(feature map, associations, seed) of each run."""
        return [
            (name, count, seed) for name, counts in self.associations.items() for count in counts for seed in self.seeds
        ]


class MqarConfig(Config):
    """Multi-query associative recall: ``pairs`` keys and values, then every key asked once, at gaps drawn from a power
    law; the target at a query is its value, filler elsewhere. One segment holds exactly the pairs, so that a mixer
    without a path across segments guesses. (With ``length`` 4 one write is read, and the first write of the delta rule
    is the linear rule's: both then have the same numbers.)

    The source trains every arm from scratch. That is ``graft`` = false; by default the other arms start from the full
    attention model of their cell, as continual pretraining does: from scratch infini and local attention stay at chance
    for longer than a minute's calibration lasts (that a layer looks one token back is what is slow to learn, not the
    memory), while deltanet and full attention do not."""

    arms: tuple[str, ...] = Field(
        default=("full", "infini-linear", "infini-delta", "deltanet", "local"),
        min_length=1,
        description="names of model.arms.variants()",
    )
    dims: tuple[int, ...] = Field(default=(64,), min_length=1, description="model sizes")
    pairs: tuple[int, ...] = Field(default=(4,), min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    length: int = Field(default=4, ge=4, description="sequence length in multiples of the number of pairs")
    vocabulary: int = Field(default=32, ge=8, description="the first half keys (and the filler), the rest values")
    gap_power: float = Field(default=0.01, gt=0, le=1, description="1 is uniform; the source's is 0.01")
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    ffn_dim: int = Field(default=64, ge=1)
    graft: bool = Field(default=True, description="arms but full start from the full attention model of their cell")
    steps: int = Field(default=600, ge=1, description="most steps of a run from scratch")
    graft_steps: int = Field(default=300, ge=1, description="most steps of a run that starts from full attention")
    enough: float = Field(default=0.99, gt=0, le=1, description="training ends early at this accuracy on fresh batches")
    batch: int = Field(default=32, ge=1, description="sequences per step")
    lr: float = Field(default=2e-3, gt=0)
    gate_lr: float = Field(default=1e-2, gt=0)
    warmup_steps: int = Field(default=20, ge=0)
    weight_decay: float = Field(default=0.1, ge=0)
    trials: int = Field(default=1000, ge=1, description="queries scored per cell, at least")

    @model_validator(mode="after")
    def _fits(self) -> MqarConfig:
        for name in self.arms:
            if name not in variants():
                raise ValueError(f"arms has {name!r}: allowed are {', '.join(variants())}")
        if self.graft and self.arms != ("full",) and "full" not in self.arms:
            raise ValueError(
                f"arms = {list(self.arms)}: graft needs the full attention model they start from. Fix: add "
                "'full', or set graft to false"
            )
        if not self.graft and "graft_steps" in self.model_fields_set:
            raise ValueError(f"graft_steps = {self.graft_steps}: has no effect with graft = false. Fix: remove it")
        if self.length % 2:
            raise ValueError(f"length = {self.length}: allowed are even multiples of the pairs, for whole segments")
        for count in self.pairs:
            if not 1 <= count < self.vocabulary // 2:
                raise ValueError(
                    f"pairs has {count}: allowed are 1 to {self.vocabulary // 2 - 1}, the keys of vocabulary = "
                    f"{self.vocabulary}"
                )
        for dim in self.dims:
            TrunkConfig(dim=dim, layers=self.layers, heads=self.heads, ffn_dim=self.ffn_dim)
        for arm in self.arms:
            for count in self.pairs:
                MixerConfig(**variants()[arm], segment_length=2 * count)
        return self

    @property
    def values(self) -> int:
        """Number of value tokens: 1 / values is a blind guess."""
        return self.vocabulary - self.vocabulary // 2

    def cells(self) -> list[tuple[int, int, int, str]]:
        """(dim, pairs, seed, arm) of each run, full attention first."""
        arms = sorted(self.arms, key=lambda arm: arm != "full")
        return [(d, p, s, a) for d in self.dims for p in self.pairs for s in self.seeds for a in arms]

    def steps_of(self, arm: str) -> int:
        """Most steps of the arm's run."""
        return self.graft_steps if self.graft and arm != "full" else self.steps


class CalibrateConfig(Config):
    """The study file's ``calibrate:`` section. The defaults are the cells around the published points that fit into a
    minute of one core; the whole grids are a matter of listing them."""

    schlag: SchlagConfig | None = SchlagConfig()
    mqar: MqarConfig | None = MqarConfig()

    @model_validator(mode="after")
    def _something(self) -> CalibrateConfig:
        if self.schlag is None and self.mqar is None:
            raise ValueError("schlag and mqar are both null: nothing is left to measure. Fix: leave the section out")
        return self
