"""Encoders of the Hugging Face library, which is not among the requirements: ``pip install 'infini-study[rate]'``."""

from __future__ import annotations

from typing import Any

from stages.evidence.rate.config import without_transformers
from stages.stage import StageError
from stages.training.whole import load_whole


def open_model(path: str, kind: str, device: str, field: str) -> tuple[Any, Any]:
    """(tokenizer, model in evaluation mode) of a local folder; ``kind``: the name of an Auto class. Raises StageError
    where the library is missing, or cannot read the folder or finds not every weight there."""
    if (lack := without_transformers(field)) is not None:
        raise lack
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = load_whole(kind, path, unused="pooler." if kind == "AutoModel" else "")
    except Exception as error:  # a tokenizer's are of a dozen kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StageError(f"cannot be opened: {reason}", field=f"{field}.path", value=path) from error
    return tokenizer, model.to(device).eval()


def longest_input(tokenizer: Any, model: Any, most: int = 8192) -> int:
    """Tokens that the model reads at once, the marks around a text included."""
    places = getattr(model.config, "max_position_embeddings", most) or most
    return int(min(places, tokenizer.model_max_length, most))
