"""Conversations as tokens: what is said by whom, and which of it is to be learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from stages.data.tasks.haystack import Codec
from stages.training.align.config import ChatFormat
from stages.training.tuning.rows import Row

Role = Literal["system", "user", "assistant", ""]
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Turn:
    """``role`` "": a plain text, which stands as it is."""

    role: Role
    content: str


class ChatCodec(Codec, Protocol):
    """A tokenizer whose texts have an end."""

    @property
    def eos_id(self) -> int: ...


def encode(codec: ChatCodec, chat: ChatFormat, turns: Sequence[Turn], learned_from: int = 0) -> Row:
    """The row of a conversation; targets are the assistant's turns from the ``learned_from``-th on, and plain texts
    that follow another, each with its end-of-text token (between turns too: an answer ends there)."""
    parts: list[tuple[Sequence[int], bool]] = [(codec.begin, False)]
    for number, turn in enumerate(turns):
        if turn.role:
            parts.append((codec.encode(getattr(chat, turn.role)), False))
        said = codec.encode(f" {turn.content.strip()}" if turn.role else turn.content)
        answered = turn.role == "assistant" or (not turn.role and number > 0)
        parts.append(([*said, codec.eos_id] if answered else said, answered and number >= learned_from))
    return Row.of(parts)


def turns_of(value: Any) -> tuple[Turn, ...] | None:
    """Turns of a list of ``role`` and ``content``, or of a text; () for what has no words; None for what is neither."""
    if isinstance(value, str):
        return (Turn("", value),) if value.strip() else ()
    if not isinstance(value, list):
        return None
    turns = []
    for one in value:
        if not isinstance(one, dict) or one.get("role") not in ROLES or not isinstance(one.get("content"), str):
            return None
        turns.append(Turn(one["role"], one["content"]))
    return tuple(turns) if all(turn.content.strip() for turn in turns) else ()
