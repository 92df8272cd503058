"""Chat templates, as they stand beside imported tokenizers: what is written around the turns of a conversation."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.stage import StageError

FILE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
MARKS = ("bos", "eos")


def template_of(file: Path) -> tuple[str, dict[str, str]]:
    """The chat template in a tokenizer_config.json, a .jinja file, or a folder with one of them ("" for none), and the
    texts of bos and eos token, which templates ask for. Raises StageError for a file that is not JSON."""
    folder = file if file.is_dir() else file.parent
    said = read_json(file if file.suffix == ".json" else folder / CONFIG)
    template = said.get("chat_template") or ""
    if isinstance(template, list):  # several by name
        template = next((one["template"] for one in template if one.get("name") == "default"), "")
    beside = file if file.suffix == ".jinja" else folder / FILE
    if (file.suffix == ".jinja" or not template) and beside.is_file():
        try:
            template = beside.read_text(encoding="utf-8")
        except ValueError as error:
            raise StageError(f"{beside} is not a text in UTF-8", fix="mend the file") from error
    return str(template), {f"{name}_token": token_text(said.get(f"{name}_token")) for name in MARKS}


def render(
    template: str,
    messages: Sequence[dict[str, str]],
    marks: dict[str, str],
    *,
    answer: bool = True,
    field: str = "--chat-template",
    value: object = True,
    fix: str = "leave --chat-template out",
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
            fix=fix,
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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; {} where there is no file. Raises StageError for what is no JSON."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StageError(f"{path} is not JSON: {error}", fix="mend the file") from error
    return value if isinstance(value, dict) else {}


def token_text(token: Any) -> str:
    """A token in tokenizer_config.json: a text, or an object with one."""
    return str(token.get("content", "")) if isinstance(token, dict) else token or ""
