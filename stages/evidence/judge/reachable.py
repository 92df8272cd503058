"""What a judge needs and may lack, asked before a run starts anything."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from cluster import storage
from stages.evidence.judge.config import Endpoint, JudgeConfig, home
from stages.evidence.rate.config import without_transformers
from stages.stage import StageError

PATIENCE_S = 5.0


def missing(config: JudgeConfig, *, at_once: bool) -> StageError | None:
    """The first of them. A server that does not answer is none where the judge begins ``at_once``: it may have all
    answers already, and tries again."""
    if (lost := unwritable(config.cache)) is not None:
        return lost
    if config.endpoint is None:
        return without_transformers("judge.local")
    try:
        api_key(config.endpoint)
    except StageError as error:
        return error
    return None if at_once else silent(config.endpoint)


def api_key(endpoint: Endpoint) -> str | None:
    """The key from the environment. Raises StageError where the variable is empty, or holds what no header can."""
    if endpoint.key_env is None:
        return None
    key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        raise StageError(
            "the environment has no such variable, which should hold the API key",
            field="judge.endpoint.key_env",
            value=endpoint.key_env,
            fix=f"export {endpoint.key_env}=..., or key_env: null for a server that wants none",
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise StageError(
            "the variable holds a blank, a line break or a letter that no key has",
            field="judge.endpoint.key_env",
            value=endpoint.key_env,
            fix=f"export {endpoint.key_env}=... with the key alone",
        )
    return key


def unwritable(cache: str | None) -> StageError | None:
    """The error where answers could not be kept once they are paid: a local folder that is none, or is not ours, and a
    protocol that nothing here speaks."""
    url = cache or str(home())
    try:
        storage.filesystem(url)
    except storage.StorageError:
        return StageError(
            "no storage that is known here",
            field="judge.cache",
            value=url,
            fix="name a folder of yours, or an fsspec URL",
        )
    if "://" in url:
        return None
    place = next(path for path in (Path(url), *Path(url).absolute().parents) if path.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return None
    return StageError(
        f"answers cannot be kept there: {place} is {'not writable' if place.is_dir() else 'no folder'}",
        field="judge.cache",
        value=url,
        fix="name a folder of yours, or an fsspec URL",
    )


def silent(endpoint: Endpoint) -> StageError | None:
    """The error where nothing listens at the server's address; nothing is sent."""
    parts = urlsplit(endpoint.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=PATIENCE_S).close()
    except OSError as error:
        return StageError(
            f"no server answers there ({error.strerror or error})",
            field="judge.endpoint.url",
            value=endpoint.url,
            fix="start the server or correct the address; or run --until summarize first, and judge when it is up",
        )
    return None
