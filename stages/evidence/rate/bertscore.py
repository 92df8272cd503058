"""BERTScore (Zhang et al., 2020): token vectors of summary and reference matched greedily by their cosine.

recall = mean over reference tokens of the best cosine with a summary token; precision the other way; F1 of both. No
idf weights and no rescaling against a baseline: the numbers of two studies compare only with one model and layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stages.evidence.rate.config import BertScore
from stages.evidence.rate.encoder import longest_input, open_model

if TYPE_CHECKING:
    from torch import Tensor

    from stages.evidence.summarize.written import Everything


def f1(candidate: Tensor, reference: Tensor) -> float:
    """Of unit vectors [n, d] and [m, d]; 0 where one has none."""
    if not len(candidate) or not len(reference):
        return 0.0
    cosines = candidate @ reference.T
    precision, recall = float(cosines.amax(1).mean()), float(cosines.amax(0).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def token_vectors(tokenizer: Any, model: Any, text: str, layer: int) -> Tensor:
    """Unit vectors [tokens, d] of ``text`` without its marks; what is longer than the model reads goes in pieces."""
    import torch

    if not text.strip():
        return torch.empty(0, model.config.hidden_size)
    read = tokenizer(
        text,
        truncation=True,
        max_length=longest_input(tokenizer, model),
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
    )
    parts = []
    for ids, marks in zip(read["input_ids"], read["special_tokens_mask"], strict=True):
        with torch.inference_mode():
            given = torch.tensor([ids], device=model.device)
            hidden = model(input_ids=given, output_hidden_states=True).hidden_states[layer][0].float().cpu()
        parts.append(torch.nn.functional.normalize(hidden[torch.tensor(marks) == 0], dim=-1))
    return torch.cat(parts)


def bertscores(
    config: BertScore, device: str
) -> Callable[[Everything, Callable[[int], None]], list[dict[str, float | None]]]:
    """For every summary the largest F1 with one of its references (a reference: with the others)."""

    def rated(found: Everything, progress: Callable[[int], None]) -> list[dict[str, float | None]]:
        tokenizer, model = open_model(config.path, "AutoModel", device, "rate.bertscore")
        known = {
            name: [token_vectors(tokenizer, model, text, config.layer) for text in item.references]
            for name, item in found.items.items()
        }
        rows: list[dict[str, float | None]] = []
        for written in found.written:
            references = known[written.name][1 if written.system == "reference" else 0 :]
            own = token_vectors(tokenizer, model, written.text, config.layer)
            best = max((f1(own, reference) for reference in references), default=None)
            rows.append({"bertscore": best})
            progress(len(rows))
        return rows

    return rated
