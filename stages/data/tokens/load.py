"""What other stages read of the tokenizer and of the token shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from stages.data.tokens.chat import Around
from stages.data.tokens.library import control_strings, text_only
from stages.stage import Artifact

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class StudyTokenizer:
    """The study's tokenizer: text to ids and back; no control tokens added, and none made of their strings."""

    backend: Any
    vocab_size: int
    eos_id: int
    pad_id: int
    bos_id: int | None = None
    chat: Around | None = None
    """What an evaluation's prompts stand in: the tokenizer's chat template; None: nothing."""

    def in_chat(self) -> Self:
        """The same without a token of its own before a text: the template says what stands there."""
        return replace(self, bos_id=None, chat=None)

    @property
    def begin(self) -> list[int]:
        """What every document, and so every prompt, begins with: the bos token, or nothing."""
        return [] if self.bos_id is None else [self.bos_id]

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_with_control(self, text: str) -> list[tuple[int, int]]:
        """Token ids of ``text`` whose control strings are control tokens, each with the character it begins at."""
        self.backend.encode_special_tokens = False
        try:
            found = self.backend.encode(text, add_special_tokens=False)
        finally:
            self.backend.encode_special_tokens = True
        return [(token, begin) for token, (begin, _) in zip(found.ids, found.offsets, strict=True)]

    @property
    def control(self) -> dict[str, int]:
        """Strings of the control tokens, and their ids."""
        return {text: self.backend.token_to_id(text) for text in control_strings(self.backend)}

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; specials are left out."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))


def load_tokenizer(artifact: Artifact) -> StudyTokenizer:
    """Open a tokenizer artifact."""
    from tokenizers import Tokenizer

    meta = json.loads(artifact.path("meta.json").read_text())
    backend = text_only(Tokenizer.from_file(str(artifact.path("tokenizer.json"))))
    chat = meta.get("chat")
    around = None if chat is None else (tuple(chat["before"]), tuple(chat["behind"]))
    return StudyTokenizer(backend, meta["vocab_size"], meta["eos_id"], meta["pad_id"], meta.get("bos_id"), around)


def token_meta(artifact: Artifact) -> dict[str, Any]:
    """meta.json of a tokenize artifact (docs/formats.md)."""
    value: dict[str, Any] = json.loads(artifact.path("meta.json").read_text())
    return value


def document_tokens(artifact: Artifact, split: str) -> Iterator[tuple[str, np.ndarray]]:
    """(doc_id, tokens [n] int32) of each document of a split, without padding, in the order of the shards.

    Training documents lack the tail that was dropped; a split without documents gives nothing.
    """
    import numpy as np
    import pyarrow as pa

    if not any(path.name == split for path in artifact.path().iterdir()):
        return
    current = ""
    parts: list[np.ndarray] = []
    for shard in sorted(artifact.path(split).glob("data-*.arrow")):
        with pa.memory_map(str(shard)) as file:
            for batch in pa.ipc.open_stream(file):
                width = batch.schema.field("tokens").type.list_size
                tokens = batch.column("tokens").flatten().to_numpy().reshape(-1, width)
                real = batch.column("loss_mask").flatten().to_numpy().reshape(-1, width).astype(bool)
                for row, doc_id in enumerate(batch.column("doc_id").to_pylist()):
                    if doc_id != current and parts:
                        yield current, np.concatenate(parts)
                        parts = []
                    current = doc_id
                    parts.append(tokens[row][real[row]])
    if parts:
        yield current, np.concatenate(parts)
