"""Any causal language model of transformers: prompts of equal length as a batch, its own cache, greedy answers.

Slower than our decoder and bounded by the model's own context; what it computes is the reference of the others.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import MixerConfig
from stages.data.tasks.prompts import Item
from stages.evidence.evaluate import perplexity
from stages.evidence.evaluate.config import PerplexityConfig
from stages.evidence.evaluate.forward import PASS_TOKENS, Progress, batches
from stages.evidence.standalone.config import CheckpointSource
from stages.evidence.standalone.readers import Reader, context
from stages.stage import StageError
from stages.training.whole import load_whole

if TYPE_CHECKING:
    from stages.evidence.standalone.tokenizer import CheckpointTokenizer

CHUNK = 4096  # tokens of a prompt that are read at once
LOGITS_AT_ONCE = 2**26


def open_causal(source: CheckpointSource, device: torch.device, ours: str) -> CausalReader:
    """The model in ``source.model``; code of its own is not run. ``ours``: why our decoder does not read it. Raises
    StageError where transformers is missing or does not read it either."""
    if importlib.util.find_spec("transformers") is None:
        raise StageError(
            f"{ours}; any other causal model needs transformers",
            field="MODEL",
            value=source.named,
            fix="pip install 'infini-study[import]'",
        )
    dtype = getattr(torch, source.dtype) if source.dtype else torch.float32 if device.type == "cpu" else "auto"
    try:
        model = load_whole("AutoModelForCausalLM", source.model, dtype=dtype)
    except ValueError as error:
        raise StageError(
            f"{ours}; transformers: {error}",
            field="MODEL",
            value=source.named,
            allowed="causal language models that need no code of their own",
        ) from error
    return CausalReader(model.to(device).eval())


class CausalReader(Reader):
    """``model``: of transformers, in evaluation mode."""

    def __init__(self, model: Any) -> None:
        text = model.config.get_text_config()
        self.model = model
        self.what = f"{type(model).__name__} of transformers"
        self.mixer = MixerConfig(kind="full", segment_length=1)
        self.longest = context(text.to_dict(), None)
        self.vocabulary = int(text.vocab_size)
        self._takes_kept = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def device(self) -> torch.device:
        return cast(torch.device, next(self.model.parameters()).device)

    @torch.inference_mode()
    def logits(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.model(input_ids=tokens.to(self.device), use_cache=False).logits)

    @torch.inference_mode()
    def answers(
        self, tokenizer: CheckpointTokenizer, items: Sequence[Item], progress: Progress
    ) -> list[tuple[str, float]]:
        by_shape: dict[tuple[int, int], list[int]] = {}
        for index, item in enumerate(items):
            by_shape.setdefault((len(item.prompt), item.budget), []).append(index)
        found: dict[int, tuple[str, float]] = {}
        for (length, budget), members in by_shape.items():
            for batch in batches([length] * len(members), PASS_TOKENS[self.device.type]):
                chosen = [members[i] for i in batch]
                said, nll = self._answered([items[i] for i in chosen], budget, tokenizer.stops)
                found |= {i: (tokenizer.decode(ids), n) for i, ids, n in zip(chosen, said, nll, strict=True)}
                progress(length * len(chosen))
        return [found[index] for index in range(len(items))]

    def _answered(
        self, items: Sequence[Item], budget: int, stops: tuple[int, ...]
    ) -> tuple[list[list[int]], list[float]]:
        prompts = torch.tensor([item.prompt for item in items], device=self.device)
        cache, last = None, prompts.new_zeros(0).float()
        for piece in torch.split(prompts, CHUNK, 1):
            last, cache = self._step(piece, cache)
        width = max(len(item.answer_ids) for item in items)
        targets = torch.tensor([[*i.answer_ids, *[0] * (width - len(i.answer_ids))] for i in items], device=self.device)
        logits = last
        if width > 1:  # on a copy: the answer that is said is another one
            more, _ = self._step(targets[:, :-1], copy.deepcopy(cache), every=True)
            logits = torch.cat([last, more], dim=1)
        nll = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        forced = [
            float(row[: len(item.counted)][list(item.counted)].mean())
            for row, item in zip(nll.double().cpu().numpy(), items, strict=True)
        ]
        said = [last[:, -1].argmax(-1, keepdim=True)]
        ended = torch.isin(said[0], torch.tensor(stops, device=self.device))
        for _ in range(budget - 1):
            if bool(ended.all()):
                break
            last, cache = self._step(said[-1], cache)
            said.append(last[:, -1].argmax(-1, keepdim=True))
            ended |= torch.isin(said[-1], torch.tensor(stops, device=self.device))
        return torch.cat(said, dim=1).tolist(), forced

    def _step(self, tokens: Tensor, cache: Any, *, every: bool = False) -> tuple[Tensor, Any]:
        """Logits [B, 1, V] of the last token (of every one, [B, T, V]) and the cache after ``tokens`` [B, T]."""
        kept: dict[str, Any] = {"logits_to_keep": 1} if self._takes_kept and not every else {}
        output = self.model(input_ids=tokens, past_key_values=cache, use_cache=True, **kept)
        return output.logits if every else output.logits[:, -1:], output.past_key_values

    def perplexity(
        self,
        tokenizer: CheckpointTokenizer,
        documents: list[perplexity.ScoredDocument],
        config: PerplexityConfig,
        progress: Progress,
    ) -> list[dict[str, Any]]:
        return perplexity.score(cast(Any, _AsDecoder(self)), tokenizer, documents, config, progress)


class _AsDecoder:
    """What scoring text needs of a decoder: where its parameters are, a segment length, nats per token."""

    def __init__(self, reader: CausalReader) -> None:
        self.reader, self.config = reader, _Config(reader.mixer)

    def parameters(self) -> Any:
        return self.reader.model.parameters()

    def nll(self, tokens: Tensor, *, knockout: None, chunk_tokens: int, told: Progress) -> Tensor:
        """Nats of tokens[:, 1:] given all before, [B, T - 1] float32."""
        pieces, cache = [], None
        read = tokens[:, :-1]
        size = max(1, min(chunk_tokens, LOGITS_AT_ONCE // (len(tokens) * self.reader.vocabulary)))
        for start in range(0, read.shape[1], size):
            piece = read[:, start : start + size]
            logits, cache = self.reader._step(piece, cache, every=True)
            wanted = tokens[:, start + 1 : start + 1 + piece.shape[1]]
            nats = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
            pieces.append(nats.view_as(wanted))
            told(piece.numel())
        return torch.cat(pieces, dim=1)


class _Config:
    def __init__(self, mixer: MixerConfig) -> None:
        self.mixer = mixer
