"""Conversations as tokens: what is said by whom, and which of it is to be learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from stages.data.pinned import unchanged
from stages.data.tasks.haystack import Codec
from stages.data.tokens.chat import render
from stages.stage import StageError
from stages.training.align.config import ChatFormat, read_template, template_digest
from stages.training.tuning.rows import Example, Row

Role = Literal["system", "user", "assistant", ""]
ROLES = ("system", "user", "assistant")
UNREAD = ("tool_calls", "function_call", "weight")
"""Fields of a turn without which it is another one."""


@dataclass(frozen=True)
class Turn:
    """``role`` "": a plain text, which stands as it is."""

    role: Role
    content: str


class ChatCodec(Codec, Protocol):
    """A tokenizer whose texts have an end."""

    @property
    def eos_id(self) -> int: ...

    def encode_with_control(self, text: str) -> list[tuple[int, int]]: ...

    @property
    def control(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class Template:
    """A chat template with what it asks for; ``path``: where it lies, for errors."""

    text: str
    marks: tuple[tuple[str, str], ...]
    path: str

    def render(self, turns: Sequence[Turn], *, answer: bool = False) -> str:
        """The conversation as text. Raises StageError for one that the template refuses."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        fix = "correct the template, or leave align.chat.template out"
        named: dict[str, Any] = {"field": "align.chat.template", "value": self.path, "fix": fix}
        return render(self.text, messages, dict(self.marks), answer=answer, **named)


class Unfit(Exception):
    """A conversation that cannot be written as the template does; says why."""


def encode(codec: ChatCodec, chat: ChatFormat | Template, turns: Sequence[Turn], learned_from: int = 0) -> Row:
    """The row of a conversation; targets are the assistant's turns from the ``learned_from``-th on, and plain texts
    that follow another, each with its end-of-text token (between turns too: an answer ends there). Raises Unfit."""
    if isinstance(chat, Template) and any(turn.role for turn in turns):
        return _by_template(codec, chat, turns, learned_from)
    plain = chat if isinstance(chat, ChatFormat) else ChatFormat()
    parts: list[tuple[Sequence[int], bool]] = [(codec.begin, False)]
    for number, turn in enumerate(turns):
        if turn.role:
            parts.append((codec.encode(getattr(plain, turn.role)), False))
        said = codec.encode(f" {turn.content.strip()}" if turn.role else turn.content)
        answered = turn.role == "assistant" or (not turn.role and number > 0)
        parts.append(([*said, codec.eos_id] if answered else said, answered and number >= learned_from))
    return Row.of(parts)


def _by_template(codec: ChatCodec, chat: Template, turns: Sequence[Turn], learned_from: int) -> Row:
    """Tokens as transformers' ``apply_chat_template`` gives them. Targets are what the template writes for a learned
    turn behind what begins an answer, up to its last control token: the line break behind that is not said by anyone.
    """
    control = codec.control
    if any(mark in turn.content for turn in turns for mark in control):
        raise Unfit("a control token in its words")
    if any(not turn.role for turn in turns):
        raise Unfit("plain texts among turns")
    try:
        whole = chat.render(turns)
        learned = [n for n, turn in enumerate(turns) if n >= learned_from and turn.role == "assistant"]
        sides = [(chat.render(turns[:n], answer=True), chat.render(turns[: n + 1])) for n in learned]
    except StageError as error:
        raise Unfit("refused by the chat template") from error
    if any(not whole.startswith(said) or not said.startswith(before) for before, said in sides):
        raise Unfit("a turn that the chat template writes otherwise when others follow")
    pairs = codec.encode_with_control(whole)
    tokens = np.array([token for token, _ in pairs], np.int32)
    begins = np.array([begin for _, begin in pairs], np.int64)
    ends = np.isin(tokens, list(control.values()))
    targets = np.zeros(len(tokens), np.bool_)
    for before, said in sides:
        own = (begins >= len(before)) & (begins < len(said))
        last = np.flatnonzero(own & ends)
        if len(last):
            own[last[-1] + 1 :] = False
        targets |= own
    return Row(tokens, targets)


def turns_of(value: Any) -> tuple[Turn, ...] | None:
    """Turns of a list of ``role`` and ``content``, or of a text; () for what has no words; None for what is neither.
    Raises Unfit for a turn that says what is not read."""
    if isinstance(value, str):
        return (Turn("", value),) if value.strip() else ()
    if not isinstance(value, list):
        return None
    turns = []
    for one in value:
        if not isinstance(one, dict) or "role" not in one or "content" not in one:
            return None
        if one["role"] not in ROLES:
            raise Unfit(f"a role other than {', '.join(ROLES)}")
        if unread := [name for name in UNREAD if one.get(name) not in (None, [], 1)]:
            raise Unfit(f"a turn with {unread[0]}")
        if not isinstance(one["content"], str):
            raise Unfit("a turn whose content is no text")
        turns.append(Turn(one["role"], one["content"]))
    return tuple(turns) if all(turn.content.strip() for turn in turns) else ()


def opened(chat: ChatFormat) -> ChatFormat | Template:
    """The plain words, or the template. Raises StageError where it is missing or not the pinned one."""
    if chat.template is None:
        return chat
    text, marks = read_template(chat.template)
    unchanged(template_digest(text, marks), chat.pin, field="align.chat.pin", what="the chat template")
    return Template(text, tuple(sorted(marks.items())), chat.template)


def around(codec: ChatCodec, chat: ChatFormat | Template) -> int:
    """Tokens around the words of a question and its answer."""
    said = (Turn("user", "Yes?"), Turn("assistant", "Yes."))
    return len(encode(codec, chat, said)) - sum(len(codec.encode(turn.content)) for turn in said)


def foreign_end(codec: ChatCodec, chat: ChatFormat | Template, examples: Sequence[Example]) -> str | None:
    """The control token, or the word, that ends the first answer, where it is not the end-of-text token."""
    if not isinstance(chat, Template):
        return None
    row = examples[0][0]
    last = int(row.tokens[np.flatnonzero(row.targets)[-1]])
    names = {token: text for text, token in codec.control.items()}
    return None if last == codec.eos_id else names.get(last, "a word")
