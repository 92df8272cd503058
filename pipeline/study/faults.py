"""From pydantic's findings to lines a person reads: field, value, what is allowed, and where the value came from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from cluster.storage import redacted
from pipeline.errors import suggestion

Location = tuple[int | str, ...]

# what pydantic calls it -> what is said; ``{...}`` are pydantic's own numbers and words
_SAYINGS: Mapping[str, str] = {
    "int_type": "a whole number is needed",
    "int_parsing": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_type": "a number is needed",
    "float_parsing": "a number is needed",
    "finite_number": "a finite number is needed",
    "string_type": "text is needed; fix: write it in quotes",
    "bool_type": "true or false is needed",
    "bool_parsing": "true or false is needed",
    "tuple_type": "a list is needed; fix: write it in [brackets]",
    "list_type": "a list is needed; fix: write it in [brackets]",
    "greater_than": "must be greater than {gt:.12g}; fix: raise it",
    "greater_than_equal": "must be at least {ge:.12g}; fix: raise it",
    "less_than": "must be less than {lt:.12g}; fix: lower it",
    "less_than_equal": "must be at most {le:.12g}; fix: lower it",
    "literal_error": "allowed are {expected}",
    "too_short": "entries needed: at least {min_length}",
    "too_long": "entries allowed: at most {max_length}",
    "string_too_long": "characters allowed: at most {max_length}",
    "string_too_short": "characters needed: at least {min_length}",
    "string_pattern_mismatch": "must have the form {pattern}",
    "union_tag_invalid": "unknown kind; allowed are {expected_tags}",
    "union_tag_not_found": "kind is missing; allowed are {tags}",
}
_SECTIONS = ("model_type", "model_attributes_type", "dataclass_type", "dict_type")
_LONGEST_VALUE = 80  # characters
_MOST_FAULTS = 200  # looked at: each is compared with each
_MOST_LINES = 20
_SECRET = (("endpoint", "key_env"), ("endpoint", "url"))
"""Fields in which a key or a password may stand by mistake: an error about them does not repeat it."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One finding: ``place`` is its path in the file, ``text`` what is wrong with it."""

    place: Location
    kind: str
    value: Any
    text: str


def describe(error: ValidationError, section: type[BaseModel], raw: Any, name: str, origins: Mapping[str, str]) -> str:
    """The faults of a study file, one line each, and how many more there are. ``raw`` is the parsed file (with
    overrides), ``name`` the file's name, ``origins`` says of each dotted path where its value came from."""
    every = error.errors(include_url=False)
    found = [_fault(details, section, raw) for details in every[:_MOST_FAULTS]]
    told = [fault for fault in found if not any(_says_more(other, fault) for other in found)]
    lines = dict.fromkeys(_line(fault, name, origins) for fault in told[:_MOST_LINES])
    left = len(told[_MOST_LINES:]) + len(every[_MOST_FAULTS:])
    return "\n".join([*lines, *([f"{name}: and {left} more. Fix: mend these first"] if left else [])])


def _says_more(other: Fault, fault: Fault) -> bool:
    """Is ``fault`` only a consequence of ``other``, or the branch of an alternative that was not meant?"""
    if other is fault:
        return False
    if other.place[: len(fault.place)] == fault.place and len(other.place) > len(fault.place):
        # a list whose only entry is wrong counts as empty; a section is no word that was allowed in its place
        return fault.kind in ("too_short", "literal_error")
    if other.place == fault.place:
        if isinstance(fault.value, dict):
            return fault.kind == "literal_error"
        return fault.kind in _SECTIONS and other.kind == "literal_error"
    return False


def _fault(details: Any, section: type[BaseModel], raw: Any) -> Fault:
    kind, location, value = details["type"], details["loc"], details["input"]
    place = _place(location, raw, missing=kind == "missing")
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_fields(section, location[:-1])
        text = "unknown key" + (suggestion(str(location[-1]), known) if known else "; fix: remove it")
        return Fault(place, kind, ..., text)
    if kind == "missing":
        return Fault(place, kind, ..., "missing; fix: add it (infini-study init writes an example)")
    if kind in _SECTIONS:
        known = _known_fields(section, location)
        keys = f" ({', '.join(known)})" if known else ""
        return Fault(place, kind, value, f"a section is needed, with keys of its own{keys}")
    if kind == "value_error":
        return Fault(place, kind, value, details["msg"].removeprefix("Value error, "))
    if kind == "union_tag_not_found":
        tags = [str(c.model_fields["kind"].default) for c in _candidates(_annotation(section, location))]
        return Fault(place, kind, value, _SAYINGS[kind].format(tags=", ".join(tags)))
    if kind == "union_tag_invalid":
        place, value = (*place, "kind"), details["ctx"]["tag"]
    saying = _SAYINGS.get(kind)
    text = saying.format(**details.get("ctx", {})) if saying else details["msg"]
    return Fault(place, kind, value, text)


def _line(fault: Fault, name: str, origins: Mapping[str, str]) -> str:
    dotted = ".".join(map(str, fault.place))
    origin = _origin(dotted, origins)
    where = name if origin in ("file", "default") else origin
    own_words = re.match(r"[a-z_]+(\.\w+)* (=|is missing)", fault.text)  # a rule that names fields of its section
    if fault.kind == "value_error" and own_words and not dotted.endswith(fault.text.split(" ", 1)[0]):
        return f"{where}: {dotted}.{fault.text}" if dotted else f"{where}: {fault.text}"
    if fault.kind == "value_error" and isinstance(fault.value, dict | list):
        return f"{where}: {dotted}: {fault.text}" if dotted else f"{where}: {fault.text}"
    shown = "" if fault.kind == "value_error" and fault.place[-2:] in _SECRET else _shown(fault.value)
    return f"{where}: {dotted or 'study'}{shown}: {fault.text}"


def _shown(value: Any) -> str:
    if value is ...:
        return ""
    if value is None:
        return " is empty"
    if isinstance(value, bool):
        return f" = {str(value).lower()}"
    if isinstance(value, str | int | float):
        text = redacted(repr(value))
        return f" = {text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + '...'}"
    if isinstance(value, list | tuple):
        return " = a list" if value else " = []"
    return " = a section" if value else " = {}"


def _origin(dotted: str, origins: Mapping[str, str]) -> str:
    """Of the value itself, of the section it stands in, or of the newest value inside it."""
    up = dotted
    while up:
        if up in origins:
            return origins[up]
        up = up.rpartition(".")[0]
    inside = {origin for path, origin in origins.items() if path.startswith(dotted + ".")} if dotted else set()
    return inside.pop() if len(inside) == 1 else "file"


def _place(location: Location, raw: Any, *, missing: bool) -> Location:
    """``location`` without the names pydantic gives the branches of an alternative: those are no keys of the file."""
    place: list[int | str] = []
    for index, part in enumerate(location):
        inside = part in raw if isinstance(raw, dict) else isinstance(raw, list) and part in range(len(raw))
        if inside:
            raw = raw[part]
        elif not (missing and index == len(location) - 1):
            continue
        place.append(part)
    return tuple(place)


def _known_fields(section: Any, location: Location) -> list[str]:
    """Field names of the section at ``location``, walking through the study's types."""
    here = _annotation(section, location)
    candidates = [] if get_origin(here) in (dict, tuple) else list(_candidates(here))
    if len(candidates) != 1:
        return []
    if dataclasses.is_dataclass(candidates[0]):
        return [f.name for f in dataclasses.fields(candidates[0])]
    return list(candidates[0].model_fields)


def _annotation(section: Any, location: Location) -> Any:
    here = section
    for part in location:
        candidates = list(_candidates(here))
        tagged = [c for c in candidates if _tag(c) == part]
        if tagged:
            here = tagged[0]
        elif get_origin(here) is dict:
            here = here.__args__[1]
        elif get_origin(here) is tuple:
            here = here.__args__[0]
        elif len(candidates) == 1 and part in getattr(candidates[0], "model_fields", {}):
            here = candidates[0].model_fields[part].annotation
    return here


def _tag(section: Any) -> Any:
    fields = getattr(section, "model_fields", {})
    return fields["kind"].default if "kind" in fields else None


def _candidates(annotation: Any) -> Iterator[Any]:
    """The config classes inside ``X``, ``X | None``, ``dict[str, X]``, ``tuple[X, ...]``, ``Annotated[X | Y, ...]``."""
    if hasattr(annotation, "model_fields") or (dataclasses.is_dataclass(annotation) and isinstance(annotation, type)):
        yield annotation
        return
    for inside in getattr(annotation, "__args__", ()):
        yield from _candidates(inside)
