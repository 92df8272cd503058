"""An evaluation in parts that any worker can make: some batches of documents, or of prompts, and their rows.

What is in a part and in a batch follows from model, documents and prompts alone, so the rows are the same for any
number of workers. A part is sized by its work: a few seconds of one core, or of one GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

from model.config import ModelConfig
from model.cost import cost
from model.decoder import Decoder
from stages.data.tasks.haystack import recorded
from stages.data.tasks.prompts import Item
from stages.data.tokens.load import StudyTokenizer, load_tokenizer
from stages.evidence.evaluate import perplexity, retrieval, tables
from stages.evidence.evaluate.config import EvaluateConfig
from stages.evidence.evaluate.forward import Progress, load_model, precision
from stages.evidence.evaluate.perplexity import ScoredDocument
from stages.evidence.evaluate.sharing import Together
from stages.stage import Artifact, Execution, StageError
from stages.training.device import torch_device

PART_FLOPS = {"cpu": 1e11, "cuda": 3e14}
"""Work of a part, at 2 FLOPs a parameter and token."""

WORTH_FLOPS = 4e11
"""Less is done sooner than workers have started."""

ROWS = "rows.parquet"


@dataclass(frozen=True)
class Part:
    """Some batches of one table. Of ``documents`` or ``items`` (the others are empty) the ``groups`` are read together;
    ``edges``: of the position buckets. ``places``: of the items' rows in their table."""

    table: str
    groups: tuple[Together, ...]
    documents: tuple[ScoredDocument, ...] = ()
    edges: tuple[int, ...] = ()
    items: tuple[Item, ...] = ()
    places: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(len(d.tokens) for d in self.documents) + sum(len(i.prompt) for i in self.items)


@dataclass(frozen=True)
class Setting:
    """What all parts of an evaluation are made with. Picklable. ``device``: its type."""

    model: Artifact
    tokenizer: Artifact
    config: EvaluateConfig
    execution: Execution
    device: str


class Tally(Protocol):
    """Where workers tell what they have read."""

    def add(self, tokens: int) -> None: ...


def size_of(config: ModelConfig, device: str) -> int:
    """Tokens of a part."""
    return max(1, int(PART_FLOPS[device] / (2 * cost(config, 1).parameters)))


def worth_spreading(config: ModelConfig, tokens: int) -> bool:
    return 2 * cost(config, 1).parameters * tokens > WORTH_FLOPS


def of_documents(documents: Sequence[ScoredDocument], config: EvaluateConfig, device: str, size: int) -> Iterator[Part]:
    """Parts of the table ``perplexity``."""
    edges = tuple(perplexity.edges_of(documents, config.perplexity))
    groups = [Together(tuple(batch)) for batch in perplexity.batches_of(documents, device)]
    for some in _cut(groups, lambda i: len(documents[i].tokens), size):
        chosen = [i for group in some for i in group.members]
        yield Part("perplexity", _renumbered(some), tuple(documents[i] for i in chosen), edges)


def of_items(
    table: str, items: Sequence[Item], config: ModelConfig, device: str, size: int, first: int = 0
) -> Iterator[Part]:
    """Parts of the table ``retrieval`` or ``tasks``; the first item has row ``first`` in it."""
    groups = retrieval.together(items, config, device)
    for some in _cut(groups, lambda i: len(items[i].prompt), size):
        chosen = [i for group in some for i in group.members]
        places = tuple(first + i for i in chosen)
        yield Part(table, _renumbered(some), items=tuple(items[i] for i in chosen), places=places)


def of_blocks(table: str, items: Iterable[Item], config: ModelConfig, device: str, size: int) -> Iterator[Part]:
    """The same of prompts that are held block by block only."""
    first = 0
    for block in retrieval.blocks(items):
        yield from of_items(table, block, config, device, size, first)
        first += len(block)


def _cut(groups: Iterable[Together], tokens: Callable[[int], int], size: int) -> Iterator[list[Together]]:
    """The groups in order, at most ``size`` tokens together, one group at least."""
    some: list[Together] = []
    total = 0
    for group in groups:
        more = sum(map(tokens, group.members))
        if some and total + more > size:
            yield some
            some, total = [], 0
        some.append(group)
        total += more
    if some:
        yield some


def _renumbered(groups: Sequence[Together]) -> tuple[Together, ...]:
    """The groups over members numbered from 0."""
    made, at = [], 0
    for group in groups:
        made.append(Together(tuple(range(at, at + len(group.members))), group.tree))
        at += len(group.members)
    return tuple(made)


def identity(part: Part, setting: Setting, tally: Tally) -> str:
    """Digest of what its rows follow from."""
    config = setting.config
    digest = hashlib.sha256(repr((part.table, part.groups, part.edges, part.places, setting.device)).encode())
    digest.update(repr((setting.model.key, setting.tokenizer.key, config.mixer, config.dtype)).encode())
    digest.update(recorded(config.retrieval.format).encode())
    for document in part.documents:
        digest.update(f"{document.split}/{document.doc_id}/{len(document.tokens)}".encode() + document.tokens.tobytes())
    for item in part.items:
        digest.update(repr((item.item, item.budget, item.answers, item.answer_ids, item.prompt)).encode())
    return digest.hexdigest()


def make(part: Part, folder: Path, setting: Setting, tally: Tally) -> int:
    """Write the rows of the part; returns how many there are."""
    decoder, tokenizer = _opened(setting)
    device = next(decoder.parameters()).device
    with precision(device, setting.config.dtype):
        rows = list(_rows(part, decoder, tokenizer, setting.config, tally.add))
    tables.write(folder / ROWS, rows, tables.SCHEMAS[part.table])
    return len(rows)


def _rows(
    part: Part, decoder: Decoder, tokenizer: StudyTokenizer, config: EvaluateConfig, progress: Progress
) -> list[dict[str, Any]]:
    if part.table == "perplexity":
        return [
            row
            for group in part.groups
            for row in perplexity.score_batch(
                decoder, tokenizer, [part.documents[i] for i in group.members], part.edges, progress
            )
        ]
    segment = decoder.config.mixer.segment_length
    rows = []
    for group in part.groups:
        items = [part.items[i] for i in group.members]
        for item, (said, nats) in zip(
            items, retrieval.ask(decoder, tokenizer, items, progress, tree=group.tree), strict=True
        ):
            rows.append(retrieval.row_of(part.table, item, said, nats, segment, config.retrieval.format))
    return rows


def read(path: Path) -> list[dict[str, Any]]:
    """The rows that ``make`` wrote."""
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


_OPENED: list[tuple[tuple[str, ...], tuple[Decoder, StudyTokenizer]]] = []
"""One at most."""


def _opened(setting: Setting) -> tuple[Decoder, StudyTokenizer]:
    """Model and tokenizer, kept for this process's next part of the same evaluation. Raises StageError where they do
    not belong together, or for a worker without the device."""
    mixer = setting.config.mixer
    known = (str(setting.model.path("model")), setting.model.key, setting.tokenizer.key, repr(mixer), setting.device)
    if not _OPENED or _OPENED[0][0] != known:
        _OPENED.clear()  # before another is loaded: two may not fit
        device = torch_device(setting.execution)
        if device.type != setting.device:
            raise StageError(
                f"a worker of the evaluation has a {device.type} device, not {setting.device}",
                field="execution.gpus_per_worker",
                value=setting.execution.gpus_per_worker,
                fix="set 0, or device: cpu, or install a torch that sees the GPUs",
            )
        tokenizer = load_tokenizer(setting.tokenizer)
        _OPENED.append((known, (load_model(setting.model, tokenizer, device, mixer), tokenizer)))
    return _OPENED[0][1]


def close() -> None:
    """Forget the model that this process made parts with."""
    _OPENED.clear()
