"""Reading a study file: typed, strict, with overrides.

Precedence is command line, environment, file, default. ``INFINI_STUDY__PRETRAIN__STEPS=10`` in the environment
sets ``pretrain.steps``; ``--set pretrain.steps=10`` does on the command line.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import StudyError, suggestion
from pipeline.plugins import load_plugins
from pipeline.study.checks import disagreements
from pipeline.study.faults import describe
from pipeline.study.study import StudyConfig
from pipeline.study.yamlfile import parse

ENVIRONMENT_PREFIX = "INFINI_STUDY__"
_DEEPEST = 50  # names in an override: far beyond any study file's, far below what Python's stack holds


@dataclass(frozen=True)
class LoadedStudy:
    """A study, where it was read, and where each value came from (dotted path -> origin)."""

    study: StudyConfig
    path: Path
    origins: Mapping[str, str]


def load(path: str | Path, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> LoadedStudy:
    """Read and check a study file. Raises StudyError naming field, value, what is allowed and the fix."""
    load_plugins()  # whose arms the file may name
    path = Path(path)
    raw = parse(_text(path), str(path))
    if not isinstance(raw, dict):
        what = "the file is empty" if raw is None else f"it holds {'a list' if isinstance(raw, list) else 'one value'}"
        raise StudyError(
            f"{path}: {what}; a study file is a mapping of sections (name: ..., seeds: ...). "
            "Fix: infini-study init writes one to start from"
        )
    origins = dict.fromkeys(leaves(raw), "file")
    variables = os.environ if environment is None else environment
    settings = [("environment", k, v) for k, v in _from_environment(variables)]
    settings += [("command line", k, v) for k, v in map(_split_override, overrides)]
    for origin, dotted, text in settings:
        said = f"--set {dotted}" if origin == "command line" else f"{ENVIRONMENT_PREFIX}* {dotted}"
        if dotted.count(".") >= _DEEPEST:
            raise StudyError(
                f"{said[:60]}...: {dotted.count('.') + 1} names (allowed: at most {_DEEPEST}). "
                "Fix: name a value of the study file"
            )
        value = parse(text, said)
        _assign(raw, dotted, _from_here(dotted, value) if origin == "command line" else value, said)
        origins = {k: v for k, v in origins.items() if k != dotted and not k.startswith(dotted + ".")}
        origins |= {f"{dotted}.{leaf}" if leaf else dotted: origin for leaf in leaves(value)}
    try:  # as JSON, because only there pydantic takes lists for tuples and yet "3" for no number
        study = StudyConfig.model_validate_json(json.dumps(_said_once(raw)), strict=True)
    except ValidationError as error:
        raise StudyError(describe(error, StudyConfig, raw, str(path), origins)) from error
    if found := disagreements(study):
        raise StudyError("\n".join(f"{path}: {line}" for line in found))
    return LoadedStudy(study, path, origins)


def _text(path: Path) -> str:
    if len(os.fsencode(path.name)) > 255:
        raise StudyError(f"STUDY = {str(path)[:100]!r}...: a name too long for a file. Fix: give a study file")
    if path.is_symlink() and not path.exists():
        raise StudyError(f"{str(path)!r} is a link that leads nowhere, a study file is needed. Fix: mend the link")
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.yaml"))
        there = f" (in it: {', '.join(inside)})" if inside else ""
        raise StudyError(f"{str(path)!r} is a folder, a study file is needed{there}")
    if path.exists() and not path.is_file():
        raise StudyError(f"{str(path)!r} is a pipe or a device, a study file is needed. Fix: save it as a file")
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise StudyError(f"no study file at {str(path)!r}{suggestion(path.name, beside) if beside else ''}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudyError(
            f"{path}: not a text file in UTF-8 (byte {error.start} is {error.object[error.start]:#04x}). "
            "Fix: give a YAML file, saved as UTF-8"
        ) from error
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror or error}. Fix: its permissions") from error


def _said_once(raw: dict[str, Any]) -> dict[str, Any]:
    """An arm that names no segment length has the tokens' own, and training the tokens' sequence length. An imported
    base is one for all seeds. What is matched is one word, or a section. A source of the corpus that the file
    keeps ready without a place (``url: null``, of the Hub ``path: null``) is left out."""
    filled = dict(raw)
    if isinstance(corpus := raw.get("corpus"), dict) and isinstance(corpus.get("sources"), list):
        filled["corpus"] = corpus | {"sources": [one for one in corpus["sources"] if not _without_a_place(one)]}
    if isinstance(raw.get("match"), str):
        filled["match"] = {"by": raw["match"]}
    if isinstance(raw.get("base"), dict) and raw["base"].get("init") == "hf":
        filled["base"] = {"per_seed": False, **raw["base"]}
    if not isinstance(raw.get("tokenize"), dict):
        return filled
    tokenize = raw["tokenize"]
    if "segment_length" in tokenize and isinstance(raw.get("arms"), dict):
        filled["arms"] = {
            name: {"segment_length": tokenize["segment_length"], **arm} if isinstance(arm, dict) else arm
            for name, arm in raw["arms"].items()
        }
    if "sequence_length" in tokenize and isinstance(raw.get("pretrain"), dict):
        filled["pretrain"] = {"sequence_length": tokenize["sequence_length"], **raw["pretrain"]}
    return filled


def _without_a_place(source: Any) -> bool:
    return isinstance(source, dict) and None in (source.get("url", ""), source.get("path", ""))


def leaves(value: Any, prefix: str = "") -> Iterator[str]:
    """Dotted paths of the scalar values inside ``value`` (``""`` for a scalar itself)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield prefix
        return
    for name, item in items:
        yield from leaves(item, f"{prefix}.{name}" if prefix else str(name))


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            yield name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."), environment[name]


def _split_override(text: str) -> tuple[str, str]:
    dotted, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in dotted.split(".")):
        raise StudyError(f"--set {text!r}: allowed is a.b=value, for example --set pretrain.steps=100")
    return dotted.strip(), value


def _from_here(dotted: str, value: Any) -> Any:
    """A path typed on the command line is meant from the working directory, not from the study file's folder."""
    if dotted.rpartition(".")[2] in ("url", "path") and isinstance(value, str) and os.path.exists(value):
        return str(Path(value).resolve())
    return value


def _assign(raw: dict[str, Any], dotted: str, value: Any, said: str) -> None:
    place: Any = raw
    *parents, last = dotted.split(".")
    for depth, part in enumerate(parents):
        if isinstance(place, list):
            place = place[_index(place, part, said)]
        else:
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        if not isinstance(place, dict | list):
            here = ".".join(parents[: depth + 1])
            raise StudyError(f"{said}: {here!r} is a single value, not a section")
    if isinstance(place, list):
        place[_index(place, last, said)] = value
    else:
        place[last] = value


def _index(place: list[Any], part: str, said: str) -> int:
    if not re.fullmatch("[0-9]{1,15}", part) or int(part) >= len(place):
        allowed = f"allowed: 0 to {len(place) - 1}" if place else "set the whole list instead"
        raise StudyError(f"{said}: {part!r} is not an index of a list of {len(place)} ({allowed})")
    return int(part)
