"""The study file's ``align`` section, and the config of its steps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stages.data.pinned import Pin, agreed, digest_of, pin_file
from stages.data.tokens.chat import render, template_of
from stages.stage import Config, StageError
from stages.training.tuning.config import TuningSettings

Method = Literal["sft", "dpo"]
LONGEST_NAME = 40


class ChatFormat(Config):
    """What stands before a turn of each role; a space and the turn's text follow. An answer ends with the end-of-text
    token. Rows whose prompt and answers are plain texts are taken as they stand.

    With ``template`` turns are written as an imported tokenizer's own chat template writes them instead."""

    system: str = "\nSystem:"
    user: str = "\nUser:"
    assistant: str = Field(default="\nAssistant:", min_length=1)
    template: str | None = Field(
        default=None, description="folder with a chat template, or that file (tokenizer_config.json, *.jinja)"
    )
    pin: Pin | None = Field(default=None, description="digest of the template; filled in by the plan")

    @model_validator(mode="after")
    def _one_form(self) -> ChatFormat:
        said = [name for name in ROLE_FIELDS if name in self.model_fields_set]
        if self.template is not None and said:
            raise ValueError(f"{said[0]} has no effect with template (fix: remove one of them)")
        if self.template is None and self.pin is not None:
            raise ValueError("pin has no effect without template (fix: remove it)")
        return self

    def key_fields(self) -> dict[str, Any]:
        """The words, or the digest of the template: where it lies does not count."""
        if self.template is not None:
            return {"template": self.pin}
        return {name: getattr(self, name) for name in ROLE_FIELDS}


ROLE_FIELDS = ("system", "user", "assistant")


class AlignFile(Config):
    """Rows to align on, from a JSON Lines or Parquet file: for ``sft`` with ``messages`` (a list of ``role`` and
    ``content``), for ``dpo`` with ``prompt`` (perhaps), ``chosen`` and ``rejected``, each a text or such a list."""

    path: str = Field(description="from the study file's folder; .jsonl or .parquet")
    pin: Pin | None = Field(default=None, description="sha256 of the file; filled in by the plan")

    def key_fields(self) -> dict[str, Any]:
        """Where the file lies does not count, its bytes do."""
        return {name: value for name, value in super().key_fields().items() if name != "path"}


class Variant(TuningSettings):
    """One alignment. ``sft``: the mean nll of the assistant's turns. ``dpo``: direct preference optimisation
    (arXiv:2305.18290), against the model that it starts from."""

    method: Method
    length: int = Field(ge=16, description="most tokens of a conversation; longer ones are left out and counted")
    after: str | None = Field(default=None, description="variant that it goes on from (default: the evaluated model)")
    data: AlignFile | None = Field(default=None, description="default: made from the training text by templates")
    examples: int = Field(default=256, ge=1, description="how many are made from the training text")
    beta: float = Field(default=0.1, gt=0, description="dpo: how dear it is to leave the model it starts from")
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="dpo: share of labels taken to be wrong")

    @model_validator(mode="after")
    def _effects(self) -> Variant:
        without = {"sft": ("beta", "label_smoothing"), "dpo": ()}[self.method]
        without += ("examples",) if self.data is not None else ()
        for name in without:
            if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default:
                cause = "data" if name == "examples" else f"method = {self.method!r}"
                raise ValueError(f"{name} = {getattr(self, name)}: has no effect with {cause}; remove it")
        return self

    def key_fields(self) -> dict[str, Any]:
        """What makes the model; what it goes on from is its input."""
        fields = super().key_fields()
        unused = {"after"} | ({"beta", "label_smoothing"} if self.method == "sft" else set())
        unused |= {"data"} if self.data is None else {"examples"}
        return {name: value for name, value in fields.items() if name not in unused}


class AlignSettings(Config):
    """Alignments of every arm, all alike, after which the arms are evaluated again on the same items (claim C11)."""

    chat: ChatFormat = ChatFormat()
    variants: dict[str, Variant] = Field(min_length=1, max_length=50)

    @field_validator("variants")
    @classmethod
    def _named(cls, variants: dict[str, Variant]) -> dict[str, Variant]:
        seen: list[str] = []
        for name, variant in variants.items():
            if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) or len(name) > LONGEST_NAME or name == BEFORE:
                raise ValueError(
                    f"variant {name[:40]!r}: allowed are names of lower-case letters, digits and '-', at most "
                    f"{LONGEST_NAME}, except {BEFORE!r}"
                )
            if variant.after is not None and variant.after not in seen:
                raise ValueError(
                    f"{name}.after = {variant.after!r}: allowed are variants that stand before it"
                    + (f", {', '.join(seen)}" if seen else ", of which there is none")
                )
            seen.append(name)
        return variants


BEFORE = "pretrained"
"""Under ARM@pretrained an arm is evaluated as it was before its fine-tuning."""


class AlignConfig(Variant):
    """One variant of one model. The seed sets what is made of the text, and the order of examples."""

    chat: ChatFormat
    seed: int = Field(ge=0)


def pin_align(section: AlignSettings, folder: Path) -> AlignSettings:
    """``section`` with the digests of its files. Raises StageError where one is missing or not the pinned one, or the
    template cannot write a question and its answer."""
    variants = {}
    for name, variant in section.variants.items():
        variants[name] = variant
        if variant.data is not None:
            field = f"align.variants.{name}.data"
            path, pin = pin_file(variant.data.path, folder, variant.data.pin, field=field, kind="JSON Lines or Parquet")
            variants[name] = variant.model_copy(update={"data": AlignFile(path=path, pin=pin)})
    return section.model_copy(update={"variants": variants, "chat": _pin_chat(section.chat, folder)})


def _pin_chat(chat: ChatFormat, folder: Path) -> ChatFormat:
    if chat.template is None:
        return chat
    path = (folder / chat.template).absolute()
    template, marks = read_template(str(path))
    render(
        template,
        [{"role": "user", "content": "Yes?"}, {"role": "assistant", "content": "Yes."}],
        marks,
        field=TEMPLATE,
        value=chat.template,
        fix="correct it, or leave it out",
    )
    pin = agreed(template_digest(template, marks), chat.pin, field="align.chat.pin", what="the chat template")
    return ChatFormat(template=str(path), pin=pin)


TEMPLATE = "align.chat.template"


def read_template(path: str) -> tuple[str, dict[str, str]]:
    """The template and its marks. Raises StageError, naming the field, where there is none."""
    template, marks = template_of(Path(path)) if Path(path).exists() else ("", {})
    if not template:
        raise StageError(
            "no chat template there" if Path(path).exists() else "no such file or folder",
            field=TEMPLATE,
            value=path,
            allowed="a folder with chat_template in tokenizer_config.json or with chat_template.jinja, or such a file",
            fix="correct it, or leave it out: turns then stand behind align.chat's plain words",
        )
    return template, marks


def template_digest(template: str, marks: dict[str, str]) -> str:
    """Over the template and the tokens that it is given."""
    return digest_of(json.dumps([template, marks], sort_keys=True).encode())
