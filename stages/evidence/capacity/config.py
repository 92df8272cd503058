"""Settings of the capacity stage, as they stand in a study file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from model.config import FeatureMap
from stages.stage import Config

CapacityRule = Literal["linear", "delta", "delta-token"]


Keys = Literal["random", "orthogonal", "learned", "learned-exact"]


class LearnedKeys(Config):
    """How ``learned`` and ``learned-exact`` keys are trained, and for which part of the grid (each cell is a training
    run: 0.3 s linear, 1 s delta, 4 s delta-token at 64 associations on one core)."""

    feature_maps: tuple[FeatureMap, ...] = Field(default=("elu1", "relu", "dpfp1"), min_length=1)
    rules: tuple[CapacityRule, ...] = Field(default=("linear", "delta"), min_length=1)
    associations: tuple[int, ...] = Field(default=(40, 64, 128), min_length=1)
    seeds: int = Field(default=3, ge=1, description="keys are trained for so many of the seeds, the first ones")
    steps: int = Field(default=200, ge=1)
    lr: float = Field(default=0.5, gt=0, description="of Adam, cosine to a tenth")


class CapacityConfig(Config):
    """Grid of the mechanism study. Random associations of a seed are prefixes of one sequence of writes."""

    d_key: int = Field(default=64, ge=2, description="components of a key before the feature map")
    d_value: int = Field(default=64, ge=2)
    key_scale: float = Field(
        default=1.0, gt=0, description="standard deviation of a random key's components, where training starts, too"
    )
    keys: tuple[Keys, ...] = Field(default=("random", "orthogonal", "learned", "learned-exact"), min_length=1)
    learned: LearnedKeys = LearnedKeys()
    feature_maps: tuple[FeatureMap, ...] = Field(default=("elu1", "relu", "dpfp1", "dpfp2", "dpfp3"), min_length=1)
    rules: tuple[CapacityRule, ...] = Field(default=("linear", "delta", "delta-token"), min_length=1)
    associations: tuple[int, ...] = (2, 4, 8, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512)
    tolerance: float = Field(
        default=0.05, gt=0, lt=1, description="an association is read back exactly below this |read - v|^2 / |v|^2"
    )
    overwrite_associations: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128)
    overwrite_feature_map: FeatureMap = "elu1"
    segment_length: int = Field(default=8, ge=1, description="associations per write of the delta rule")
    seeds: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1)
    repeats: int = Field(default=4, ge=1, description="independent draws per seed, averaged in its row")
    eps: float = Field(default=1e-6, gt=0)

    @model_validator(mode="after")
    def _grid(self) -> CapacityConfig:
        lists = {name: getattr(self, name) for name in ("associations", "overwrite_associations", "seeds")}
        lists["learned.associations"] = self.learned.associations
        for name, values in lists.items():
            if list(values) != sorted(set(values)) or (name != "seeds" and values and values[0] < 2):
                least = "" if name == "seeds" else " from 2 on"
                raise ValueError(f"{name} = {list(values)}: allowed are ascending, distinct whole numbers{least}")
        if len(self.associations) < 2:
            raise ValueError(f"associations = {list(self.associations)}: a curve needs at least two numbers")
        if "delta" in self.rules:
            for name in ("associations", "overwrite_associations", "learned.associations"):
                odd = [n for n in lists[name] if n > self.segment_length and n % self.segment_length]
                if odd:
                    raise ValueError(
                        f"{name} has {odd[0]}: beyond the first segment, only multiples of segment_length = "
                        f"{self.segment_length} can be written as whole segments"
                    )
        return self

    @model_validator(mode="after")
    def _learned(self) -> CapacityConfig:
        said = self.learned.model_fields_set
        if not {"learned", "learned-exact"} & set(self.keys):
            if said:
                raise ValueError(
                    f"learned.{sorted(said)[0]}: has no effect, keys = {list(self.keys)} has neither 'learned' nor "
                    "'learned-exact'. Fix: add one, or remove the section"
                )
            return self
        for name in ("feature_maps", "rules"):
            missing = set(getattr(self.learned, name)) - set(getattr(self, name))
            if missing and name in said:
                raise ValueError(
                    f"learned.{name} = {list(getattr(self.learned, name))}: allowed are those of {name} = "
                    f"{list(getattr(self, name))}"
                )
        return self

    def trained(self) -> list[tuple[FeatureMap, CapacityRule]]:
        """The cells of feature map and rule whose keys are trained."""
        return [
            (feature_map, rule)
            for feature_map in self.learned.feature_maps
            for rule in self.learned.rules
            if feature_map in self.feature_maps and rule in self.rules
        ]
