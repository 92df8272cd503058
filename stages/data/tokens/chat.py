"""A tokenizer's own chat template: found beside its tokenizer.json, and what it puts around a user's message."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.stage import StageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

TEMPLATE = "chat_template.jinja"
SETTINGS = "tokenizer_config.json"
_CONTENT = "\x00the prompt stands here\x00"

Around = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens before and behind a message."""


@dataclass(frozen=True)
class ChatTemplate:
    """``text``: Jinja, "" for none. ``marks``: texts of bos and eos token, which templates name."""

    text: str
    marks: tuple[tuple[str, str], ...] = ()

    @property
    def digest(self) -> str:
        """Of the template and its marks."""
        said = json.dumps([self.text, *self.marks])
        return "sha256:" + hashlib.sha256(said.encode()).hexdigest()

    def around(self, backend: Library, *, field: str) -> Around:
        """Tokens before and behind a user's message. Raises StageError, naming ``field``, where there is no template,
        or it cannot be rendered, or does not repeat the message."""
        if not self.text:
            raise StageError(
                "the tokenizer has no chat template",
                field=field,
                value=True,
                allowed=f"tokenizers with chat_template in {SETTINGS}, or a {TEMPLATE}",
                fix=f"leave {field} out",
            )
        text = render(self.text, [{"role": "user", "content": _CONTENT}], dict(self.marks), field=field)
        before, found, behind = text.partition(_CONTENT)
        if not found:
            raise StageError(
                "the chat template does not repeat the message", field=field, value=True, fix=f"leave {field} out"
            )
        return with_control(backend, before), with_control(backend, behind)


def template_beside(read: Callable[[str], bytes | None]) -> ChatTemplate:
    """What ``read`` (name of a file -> its bytes, None where there is none) finds. Raises StageError for a
    tokenizer_config.json that is no JSON."""
    content = read(SETTINGS)
    try:
        said: Any = {} if content is None else json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StageError(f"{SETTINGS} is not JSON: {error}", fix="mend the file") from error
    said = said if isinstance(said, dict) else {}
    marks = tuple((f"{name}_token", token_text(said.get(f"{name}_token"))) for name in ("bos", "eos"))
    template = said.get("chat_template") or ""
    if isinstance(template, list) and all(isinstance(one, dict) for one in template):  # several by name
        template = next((one.get("template") for one in template if one.get("name") == "default"), "")
    if not isinstance(template, str):
        raise _fault("chat_template", template, "a text, or a list of objects with name and template")
    if not template and (alone := read(TEMPLATE)) is not None:
        template = _text(alone, TEMPLATE)
    return ChatTemplate(template, marks)


def with_control(backend: Library, text: str) -> tuple[int, ...]:
    """Tokens of a text whose control strings are control tokens."""
    backend.encode_special_tokens = False
    try:
        return tuple(backend.encode(text, add_special_tokens=False).ids)
    finally:
        backend.encode_special_tokens = True


def token_text(token: Any) -> str:
    """A token in tokenizer_config.json: a text, or an object with one; "" for none. Raises StageError."""
    said = (token.get("content") if isinstance(token, dict) else token) or ""
    if not isinstance(said, str):
        raise _fault("bos_token or eos_token", token, "a text, an object with content, or null")
    return said


def _fault(field: str, value: object, allowed: str) -> StageError:
    return StageError(
        "cannot be used", field=f"{field} of {SETTINGS}", value=value, allowed=allowed, fix="mend the file"
    )


def template_of(file: Path) -> tuple[str, dict[str, str]]:
    """The chat template in a tokenizer_config.json, a .jinja file, or a folder with one of them ("" for none), and the
    texts of bos and eos token, which templates ask for. Raises StageError for a file that cannot be read as such."""
    folder = file if file.is_dir() else file.parent

    def read(name: str) -> bytes | None:
        path = file if name == SETTINGS and file.suffix == ".json" else folder / name
        return path.read_bytes() if path.is_file() else None

    found = template_beside(read)
    text = found.text
    if file.suffix == ".jinja":
        text = _text(read(file.name) or b"", file.name)
    return text, dict(found.marks)


def render(
    template: str,
    messages: Sequence[dict[str, str]],
    marks: dict[str, str],
    *,
    answer: bool = True,
    field: str = "--chat-template",
    value: object = True,
    fix: str | None = None,
) -> str:
    """``messages`` by a chat template, with what begins the answer where ``answer``. Raises StageError, with the last
    three, for a template that cannot be rendered."""
    try:
        return str(_compiled(template).render(messages=messages, add_generation_prompt=answer, **marks))
    except Exception as error:  # templates raise whatever Python does
        raise StageError(
            f"the chat template cannot be rendered: {' '.join(str(error).split())[:200]}",
            field=field,
            value=value,
            fix=fix or f"leave {field} out",
        ) from error


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: ""  # the same prompts every day
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    return environment.from_string(template)


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise StageError(f"{name} is not a text in UTF-8", fix="mend the file") from error
