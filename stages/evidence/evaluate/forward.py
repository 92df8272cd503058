"""Reading long token sequences with a trained model: device, batches by token budget, chunks by segment.

Shapes: B batch, T tokens, C model size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model import generate
from model.config import MixerConfig
from model.decoder import AnyKnockout, Decoder, DecoderState
from stages.stage import Artifact, Execution, StageError

if TYPE_CHECKING:
    from stages.data.tokens.load import StudyTokenizer

# Tokens of one forward pass. One CPU core reads 62,000 tokens/s at 2K to 8K a pass and 42,000 at 32K (dim 96, 3 layers,
# vocabulary 2,048: the activations leave the cache); a large GPU wants enough rows to fill it. Constant, because the
# batch a prompt sits in may change the last bit of its result.
PASS_TOKENS = {"cpu": 2**12, "cuda": 2**16}


def torch_device(execution: Execution) -> torch.device:
    """The device ``execution.device`` asks for. Raises StageError if it is cuda and there is none."""
    available = torch.cuda.is_available()
    if execution.device == "cuda" and not available:
        raise StageError(
            "this machine has no CUDA device",
            field="execution.device",
            value="cuda",
            allowed="auto, cpu",
            fix="use auto",
        )
    return torch.device("cuda" if available and execution.device != "cpu" else "cpu")


def load_model(
    artifact: Artifact, tokenizer: StudyTokenizer, device: torch.device, mixer: MixerConfig | None = None
) -> Decoder:
    """The trained model in eval mode, or a base's trunk under ``mixer``.

    Raises StageError if its vocabulary is smaller than the tokenizer's.
    """
    from model import checkpoint

    folder = artifact.path("model")
    if mixer is None:
        decoder = checkpoint.load(folder, device=str(device)).eval()
    else:
        decoder = checkpoint.graft(folder, mixer, seed=0, device=device).eval()
    if tokenizer.vocab_size > decoder.config.vocab_size:
        raise StageError(
            f"the model has {decoder.config.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}",
            field="vocab_size",
            value=decoder.config.vocab_size,
            allowed=f">= {tokenizer.vocab_size}",
            fix="train the model with this tokenizer",
        )
    return decoder


def batches(lengths: Sequence[int], budget: int, *, pairs: bool = False) -> list[list[int]]:
    """Indices in batches of at most ``budget`` padded tokens (one sequence at least), longest first.

    ``pairs``: no batch holds a single sequence, whatever the budget: the swap knock-out needs a neighbour. Raises
    ValueError if there is but one sequence in all.
    """
    if pairs and len(lengths) == 1:
        raise ValueError("one sequence has no neighbour to swap memories with (allowed: 2 or more)")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    made: list[list[int]] = []
    start = 0
    while start < len(order):
        size = max(2 if pairs else 1, budget // lengths[order[start]])
        made.append(order[start : start + size])
        start += size
    if pairs and len(made) > 1 and len(made[-1]) == 1:
        made[-2:] = [made[-2] + made[-1]]
    return made


@torch.inference_mode()
def document_nll(decoder: Decoder, tokens: Tensor, knockout: AnyKnockout = None, budget: int | None = None) -> Tensor:
    """Nats of tokens[:, 1:] given all before, [B, T - 1] float32, in one pass over the documents.

    Documents longer than the budget are read in chunks of whole segments; the decoder's state carries over, so
    the result does not depend on the budget.
    """
    return decoder.nll(tokens, knockout=knockout, chunk_tokens=_chunk(decoder, tokens, budget))


@torch.inference_mode()
def prefill(
    decoder: Decoder, tokens: Tensor, knockout: AnyKnockout = None, budget: int | None = None
) -> tuple[Tensor, DecoderState]:
    """Last-layer output of the last token [B, 1, C] and the state after prompts [B, T] of equal length."""
    hidden, state = generate.prefill(decoder, tokens, knockout, _chunk(decoder, tokens, budget))
    return hidden[:, -1:], state


def _chunk(decoder: Decoder, tokens: Tensor, budget: int | None) -> int:
    """Tokens of one pass: whole segments, as many as the budget holds for this batch."""
    budget = budget or PASS_TOKENS[tokens.device.type]
    segment = decoder.config.mixer.segment_length
    return max(1, budget // tokens.shape[0] // segment) * segment
