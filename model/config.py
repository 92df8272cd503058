"""Shapes and options of a model. Importable without torch: study files are validated against these.

Every option the paper leaves open (arXiv:2404.07143 states neither M_0, eps, the gate's start nor its learning
rate) is a field here, with the reason for its default.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal

from model.arms import arm_of, has_effect, kinds_with, reach_of

Rule = Literal["linear", "delta"]
FeatureMap = Literal["elu1", "relu", "dpfp1", "dpfp2", "dpfp3", "softmax"]
Gate = Literal["head", "channel", "token"]
StateDtype = Literal["float32", "float64", "bfloat16"]
AttentionBias = Literal["none", "qkv", "qkvo"]
QKNorm = Literal["none", "head", "whole"]
NormPosition = Literal["before", "after"]


def feature_dim(name: FeatureMap, d: int) -> int:
    """Size F of the features of a ``d``-dimensional key; DPFP-nu has 2 d nu (arXiv:2102.11174, sec. 5.3)."""
    return 2 * d * int(name[-1]) if name.startswith("dpfp") else d


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """The sequence mixer of one arm.

    infini: compressive memory + local attention. local: the same with g = 0 throughout, trained so. window: sliding
    window over the last ``segment_length`` tokens. xl: segment attention plus a detached cache of the previous
    ``segment_length`` tokens, RoPE-relative. full: causal over everything. memorizing: xl, and in one layer exact
    top-k retrieval from all earlier keys and values. compressive: xl, and behind its cache a queue of compressed
    states. rmt: full attention within segments that pass memory tokens on. linear: linear attention per token.
    deltanet: fast weights with a learned write strength per token. landmark: retrieval of whole blocks through their
    landmark tokens.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}

    kind: str  # of arms.KINDS
    # N, tokens. full attention, linear and deltanet ignore it; the window is as long
    segment_length: int
    rule: Rule = "linear"  # update rule of the memory
    feature_map: FeatureMap = "elu1"  # sigma; the paper's is ELU + 1
    # One beta per head is the paper's. channel: one per head and value channel. token: beta + w x, data-dependent.
    gate: Gate = "head"
    gate_init: float = 0.0  # beta at the start; 0 is g = 0.5, where sigmoid's gradient is largest
    # g at the start of a document: "bypass" leaves the local output unscaled while the memory is empty (A_mem is
    # 0/0 there); "literal" mixes as written, which scales the first segment by 1 - g.
    empty_memory: Literal["bypass", "literal"] = "bypass"
    # M_0 and z_0, unstated in the paper. zero: nothing was written, so nothing is read. learned: parameters per layer
    # and key/value head that every document starts from (M_0 = 0 and z_0 = 1 at first, z_0 > 0 always); the first
    # segment then reads them through the gate as every other does, and empty_memory has no say.
    initial_memory: Literal["zero", "learned"] = "zero"
    # M and z are held in this between segments; all arithmetic is float32 at least. At a million tokens a bfloat16 z is
    # off by 14%: float32 unless that is what is studied.
    state_dtype: StateDtype = "float32"
    eps: float = 1e-6  # added to sigma(Q) z; z is float32, so this never underflows
    # Back-propagation through the states of at most so many segments (truncated BPTT); None: through all, as the
    # paper does and what a write needs to learn from a read far behind it.
    bptt_segments: int | None = None
    memory_layer: int | None = None  # 0-based layer that retrieves; None: at 3/4 of the depth (the paper's 9th of 12)
    cache_tokens: int | None = 65_536  # keys and values kept for retrieval; None: all
    top_k: int = 32  # retrieved per query and head
    compression: int = 4  # c: so many states become one
    compressed_tokens: int | None = None  # length of the compressed queue; None: segment_length
    reconstruction_weight: float = 1.0  # of the attention-reconstruction loss, which trains the compression alone
    memory_tokens: int = 16  # m: vectors handed from segment to segment
    block_tokens: int = 50  # tokens before each landmark
    top_blocks: int = 4  # blocks retrieved per query and head outside of training

    def __post_init__(self) -> None:
        arm_of(self.kind)
        for name in (
            "segment_length",
            "bptt_segments",
            "cache_tokens",
            "top_k",
            "compression",
            "compressed_tokens",
            "memory_tokens",
            "block_tokens",
            "top_blocks",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: allowed are whole numbers >= 1")
        if not 0 < self.eps < 1:
            raise ValueError(f"eps = {self.eps}: allowed is 0 < eps < 1")
        if self.memory_layer is not None and self.memory_layer < 0:
            raise ValueError(f"memory_layer = {self.memory_layer}: allowed are layers 0 to layers - 1")
        if self.kind == "compressive" and self.segment_length % self.compression:
            raise ValueError(
                f"compression = {self.compression}: must divide segment_length = {self.segment_length}, "
                "so that a whole segment is compressed"
            )
        if not self.reconstruction_weight >= 0:
            raise ValueError(f"reconstruction_weight = {self.reconstruction_weight}: allowed are numbers >= 0")
        if self.initial_memory == "learned" and self.empty_memory == "literal":
            raise ValueError(
                "empty_memory = 'literal': has no effect with initial_memory = 'learned', as no memory is ever empty "
                "(the first segment reads M_0); fix: remove it"
            )
        for option in fields(self):
            value = getattr(self, option.name)
            if not has_effect(option.name, self.kind) and value != option.default:
                raise ValueError(
                    f"{option.name} = {value!r}: has no effect with kind = {self.kind!r} "
                    f"(it has with {', '.join(kinds_with(option.name))}); fix: remove it"
                )

    def key_fields(self) -> dict[str, Any]:
        """The fields that mean something to this kind: an option added for others leaves a study's keys as they are."""
        return {name: value for name, value in asdict(self).items() if has_effect(name, self.kind)}


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """RoPE frequencies changed for contexts longer than the base was trained on; the fields of Hugging Face's
    ``rope_parameters``, under its names.

    linear: all frequencies divided by ``factor`` (arXiv:2306.15595). llama3: only the slow ones, with a smooth
    transition (Llama 3.1). yarn: per dimension, between beta_fast and beta_slow turns within the original context, and
    cos and sin times the attention factor (arXiv:2309.00071). dynamic and longrope (arXiv:2402.13753) change with the
    length of the text beyond the original context, and a state that is carried on cannot: here they are what they are
    within it (dynamic: no scaling; longrope: short_factor, a divisor per frequency), and attention that reaches further
    is refused. A field that the type does not use is an error.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}

    type: Literal["linear", "llama3", "yarn", "dynamic", "longrope"]
    factor: float
    original_max_position_embeddings: int | None = None  # tokens the base was trained on (all but linear)
    low_freq_factor: float | None = None  # llama3: slower than this many turns in those tokens: divided by factor
    high_freq_factor: float | None = None  # llama3: faster than this many: unchanged
    beta_fast: float | None = None  # yarn: turns above which a dimension is unchanged; None: 32
    beta_slow: float | None = None  # yarn: turns below which it is divided by factor; None: 1
    attention_factor: float | None = None  # yarn, longrope: of cos and sin; None: from factor (and the mscales)
    mscale: float | None = None  # yarn: with mscale_all_dim, the attention factor's numerator
    mscale_all_dim: float | None = None
    truncate: bool | None = None  # yarn: whole dimensions as bounds of the transition; None: yes
    short_factor: tuple[float, ...] | None = None  # longrope: divisors of the head_dim / 2 frequencies, fastest first
    long_factor: tuple[float, ...] | None = None  # longrope: those of longer text; kept for export

    def __post_init__(self) -> None:
        required = {
            "linear": (),
            "llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
            "yarn": ("original_max_position_embeddings",),
            "dynamic": ("original_max_position_embeddings",),
            "longrope": ("original_max_position_embeddings", "short_factor", "long_factor"),
        }
        if self.type not in required:
            raise ValueError(f"rope_scaling.type = {self.type!r}: allowed are {', '.join(required)}")
        optional = {
            "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
            "longrope": ("attention_factor",),
        }
        known = {"type", "factor", *required[self.type], *optional.get(self.type, ())}
        for name, value in asdict(self).items():
            if value is None and name in required[self.type]:
                raise ValueError(f"rope_scaling.{name} is missing: type = {self.type!r} needs it")
            if value is not None and name not in known:
                raise ValueError(f"rope_scaling.{name} = {value!r}: has no effect with type = {self.type!r}")
            numbers = value if isinstance(value, tuple) else (value,)
            if value is not None and name not in ("type", "truncate") and not all(number > 0 for number in numbers):
                raise ValueError(f"rope_scaling.{name} = {value!r}: allowed are numbers > 0")
        if self.factor < 1:
            raise ValueError(f"rope_scaling.factor = {self.factor}: allowed are numbers >= 1")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and not low < high:
            raise ValueError(f"rope_scaling.low_freq_factor = {low}: must be below high_freq_factor = {high}")
        if (self.beta_fast or 32) < (self.beta_slow or 1):
            raise ValueError(
                f"rope_scaling.beta_fast = {self.beta_fast or 32}: must not be below beta_slow = {self.beta_slow or 1}"
            )

    def given(self) -> dict[str, Any]:
        """The fields that are set, as they stand in a study file."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def limit(self) -> int | None:
        """Tokens within which RoPE is what it is here; None: any number."""
        return self.original_max_position_embeddings if self.type in ("dynamic", "longrope") else None


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """A Llama-style decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU; and what other families change of it, the
    same for every arm."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}

    dim: int
    layers: int
    heads: int
    kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: dim // heads
    ffn_dim: int | None = None  # None: 8/3 dim rounded up to a multiple of 32
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    attention_bias: AttentionBias = "none"  # of which projections (Qwen 2: qkv)
    # RMSNorm of queries and keys before RoPE and memory: "head", each head's (Qwen 3), "whole", all heads' (OLMo 2)
    qk_norm: QKNorm = "none"
    norm_position: NormPosition = "before"  # of attention and feed-forward; "after", before the residual sum: OLMo 2
    nope_layers: tuple[int, ...] = ()  # 0-based layers without RoPE (SmolLM3)
    sliding_window: int | None = None  # tokens the base's attention sees, itself included (Mistral); None: all

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "kv_heads", "head_dim", "ffn_dim", "sliding_window"):
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
        if not all(0 <= layer < self.layers for layer in self.nope_layers):
            raise ValueError(f"nope_layers = {list(self.nope_layers)}: allowed are layers 0 to {self.layers - 1}")
        divisors = self.rope_scaling and self.rope_scaling.short_factor
        if divisors and len(divisors) != self.d_head // 2:
            raise ValueError(
                f"rope_scaling.short_factor has {len(divisors)} numbers: allowed are head_dim / 2 = {self.d_head // 2}"
            )

    def key_fields(self) -> dict[str, Any]:
        """All fields, but no scaling where there is none, and of what other families change only what is changed: a
        study's keys do not depend on what it does not use."""
        scaling = {} if self.rope_scaling is None else {"rope_scaling": self.rope_scaling.given()}
        used = {name: value for name, value in self.to_dict().items() if name != "rope_scaling"}
        return used | scaling

    def to_dict(self) -> dict[str, Any]:
        """The fields, without those of ``_FAMILIES`` that are at their defaults."""
        plain = {option.name: option.default for option in fields(self) if option.name in _FAMILIES}
        return {name: value for name, value in asdict(self).items() if name not in plain or value != plain[name]}

    def with_positions(self, rope_theta: float | None, rope_scaling: RopeScaling | None) -> TrunkConfig:
        """The same trunk with other positions; what is None stays."""
        return replace(
            self,
            rope_theta=self.rope_theta if rope_theta is None else rope_theta,
            rope_scaling=self.rope_scaling if rope_scaling is None else rope_scaling,
        )

    @property
    def limit(self) -> tuple[str, int] | None:
        """The field that bounds how far attention may reach to be the base's, and the tokens; None: nothing does."""
        scaling = None if self.rope_scaling is None else self.rope_scaling.limit
        bounds = {
            "sliding_window": self.sliding_window,
            "rope_scaling.original_max_position_embeddings": scaling,
        }
        known = [(tokens, name) for name, tokens in bounds.items() if tokens is not None]
        return min(known)[::-1] if known else None

    @property
    def n_kv_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def d_head(self) -> int:
        return self.dim // self.heads if self.head_dim is None else self.head_dim

    @property
    def d_ffn(self) -> int:
        return -(-8 * self.dim // 3 // 32) * 32 if self.ffn_dim is None else self.ffn_dim


_FAMILIES = {"attention_bias", "qk_norm", "norm_position", "nope_layers", "sliding_window"}
"""Fields of TrunkConfig that are not Llama's."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole model: trunk, mixer and vocabulary size."""

    trunk: TrunkConfig
    mixer: MixerConfig
    vocab_size: int

    def __post_init__(self) -> None:
        if self.mixer.kind == "memorizing":
            retrieving_layer(self.trunk, self.mixer)
        check_reach(self.trunk, self.mixer)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"trunk": self.trunk.to_dict()}

    @staticmethod
    def from_dict(value: dict[str, Any]) -> ModelConfig:
        """Inverse of ``to_dict``. Raises ValueError naming an unknown field."""
        trunk = dict(value.get("trunk", {}))
        scaling = trunk.get("rope_scaling")
        for part, cls in ((scaling or {}, RopeScaling), (trunk, TrunkConfig), (value.get("mixer", {}), MixerConfig)):
            unknown = set(part) - {f.name for f in fields(cls)}
            if unknown:
                raise ValueError(f"{cls.__name__}: unknown field {sorted(unknown)[0]!r}")
        if scaling is not None:
            trunk["rope_scaling"] = RopeScaling(**_with_tuples(scaling))
        return ModelConfig(
            trunk=TrunkConfig(**_with_tuples(trunk)),
            mixer=MixerConfig(**value["mixer"]),
            vocab_size=value["vocab_size"],
        )


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def check_reach(trunk: TrunkConfig, mixer: MixerConfig) -> None:
    """Raises ValueError if attention of ``mixer`` reaches further than that of the trunk's base can (see
    ``TrunkConfig.limit``). Full attention takes the base's own window, and is refused behind the limit of its RoPE when
    it gets there."""
    if trunk.limit is None or mixer.kind == "full":
        return
    (name, tokens), reach = trunk.limit, reach_of(mixer)
    if reach is None or reach > tokens:
        raise ValueError(
            f"kind = {mixer.kind!r}: attention reaches {'everything' if reach is None else f'{reach} tokens'}, that of "
            f"the trunk is known for trunk.{name} = {tokens} (fix: a smaller segment_length, or another arm)"
        )


def retrieving_layer(trunk: TrunkConfig, mixer: MixerConfig) -> int:
    """The 0-based layer of memorizing that retrieves: ``memory_layer``, or the one at 3/4 of the depth, rounded up.
    Raises ValueError if there is no such layer."""
    layer = -(-3 * trunk.layers // 4) - 1 if mixer.memory_layer is None else mixer.memory_layer
    if layer >= trunk.layers:
        raise ValueError(f"memory_layer = {layer}: allowed are layers 0 to {trunk.layers - 1}")
    return layer
