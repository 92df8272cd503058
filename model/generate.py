"""Text continuation: prefill by segments in parallel passes, then token by token across segment borders.

Two entries: ``generate`` from tokens to tokens, ``complete`` from text to text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from model.decoder import AnyKnockout, Decoder, DecoderState, Knockout

P = ParamSpec("P")
R = TypeVar("R")
PREFILL_TOKENS = 2**14
"""Prompt tokens read at once by default, over the batch: bounds the activations held, whatever the prompt's length."""


def _evaluating(function: Callable[P, R]) -> Callable[P, R]:
    """``function(decoder, ...)`` without gradients and in evaluation mode, which it leaves as it was."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        decoder = cast(Decoder, args[0] if args else kwargs["decoder"])
        training = decoder.training
        decoder.eval()
        try:
            with torch.no_grad():
                return function(*args, **kwargs)
        finally:
            decoder.train(training)

    return called


@_evaluating
def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    stop_ids: Collection[int] = (),
    stop_strings: Collection[str] = (),
    decode: Callable[[list[int]], str] | None = None,
    on_token: Callable[[int, int], None] | None = None,
    generator: torch.Generator | None = None,
    knockout: Knockout | str | None = None,
    prefill_chunk: int | None = None,
) -> list[list[int]]:
    """Up to ``max_new_tokens`` tokens after each prompt, in the order of the prompts.

    A token of ``stop_ids`` ends a continuation and is not part of it. So does the token that completes one of
    ``stop_strings`` in the text that ``decode`` makes of the continuation; that token is the last, since a token cannot
    be cut (``until`` cuts the text). temperature 0 is greedy; else samples from the smallest set of tokens whose
    probability reaches ``top_p``, among the ``top_k`` most likely ones (None: all).

    Prompts of equal length run as one batch, the others one after another, so that no padding ever enters a memory.
    on_token(index of the prompt, token) is called for each token as it is produced. prefill_chunk: tokens of a prompt
    read in one pass (None: whole segments, about ``PREFILL_TOKENS`` over the batch); the result does not depend on it.

    Raises ValueError for an empty prompt, a token outside the vocabulary, or settings out of range.
    """
    _check(decoder, prompts, max_new_tokens, temperature, top_p, top_k, prefill_chunk)
    if stop_strings and (decode is None or "" in stop_strings):
        raise ValueError(f"stop_strings = {list(stop_strings)}: needs decode, and allows no empty string")
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    device = decoder.embed_tokens.weight.device
    results: list[list[int]] = [[] for _ in prompts]
    for group in by_length.values() if max_new_tokens else ():
        tokens = torch.tensor([list(prompts[i]) for i in group], device=device)
        hidden, state = prefill(decoder, tokens, knockout, prefill_chunk)
        open_rows = set(range(len(group)))
        pick = functools.partial(choose, temperature=temperature, top_p=top_p, generator=generator, top_k=top_k)
        for chosen in continuation(decoder, hidden, state, max_new_tokens, pick, knockout):
            for row, token in enumerate(chosen.tolist()):
                if row not in open_rows:
                    continue
                if token in stop_ids:
                    open_rows.remove(row)
                    continue
                said = results[group[row]]
                said.append(token)
                if on_token is not None:
                    on_token(group[row], token)
                if stop_strings and decode is not None:
                    text = decode(said)
                    if any(stop in text for stop in stop_strings):
                        open_rows.remove(row)
            if not open_rows:
                break
    return results


def complete(
    decoder: Decoder,
    texts: Sequence[str],
    max_new_tokens: int,
    *,
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[list[int]], str],
    stop_strings: Collection[str] = (),
    on_token: Callable[[int, int], None] | None = None,
    stop_ids: Collection[int] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> list[str]:
    """The text that follows each of ``texts``, without the stop string that ended it and without anything after it.
    Settings and errors as in ``generate``."""
    said = generate(
        decoder,
        [encode(text) for text in texts],
        max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        stop_ids=stop_ids,
        stop_strings=stop_strings,
        decode=decode,
        on_token=on_token,
        generator=generator,
    )
    return [until(decode(tokens), stop_strings) for tokens in said]


def until(text: str, stop_strings: Collection[str]) -> str:
    """``text`` up to the first stop string in it, which is not part of it."""
    return text[: min((at for stop in stop_strings if (at := text.find(stop)) >= 0), default=len(text))]


def choose(
    logits: Tensor,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    top_k: int | None = None,
) -> Tensor:
    """One token per row of logits [B, V]: the largest at temperature 0, else a nucleus sample."""
    if temperature == 0:
        return logits.argmax(-1)
    p, order = torch.sort((logits.float() / temperature).softmax(-1), dim=-1, descending=True, stable=True)
    if top_k is not None:
        p[..., top_k:] = 0
        p = p / p.sum(-1, keepdim=True)
    p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0)  # the token that crosses top_p stays in
    return order.gather(-1, torch.multinomial(p, 1, generator=generator)).squeeze(-1)


def prefill(
    decoder: Decoder,
    tokens: Tensor,
    knockout: AnyKnockout = None,
    chunk: int | None = None,
    *,
    budget: int | None = None,
    state: DecoderState | None = None,
    told: Callable[[int], None] | None = None,
) -> tuple[Tensor, DecoderState]:
    """Last-layer output of the last token [B, 1, C] and the state after prompts [B, T] of equal length, which follow
    ``state``. They are read ``chunk`` tokens at a time (None: whole segments, about ``budget`` tokens, by default
    ``PREFILL_TOKENS``, over the batch). told: called with the tokens of the batch just read, pass by pass."""
    size = chunk or whole_segments(decoder, tokens.shape[0], budget or PREFILL_TOKENS)
    position = 0 if state is None else state.position
    open_tokens = 0 if chunk else position % decoder.config.mixer.segment_length  # the first pass ends on a border too
    hidden = None
    first, rest = tokens[:, : size - open_tokens], tokens[:, size - open_tokens :]
    for piece in (first, *torch.split(rest, size, 1)) if rest.shape[1] else (first,):
        hidden, state = decoder.hidden(piece, state, knockout)
        if told is not None:
            told(piece.numel())
    assert hidden is not None and state is not None
    return hidden[:, -1:], state


def whole_segments(decoder: Decoder, rows: int, budget: int) -> int:
    """Tokens of each of ``rows`` that one pass reads: whole segments, about ``budget`` tokens over the batch."""
    segment = decoder.config.mixer.segment_length
    return max(1, budget // rows // segment) * segment


def continuation(
    decoder: Decoder,
    hidden: Tensor,
    state: DecoderState,
    steps: int,
    pick: Callable[[Tensor], Tensor] = choose,
    knockout: AnyKnockout = None,
) -> Iterator[Tensor]:
    """``steps`` tokens [B], one after the other, behind prompts that end with ``hidden`` [B, 1, C] and ``state``; each
    is picked from logits [B, V] (the likeliest) and read only when the next is asked for."""
    for step in range(steps):
        chosen = pick(decoder.project(hidden[:, -1]))
        yield chosen
        if step < steps - 1:
            hidden, state = decoder.hidden(chosen.unsqueeze(1), state, knockout)


def _check(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int | None,
    prefill_chunk: int | None,
) -> None:
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
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k = {top_k} (allowed: 1 or more tokens, or None)")
    if prefill_chunk is not None and prefill_chunk < 1:
        raise ValueError(f"prefill_chunk = {prefill_chunk} (allowed: 1 or more tokens, or None)")
