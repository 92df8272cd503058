"""Conversations and preferences from files in the common formats (messages; prompt, chosen, rejected) as examples."""

from __future__ import annotations

import functools
from collections.abc import Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from stages.stage import StageError
from stages.training.align.chat import ChatCodec, Template, Turn, Unfit, encode, turns_of
from stages.training.align.config import AlignFile, ChatFormat, Method
from stages.training.tuning.data import LEFT_OUT, Read, rows_of

FORMS = {
    "sft": '{"messages": [{"role": ..., "content": ...}, ...]} a row',
    "dpo": '{"prompt": ..., "chosen": ..., "rejected": ...} a row',
}
FIELD = "align.data"


def read_examples(
    rows: Iterable[dict[str, Any]],
    method: Method,
    codec: ChatCodec,
    chat: ChatFormat | Template,
    length: int,
    value: object,
    left_out: Container[int] = (),
) -> Read:
    """Examples of ``rows`` within ``length`` tokens: one row each, or chosen and rejected. What cannot be used is
    counted by reason. ``value``: where they are from, for the error where none can. ``left_out``: numbers of the rows
    that the audit found text of what is asked in."""
    read = Read()
    for read.row, row in enumerate(rows, 1):
        if read.row in left_out:
            read.skip(LEFT_OUT)
            continue
        try:
            if method == "sft":
                _conversation(read, row, codec, chat, length)
            else:
                _preference(read, row, codec, chat, length)
        except Unfit as reason:
            read.skip(str(reason))
    read.check(FIELD, value, FORMS[method])
    return read


@functools.cache  # every arm and seed asks
def fault(file: AlignFile, method: Method) -> StageError | None:
    """What ``read_examples`` would raise of the file whatever the tokenizer."""
    try:
        read_examples(rows_of(file.path, file.pin, FIELD), method, _NoTokens(), ChatFormat(), 1, file.path)
    except StageError as error:
        return error
    return None


class _NoTokens:
    """A codec for which every text is short."""

    eos_id = 0
    begin: tuple[int, ...] = ()
    control: Mapping[str, int] = MappingProxyType({})

    def encode(self, text: str) -> list[int]:
        return []

    def decode(self, ids: Sequence[int]) -> str:
        return ""

    def encode_with_control(self, text: str) -> list[tuple[int, int]]:
        return []


def _conversation(read: Read, row: dict[str, Any], codec: ChatCodec, chat: ChatFormat | Template, length: int) -> None:
    turns = turns_of(row.get("messages"))
    if turns is None or not isinstance(row.get("messages"), list):
        read.skip("no messages of role and content")
    elif not turns:
        read.skip("a turn without words, or none at all")
    elif not any(turn.role == "assistant" for turn in turns):
        read.skip("no answer of the assistant")
    elif len(made := encode(codec, chat, turns)) > length:
        read.skip("longer than length")
    else:
        read.examples.append((made,))


def _preference(read: Read, row: dict[str, Any], codec: ChatCodec, chat: ChatFormat | Template, length: int) -> None:
    given = {name: turns_of(row[name]) for name in ("prompt", "chosen", "rejected") if row.get(name) is not None}
    absent = [name for name in ("chosen", "rejected") if not given.get(name)]
    if absent:
        read.skip(f"no {absent[0]} answer")
        return
    chosen, rejected = given["chosen"] or (), given["rejected"] or ()
    prompt = given.get("prompt", ())
    if prompt is None:
        read.skip("a prompt that is neither text nor messages")
        return
    if not prompt:  # both answers repeat it: the turns that they have in common
        prompt = _shared(chosen, rejected)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if not prompt:
        read.skip("no prompt")
    elif chosen == rejected:
        read.skip("chosen and rejected are the same")
    elif not all(_answers(side) for side in (chosen, rejected)):
        read.skip("an answer that is not the assistant's")
    else:
        made = tuple(encode(codec, chat, (*prompt, *side), len(prompt)) for side in (chosen, rejected))
        if max(map(len, made)) > length:
            read.skip("longer than length")
        else:
            read.examples.append(made)


def _shared(one: tuple[Turn, ...], other: tuple[Turn, ...]) -> tuple[Turn, ...]:
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return one[:count]


def _answers(turns: tuple[Turn, ...]) -> bool:
    """Is something said in it by the assistant, or in plain text?"""
    return any(turn.role in ("assistant", "") for turn in turns)
