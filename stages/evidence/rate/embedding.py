"""Cosine similarity of a summary and its references by a sentence encoder (sentence-transformers' folder layout)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.evidence.rate.config import Embedding
from stages.evidence.rate.encoder import longest_input, open_model
from stages.stage import StageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from stages.evidence.summarize.written import Everything

BATCH = 32
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


class Encoder:
    """Texts to unit vectors. A text longer than the model reads is the mean of its pieces' vectors."""

    def __init__(self, path: str, device: str = "cpu", field: str = "rate.embedding") -> None:
        folder = Path(path)
        self.pooling, self.tokens = _settings(folder, field)
        inner = folder / "0_Transformer"
        self.tokenizer, self.model = open_model(str(inner if inner.is_dir() else folder), "AutoModel", device, field)
        room = longest_input(self.tokenizer, self.model)
        self.tokens = min(self.tokens or room, room)

    def encode(self, texts: list[str]) -> Tensor:
        """Vectors [texts, d] of length 1."""
        import torch

        pieces, owner = [], []
        for index, text in enumerate(texts):
            cut = self._pieces(text)
            pieces += cut
            owner += [index] * len(cut)
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
        made: list[Any] = [None] * len(pieces)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            for place, vector in zip(chosen, self._forward([pieces[i] for i in chosen]), strict=True):
                made[place] = vector
        vectors = torch.stack(made)
        sums = torch.zeros(len(texts), vectors.shape[1], dtype=vectors.dtype)
        sums.index_add_(0, torch.tensor(owner), vectors)
        return torch.nn.functional.normalize(sums, dim=-1)

    def _pieces(self, text: str) -> list[str]:
        """The text in pieces of at most the tokens that are read, cut where a token begins."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = found["offset_mapping"]
        room = self.tokens - self.tokenizer.num_special_tokens_to_add()
        starts = list(range(0, max(1, len(offsets)), room))
        ends = [offsets[s][0] for s in starts[1:]] + [len(text)]
        return [text[offsets[s][0] if offsets else 0 : end] for s, end in zip(starts, ends, strict=True)]

    def _forward(self, texts: list[str]) -> Tensor:
        import torch

        read = self.tokenizer(texts, padding=True, truncation=True, max_length=self.tokens, return_tensors="pt")
        read = read.to(self.model.device)
        with torch.inference_mode():
            hidden = self.model(**read).last_hidden_state.float()
        vectors: Tensor = _pool(hidden, read["attention_mask"], self.pooling)
        return torch.nn.functional.normalize(vectors, dim=-1).cpu()


def _pool(hidden: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    if how == "cls":
        return hidden[:, 0]
    weights = mask.unsqueeze(-1)
    if how == "max":
        return hidden.masked_fill(weights == 0, -1e9).amax(1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def _settings(folder: Path, field: str) -> tuple[str, int]:
    """(kind of pooling, tokens read at once or 0). Raises StageError for modules that are not known here."""
    modules = _json(folder / "modules.json") or []
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if unknown := [kind for kind in kinds if kind not in KNOWN_MODULES]:
        raise StageError(
            f"its module {unknown[0]} is not known here",
            field=f"{field}.path",
            value=str(folder),
            allowed=", ".join(KNOWN_MODULES),
            fix="choose a model of these modules",
        )
    place = next(
        (module["path"] for module, kind in zip(modules, kinds, strict=True) if kind == "Pooling"), "1_Pooling"
    )
    pooling = _json(folder / place / "config.json") or {}
    how = next(
        (
            k
            for k in ("cls", "max")
            if pooling.get(f"pooling_mode_{k}_token" if k == "cls" else "pooling_mode_max_tokens")
        ),
        "mean",
    )
    length = (_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length") or 0
    return how, int(length)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (ValueError, RecursionError) as error:
        raise StageError(f"{path} is not JSON: {error}", fix="mend the file, or choose another model") from error


def similarities(
    config: Embedding, device: str
) -> Callable[[Everything, Callable[[int], None]], list[dict[str, float | None]]]:
    """For every summary the largest cosine with one of its item's references; 0 for an empty summary; of a
    reference the largest with the others, null where there is none."""

    def rated(found: Everything, progress: Callable[[int], None]) -> list[dict[str, float | None]]:
        encoder = Encoder(config.path, device)
        known = {name: encoder.encode(list(item.references)) for name, item in found.items.items()}
        rows: list[dict[str, float | None]] = []
        for start in range(0, len(found.written), BATCH):
            batch = found.written[start : start + BATCH]
            vectors = encoder.encode([w.text for w in batch])
            for written, vector in zip(batch, vectors, strict=True):
                references = known[written.name][1 if written.system == "reference" else 0 :]
                best = float((references @ vector).max()) if len(references) else None
                rows.append({"embedding": best if written.text.strip() or best is None else 0.0})
            progress(len(rows))
        return rows

    return rated
