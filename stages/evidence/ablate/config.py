"""Settings of the memory knock-outs, as they stand in a study file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from stages.data.tasks.config import RetrievalConfig
from stages.data.tasks.needles import MOST_RIVALS
from stages.evidence.evaluate.config import PerplexityConfig
from stages.stage import Config

KnockoutName = Literal["none", "gate_closed", "reset", "swap", "zero_read"]
OfOneHead = Literal["gate_closed", "swap", "zero_read"]


class HeadsConfig(Config):
    """Each head's memory knocked out alone, on the same prompts: which heads carry what the memory carries."""

    knockouts: tuple[OfOneHead, ...] = Field(default=("swap", "gate_closed"), min_length=1)
    max_items: int | None = Field(
        default=32, ge=2, description="prompts asked per head and knock-out, spread over tasks and lengths; null: all"
    )
    layers: bool = Field(default=False, description="each layer's memory alone too, all of its heads together")

    def key_fields(self) -> dict[str, Any]:
        """Layers only where they are asked."""
        fields = super().key_fields()
        if not self.layers:
            fields.pop("layers")
        return fields


class SaturationConfig(Config):
    """The memory along held-out documents, far beyond the trained length."""

    documents: int = Field(default=3, ge=1, description="the longest held-out ones, of all scored splits")
    max_tokens: int | None = Field(default=8192, ge=2, description="longer documents are cut here; null: whole books")
    points: int = Field(default=32, ge=2, description="segments measured per document: dense at first, then ever fewer")
    spectrum: bool = Field(default=False, description="also the singular values of the memory, and the growth of z")

    def key_fields(self) -> dict[str, Any]:
        """The spectrum only where it is measured."""
        fields = super().key_fields()
        if not self.spectrum:
            fields.pop("spectrum")
        return fields


class TrainedKeysConfig(Config):
    """Capacity with the trained model's own keys on held-out text, at distinct tokens."""

    associations: tuple[int, ...] = (8, 16, 32, 64, 128)
    tokens: int = Field(default=8192, ge=2, description="held-out tokens read to collect keys from")
    draws: int = Field(default=8, ge=1, description="random sets of keys and values per row")
    tolerance: float = Field(
        default=0.05, gt=0, lt=1, description="an association is read back exactly below this |read - v|^2 / |v|^2"
    )

    @field_validator("associations")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or list(value) != sorted(set(value)) or value[0] < 2:
            raise ValueError(
                f"associations = {list(value)}: allowed are ascending, distinct whole numbers from 2 on, one at least"
            )
        return value


class RecallConfig(Config):
    """Item i asked after j segments: needles in a prompt's first segment, one of them asked so many segments later."""

    items: tuple[Annotated[int, Field(ge=1, le=MOST_RIVALS)], ...] = Field(
        default=(1, 4), min_length=1, description="needles written: one is the passkey, several are bindings"
    )
    segments: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 2, 4, 8, 16, 32), min_length=1, description="segments between the needles' and the question's"
    )
    trials: int = Field(default=16, ge=2, description="prompts per item and number of segments")


class ProbesConfig(Config):
    """The trained model read as it was not trained, on the items of the knock-outs; and long documents with the memory
    carried through them against emptied at every window."""

    gates: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(0.0, 0.5, 1.0), description="values that every gate is forced to in turn"
    )
    other_rule: bool = Field(default=True, description="written by the rule it was not trained with (linear, delta)")
    window: int | None = Field(
        default=None, ge=2, description="tokens after which the memory is emptied (default: training's sequences)"
    )
    recall: RecallConfig | None = Field(default=None, description="recall of item i after j segments")
    documents: int = Field(default=3, ge=1, description="the longest held-out ones, of two windows at least")
    max_tokens: int | None = Field(default=8192, ge=2, description="longer documents are cut here; null: whole books")

    def key_fields(self) -> dict[str, Any]:
        """Recall only where it is asked."""
        fields = super().key_fields()
        if self.recall is None:
            fields.pop("recall")
        return fields


class AblateConfig(Config):
    """The study file's ``ablate:`` section. Items are the same for every knock-out, arm and training seed.

    Only documents of at least ``perplexity.max_tokens_per_document`` tokens are scored, cut there: equal lengths let
    ``swap`` exchange whole memories. Of the prompts only passkeys and bindings beyond the local segment are asked.
    ``heads``, ``saturation`` and ``trained_keys`` are left out where they are null, ``probes`` unless they are given.
    """

    knockouts: tuple[KnockoutName, ...] = ("none", "gate_closed", "reset", "swap", "zero_read")
    perplexity: PerplexityConfig
    retrieval: RetrievalConfig
    heads: HeadsConfig | None = HeadsConfig()
    saturation: SaturationConfig | None = SaturationConfig()
    trained_keys: TrainedKeysConfig | None = TrainedKeysConfig()
    probes: ProbesConfig | None = None
    seed: int = Field(default=0, ge=0)

    def key_fields(self) -> dict[str, Any]:
        """Probes only where there are some."""
        fields = super().key_fields()
        if self.probes is None:
            fields.pop("probes")
        return fields

    @model_validator(mode="after")
    def _check(self) -> AblateConfig:
        if "none" not in self.knockouts or len(set(self.knockouts)) != len(self.knockouts):
            raise ValueError(f"knockouts = {list(self.knockouts)}: allowed are distinct names, 'none' among them")
        for field in ("tasks", "files"):
            if named := list(getattr(self.retrieval, field)):
                raise ValueError(
                    f"retrieval.{field} = {named}: the knock-outs are asked passkeys and bindings. Fix: remove it"
                )
        if self.perplexity.max_tokens_per_document is None:
            raise ValueError(
                "perplexity.max_tokens_per_document is not set: the knock-outs compare documents of one length. "
                "Fix: set it to the context of interest, in tokens"
            )
        return self
