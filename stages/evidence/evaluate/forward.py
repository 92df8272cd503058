"""Reading long token sequences with a trained model: device, batches by token budget, chunks by segment.

Shapes: B batch, T tokens, C model size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.config import MixerConfig, ModelConfig
from model.decoder import AnyKnockout, Decoder
from model.generate import whole_segments
from model.llama import BLOCK, read_config, shape
from stages.stage import Artifact, Execution, StageError
from stages.training.device import torch_device

if TYPE_CHECKING:
    from stages.data.tokens.load import StudyTokenizer

# Tokens of one forward pass. One CPU core reads 62,000 tokens/s at 2K to 8K a pass and 42,000 at 32K (dim 96, 3 layers,
# vocabulary 2,048: the activations leave the cache); a large GPU wants enough rows to fill it. Constant, because the
# batch a prompt sits in may change the last bit of its result.
PASS_TOKENS = {"cpu": 2**12, "cuda": 2**16}


Progress = Callable[[int], None]
"""Called with the number of tokens just read."""


def nothing(tokens: int) -> None:
    """Progress that nobody follows."""


def precision(device: torch.device, dtype: str) -> contextlib.AbstractContextManager[object]:
    """Within it a model computes in ``dtype``: "fp32", as it is; "bf16", what may be in bfloat16, while memory, gate
    and divisions stay in float32, as in training."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()


def model_config(artifact: Artifact, mixer: MixerConfig | None = None) -> ModelConfig:
    """What ``load_model`` gives a decoder of, without its weights."""
    folder = artifact.path("model")
    fields = read_config(folder)
    if mixer is None:
        return ModelConfig.from_dict(fields[BLOCK])
    trunk, vocab_size = shape(fields, folder)
    return ModelConfig(trunk=trunk, mixer=mixer, vocab_size=vocab_size)


def device_type(execution: Execution, *, spread: bool) -> str:
    """ "cuda" or "cpu": of the workers where the evaluation is ``spread`` over a cluster, else of this process."""
    if spread and execution.gpus_per_worker and execution.device != "cpu":
        return "cuda"
    if spread and execution.device != "cuda":
        return "cpu"
    return torch_device(execution).type


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
    check_vocabulary(decoder.config, tokenizer)
    return decoder


def check_vocabulary(config: ModelConfig, tokenizer: StudyTokenizer) -> None:
    """Raises StageError if the model knows fewer tokens than the tokenizer makes."""
    if tokenizer.vocab_size > config.vocab_size:
        raise StageError(
            f"the model has {config.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}",
            field="vocab_size",
            value=config.vocab_size,
            allowed=f">= {tokenizer.vocab_size}",
            fix="train the model with this tokenizer",
        )


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
def document_nll(
    decoder: Decoder,
    tokens: Tensor,
    knockout: AnyKnockout = None,
    budget: int | None = None,
    progress: Progress = nothing,
) -> Tensor:
    """Nats of tokens[:, 1:] given all before, [B, T - 1] float32, in one pass over the documents.

    Documents longer than the budget are read in chunks of whole segments; the decoder's state carries over, so
    the result does not depend on the budget. ``progress`` is told of tokens of the batch, pads too, chunk by chunk.
    """
    size = whole_segments(decoder, tokens.shape[0], budget or PASS_TOKENS[tokens.device.type])
    return decoder.nll(tokens, knockout=knockout, chunk_tokens=size, told=progress)
