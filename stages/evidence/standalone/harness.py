"""Our checkpoints as a model of lm-evaluation-harness (EleutherAI), read by segments: memory is bounded by the arm's
state, whatever the length of a text.

The harness finds ``infini_study`` by the entry point of the group ``lm_eval.models`` where its version has those (the
first release behind 0.4.13); ``infini-study lm-eval`` makes the model known to any version. Token for token it asks
what the harness's own model of transformers asks: ``begin`` before a text, control strings in it are control tokens.

Shapes: B batch, T tokens, C model size.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from model import generate
from model.llama import read_config
from stages.data.tokens.chat import render
from stages.evidence.evaluate.forward import PASS_TOKENS
from stages.evidence.standalone.config import CheckpointSource, Dtype, parse_arm
from stages.evidence.standalone.opened import open_reader
from stages.evidence.standalone.readers import DecoderReader
from stages.evidence.standalone.tokenizer import read_tokenizer
from stages.stage import StageError

if TYPE_CHECKING:
    from model.decoder import Decoder, DecoderState

CHUNK = 512
"""Targets whose logits are held at once."""

ScoredContinuation = tuple[float, bool]
"""Nats of a continuation (a log-likelihood, so below 0), and whether greedy decoding gives it."""


class StudyLM(TemplateLM):  # type: ignore[misc]  # the harness is not installed where types are checked
    """``--model infini_study --model_args checkpoint=DIR``. ``checkpoint``: an exported folder, or one of a family next
    to Llama. ``arm``: the arm that it is read under, such as ``local;segment_length=2048`` (the harness itself cuts at
    commas). ``max_length``: of a window where the arm does not read any length (default: the checkpoint's context).
    ``batch_size``: prompts read at once, at most (the harness itself says 1); "auto": as many as a pass holds.
    Raises StageError for what it cannot open or do."""

    backend = "causal"

    def __init__(
        self,
        checkpoint: str,
        arm: str | None = None,
        tokenizer: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
    ) -> None:
        super().__init__()
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            raise StageError(
                "no CUDA device is visible here",
                field="--device",
                value=device,
                allowed="cpu",
                fix="leave it out, or a machine and a torch with CUDA",
            )
        if dtype not in (None, "auto", *get_args(Dtype)):
            raise StageError(
                "cannot be computed in", field="dtype", value=dtype, allowed=", ".join(("auto", *get_args(Dtype)))
            )
        wanted = "cpu" if device == "cpu" or not torch.cuda.is_available() else "auto"
        mixer = None if arm is None else parse_arm(arm, ";")
        source = CheckpointSource.model_validate(
            {
                "model": Path(os.path.expanduser(checkpoint)),
                "named": checkpoint,
                "arm": mixer,
                "device": wanted,
                "dtype": None if dtype in (None, "auto") else dtype,
            }
        )
        reader = open_reader(source)
        if not isinstance(reader, DecoderReader):
            raise StageError(
                f"{reader.what}, none of ours",
                field="checkpoint",
                value=checkpoint,
                fix="--model hf --model_args pretrained=...",
            )
        self.decoder: Decoder = reader.decoder
        place = source.model if tokenizer is None else Path(tokenizer)
        self.codec = read_tokenizer(place, read_config(source.model), source.model)
        self.longest = reader.longest if max_length is None else _number("max_length", max_length)
        self.max_gen_toks, self.checkpoint = _number("max_gen_toks", max_gen_toks), checkpoint
        self.most = int(batch_size) if str(batch_size).isdigit() else None
        self.batch_size_per_gpu = batch_size
        self._device = self.decoder.embed_tokens.weight.device

    # --- what the harness asks of the tokenizer --------------------------------------------------------------------
    @property
    def eot_token_id(self) -> int:
        return self.codec.eos_id if self.codec.eos_id >= 0 else 0

    @property
    def prefix_token_id(self) -> int:
        return self.eot_token_id if self.codec.bos_id is None else self.codec.bos_id

    @property
    def max_length(self) -> int:
        return self.longest or 2**20

    @property
    def tokenizer_name(self) -> str:
        return self.checkpoint.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids = self.codec.with_control(string)
        begin = self.codec.begin if add_special_tokens is not False else []
        return ids if ids[: len(begin)] == begin else [*begin, *ids]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.codec.template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return render(self.codec.template, chat_history, dict(self.codec.marks), answer=add_generation_prompt)

    # --- likelihoods -----------------------------------------------------------------------------------------------
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **others: Any
    ) -> list[ScoredContinuation]:
        """Contexts are read once, whatever the number of their continuations."""
        found: dict[int, ScoredContinuation] = {}
        asked_of: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, (_, context, continuation) in enumerate(requests):
            asked_of[tuple(self._cut(context, len(continuation)))].append(index)
        by_length: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        for known in asked_of:
            by_length[len(known)].append(known)
        for length in sorted(by_length, reverse=True):
            for contexts in self._batches(by_length[length], length):
                asked = [(row, index) for row, known in enumerate(contexts) for index in asked_of[known]]
                scored = self._continued(contexts, asked, [requests[index][2] for _, index in asked])
                for (_, index), score in zip(asked, scored, strict=True):
                    found[index] = score
                    if requests[index][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[index][0], score)
        return [found[index] for index in range(len(requests))]

    @torch.inference_mode()
    def _continued(
        self, contexts: Sequence[tuple[int, ...]], asked: Sequence[tuple[int, int]], targets: Sequence[list[int]]
    ) -> list[ScoredContinuation]:
        """Of each continuation of ``targets`` behind the context in the row that ``asked`` names."""
        tokens = torch.tensor([list(context) for context in contexts], device=self._device)
        state = None
        if tokens.shape[1] > 1:
            _, state = generate.prefill(self.decoder, tokens[:, :-1])
        by_length: dict[int, list[int]] = defaultdict(list)
        for place, target in enumerate(targets):
            by_length[len(target)].append(place)
        found: dict[int, ScoredContinuation] = {}
        for length, places in by_length.items():
            for few in self._batches(places, max(length, 1)):
                rows = torch.tensor([asked[place][0] for place in few], device=self._device)
                wanted = torch.tensor([targets[place] for place in few], device=self._device)
                read = torch.cat([tokens[rows, -1:], wanted[:, :-1]], dim=1)
                nats, greedy = self._score(read, wanted, None if state is None else state.rows(rows))
                found |= {
                    place: (-float(nat), bool(same))
                    for place, nat, same in zip(few, nats.tolist(), greedy.tolist(), strict=True)
                }
        return [found[place] for place in range(len(targets))]

    def _score(self, read: Tensor, wanted: Tensor, state: DecoderState | None) -> tuple[Tensor, Tensor]:
        """Nats of ``wanted`` [B, T], each the next token of ``read`` [B, T], summed [B], and whether all are greedy."""
        nats, same = torch.zeros(len(read), dtype=torch.float64), torch.ones(len(read), dtype=torch.bool)
        for piece, target in zip(torch.split(read, CHUNK, 1), torch.split(wanted, CHUNK, 1), strict=True):
            hidden, state = self.decoder.hidden(piece, state)
            logits = self.decoder.project(hidden).float()
            nats += (
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
                .view_as(target)
                .double()
                .sum(1)
                .cpu()
            )
            same &= (logits.argmax(-1) == target).all(1).cpu()
        return nats, same

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """A text in one pass where the arm reads any length; else in the harness's windows of ``max_length``."""
        found = []
        for request in requests:
            (text,) = request.args
            ids = self.tok_encode(text, add_special_tokens=False)
            windows: list[tuple[list[int], list[int]]] = [([self.prefix_token_id], ids)]
            if self.longest is not None:
                rolling = get_rolling_token_windows(ids, self.prefix_token_id, self.longest, 1)
                windows = [make_disjoint_window(window) for window in rolling]
            score = sum(nats for nats, _ in self._loglikelihood_tokens([(None, a, b) for a, b in windows if b]))
            found.append(float(score))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    # --- answers ---------------------------------------------------------------------------------------------------
    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        found: dict[int, str] = {}
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            alike[(*_settings(request.args[1], self.max_gen_toks), len(prompts[index]))].append(index)
        for (until, most, temperature, top_p, top_k, length), members in alike.items():
            for few in self._batches(members, length + most):
                said = generate.generate(
                    self.decoder,
                    [self._cut(prompts[index], most) for index in few],
                    most,
                    temperature=temperature,
                    top_p=top_p,
                    top_k=top_k,
                    stop_ids=self.codec.stops,
                    stop_strings=until,
                    decode=self.codec.decode,
                )
                for index, ids in zip(few, said, strict=True):
                    found[index] = generate.until(self.codec.decode(ids), until)
                    self.cache_hook.add_partial("generate_until", requests[index].args, found[index])
        return [found[index] for index in range(len(requests))]

    def _cut(self, context: Sequence[int], behind: int) -> list[int]:
        """The last tokens of a context that leave room for ``behind`` more, as the harness's own models cut; all of
        them where the arm reads any length."""
        if self.longest is None:
            return list(context)
        return list(context)[-max(1, self.longest + 1 - behind) :]

    def _batches(self, members: list[Any], tokens: int) -> list[list[Any]]:
        size = max(1, PASS_TOKENS[self._device.type] // tokens)
        size = size if self.most is None else min(size, self.most)
        return [members[first : first + size] for first in range(0, len(members), size)]


def _number(name: str, value: Any) -> int:
    """What the harness may have left as text. Raises StageError for anything but a number from 1 on."""
    if not str(value).isdecimal() or int(value) < 1:
        raise StageError("no number of tokens", field=name, value=value, allowed="whole numbers from 1 on")
    return int(value)


def _settings(given: dict[str, Any], default: int) -> tuple[Any, ...]:
    """(until, most tokens, temperature, top_p, top_k) of a task's generation_kwargs."""
    until = given.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(one for one in until if one)
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    most = next((int(given[name]) for name in names if given.get(name) is not None), default)
    sample = bool(given.get("do_sample", float(given.get("temperature") or 0) > 0))
    temperature = float(given.get("temperature") or 1) if sample else 0.0
    return until, most, temperature, float(given.get("top_p") or 1), given.get("top_k") or None
