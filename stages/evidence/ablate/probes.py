"""A trained model read as it was not trained: gates forced to a value, the other update rule, the memory emptied at
every window. Unlike the knock-outs no claim rests on these; they say what the trained model leans on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from model.config import ModelConfig
from model.decoder import Decoder
from stages.evidence.ablate.config import ProbesConfig
from stages.evidence.evaluate.forward import PASS_TOKENS, document_nll
from stages.evidence.evaluate.perplexity import ScoredDocument

WINDOWS = pa.schema(
    [
        ("doc_id", pa.string()),
        ("split", pa.string()),
        ("memory", pa.string()),
        ("bucket_start", pa.int64()),
        ("bucket_end", pa.int64()),
        ("nll_sum", pa.float64()),
        ("tokens", pa.int64()),
    ]
)


def probed(decoder: Decoder, config: ProbesConfig) -> Iterator[tuple[str, Decoder]]:
    """(name, the same weights changed): ``gate_0``, ``gate_0.5``, ... every gate at that value, ``rule_linear`` or
    ``rule_delta``: the memory written by the rule that the model was not trained with."""
    for gate in config.gates:
        twin = _twin(decoder, decoder.config)
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                if name.endswith(".beta"):  # sigmoid(+-inf) is exact, whatever a token adds
                    parameter.fill_(torch.tensor(gate, dtype=torch.float64).logit().item())
                elif name.endswith(".gate_weight"):
                    parameter.zero_()
        yield f"gate_{gate:g}", twin
    if config.other_rule:
        mixer = decoder.config.mixer
        other = replace(mixer, rule="delta" if mixer.rule == "linear" else "linear")
        yield f"rule_{other.rule}", _twin(decoder, replace(decoder.config, mixer=other))


def _twin(decoder: Decoder, config: ModelConfig) -> Decoder:
    twin = Decoder(config).to(next(decoder.parameters()).device)
    twin.load_state_dict(decoder.state_dict())
    return twin.eval()


def long_enough(documents: Sequence[ScoredDocument], config: ProbesConfig, window: int) -> list[ScoredDocument]:
    """The longest ``documents`` of two windows at least, cut to whole windows within ``max_tokens``."""
    most = math.inf if config.max_tokens is None else max(config.max_tokens, 2 * window)
    size = {id(d): int(min(len(d.tokens), most)) // window * window for d in documents}
    fit = sorted((d for d in documents if size[id(d)] >= 2 * window), key=lambda d: (-size[id(d)], d.doc_id))
    return [ScoredDocument(d.doc_id, d.split, d.tokens[: size[id(d)]]) for d in fit[: config.documents]]


def windows(
    decoder: Decoder, documents: Sequence[ScoredDocument], window: int, progress: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Rows of windows.parquet: each document read once with the memory carried from its first token to its last, and
    once with every window of ``window`` tokens as a document of its own. Scored are the same tokens: all but the first
    of each window, which nothing before it in the window predicts. Buckets double from one window on."""
    device = next(decoder.parameters()).device
    rows: list[dict[str, Any]] = []
    for document in documents:
        tokens = torch.from_numpy(document.tokens.astype(np.int64)).to(device)
        pieces = tokens.reshape(-1, window)
        carried = document_nll(decoder, tokens[None]).double().cpu().numpy()[0]
        several = max(1, PASS_TOKENS[device.type] // window)
        parts = [document_nll(decoder, pieces[i : i + several]) for i in range(0, len(pieces), several)]
        emptied = torch.cat(parts).double().cpu().numpy()
        # column t - 1 of carried belongs to the token at position t
        kept = np.concatenate([[np.nan], carried]).reshape(-1, window)[:, 1:]
        edges = [0, *(2**i for i in range(len(pieces).bit_length()) if 2**i < len(pieces)), len(pieces)]
        for first, last in pairwise(edges):
            for memory, nll in (("carried", kept), ("emptied", emptied)):
                part = nll[first:last]
                rows.append(
                    {
                        "doc_id": document.doc_id,
                        "split": document.split,
                        "memory": memory,
                        "bucket_start": first * window,
                        "bucket_end": last * window,
                        "nll_sum": float(part.sum()),
                        "tokens": int(part.size),
                    }
                )
        progress(2 * len(tokens))
    return rows
