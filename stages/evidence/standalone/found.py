"""A checkpoint that is not on this machine yet: fetched from the Hugging Face Hub, or found in its cache."""

from __future__ import annotations

import re
from pathlib import Path

from stages.stage import StageError

FILES = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja", "merges.txt", "vocab.txt")
HUB_ID = r"[\w.-]+/[\w.-]+"


def from_hub(name: str, revision: str | None) -> Path:
    """The local folder of the model ``owner/name``, at ``revision`` or the newest. Raises StageError for what is no id
    and where the Hub has none or does not answer."""
    if not re.fullmatch(HUB_ID, name):
        raise StageError(
            "neither a folder, nor an artifact of the store, nor a Hub id",
            field="MODEL",
            value=name,
            allowed="a folder with config.json and weights; a key or step id of the store (--root); owner/name",
            fix="correct it",
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # of a dozen kinds
        raise StageError(
            f"no such folder, nothing of this name in the store, and the Hub gives none: {_short(error)}",
            field="MODEL",
            value=name,
            fix="check the name, the revision and the network (a private one needs HF_TOKEN)",
        ) from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
