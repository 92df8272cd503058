"""C6, mechanism alone: random associations written into the real memory module and read back.

Keys are random Gaussian vectors of d_key components (unit variance, as projections of normed inputs have at the start
of training), values random unit vectors of the same size; nothing is learned, so value crosstalk counts. The published
reference points (Schlag et al., 2021, sec. 6.1) were measured with *learned* keys, which can spread better than random
ones, so they bound what training may add, and are no target for the curves here. Recall means that the value nearest
to what is read is the right one, among all values written.

Rules: ``linear``; ``delta`` (one write per segment of ``segment_length`` associations, as a model trained with such
segments does); ``delta-token`` (one write per association, the classical delta rule's order).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from model.config import FeatureMap
from stages.stage import Artifact, Config, Context, Stage, Summary

CapacityRule = Literal["linear", "delta", "delta-token"]


class CapacityConfig(Config):
    """Grid of the mechanism study. All numbers of associations of a seed are prefixes of one sequence of writes."""

    d_key: int = Field(default=64, ge=2, description="components of a key before the feature map")
    d_value: int = Field(default=64, ge=2)
    key_scale: float = Field(
        default=1.0, gt=0, description="standard deviation of a key's components; larger keys overlap less under elu1"
    )
    feature_maps: tuple[FeatureMap, ...] = Field(default=("elu1", "relu", "dpfp1", "dpfp2", "dpfp3"), min_length=1)
    rules: tuple[CapacityRule, ...] = Field(default=("linear", "delta", "delta-token"), min_length=1)
    associations: tuple[int, ...] = (2, 4, 8, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512)
    overwrite_associations: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128)
    overwrite_feature_map: FeatureMap = "elu1"
    segment_length: int = Field(default=8, ge=1, description="associations per write of the delta rule")
    seeds: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1)
    repeats: int = Field(default=8, ge=1, description="independent memories per seed, averaged in its row")
    eps: float = Field(default=1e-6, gt=0)

    @model_validator(mode="after")
    def _ascending(self) -> CapacityConfig:
        for name in ("associations", "overwrite_associations", "seeds"):
            values = getattr(self, name)
            if list(values) != sorted(set(values)) or (name != "seeds" and values and values[0] < 2):
                least = "" if name == "seeds" else " from 2 on"
                raise ValueError(f"{name} = {list(values)}: allowed are ascending, distinct whole numbers{least}")
        if len(self.associations) < 2:
            raise ValueError(f"associations = {list(self.associations)}: a curve needs at least two numbers")
        if "delta" in self.rules:
            for name in ("associations", "overwrite_associations"):
                odd = [n for n in getattr(self, name) if n > self.segment_length and n % self.segment_length]
                if odd:
                    raise ValueError(
                        f"{name} has {odd[0]}: beyond the first segment, only multiples of segment_length = "
                        f"{self.segment_length} can be written as whole segments"
                    )
        return self


class Capacity(Stage[CapacityConfig]):
    """No inputs."""

    name: ClassVar[str] = "capacity"
    code_version: ClassVar[int] = 2
    inputs = ()
    uses = ("model",)

    def run(self, config: CapacityConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """capacity.parquet, overwrite.parquet and reference.parquet."""
        from stages.capacity.measure import run

        return run(config, output, context)


STAGE = Capacity()
