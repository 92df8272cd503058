"""What a task does: texts to tokens."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

from stages.data.tokens.seams import Seams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from stages.data.tokens.known import KnownChunks

Encoded = tuple["NDArray[np.int32]", list[int], list[int], list[int]]
"""Tokens of a task's pieces, one after the other; of each piece its tokens, its words, and the strings in it that look
like control tokens, which are text."""

CONTROL = (
    "<s>",
    "</s>",
    "<bos>",
    "<eos>",
    "<pad>",
    "<unk>",
    "<mask>",
    "<cls>",
    "<sep>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<<SYS>>",
    "<</SYS>>",
    "[INST]",
    "[/INST]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[PAD]",
    "[UNK]",
    "[BOS]",
    "[EOS]",
)
"""Control tokens of common tokenizers: in a text they are what another pipeline left there."""
BARRED = r"\|\w{1,40}\|>|\uff5c[\w\u2581]{1,40}\uff5c>"
"""What follows the ``<`` of those between bars: ``<|endoftext|>``, ``<|im_start|>``, DeepSeek's with wide ones."""


def encode(texts: list[str], tokenizer_json: str, seams: Seams | None, one_core: bool) -> Encoded:
    """See ``Encoded``. No special tokens are added. ``seams``: those of the tokenizer, by which chunks that were seen
    before are looked up; None: the library encodes everything. ``one_core``: it may not use others."""
    control = _control(tokenizer_json)
    counts = [sum(1 for pattern in control for _ in pattern.finditer(text)) for text in texts]
    with _threads(not one_core):
        found = _whole(texts, tokenizer_json) if seams is None else known_chunks(tokenizer_json, seams).encode(texts)
    return (*found, counts)


def _whole(texts: list[str], tokenizer_json: str) -> tuple[NDArray[np.int32], list[int], list[int]]:
    import numpy as np

    found = [
        np.asarray(encoding.ids, dtype=np.int32)
        for encoding in library(tokenizer_json).encode_batch_fast(texts, add_special_tokens=False)
    ]
    tokens = np.concatenate(found) if found else np.empty(0, np.int32)
    return tokens, [len(ids) for ids in found], [len(text.split()) for text in texts]


@lru_cache(maxsize=2)
def library(tokenizer_json: str) -> Tokenizer:
    """Kept between the tasks of a worker: a large vocabulary takes as long to read as a megabyte to encode."""
    from tokenizers import Tokenizer

    from stages.data.tokens.library import text_only

    return text_only(Tokenizer.from_str(tokenizer_json))


@lru_cache(maxsize=2)
def _control(tokenizer_json: str) -> tuple[re.Pattern[str], ...]:
    """One pattern for each sign that they begin with: so a search is for that sign, ten times as fast."""
    from stages.data.tokens.library import control_strings

    strings = {*control_strings(library(tokenizer_json)), *CONTROL}
    ends: dict[str, list[str]] = {}
    for text in sorted(strings, key=lambda text: (-len(text), text)):
        ends.setdefault(text[0], []).append(re.escape(text[1:]))
    ends["<"].append(BARRED)
    return tuple(re.compile(f"{re.escape(sign)}(?:{'|'.join(ending)})") for sign, ending in ends.items())


@lru_cache(maxsize=1)
def known_chunks(tokenizer_json: str, seams: Seams) -> KnownChunks:
    """Kept between the tasks of a worker."""
    from stages.data.tokens.known import KnownChunks

    return KnownChunks(library(tokenizer_json), seams)


@contextmanager
def _threads(allowed: bool) -> Iterator[None]:
    """``tokenizers`` reads this variable at every call."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if allowed else "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
