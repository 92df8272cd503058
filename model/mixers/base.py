"""What all mixers share: projections, the attention call, the state of a layer, the knock-outs.

Shapes: B batch, T tokens, S segments of N tokens, H query heads, K key/value heads, d head size, C model size. Keys,
values and queries keep the token axis before the head axis (``_BTHD``), as the projections deliver them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from model.config import MixerConfig, TrunkConfig
from model.ranks import Ranks
from model.rope import Rope


class Knockout(StrEnum):
    """What is done to the memory branch of a trained model (claim C1). Only infini has one.

    none. gate_closed: g = 0, the output is local attention alone. reset: the memory is emptied after each segment,
    so segment s reads what s - 1 wrote and nothing older. swap: reads see the memory of the neighbour in the batch.
    zero_read: A_mem = 0 at the trained g, so the local part stays scaled by 1 - g.
    """

    none = "none"
    gate_closed = "gate_closed"
    reset = "reset"
    swap = "swap"
    zero_read = "zero_read"


@dataclass(frozen=True)
class HeadKnockout:
    """A knock-out of query head ``head`` of layer ``layer`` (0-based) alone, of all of the layer's heads where it is
    None; all other heads read as trained.

    ``reset`` is not among them: it changes what is written, and a memory belongs to all query heads of its group.
    """

    kind: Knockout
    layer: int
    head: int | None

    def __post_init__(self) -> None:
        if self.kind not in (Knockout.gate_closed, Knockout.swap, Knockout.zero_read):
            raise ValueError(
                f"knockout = {str(self.kind)!r}: of one head, allowed are gate_closed, swap and zero_read "
                "(reset changes the memory itself, which heads share)"
            )


@dataclass(frozen=True)
class KeyValue:
    """Keys and values of n tokens, each [B, n, K, d]."""

    k: Tensor
    v: Tensor

    def __len__(self) -> int:
        return self.k.shape[1]

    def detach(self) -> KeyValue:
        return KeyValue(self.k.detach(), self.v.detach())

    def compact(self) -> KeyValue:
        return KeyValue(compact(self.k), compact(self.v))

    def last(self, n: int) -> KeyValue:
        start = max(len(self) - n, 0)
        return KeyValue(self.k[:, start:], self.v[:, start:])

    @property
    def elements(self) -> int:
        return self.k.numel() + self.v.numel()

    @property
    def bytes(self) -> int:
        return self.k.numel() * self.k.element_size() + self.v.numel() * self.v.element_size()


def compact(x: Tensor) -> Tensor:
    """``x``, copied if it is a view: a state of views would keep all that its chunk computed alive for as long as the
    state is held."""
    if not torch.compiler.is_compiling() and x.untyped_storage().nbytes() == x.nbytes:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def join(before: KeyValue | None, k: Tensor, v: Tensor) -> KeyValue:
    """The tokens of ``before`` followed by k, v [B, n, K, d]."""
    if before is None or len(before) == 0:
        return KeyValue(k, v)
    return KeyValue(torch.cat([before.k, k], dim=1), torch.cat([before.v, v], dim=1))


class Held(Protocol):
    """Tensors a layer holds of the past: a frozen dataclass, never modified in place."""

    def detach(self) -> Self: ...

    @property
    def elements(self) -> int: ...

    @property
    def bytes(self) -> int: ...


@dataclass(frozen=True)
class LayerState:
    """What one layer carries from one chunk of a document to the next. Never modified in place: a prefilled state can
    be continued many times.

    live: the unfinished segment, or the sliding window. cached: the previous segment (xl and what extends it), or the
    whole past (full). memory: what the arm is about (the compressive memory, the compressed queue, the store of
    retrieved keys, fast weights), None while it holds nothing. auxiliary: a scalar loss this call adds to training,
    with gradients for the mixer's own parameters only; not part of the state.
    """

    live: KeyValue | None = None
    cached: KeyValue | None = None
    memory: Held | None = None
    auxiliary: Tensor | None = None

    def detach(self) -> LayerState:
        return LayerState(
            live=self.live and self.live.detach(),
            cached=self.cached and self.cached.detach(),
            memory=self.memory and self.memory.detach(),
        )

    def elements(self) -> int:
        """Numbers held of the context, the live segment aside."""
        return sum(part.elements for part in (self.memory, self.cached) if part)

    def bytes(self) -> int:
        """The same in bytes."""
        return sum(part.bytes for part in (self.memory, self.cached) if part)


class Mixer(nn.Module, ABC):
    """The sequence-mixing half of a layer: [B, T, C] -> [B, T, C], causal. ``layer`` is its 0-based number."""

    def __init__(self, trunk: TrunkConfig, config: MixerConfig, layer: int = 0) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.d_head = trunk.heads, trunk.n_kv_heads, trunk.d_head
        self.config, self.segment_length = config, config.segment_length
        inner, shared = self.heads * self.d_head, self.kv_heads * self.d_head
        bias, o_bias = trunk.attention_bias != "none", trunk.attention_bias == "qkvo"
        self.q_proj = nn.Linear(trunk.dim, inner, bias=bias)
        self.k_proj = nn.Linear(trunk.dim, shared, bias=bias)
        self.v_proj = nn.Linear(trunk.dim, shared, bias=bias)
        self.o_proj = nn.Linear(inner, trunk.dim, bias=o_bias)
        self.q_norm: nn.RMSNorm | None = None
        self.k_norm: nn.RMSNorm | None = None
        if trunk.qk_norm != "none":
            sizes = (inner, shared) if trunk.qk_norm == "whole" else (self.d_head, self.d_head)
            self.q_norm, self.k_norm = (nn.RMSNorm(size, eps=trunk.norm_eps) for size in sizes)
        self.unrotated = Rope.none(self.d_head) if layer in trunk.nope_layers else None

    def forward(
        self,
        x: Tensor,
        state: LayerState | None,
        *,
        position: int,
        rope: Rope,
        knockout: Knockout | HeadKnockout = Knockout.none,
        keep_state: bool = True,
    ) -> tuple[Tensor, LayerState]:
        """Mix x [B, T, C], the tokens at ``position`` .. ``position + T - 1`` of their documents.

        state: what the call for the tokens before returned, None at the start of documents. With ``keep_state``
        false nothing follows: the returned state holds only the auxiliary loss, and the last segment's write is saved.
        """
        if knockout is not Knockout.none and not self.can_knock_out:
            kind = knockout.kind if isinstance(knockout, HeadKnockout) else knockout
            raise ValueError(
                f"knockout = {str(kind)!r}: mixer {self.config.kind!r} has no compressive memory to knock out "
                "(allowed: none; the other knock-outs need kind = infini)"
            )

        rope = self.unrotated or rope
        before = state or LayerState()
        of_all = Knockout.none if isinstance(knockout, HeadKnockout) else knockout
        y, after = self.mix(x, before, position=position, rope=rope, knockout=of_all, keep_state=keep_state)
        if isinstance(knockout, HeadKnockout) and knockout.layer == self.layer:
            # what is written does not depend on it, so the memory that follows is that of the whole layer
            knocked, _ = self.mix(x, before, position=position, rope=rope, knockout=knockout.kind, keep_state=False)
            if knockout.head is not None:
                only = torch.arange(self.heads, device=y.device) == knockout.head
                knocked = torch.where(only.unsqueeze(-1), knocked, y)
            y = knocked
        return self.o_proj(y.flatten(-2)), after if keep_state else LayerState(auxiliary=after.auxiliary)

    can_knock_out = False

    holds: type | None = None
    """Dataclass of tensors that ``LayerState.memory`` is of; None: the arm has none."""

    @abstractmethod
    def mix(
        self, x: Tensor, state: LayerState, *, position: int, rope: Rope, knockout: Knockout, keep_state: bool
    ) -> tuple[Tensor, LayerState]:
        """x [B, T, C] -> heads' outputs [B, T, H, d] and the state after them."""

    ranks: Ranks | None = None
    """Set by ``Decoder.split_sequences``: the tokens given are this rank's part of their sequences. An arm whose record
    says ``sequence_parallel`` then gets what it needs of the parts before by ``model.ranks``."""

    monitored = False  # has a memory whose health training watches

    def health(self, x: Tensor) -> dict[str, float]:
        """Numbers of ``Decoder.monitor`` on this layer's normed inputs x [B, T, C]."""
        return {}

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, T, H, d]; k and v [B, T, K, d]; without positions."""
        return self.queries(x), self.keys(x), self.values(x)

    def queries(self, x: Tensor) -> Tensor:
        """[B, T, H, d] of x [B, T, C], normed where the trunk does so."""
        return self._normed(self.q_proj(x), self.q_norm)

    def keys(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """[B, T, K, d] of x [B, T, C], normed where the trunk does so. frozen: by the weights as constants."""
        return self._normed(_called(self.k_proj, x, frozen=frozen), self.k_norm, frozen=frozen)

    def values(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """[B, T, K, d] of x [B, T, C]. frozen: by the weights as constants."""
        return self.heads_of(_called(self.v_proj, x, frozen=frozen))

    def _normed(self, y: Tensor, norm: nn.RMSNorm | None, *, frozen: bool = False) -> Tensor:
        """The heads of y [B, T, heads d], normed each by itself or, by a norm of that size, before they are parted."""
        if norm is None:
            return self.heads_of(y)
        whole = norm.normalized_shape[0] == y.shape[-1]
        exact = y.to(torch.promote_types(y.dtype, norm.weight.dtype))  # under autocast they differ
        normed = _called(norm, exact if whole else self.heads_of(exact), frozen=frozen).to(y.dtype)
        return self.heads_of(normed) if whole else normed

    def heads_of(self, x: Tensor) -> Tensor:
        return split_axis(x, -1, -1, self.d_head)


def _called(module: nn.Module, x: Tensor, *, frozen: bool) -> Tensor:
    """``module(x)``; ``frozen``: no gradient reaches its parameters."""
    if not frozen:
        return cast(Tensor, module(x))
    constants = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return cast(Tensor, functional_call(module, constants, (x,)))


def split_axis(x: Tensor, axis: int, *sizes: int) -> Tensor:
    """One axis into several of the given sizes (one may be -1)."""
    axis %= x.ndim
    return x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Softmax attention of q [..., n, H, d] over k, v [..., m, K, d] -> [..., n, H, d]; mask [n, m] is True to see.

    All leading axes are batch. Query head h reads key/value head h // (H / K), as in Llama.
    """
    batch = q.shape[:-3]
    q, k, v = (t.flatten(0, len(batch) - 1).transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
    return split_axis(y.transpose(1, 2), 0, *batch)


def lower_right(queries: int, keys: int, device: torch.device, *, window: int | None = None) -> Tensor:
    """Boolean mask [queries, keys], True to see: the last query is aligned with the last key; with ``window`` a query
    sees only that many tokens, itself included."""
    ahead = torch.arange(keys, device=device) - torch.arange(keys - queries, keys, device=device).unsqueeze(1)
    return ahead <= 0 if window is None else (ahead <= 0) & (ahead > -window)


@dataclass(frozen=True)
class Stretch:
    """A stretch of a chunk: ``length`` tokens from ``start``, ``whole`` if made of complete segments only."""

    start: int
    length: int
    whole: bool

    def of(self, x: Tensor) -> Tensor:
        """x[:, start : start + length]; x itself where that is all of it (a slice's gradient is a copy)."""
        return x if self.length == x.shape[1] else x.narrow(1, self.start, self.length)


def stretches(position: int, length: int, segment: int) -> list[Stretch]:
    """Cut a chunk at segment borders: the rest of an open segment, all whole ones as one, and a new open one.

    Never more than three, however long the chunk: the whole segments are processed together.
    """
    head = min(-position % segment, length)
    body = (length - head) // segment * segment
    cuts = [Stretch(0, head, False), Stretch(head, body, True), Stretch(head + body, length - head - body, False)]
    return [stretch for stretch in cuts if stretch.length]
