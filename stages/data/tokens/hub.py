"""The tokenizer.json of a repository on the Hugging Face Hub, at one commit; from the local cache where it is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stages.stage import StageError

if TYPE_CHECKING:
    from stages.data.tokens.config import TokenizerConfig

FILE = "tokenizer.json"


def tokenizer_json(config: TokenizerConfig, *, needed: bool) -> Path | None:
    """The file in the cache of ``huggingface_hub`` (HF_HOME), fetched from the Hub (HF_ENDPOINT) if it is not there.

    None where the Hub does not answer and the file is not ``needed`` yet. Raises StageError where the Hub has no such
    repository, commit or file, and where a needed file cannot be had.
    """
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    assert config.path is not None and config.revision is not None
    try:
        cached = try_to_load_from_cache(config.path, FILE, revision=config.revision)
        return Path(cached if isinstance(cached, str) else hf_hub_download(config.path, FILE, revision=config.revision))
    except errors.HFValidationError as error:
        raise StageError(
            " ".join(str(error).split()), field="tokenizer.path", value=config.path, allowed="owner/name"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        lacking = {
            errors.RevisionNotFoundError: f"the repository has no commit {config.revision}",
            errors.RemoteEntryNotFoundError: f"the repository has no {FILE} at this commit",
        }.get(type(error), "no such repository, or it is private")
        raise StageError(
            f"the Hub: {lacking}",
            field="tokenizer.path",
            value=config.path,
            fix="correct tokenizer.path and tokenizer.revision (a private one needs HF_TOKEN)",
        ) from error
    except Exception as error:  # no network, offline mode, timeouts: each layer raises its own
        if not needed:
            return None
        raise StageError(
            f"{FILE} is not in the local cache and the Hub does not answer: {' '.join(str(error).split())[:200]}",
            field="tokenizer.path",
            value=config.path,
            fix="connect to the network, or fetch the file elsewhere and use kind: file",
        ) from error


def file_beside(config: TokenizerConfig, name: str) -> bytes | None:
    """Another file of the repository at this commit; None where there is none. Raises StageError where the Hub does not
    answer."""
    from huggingface_hub import errors, hf_hub_download

    assert config.path is not None
    try:
        return Path(hf_hub_download(config.path, name, revision=config.revision)).read_bytes()
    except errors.RemoteEntryNotFoundError:
        return None
    except Exception as error:  # no network, offline mode, timeouts: each layer raises its own
        raise StageError(
            f"{name} is not in the local cache and the Hub does not answer: {' '.join(str(error).split())[:200]}",
            field="tokenizer.chat_template",
            value=True,
            fix="connect to the network, or fetch the files elsewhere and use kind: file",
        ) from error
