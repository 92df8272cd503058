"""Strict YAML: a safe loader in which ``1e-4`` is a number, ``no`` is a word and a key may stand only once."""

from __future__ import annotations

import re
from typing import Any

import yaml

from pipeline.errors import StudyError


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2's core schema for scalars, as far as study files need it."""


_StrictLoader.yaml_implicit_resolvers = {}
_StrictLoader.yaml_constructors = {  # no sets, dates, bytes: a study file is JSON in nicer clothes
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rsplit(":", 1)[-1] in ("null", "bool", "int", "float", "seq", "str")
}
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"^(?:true|false)$", "tf"),
    ("tag:yaml.org,2002:int", r"^[-+]?(?:0|[1-9][0-9_]*)$", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$",
        "-+0123456789.",
    ),
    ("tag:yaml.org,2002:null", r"^(?:~|null|)$", ["~", "n", ""]),
):
    _StrictLoader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise StudyError(f"line {line}: key {key!r} is not a word. Fix: write it in quotes")
        if key in value:
            raise StudyError(f"line {line}: key {key!r} stands twice in the same block. Fix: keep one")
        value[key] = loader.construct_object(value_node, deep=True)
    return value


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse(text: str, name: str) -> Any:
    """Parse one document. Raises StudyError naming ``name`` and the line."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        fix = " Fix: indent with spaces, not tabs" if "'\\t'" in problem else ""
        raise StudyError(f"{name}: {where}not YAML: {problem}.{fix}") from error
    except RecursionError as error:
        raise StudyError(f"{name}: not a study file: nested too deeply") from error
    except ValueError as error:  # !!int words, a number of thousands of digits
        raise StudyError(f"{name}: not YAML: {str(error).splitlines()[0]}") from error
    except StudyError as error:
        raise StudyError(f"{name}: {error}") from error
