"""A tokenizer of the library as a study uses it: which file is one, how large it is, what of it a text may become."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stages.stage import StageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library


def read_library(path: str, content: bytes) -> Library:
    """The tokenizer of a tokenizer.json. Raises StageError where it is none, or does not give text back."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise StageError(
            f"not a tokenizer.json: {error}",
            field="tokenizer.path",
            value=path,
            fix="give the file that tokenizers or transformers saved",
        ) from error
    probe = "The pass key is 4071.\n  x_1 = {y}\n"
    decoded = tokenizer.decode(tokenizer.encode(probe, add_special_tokens=False).ids)
    if decoded.split() != probe.split():
        raise StageError(
            f"the tokenizer does not give text back: {probe!r} becomes {decoded!r}",
            field="tokenizer.path",
            value=path,
            fix="use one that keeps case and digits",
        )
    return tokenizer


def rows(tokenizer: Library) -> int:
    """Rows that an embedding needs: the largest id and one. Where ids have gaps they are more than there are tokens."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def put_before(tokenizer: Library) -> int | None:
    """The token that it puts before any text by itself; None: none, or several."""
    with_marks, without = (tokenizer.encode("a", add_special_tokens=marks).ids for marks in (True, False))
    before = len(with_marks) - len(without)
    starts = next((n for n in range(before + 1) if with_marks[n : n + len(without)] == without), 0)
    return int(with_marks[0]) if starts == 1 else None


def text_only(tokenizer: Library) -> Library:
    """The same, which takes the strings of control tokens for text like any other."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def looks_like_control(text: str) -> bool:
    """``<|fim_prefix|>``, ``<tool_call>``, ``[INST]``: a mark between brackets, whether or not its file says so."""
    return re.fullmatch(r"<{1,2}[^\s<>]{1,60}>{1,2}|\[/?[A-Z][A-Z_]{1,40}\]", text) is not None


def control_strings(tokenizer: Library) -> list[str]:
    """Strings of its control tokens."""
    added = tokenizer.get_added_tokens_decoder().values()
    return sorted({token.content for token in added if token.special and len(token.content) > 1})
