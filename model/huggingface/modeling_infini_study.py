"""A decoder of this study behind transformers' interface.

``model.export`` copies this file, and with it every file of ``model/`` that it needs, into the exported folder, so
that ``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` works where only torch, safetensors and
transformers are installed. Nothing in this package imports it.

What transformers carries from call to call as ``past_key_values`` is a ``StudyCache`` around the decoder's state. It
cannot be cropped or reordered, so assisted generation and beam search are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from model.config import ModelConfig
from model.decoder import Decoder, DecoderState
from model.generate import PREFILL_TOKENS

IGNORED = -100
"""Label of a token that is not scored."""


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
        raise NotImplementedError("beam search needs a state that can be reordered (allowed: greedy, sampling)")

    def crop(self, max_length: int) -> None:
        raise NotImplementedError("a memory cannot forget its last tokens (allowed: greedy, sampling)")


class InfiniStudyForCausalLM(PreTrainedModel, GenerationMixin):
    """Any arm of the study."""

    config_class = InfiniStudyConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False
    _is_stateful = True
    _no_split_modules = ("Layer",)
    _supports_sdpa = True
    _supports_flash_attn = False

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        own = ModelConfig.from_dict(config.infini_study)
        # what the constructors compute must be real, though transformers builds models on the "meta" device
        with torch.device("cpu"):
            self.model = Decoder(own)
        self.lm_head = self.model.lm_head  # where Llama has it; None where it is tied
        self.model.lm_head = None
        self.post_init()
        # the gates, whatever dtype the model is loaded in; transformers takes these for patterns
        self._keep_in_fp32_modules_strict = {rf"\b{name}$" for name in getattr(config, "keep_in_float32", ())}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the cache is made in forward

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the decoder draws its weights when it is made."""

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module | None:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: StudyCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> CausalLMOutputWithPast | tuple[Tensor, ...]:
        """Logits [B, T, V] of input_ids [B, T], which follow ``past_key_values`` (None: they start their documents).

        attention_mask [B, T]: 0 at pads, which may stand left of the text, or right of it where nothing follows: then
        no cache is returned. Logits at left pads are 0. logits_to_keep: only the last so many (0: all).
        labels [B, T]: adds the mean loss of predicting each label that is not -100 from the tokens before it.
        """
        if unused.get("inputs_embeds") is not None:
            raise ValueError("inputs_embeds: this model reads tokens (allowed: input_ids)")
        length = input_ids.shape[1]
        kept = min(logits_to_keep or length, length)
        if labels is not None and kept < length:
            raise ValueError(f"logits_to_keep = {logits_to_keep}: labels need all logits (allowed: 0)")
        before = past_key_values or StudyCache()
        parts, open_end = before.parts, True
        if not parts:
            parts, open_end = _start(attention_mask, input_ids)
        if use_cache and not open_end:
            raise ValueError("attention_mask: pads at the right cannot be continued (allowed: padding_side = 'left')")
        outputs, after = [], []
        for part in parts:
            hidden, state = self._read(input_ids[part.rows, part.pads :], part.state, kept)
            outputs.append(F.pad(hidden, (0, 0, kept - hidden.shape[1], 0)))
            after.append(Rows(part.rows, 0, state))
        order = torch.cat([part.rows for part in parts]).argsort()
        weight = self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        logits = F.linear(torch.cat(outputs)[order], weight)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)
        cache = StudyCache(tuple(after), before.length + length) if open_end and use_cache is not False else None
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)
        return output if return_dict is not False else output.to_tuple()

    def _read(self, tokens: Tensor, state: DecoderState | None, kept: int) -> tuple[Tensor, DecoderState]:
        """Outputs at the last ``kept`` of tokens [B, T] (all, if there are fewer) and the state after them; read in
        passes of bounded size unless gradients are wanted."""
        segment = self.model.config.mixer.segment_length
        chunk = max(1, PREFILL_TOKENS // tokens.shape[0] // segment) * segment
        pieces = (tokens,) if torch.is_grad_enabled() else torch.split(tokens, chunk, 1)
        outputs: list[Tensor] = []
        ahead = tokens.shape[1]  # tokens from this piece's first to the last
        for piece in pieces:
            y, state = self.model.hidden(piece, state)
            ahead -= piece.shape[1]
            if kept > ahead:
                outputs.append(y[:, -(kept - ahead) :])
        assert state is not None
        return torch.cat(outputs, dim=1), state


def _start(mask: Tensor | None, tokens: Tensor) -> tuple[tuple[Rows, ...], bool]:
    """Rows grouped by the pads at their left, and whether all of them end in text. Raises ValueError for pads within
    the text."""
    batch, length = tokens.shape
    everyone = torch.arange(batch, device=tokens.device)
    if mask is None or bool(mask.all()):
        return (Rows(everyone, 0),), True
    real = mask[:, -length:].bool()
    if not bool(real.any(dim=1).all()):
        raise ValueError("attention_mask: a row of pads alone (allowed: one token of text or more)")
    first = real.long().argmax(dim=1)
    if bool((real.sum(dim=1) < length - first - real.flip(1).long().argmax(dim=1)).any()):
        raise ValueError("attention_mask: pads within the text (allowed: at its left; at its right to score only)")
    return tuple(Rows((first == n).nonzero().flatten(), n) for n in first.unique().tolist()), bool(real[:, -1].all())
