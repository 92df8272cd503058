"""A decoder of this study behind transformers' interface.

``model.export`` copies this file, and with it every file of ``model/`` that it needs, into the exported folder, so
that ``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` works where only torch, safetensors and
transformers are installed. Nothing in this package imports it.

What transformers carries from call to call as ``past_key_values`` is a ``StudyCache`` around the decoder's state. Its
rows can be reordered, so beams can be searched; it cannot be cropped, so assisted generation is refused.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from model.config import ModelConfig
from model.decoder import Decoder, DecoderState
from model.generate import PREFILL_TOKENS
from model.kinds import register  # noqa: F401  makes the arms known
from model.mixers.stream import Stream


class InfiniStudyConfig(PretrainedConfig):
    """config.json: Llama's fields, for tools that read them, and the model's own configuration in ``infini_study``."""

    model_type = "infini_study"
    keys_to_ignore_at_inference = ("past_key_values",)


@dataclass(frozen=True)
class Rows:
    """Rows of a batch that begin with equally many pads, and what was read of them so far (None: nothing).

    pads: columns at the left of the next input that are not for these rows.
    """

    rows: Tensor
    pads: int
    state: DecoderState | None = None


class StudyCache:
    """What the model carries of the tokens read so far: ``past_key_values`` to transformers.

    parts: disjoint groups of rows that together are the batch. Rows differ in length where prompts were padded on the
    left: pads are cut off, they never enter a memory.
    """

    is_compileable = False

    def __init__(self, parts: tuple[Rows, ...] = (), length: int = 0) -> None:
        self.parts, self.length = parts, length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read, pads of the longest row's batch included."""
        return self.length

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """-1: any number of tokens."""
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Each row goes on as row ``beam_idx`` [B] was. Raises ValueError if the two have not equally many pads."""
        parts = []
        for part in self.parts:
            place = torch.full_like(beam_idx, -1, dtype=torch.long)
            place[part.rows] = torch.arange(len(part.rows), device=place.device)
            wanted = place[beam_idx[part.rows]]
            if bool((wanted < 0).any()):
                raise ValueError("reorder_cache: rows with different numbers of pads (allowed: beams of one prompt)")
            parts.append(dataclasses.replace(part, state=part.state and part.state.rows(wanted)))
        self.parts = tuple(parts)

    def crop(self, max_length: int) -> None:
        raise NotImplementedError("a memory cannot forget its last tokens (allowed: greedy, sampling, beams)")


class InfiniStudyForCausalLM(PreTrainedModel, GenerationMixin):
    """Any arm of the study."""

    config_class = InfiniStudyConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  # where the config ties them
    supports_gradient_checkpointing = True
    _is_stateful = True
    _no_split_modules = ("Layer",)
    _supports_sdpa = True
    _supports_flash_attn = False

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        own = ModelConfig.from_dict(config.infini_study)
        # what the constructors compute must be real, though transformers builds models on the "meta" device
        with torch.device("cpu"):
            self.model = Backbone(own)
        self.lm_head = self.model.lm_head  # where Llama has it
        if self.lm_head is None:
            self.lm_head = nn.Linear(own.trunk.dim, own.vocab_size, bias=False, device="meta")
            self.lm_head.weight = self.model.embed_tokens.weight
        self.model.lm_head = None
        self.post_init()
        # the gates, whatever dtype the model is loaded in; transformers takes these for patterns
        self._keep_in_fp32_modules_strict = {rf"\b{name}$" for name in getattr(config, "keep_in_float32", ())}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the cache is made in forward

    def _prepare_cache_for_generation(self, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
        wanted = generation_config.cache_implementation
        if wanted not in (None, "dynamic"):
            raise ValueError(f"cache_implementation = {wanted!r}: the state is the model's own (allowed: None)")
        generation_config.cache_implementation = None
        return super()._prepare_cache_for_generation(generation_config, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the decoder draws its weights when it is made."""

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """transformers' own, and the new size in the model's own configuration too, so that it is saved with it."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        size = self.get_input_embeddings().weight.shape[0]
        self.model.config = dataclasses.replace(self.model.config, vocab_size=size)
        self.config.infini_study = self.model.config.to_dict()
        return embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: StudyCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Tensor, ...]:
        """Logits [B, T, V] of input_ids [B, T], or of inputs_embeds [B, T, C] in their place, which follow
        ``past_key_values`` (None: they start their documents).

        attention_mask [B, T]: 0 at pads, which may stand left of the text, or right of it where nothing follows: then
        no cache is returned. Logits at left pads are 0. logits_to_keep: only the last so many (0: all).
        labels [B, T]: adds the loss of predicting each label that is not -100 from the tokens before it: the mean, or
        the sum over ``num_items_in_batch``; in training the arm's auxiliary loss with it. output_hidden_states: adds
        the embeddings, each layer's outputs [B, T, C] and, as the last, the normed ones that logits are made of.
        """
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if labels is not None and logits_to_keep and inputs is not None and logits_to_keep < inputs.shape[1]:
            raise ValueError(f"logits_to_keep = {logits_to_keep}: labels need all logits (allowed: 0)")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden, cache, every, auxiliary = self.model.read(
            input_ids,
            attention_mask,
            past_key_values,
            inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=bool(output_hidden_states),
            kept=logits_to_keep,
            **others,
        )
        logits = F.linear(hidden, self.lm_head.weight)
        loss = None
        if labels is not None:
            scale = {name: others[name] for name in ("num_items_in_batch", "shift_labels") if name in others}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **scale)
            loss = torch.stack([loss, *auxiliary]).sum() if auxiliary else loss
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache, hidden_states=every or None)
        return output if return_dict is not False else output.to_tuple()


class Backbone(Decoder):
    """What stands below the head, for programs that call it by itself (``base_model``; TRL projects and scores by its
    own means)."""

    gradient_checkpointing = False  # transformers sets it

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: StudyCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:
        """Normed outputs [B, T, C] of the last layer, 0 at left pads; otherwise as the model with its head."""
        hidden, cache, every, _ = self.read(
            input_ids,
            attention_mask,
            past_key_values,
            inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=bool(output_hidden_states),
            **others,
        )
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache, hidden_states=every or None)

    def read(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        past_key_values: StudyCache | None,
        inputs_embeds: Tensor | None,
        *,
        use_cache: bool | None,
        output_hidden_states: bool,
        kept: int = 0,
        **others: Any,
    ) -> tuple[Tensor, StudyCache | None, tuple[Tensor, ...], list[Tensor]]:
        """Outputs [B, T, C] (of ``kept`` tokens at the end; 0: of all), the cache after them, with
        ``output_hidden_states`` what goes through the layers, and auxiliary losses."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids, inputs_embeds: needs exactly one of them")
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        assert inputs is not None
        length = inputs.shape[1]
        kept = min(kept or length, length)
        if past_key_values is not None and not isinstance(past_key_values, StudyCache):
            raise ValueError(
                f"past_key_values = {type(past_key_values).__name__}: the state is the model's own (allowed: None, or "
                "what an earlier call returned)"
            )
        if output_hidden_states and type(self.stream) is not Stream:
            kind = self.config.mixer.kind
            raise ValueError(f"output_hidden_states: {kind!r} has other vectors among the text's (allowed: False)")
        if others.get("output_attentions"):
            raise ValueError("output_attentions: the weights are never made (allowed: False)")
        if attention_mask is None:
            _one_document_a_row(others.get("position_ids"))
        before = past_key_values or StudyCache()
        parts, open_end = before.parts, True
        if not parts:
            parts, open_end = _start(attention_mask, inputs)
        if use_cache and not open_end:
            raise ValueError("attention_mask: pads at the right cannot be continued (allowed: padding_side = 'left')")
        self.activation_checkpointing = self.gradient_checkpointing and self.training
        outputs, every, after, auxiliary = [], [], [], []
        for part in parts:
            with _Recorder(self, on=output_hidden_states) as recorder:
                hidden, state, extra = self._read(inputs[part.rows, part.pads :], part.state, kept)
            outputs.append(F.pad(hidden, (0, 0, kept - hidden.shape[1], 0)))
            every.append([F.pad(x, (0, 0, part.pads, 0)) for x in recorder.outputs()])
            after.append(Rows(part.rows, 0, state))
            auxiliary += [loss * (len(part.rows) / len(inputs)) for loss in extra]
        order = torch.cat([part.rows for part in parts]).argsort()
        wanted = not self.training if use_cache is None else use_cache
        cache = StudyCache(tuple(after), before.length + length) if open_end and wanted else None
        layers = tuple(torch.cat(layer)[order] for layer in zip(*every, strict=True))
        return torch.cat(outputs)[order], cache, layers, auxiliary

    def _read(self, inputs: Tensor, state: DecoderState | None, kept: int) -> tuple[Tensor, DecoderState, list[Tensor]]:
        """Outputs at the last ``kept`` of tokens [B, T] or vectors [B, T, C] (all, if there are fewer), the state after
        them, and auxiliary losses; read in passes of bounded size unless gradients are wanted."""
        segment = self.config.mixer.segment_length
        chunk = max(1, PREFILL_TOKENS // inputs.shape[0] // segment) * segment
        pieces = (inputs,) if torch.is_grad_enabled() else torch.split(inputs, chunk, 1)
        outputs: list[Tensor] = []
        ahead = inputs.shape[1]  # tokens from this piece's first to the last
        for piece in pieces:
            y, state = self.hidden(piece, state)
            ahead -= piece.shape[1]
            if kept > ahead:
                outputs.append(y[:, -(kept - ahead) :])
        assert state is not None
        auxiliary = [layer.auxiliary for layer in state.layers if layer.auxiliary is not None]
        return torch.cat(outputs, dim=1), state, auxiliary


class _Recorder:
    """While it is entered, what goes into the first layer and comes out of each, the last's normed: all of it, piece
    after piece."""

    def __init__(self, decoder: Decoder, *, on: bool) -> None:
        self.decoder, self.on = decoder, on
        self.seen: list[list[Tensor]] = [[] for _ in range(len(decoder.layers) + 1)]
        self.hooks: list[Any] = []

    def __enter__(self) -> _Recorder:
        if self.on:
            for number, layer in enumerate(self.decoder.layers):
                self.hooks.append(layer.register_forward_pre_hook(self._keep(number, lambda args: args[0])))
            self.hooks.append(self.decoder.norm.register_forward_hook(self._keep(-1, lambda output: output)))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def outputs(self) -> list[Tensor]:
        """[B, T, C] each."""
        return [torch.cat(pieces, dim=1) for pieces in self.seen if pieces]

    def _keep(self, number: int, taken: Any) -> Any:
        def hook(module: nn.Module, *values: Any) -> None:
            self.seen[number].append(taken(values[-1]))

        return hook


def _one_document_a_row(positions: Tensor | None) -> None:
    """Raises ValueError for positions that start again within a row: documents packed into one."""
    if positions is not None and bool((positions.diff(dim=-1) < 0).any()):
        raise ValueError("position_ids: several documents in one row (allowed: one a row, so packing = False)")


def _start(mask: Tensor | None, inputs: Tensor) -> tuple[tuple[Rows, ...], bool]:
    """Rows grouped by the pads at their left, and whether all of them end in text. Raises ValueError for pads within
    the text."""
    batch, length = inputs.shape[:2]
    everyone = torch.arange(batch, device=inputs.device)
    if mask is not None and mask.ndim != 2:
        raise ValueError(f"attention_mask of shape {list(mask.shape)} (allowed: [batch, tokens])")
    if mask is None or bool(mask.all()):
        return (Rows(everyone, 0),), True
    real = mask[:, -length:].bool()
    if not bool(real.any(dim=1).all()):
        raise ValueError("attention_mask: a row of pads alone (allowed: one token of text or more)")
    first = real.long().argmax(dim=1)
    if bool((real.sum(dim=1) < length - first - real.flip(1).long().argmax(dim=1)).any()):
        raise ValueError("attention_mask: pads within the text (allowed: at its left; at its right to score only)")
    return tuple(Rows((first == n).nonzero().flatten(), n) for n in first.unique().tolist()), bool(real[:, -1].all())
