"""A Llama-style decoder whose attention is any of the mixers.

    x = embed(tokens);  x += mixer(norm(x));  x += swiglu(norm(x));  logits = head(norm(x))

or with the inner norms after mixer and swiglu instead.

What is unusual: the whole context is an explicit value (``DecoderState``), so one pass over a document, any chunking
of it, and token-by-token decoding give the same numbers; and the vocabulary projection of long sequences is chunked,
so that its memory does not grow with T. Parameter names are Hugging Face Llama's without the ``model.`` prefix.

Shapes: B batch, T tokens, C model size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.arms import arm_of, reach_of, why_whole
from model.config import ModelConfig, TrunkConfig
from model.mixers import HeadKnockout, Knockout, LayerState, Mixer, build, build_stream
from model.mixers.stream import Layers
from model.ranks import Ranks
from model.rope import Rope

__all__ = ["Decoder", "DecoderState", "HeadKnockout", "Knockout"]

AnyKnockout = Knockout | HeadKnockout | str | None
"""Of every head (None and "none": of none), or of one head alone."""
LOGITS_AT_ONCE = 2**25
"""Logits held at a time by nll and loss (128 MiB in float32); more than that is projected chunk by chunk."""


@dataclass(frozen=True)
class DecoderState:
    """All a model carries of the tokens read so far. Never modified in place: one prefill can be continued many times.

    position: tokens read, the same for every document of the batch. carried [B, m, C]: vectors that pass from segment
    to segment beside the layers' states (rmt), None for other arms.
    """

    layers: Layers
    position: int
    carried: Tensor | None = None

    def detach(self) -> DecoderState:
        """Cut from the graph: for streaming without gradients into the past."""
        carried = None if self.carried is None else self.carried.detach()
        return DecoderState(tuple(layer.detach() for layer in self.layers), self.position, carried)

    def rows(self, rows: Tensor) -> DecoderState:
        """The state of documents ``rows`` (whole numbers, any of them any number of times) of the batch: after it the
        documents go on as copies, as beam search wants."""
        return cast(DecoderState, _rows(self, rows))

    def elements(self) -> int:
        """Numbers held of the context, over the batch: memories, caches, carried vectors. The live segment is not in
        it: see ``live_kv_elements``."""
        return sum(layer.elements() for layer in self.layers) + (0 if self.carried is None else self.carried.numel())

    def bytes(self) -> int:
        """The same in bytes."""
        carried = 0 if self.carried is None else self.carried.numel() * self.carried.element_size()
        return sum(layer.bytes() for layer in self.layers) + carried

    def live_kv_elements(self) -> int:
        """Numbers held of the unfinished segment (or sliding window): what segment-wise attention needs anyway."""
        return sum(layer.live.elements for layer in self.layers if layer.live)

    def live_kv_bytes(self) -> int:
        """The same in bytes."""
        return sum(layer.live.bytes for layer in self.layers if layer.live)


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, trunk: TrunkConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(trunk.dim, trunk.d_ffn, bias=False)
        self.up_proj = nn.Linear(trunk.dim, trunk.d_ffn, bias=False)
        self.down_proj = nn.Linear(trunk.d_ffn, trunk.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class Layer(nn.Module):
    """Residual block with Hugging Face's names. Its norms are before attention and feed-forward (Llama), or after them
    (OLMo 2, whose ``post_attention_layernorm`` is what its name says)."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        trunk = config.trunk
        self.norms_after = trunk.norm_position == "after"
        if not self.norms_after:
            self.input_layernorm = nn.RMSNorm(trunk.dim, eps=trunk.norm_eps)
        self.self_attn = build(trunk, config.mixer, number)
        self.post_attention_layernorm = nn.RMSNorm(trunk.dim, eps=trunk.norm_eps)
        self.mlp = SwiGLU(trunk)
        if self.norms_after:
            self.post_feedforward_layernorm = nn.RMSNorm(trunk.dim, eps=trunk.norm_eps)

    def mixer_input(self, x: Tensor) -> Tensor:
        """What the mixer is given of x [B, T, C]."""
        return x if self.norms_after else cast(Tensor, self.input_layernorm(x))

    def forward(self, x: Tensor, state: LayerState | None, options: dict[str, Any]) -> tuple[Tensor, LayerState]:
        y, state = self.self_attn(self.mixer_input(x), state, **options)
        if self.norms_after:
            x = x + self.post_attention_layernorm(y)
            return x + self.post_feedforward_layernorm(self.mlp(x)), state
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), state


class Decoder(nn.Module):
    """A language model of ``config``; ``seed`` fixes its initial weights (None: torch's global generator)."""

    def __init__(self, config: ModelConfig, *, seed: int | None = None) -> None:
        super().__init__()
        trunk = config.trunk
        self.config = config
        self.activation_checkpointing = False
        """Recompute activations in the backward pass instead of keeping them: of a layer at a time, with
        ``chunk_tokens`` of all layers of a chunk at a time."""
        self.chunk_tokens: int | None = None
        """nll, training_nll and loss read longer sequences in pieces of so many tokens, best a multiple of the segment
        length; None: in one. The result is that of one pass, and so are gradients through the states of infini, rmt,
        linear, deltanet, local, window and full attention; what xl, compressive and memorizing carry from chunk to
        chunk is detached. With activation checkpointing the memory of training then does not grow with T, a few states
        aside."""
        self.ranks: Ranks | None = None
        self.embed_tokens = nn.Embedding(config.vocab_size, trunk.dim)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(trunk.layers))
        self.stream = build_stream(config)
        self.norm = nn.RMSNorm(trunk.dim, eps=trunk.norm_eps)
        self.lm_head = None if trunk.tie_embeddings else nn.Linear(trunk.dim, config.vocab_size, bias=False)
        self.rope = Rope(trunk.d_head, trunk.rope_theta, trunk.rope_scaling)
        self.initialise(None if seed is None else torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights: std fan_in^-1/2 (0.02 at width 2,500, and alive at width 64), residual outputs divided by
        sqrt(2 layers), norms 1, biases 0, gates ``gate_init``."""
        as_built = arm_of(self.config.mixer.kind).as_built
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2 or name.endswith(as_built):
                if name.endswith("_proj.bias"):
                    nn.init.zeros_(parameter)
                continue
            std = parameter.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * len(self.layers))
            nn.init.normal_(parameter, std=std, generator=generator)

    def forward(
        self, tokens: Tensor, state: DecoderState | None = None, knockout: AnyKnockout = None
    ) -> tuple[Tensor, DecoderState]:
        """Logits [B, T, V] for tokens [B, T] that follow ``state`` (None: they start their documents), and the state
        after them."""
        hidden, state = self.hidden(tokens, state, knockout)
        return self.project(hidden), state

    def hidden(
        self, tokens: Tensor, state: DecoderState | None = None, knockout: AnyKnockout = None
    ) -> tuple[Tensor, DecoderState]:
        """Normed last-layer outputs [B, T, C] (``project`` makes logits of them) and the state after tokens [B, T], or
        after vectors [B, T, C] that stand for embedded tokens."""
        self._check_whole()
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        return self._run(tokens, state, knockout, keep_state=True, recompute_layers=recompute)

    def project(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of ``hidden`` [..., C]."""
        return F.linear(hidden, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def nll(
        self,
        tokens: Tensor,
        state: DecoderState | None = None,
        knockout: AnyKnockout = None,
        chunk_tokens: int | None = None,
        told: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Negative log-likelihood in nats of tokens[:, 1:] given what precedes each: [B, T - 1], float32. The last
        token, which has nothing to predict, is not read. chunk_tokens: of this call (None: those of the decoder).
        told: called with the tokens of the batch just read, chunk by chunk."""
        read = tokens[:, : max(1, tokens.shape[1] - 1)]
        size = chunk_tokens or self.chunk_tokens
        return self._in_chunks(read, tokens[:, 1:], size, state, knockout, told=told)[0]

    def training_nll(
        self, tokens: Tensor, wanted: Tensor | None = None, *, z_loss: float = 0.0
    ) -> tuple[Tensor, Tensor | None]:
        """``nll`` of whole documents, and the sum of the auxiliary losses, averaged over batch and tokens, None where
        there are none: the layers' (compressive: reconstruction of the attention), and ``z_loss`` times log(Z)^2 of the
        targets' logits (arXiv:2204.02311). wanted: bool [B, T] marks the targets asked for (None: all); the nll of
        others is 0, and their logits, most of a small model's work, are not made."""
        if self.ranks is not None:
            return self._own_part(self.ranks, tokens, wanted, z_loss)
        return self._in_chunks(tokens, tokens[:, 1:], self.chunk_tokens, wanted=wanted, z_loss=z_loss)[:2]

    def carried_nll(
        self, tokens: Tensor, state: DecoderState | None, wanted: Tensor | None = None, *, z_loss: float = 0.0
    ) -> tuple[Tensor, Tensor | None, DecoderState]:
        """``training_nll`` of tokens [B, T], whole segments, that follow ``state`` in their documents (None: they start
        them), and the state after all of them, cut from the graph."""
        chunk, targets = self.chunk_tokens, tokens[:, 1:]
        nll, auxiliary, after = self._in_chunks(
            tokens, targets, chunk, state, wanted=wanted, z_loss=z_loss, keep_state=True
        )
        return nll, auxiliary, after.detach()

    def split_sequences(self, ranks: Ranks | None) -> None:
        """Have ``training_nll`` read this rank's part of the sequences alone, and get from the ranks before what its
        layers need of their parts (None: whole sequences again). Each rank is given the whole sequences, as many whole
        segments for each rank; targets of other ranks' parts have nll 0, so sums over ranks, of losses and of
        gradients, are those of one rank. Nothing else can be asked meanwhile.

        Raises ValueError for an arm that cannot be split.
        """
        reason = why_whole(self.config.mixer)
        if ranks is not None and reason:
            raise ValueError(reason)
        self.ranks = ranks
        for mixer in self.mixers():
            mixer.ranks = ranks

    def _check_whole(self) -> None:
        if self.ranks is not None:
            raise ValueError("sequences are split over ranks: training_nll alone reads them (see split_sequences)")

    def _own_part(
        self, ranks: Ranks, tokens: Tensor, wanted: Tensor | None, z_loss: float
    ) -> tuple[Tensor, Tensor | None]:
        length, mixer = tokens.shape[1], self.config.mixer
        if self.chunk_tokens is not None:
            raise ValueError(
                f"chunk_tokens = {self.chunk_tokens}: a chunk would wait for all of the rank before (allowed with "
                "split sequences: None; activation_checkpointing bounds the memory)"
            )
        part = ranks.part(length, mixer.segment_length if reach_of(mixer) else 1)
        targets = slice(part.start + 1, part.stop + 1)
        nll, extra, _ = self._chunk(
            tokens[:, part],
            tokens[:, targets],
            None if wanted is None else wanted[:, targets],
            DecoderState((), part.start),
            None,
            True,
            z_loss,
            recompute_layers=self.activation_checkpointing and torch.is_grad_enabled(),
        )
        auxiliary = torch.stack(extra).sum() * ((part.stop - part.start) / length) if extra else None
        return F.pad(nll, (part.start, length - 1 - part.start - nll.shape[1])), auxiliary

    def _in_chunks(
        self,
        tokens: Tensor,
        targets: Tensor,
        chunk_tokens: int | None,
        state: DecoderState | None = None,
        knockout: AnyKnockout = None,
        wanted: Tensor | None = None,
        z_loss: float = 0.0,
        told: Callable[[int], None] | None = None,
        keep_state: bool = False,
    ) -> tuple[Tensor, Tensor | None, DecoderState]:
        """nll, the sum of auxiliary losses (None: none), and with ``keep_state`` the state after the last token."""
        self._check_whole()
        length = tokens.shape[1]
        size = min(chunk_tokens or length, length)
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        pieces, auxiliary = [], []
        for start in range(0, length if keep_state else max(targets.shape[1], 1), size):
            stop = min(start + size, length)
            marked = None if wanted is None else wanted[:, start + 1 : stop + 1]
            more = keep_state or stop < length
            work = tokens[:, start:stop], targets[:, start:stop], marked, state, knockout, more, z_loss
            if recompute and size < length:  # the whole chunk at once: what is kept of it is its state
                nll, extra, state = checkpoint(self._chunk, *work, use_reentrant=False, preserve_rng_state=False)
            else:
                nll, extra, state = self._chunk(*work, recompute_layers=recompute)
            pieces.append(nll)
            if told is not None:
                told(tokens.shape[0] * (stop - start))
            auxiliary += [part * ((stop - start) / length) for part in extra]
        assert state is not None
        return torch.cat(pieces, dim=1), torch.stack(auxiliary).sum() if auxiliary else None, state

    def _chunk(
        self,
        tokens: Tensor,
        targets: Tensor,
        wanted: Tensor | None,
        state: DecoderState | None,
        knockout: AnyKnockout,
        keep_state: bool,
        z_loss: float = 0.0,
        *,
        recompute_layers: bool = False,
    ) -> tuple[Tensor, list[Tensor], DecoderState]:
        """nll of ``targets`` (one fewer than tokens where the document ends), auxiliary losses, state after."""
        hidden, state = self._run(tokens, state, knockout, keep_state=keep_state, recompute_layers=recompute_layers)
        extra = [layer.auxiliary for layer in state.layers if layer.auxiliary is not None]
        hidden = hidden[:, : targets.shape[1]]
        if wanted is None:
            nll, *squares = self._of_targets(hidden, targets, z_loss > 0)
        else:
            few, *squares = self._of_targets(hidden[wanted][None], targets[wanted][None], z_loss > 0)
            nll = few.new_zeros(targets.shape).masked_scatter(wanted, few)
        extra += [z_loss * part.sum() / tokens.numel() for part in squares]
        return nll, extra, state

    def token_nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """-log p(targets [B, n]) of ``hidden`` [B, n, C]: [B, n] float32, without ever holding all logits."""
        return self._of_targets(hidden, targets, squares=False)[0]

    def _of_targets(self, hidden: Tensor, targets: Tensor, squares: bool) -> Tensor:
        """``token_nll``, and with ``squares`` log(Z)^2 of the same logits: [1 or 2, B, n]."""
        rows = max(1, LOGITS_AT_ONCE // (self.config.vocab_size * targets.shape[0]))
        if targets.shape[1] <= rows:
            return _cross_entropy(hidden, self.head_weight, targets, squares)
        pieces = []
        for h, t in zip(torch.split(hidden, rows, 1), torch.split(targets, rows, 1), strict=True):
            work = h, self.head_weight, t, squares
            if torch.is_grad_enabled():  # the logits of a chunk are made again in its backward, not kept
                pieces.append(checkpoint(_cross_entropy, *work, use_reentrant=False, preserve_rng_state=False))
            else:
                pieces.append(_cross_entropy(*work))
        return torch.cat(pieces, dim=2)

    def loss(self, tokens: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """Mean nll of the targets whose ``loss_mask`` [B, T] is set (None: all), plus auxiliary losses; the mask is
        read at the target's own position. Nothing set: 0, with zero gradients."""
        nll, auxiliary = self.training_nll(tokens)
        if loss_mask is None:
            loss = nll.mean()
        else:
            mask = loss_mask[:, 1:].to(nll.dtype)
            loss = (nll * mask).sum() / mask.sum().clamp(min=1)
        return loss if auxiliary is None else loss + auxiliary

    def _run(
        self,
        tokens: Tensor,
        state: DecoderState | None,
        knockout: AnyKnockout,
        *,
        keep_state: bool,
        recompute_layers: bool = False,
    ) -> tuple[Tensor, DecoderState]:
        knocked_out = knockout if isinstance(knockout, HeadKnockout) else Knockout(knockout or "none")
        if isinstance(knocked_out, HeadKnockout):
            layers, heads = len(self.layers), self.config.trunk.heads
            if not (0 <= knocked_out.layer < layers and 0 <= (knocked_out.head or 0) < heads):
                raise ValueError(
                    f"knockout of layer {knocked_out.layer}, head {knocked_out.head}: allowed are layers 0 to "
                    f"{layers - 1}, heads 0 to {heads - 1}"
                )

        def trunk(x: Tensor, layers: Layers | None, position: int, *, keep_state: bool) -> tuple[Tensor, Layers]:
            options = {"position": position, "rope": self.rope, "knockout": knocked_out, "keep_state": keep_state}
            after = []
            for number, layer in enumerate(self.layers):
                before = layers[number] if layers else None
                if recompute_layers:
                    x, new = checkpoint(layer, x, before, options, use_reentrant=False, preserve_rng_state=False)
                else:
                    x, new = layer(x, before, options)
                after.append(new)
            return self.norm(x), tuple(after)

        before = state or DecoderState((), 0)
        x, layers, carried = self.stream(
            tokens if tokens.is_floating_point() else self.embed_tokens(tokens),
            before.layers or None,
            before.carried,
            before.position,
            trunk,
            keep_state=keep_state,
        )
        return x, DecoderState(layers, before.position + tokens.shape[1], carried)

    def mixers(self) -> list[Mixer]:
        """The layers' mixers, first layer first."""
        return [cast(Layer, layer).self_attn for layer in self.layers]

    def gate_parameters(self) -> list[nn.Parameter]:
        """Every beta, one tensor [heads, ...] a gated layer: no weight decay, and a learning rate that lets it move by
        4 within the run. Empty for arms without a gate."""
        return [p for mixer in self.mixers() if isinstance(p := getattr(mixer, "beta", None), nn.Parameter)]

    def gates(self) -> Tensor | None:
        """g = sigmoid(beta) [gated layers, heads], the mean over what else the gate depends on; float32 on the CPU.
        None for arms without a gate."""
        betas = self.gate_parameters()
        if not betas:
            return None
        gates = [torch.sigmoid(beta.detach().float()) for beta in betas]
        return torch.stack([g.reshape(len(g), -1).mean(-1).cpu() for g in gates])

    @torch.no_grad()
    def health(self, tokens: Tensor) -> list[tuple[dict[str, float], float]]:
        """Of each layer on tokens [B, T] what its mixer says of its memory (see ``monitor``; {} without one), and the
        largest Euclidean norm of an output [C]."""
        self._check_whole()
        found = []
        x = self.embed_tokens(tokens)
        options = {"position": 0, "rope": self.rope, "keep_state": False}
        for module in self.layers:
            layer = cast(Layer, module)
            numbers = layer.self_attn.health(layer.mixer_input(x)) if layer.self_attn.monitored else {}
            x, _ = layer(x, None, options)
            found.append((numbers, x.norm(dim=-1).max().item()))
        return found

    @torch.no_grad()
    def monitor(self, tokens: Tensor) -> dict[str, float]:
        """Health of the memory on tokens [B, T]; {} for arms without gate or memory to watch.

        gate_mean, gate_min, gate_max: over layers, heads, channels and, where gates depend on them, tokens;
        memory_norm: largest Frobenius norm of any M_s; z_min: smallest sigma(q) z any query divides by;
        erase_lambda_max: largest eigenvalue of Phi^T D^-1 Phi over the first batch row's
        segments (the delta rule amplifies what it holds where this exceeds 2). The last three need a second segment
        and are left out without one.
        """
        numbers = {}
        betas = self.gate_parameters()
        if betas:
            gates = torch.cat([torch.sigmoid(beta.detach().float()).flatten() for beta in betas])
            numbers = {
                "gate_mean": gates.mean().item(),
                "gate_min": gates.min().item(),
                "gate_max": gates.max().item(),
            }
        if not any(mixer.monitored for mixer in self.mixers()):
            return numbers
        seen: dict[str, list[float]] = {}
        for of_layer, _ in self.health(tokens):
            for name, value in of_layer.items():
                seen.setdefault(name, []).append(value)
        for name, values in seen.items():
            worst = min if name.endswith("_min") else max
            numbers[name] = statistics.fmean(values) if name.endswith("_mean") else worst(values)
        return numbers


def _rows(value: Any, rows: Tensor) -> Any:
    """``rows`` of the tensors [B, ...] that a state is made of."""
    if isinstance(value, Tensor):
        return value.index_select(0, rows.to(value.device)) if value.ndim else None  # None: of an auxiliary loss
    if isinstance(value, tuple):
        return tuple(_rows(part, rows) for part in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    return type(value)(**{field.name: _rows(getattr(value, field.name), rows) for field in dataclasses.fields(value)})


def _cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, squares: bool) -> Tensor:
    logits = F.linear(hidden, weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten().long(), reduction="none").view_as(targets)
    return torch.stack([nll, logits.logsumexp(-1).square()]) if squares else nll.unsqueeze(0)
