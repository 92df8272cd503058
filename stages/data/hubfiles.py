"""Files of a data set on the Hugging Face Hub at one commit, as they lie there: ``hf://datasets/owner/name@COMMIT``, or
a folder or a file of it behind that.

They are kept in the cache of ``huggingface_hub`` (HF_HOME), from which they are taken without a network. Every node
that needs them fetches them itself.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from stages.stage import StageError

SCHEME = "hf://"
_FORM = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)@([0-9a-f]{40})(?:/(.*[^/]))?/?")
ALLOWED = (
    "hf://datasets/OWNER/NAME@COMMIT, with the 40 digits of the commit (a branch can move), perhaps /FOLDER or /FILE"
)


def on_hub(said: str) -> bool:
    return said.startswith(SCHEME)


def fetched(address: str, suffixes: Sequence[str], field: str) -> Path:
    """The folder or file on this machine, with all files of these suffixes. Raises StageError, naming ``field``, for
    what is no such address, for a data set, commit or file that there is not, and where the Hub does not answer."""
    if (found := _FORM.fullmatch(address)) is None or ".." in address.split("/"):
        raise StageError("not an address of the Hub", field=field, value=address, allowed=ALLOWED, fix="correct it")
    name, revision, below = found.groups()
    place = _snapshot(name, revision, below or "", tuple(suffixes), field, address)
    if not place.exists():
        raise StageError(
            "the data set has no such file or folder at this commit, or none with these files",
            field=field,
            value=address,
            allowed=", ".join(suffixes),
            fix="correct it",
        )
    return place


@functools.cache  # every arm and seed asks
def _snapshot(name: str, revision: str, below: str, suffixes: tuple[str, ...], field: str, address: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    inside = f"{below}/" if below else ""
    patterns = [below] if below.endswith(suffixes) else [f"{inside}*{suffix}" for suffix in suffixes]
    try:
        folder = snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        lack = (
            "no such commit"
            if isinstance(error, errors.RevisionNotFoundError)
            else "no such data set, or a private one"
        )
        raise StageError(
            f"the Hub has {lack}",
            field=field,
            value=address,
            fix="correct it (a private one needs HF_TOKEN)",
        ) from error
    except Exception as error:  # no network, offline mode, timeouts: each layer raises its own
        raise StageError(
            f"it is not in the local cache and the Hub does not answer: {' '.join(str(error).split())[:200]}",
            field=field,
            value=address,
            fix="connect to the network, or fetch the files elsewhere and name their folder",
        ) from error
    return Path(folder) / below
