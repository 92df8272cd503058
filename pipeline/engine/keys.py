"""Content keys: sha256 over canonical JSON of {stage, code_version, config, keys of the inputs}.

Equal across machines, working directories, storage roots and PYTHONHASHSEED. The encoder refuses what it cannot
write in exactly one way, instead of falling back to ``str``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, shortest round-trip floats.

    Raises TypeError for anything but dict with string keys, list, tuple, str, int, float, bool and None, and
    ValueError for NaN and infinities; both name the place.
    """
    _check(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _check(value: Any, where: str) -> None:
    if value is None or isinstance(value, str | bool | int):
        if type(value) not in (type(None), str, bool, int):
            raise TypeError(f"{where}: {type(value).__name__} has no canonical form; use its plain value")
        return
    if type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} has no canonical form")
        return
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")
        return
    if isinstance(value, dict):
        for name, item in value.items():
            if type(name) is not str:
                raise TypeError(f"{where}: key {name!r} is not a string")
            _check(item, f"{where}.{name}")
        return
    raise TypeError(f"{where}: {type(value).__name__} has no canonical form")


def artifact_key(stage: str, code_version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The key of an artifact, 64 hex digits; ``inputs`` maps input names to keys."""
    body = {"stage": stage, "code_version": code_version, "config": dict(config), "inputs": dict(inputs)}
    return hashlib.sha256(canonical(body).encode()).hexdigest()
