"""Control files read back: what they say has the declared types, or is refused in one line."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


def read_object(data: bytes) -> dict[str, Any]:
    """The JSON object in ``data``. Raises ValueError for anything else, however deep it is nested."""
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value


def typed(kind: type[T], value: Any) -> T:
    """The dataclass ``kind`` made of ``value``; fields it does not know are left out. Raises ValueError naming the
    first field that is missing or of another type."""
    return typed_json(kind, json.dumps(value))


def typed_json(kind: type[T], data: bytes | str) -> T:
    """``typed`` of what the JSON in ``data`` says."""
    from pydantic import ValidationError

    try:
        made: T = _adapter(cast(Any, kind)).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return made


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
