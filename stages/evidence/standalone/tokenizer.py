"""The tokenizer of a checkpoint's folder: what begins a text, what ends an answer, its chat template."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.llama import BLOCK
from stages.data.tokens.chat import Around, ChatTemplate, template_beside, token_text, with_control
from stages.data.tokens.library import put_before, read_library, rows, text_only
from stages.data.tokens.load import StudyTokenizer
from stages.stage import StageError

FILE = "tokenizer.json"


@dataclass(frozen=True)
class CheckpointTokenizer(StudyTokenizer):
    """``stops``: tokens at which an answer ends. ``template``: the chat template, "" for none. ``digest``: of the file,
    of what begins a text and of what ends an answer. ``marks``: texts of bos and eos token, for the template."""

    stops: tuple[int, ...] = ()
    template: str = ""
    digest: str = ""
    marks: tuple[tuple[str, str], ...] = ()

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` up to the first that ends an answer; specials are left out."""
        end = next((at for at, token in enumerate(ids) if token in self.stops), len(ids))
        return super().decode(list(ids)[:end])

    def around(self) -> Around:
        """Tokens before and behind a user's message, by the chat template. Raises StageError where there is none, or
        it does not repeat the message."""
        return ChatTemplate(self.template, self.marks).around(self.backend, field="--chat-template")

    def with_control(self, text: str) -> list[int]:
        """Tokens of a text whose control strings are control tokens."""
        return list(with_control(self.backend, text))


def read_tokenizer(folder: Path, model_fields: dict[str, Any], stops_of: Path | None = None) -> CheckpointTokenizer:
    """The tokenizer in ``folder`` (or the tokenizer.json that it is), as its files say it is used.

    A text begins with the token that tokenizer.json, or ``add_bos_token`` in tokenizer_config.json, puts before it;
    of a folder that this study exported with the ``bos_token_id`` of its config.json. ``model_fields``: config.json;
    ``stops_of``: folder with generation_config.json. Raises StageError where there is no tokenizer.
    """
    file = folder if folder.is_file() else folder / FILE
    content = file.read_bytes() if file.is_file() else _converted(folder)
    backend = read_library(str(file), content)
    begins = put_before(backend)
    backend.no_padding()
    backend.no_truncation()
    said = read_json(file.parent / "tokenizer_config.json")
    names = {name: token_text(said.get(f"{name}_token")) for name in ("bos", "eos")}
    if begins is None and said.get("add_bos_token") and names["bos"]:
        begins = backend.token_to_id(names["bos"])
    if begins is None and BLOCK in model_fields:
        begins = next(iter(_ids(model_fields, "bos_token_id", "config.json", rows(backend))), None)
    stops = _ids(model_fields, "eos_token_id", "config.json")
    if stops_of is not None:
        name = "generation_config.json"
        stops += _ids(read_json(stops_of / name), "eos_token_id", name)
    eos = backend.token_to_id(names["eos"]) if names["eos"] else None
    stops = list(dict.fromkeys([*([] if eos is None else [eos]), *stops]))
    template = template_beside(lambda name: _bytes(file.parent / name))
    known = json.dumps([hashlib.sha256(content).hexdigest(), begins, stops])
    end = stops[0] if stops else -1
    return CheckpointTokenizer(
        backend=text_only(backend),
        vocab_size=rows(backend),
        eos_id=end,
        pad_id=end,
        bos_id=begins,
        stops=tuple(stops),
        template=template.text,
        digest=f"sha256:{hashlib.sha256(known.encode()).hexdigest()}",
        marks=template.marks,
    )


def of_study(tokenizer: StudyTokenizer, key: str) -> CheckpointTokenizer:
    """A study's own, by the key of its artifact. Its models are asked as their study asks them: no token ends an
    answer."""
    fields = {field.name: getattr(tokenizer, field.name) for field in dataclasses.fields(StudyTokenizer)}
    return CheckpointTokenizer(**fields, digest=key)


def _converted(folder: Path) -> bytes:
    """tokenizer.json as transformers makes it of other files."""
    try:
        from transformers import AutoTokenizer

        backend = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
        return str(backend.to_str()).encode()
    except Exception as error:  # not installed, or of a dozen kinds
        raise StageError(
            f"no {FILE}, and transformers makes none of the other files",
            field="MODEL",
            value=str(folder),
            allowed=f"a folder with {FILE}",
            fix="give --tokenizer (of a trained model's folder: infini-study export writes both)",
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file, {} where there is none. Raises StageError."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StageError(f"{path} is not JSON: {error}", fix="mend the file") from error
    return value if isinstance(value, dict) else {}


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _ids(fields: dict[str, Any], name: str, file: str, below: int = 2**31) -> list[int]:
    """One token, several or none. Raises StageError for what is no token's number."""
    value = fields.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(one) is not int or not 0 <= one < below for one in ids):
        raise StageError(
            "no token's number",
            field=f"{name} of {file}",
            value=value,
            allowed=f"a whole number from 0 to {below - 1:,}, a list of them, or null",
            fix="mend the file",
        )
    return list(ids)
