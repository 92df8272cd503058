"""The tokenizer of a checkpoint's folder: what begins a text, what ends an answer, its chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.llama import BLOCK
from stages.data.tokens.chat import CONFIG, MARKS, read_json, render, template_of
from stages.data.tokens.chat import FILE as TEMPLATE_FILE
from stages.data.tokens.library import put_before, read_library, rows, text_only
from stages.data.tokens.load import StudyTokenizer
from stages.stage import StageError

FILE = "tokenizer.json"
_CONTENT = "\x00the prompt stands here\x00"


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

    def around(self) -> tuple[list[int], list[int]]:
        """Tokens before and behind a user's message, by the chat template. Raises StageError where there is none, or
        it does not repeat the message."""
        text = self._rendered()
        before, found, behind = text.partition(_CONTENT)
        if not found:
            raise StageError(
                "the chat template does not repeat the message",
                field="--chat-template",
                value=True,
                fix="leave --chat-template out",
            )
        return self.with_control(before), self.with_control(behind)

    def in_chat(self) -> CheckpointTokenizer:
        """The same without a token of its own before a text: the template says what stands there."""
        return replace(self, bos_id=None)

    def with_control(self, text: str) -> list[int]:
        """Tokens of a text whose control strings are control tokens."""
        return [token for token, _ in self.encode_with_control(text)]

    def _rendered(self) -> str:
        if not self.template:
            raise StageError(
                "the tokenizer has no chat template",
                field="--chat-template",
                value=True,
                allowed=f"models with chat_template in tokenizer_config.json, or a {TEMPLATE_FILE}",
                fix="leave --chat-template out",
            )
        return render(self.template, [{"role": "user", "content": _CONTENT}], dict(self.marks))


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
    said = read_json(file.parent / CONFIG)
    template, marks = template_of(file.parent)
    names = {name: marks[f"{name}_token"] for name in MARKS}
    if begins is None and said.get("add_bos_token") and names["bos"]:
        begins = backend.token_to_id(names["bos"])
    if begins is None and BLOCK in model_fields:
        begins = model_fields.get("bos_token_id")
    stops = _ids(model_fields.get("eos_token_id"))
    if stops_of is not None:
        stops += _ids(read_json(stops_of / "generation_config.json").get("eos_token_id"))
    eos = backend.token_to_id(names["eos"]) if names["eos"] else None
    stops = list(dict.fromkeys([*([] if eos is None else [eos]), *stops]))
    known = json.dumps([hashlib.sha256(content).hexdigest(), begins, stops])
    end = stops[0] if stops else -1
    return CheckpointTokenizer(
        backend=text_only(backend),
        vocab_size=rows(backend),
        eos_id=end,
        pad_id=end,
        bos_id=begins,
        stops=tuple(stops),
        template=template,
        digest=f"sha256:{hashlib.sha256(known.encode()).hexdigest()}",
        marks=tuple(marks.items()),
    )


def of_study(tokenizer: StudyTokenizer, key: str) -> CheckpointTokenizer:
    """A study's own, by the key of its artifact. Its models are asked as their study asks them: no token ends an
    answer."""
    return CheckpointTokenizer(
        tokenizer.backend, tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id, digest=key
    )


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


def _ids(value: Any) -> list[int]:
    return list(value) if isinstance(value, list) else [] if value is None else [int(value)]
