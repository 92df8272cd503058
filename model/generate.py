"""Text continuation: prefill by segments in one parallel pass, then token by token across segment borders."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from model.decoder import Decoder, DecoderState, Knockout


@torch.no_grad()
def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
    knockout: Knockout | str | None = None,
    prefill_chunk: int | None = None,
) -> list[list[int]]:
    """Up to ``max_new_tokens`` tokens after each prompt, in the order of the prompts; a stop token ends a continuation
    and is not part of it.

    temperature 0 is greedy; else samples from the smallest set of tokens whose probability reaches ``top_p``.
    Prompts of equal length run as one batch, so that no padding ever enters a memory. ``prefill_chunk`` reads long
    prompts in pieces of that many tokens (the result is the same, the peak of memory lower).
    Raises ValueError for an empty prompt, a token outside the vocabulary, or settings out of range.
    """
    vocabulary = decoder.config.vocab_size
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompts[{index}] is empty (allowed: one token or more)")
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            raise ValueError(f"prompts[{index}] holds a token outside the vocabulary (allowed: 0 to {vocabulary - 1})")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens = {max_new_tokens} (allowed: 0 or more)")
    if temperature < 0:
        raise ValueError(f"temperature = {temperature} (allowed: 0 for greedy, or above)")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p} (allowed: 0 < top_p <= 1)")
    if prefill_chunk is not None and prefill_chunk < 1:
        raise ValueError(f"prefill_chunk = {prefill_chunk} (allowed: 1 or more tokens, or None)")
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    device = decoder.embed_tokens.weight.device
    results: list[list[int]] = [[] for _ in prompts]
    for length, group in by_length.items():
        tokens = torch.tensor([list(prompts[i]) for i in group], device=device)
        state: DecoderState | None = None
        for piece in torch.split(tokens, prefill_chunk or length, 1):
            hidden, state = decoder.hidden(piece, state, knockout)
        open_rows = set(range(len(group)))
        for step in range(max_new_tokens):
            chosen = choose(decoder.project(hidden[:, -1]), temperature, top_p, generator)
            for row, token in enumerate(chosen.tolist()):
                if row in open_rows and token in stop_ids:
                    open_rows.remove(row)
                elif row in open_rows:
                    results[group[row]].append(token)
            if not open_rows or step == max_new_tokens - 1:
                break
            hidden, state = decoder.hidden(chosen.unsqueeze(1), state, knockout)
    return results


def choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    """One token per row of logits [B, V]: the largest at temperature 0, else a nucleus sample."""
    if temperature == 0:
        return logits.argmax(-1)
    p, order = torch.sort((logits.float() / temperature).softmax(-1), dim=-1, descending=True, stable=True)
    p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0)  # the token that crosses top_p stays in
    return order.gather(-1, torch.multinomial(p, 1, generator=generator)).squeeze(-1)
