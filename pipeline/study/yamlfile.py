"""Strict YAML: a safe loader in which ``1e-4`` is a number, ``no`` is a word and a key may stand only once."""

from __future__ import annotations

import re
from typing import Any

import yaml

from pipeline.errors import StudyError

_LONGEST = 100_000  # characters; the parser takes about a second for them
_DEEPEST = 40  # levels of nesting; a study file has six
_MOST = 100_000  # values, those behind aliases counted at each of their places; 16 characters of text count as one more


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2's core schema for scalars, as far as study files need it, and no more of it than a person writes."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[int, int] = {}  # values of each finished node, by its identity; the document keeps all alive

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if self._depth == _DEEPEST:
            raise StudyError(f"line {line}: not a study file: nested more than {_DEEPEST} levels deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise StudyError(f"line {line}: *{event.anchor} stands within what it names. Fix: write it out")
            return node
        inside: list[Any] = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for pair in inside for part in pair] if isinstance(node, yaml.MappingNode) else inside
        text = len(node.value) // 16 if isinstance(node, yaml.ScalarNode) else 0
        self._sizes[id(node)] = size = 1 + text + sum(self._sizes[id(part)] for part in parts)
        if size > _MOST:
            raise StudyError(
                f"line {line}: not a study file: more than {_MOST} values, those behind aliases counted wherever they "
                "are named"
            )
        return node


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


def _text(loader: _StrictLoader, node: yaml.ScalarNode) -> str:
    value = str(loader.construct_scalar(node))
    if found := re.search("[\0\ud800-\udfff]", value):
        raise StudyError(
            f"line {node.start_mark.line + 1}: text with the character {found[0]!a}, which no name, path or URL "
            "can hold. Fix: remove it"
        )
    return value


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping)
_StrictLoader.add_constructor("tag:yaml.org,2002:str", _text)


def _brackets(text: str) -> int:
    """The most brackets open at a time, in quotes too."""
    deepest = depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def parse(text: str, name: str) -> Any:
    """Parse one document. Raises StudyError naming ``name`` and the line."""
    if len(text) > _LONGEST:
        raise StudyError(f"{name}: not a study file: {len(text)} characters (allowed: at most {_LONGEST})")
    if _brackets(text) > _DEEPEST:  # the parser looks ahead, for minutes
        raise StudyError(f"{name}: not a study file: nested more than {_DEEPEST} levels deep")
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
