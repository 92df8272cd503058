"""Shapes and options of a model. Importable without torch: study files are validated against these.

Every option the paper leaves open (arXiv:2404.07143 states neither M_0, eps, the gate's start nor its learning
rate) is a field here, with the reason for its default.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

Kind = Literal["infini", "local", "window", "xl", "full"]
Rule = Literal["linear", "delta"]
FeatureMap = Literal["elu1", "relu", "dpfp1", "dpfp2", "dpfp3"]


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """The sequence mixer of one arm.

    kind: infini (compressive memory + local attention), local (the same with g = 0 throughout, trained so),
    window (sliding window over the last ``segment_length`` tokens), xl (segment attention plus a detached cache
    of the previous ``segment_length`` tokens, RoPE-relative), full (causal over everything).
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}

    kind: Kind
    segment_length: int  # N, tokens; full attention ignores it, the window is as long
    rule: Rule = "linear"  # update rule of the memory (infini only)
    feature_map: FeatureMap = "elu1"  # sigma; the paper's is ELU + 1
    gate_init: float = 0.0  # beta at the start; 0 is g = 0.5, where sigmoid's gradient is largest
    # g at the start of a document: "bypass" leaves the local output unscaled while the memory is empty (A_mem is
    # 0/0 there); "literal" mixes as written, which scales the first segment by 1 - g.
    empty_memory: Literal["bypass", "literal"] = "bypass"
    eps: float = 1e-6  # added to sigma(Q) z; z is float32, so this never underflows

    def __post_init__(self) -> None:
        if self.segment_length < 1:
            raise ValueError(f"segment_length = {self.segment_length}: allowed are whole numbers >= 1")
        if not 0 < self.eps < 1:
            raise ValueError(f"eps = {self.eps}: allowed is 0 < eps < 1")


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """A Llama-style decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}

    dim: int
    layers: int
    heads: int
    kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: dim // heads
    ffn_dim: int | None = None  # None: 8/3 dim rounded up to a multiple of 32
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "kv_heads", "head_dim", "ffn_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: allowed are whole numbers >= 1")
        for name in ("rope_theta", "norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}: allowed are numbers > 0")
        if self.head_dim is None and self.dim % self.heads:
            raise ValueError(f"dim = {self.dim}: must be a multiple of heads = {self.heads}, or set head_dim")
        if self.heads % self.n_kv_heads:
            raise ValueError(f"kv_heads = {self.n_kv_heads}: must divide heads = {self.heads}")
        if self.d_head % 2:
            raise ValueError(f"head_dim = {self.d_head}: RoPE needs an even number")

    @property
    def n_kv_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def d_head(self) -> int:
        return self.dim // self.heads if self.head_dim is None else self.head_dim

    @property
    def d_ffn(self) -> int:
        return -(-8 * self.dim // 3 // 32) * 32 if self.ffn_dim is None else self.ffn_dim


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole model: trunk, mixer and vocabulary size."""

    trunk: TrunkConfig
    mixer: MixerConfig
    vocab_size: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(value: dict[str, Any]) -> ModelConfig:
        """Inverse of ``to_dict``. Raises ValueError naming an unknown field."""
        for part, cls in ((value.get("trunk", {}), TrunkConfig), (value.get("mixer", {}), MixerConfig)):
            unknown = set(part) - {f.name for f in fields(cls)}
            if unknown:
                raise ValueError(f"{cls.__name__}: unknown field {sorted(unknown)[0]!r}")
        return ModelConfig(
            trunk=TrunkConfig(**value["trunk"]), mixer=MixerConfig(**value["mixer"]), vocab_size=value["vocab_size"]
        )
