"""Drawing all prompts of an evaluation, spread over workers: each part some trials of one task, length and k."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from cluster import storage
from stages.data.saved import spread_saved
from stages.data.tasks.config import Asked, Grid, PromptsConfig
from stages.data.tasks.files import file_items, prompts_of
from stages.data.tasks.prompts import Item, PromptMaker, evaluation_items, haystack_of
from stages.data.tasks.table import PROMPTS, to_table
from stages.data.tokens.load import StudyTokenizer, document_tokens, load_tokenizer
from stages.stage import Artifact, Context

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PART_TOKENS = 2**20
"""Of the prompts that are drawn as one part."""

WORTH_TOKENS = 2**23
"""Fewer are drawn sooner than workers have started."""

NEEDLES, FURTHER = "needles.parquet", "further.parquet"
ROWS = "rows.parquet"


@dataclass(frozen=True)
class DrawnFrom:
    """What all parts are drawn from. Picklable."""

    config: PromptsConfig
    tokens: Artifact
    tokenizer: Artifact


@dataclass(frozen=True)
class Some:
    """A part: prompts of the grid of this number (passkeys, bindings, then further tasks)."""

    grid: int
    asked: tuple[Asked, ...]


def grids_of(config: PromptsConfig) -> tuple[Grid, ...]:
    return (*config.retrieval.needles, *config.retrieval.further)


def make_prompts(drawing: DrawnFrom, output: Path, context: Context) -> tuple[int, int]:
    """Write the tables; returns the numbers of prompts and of their tokens. Raises StageError, as ``evaluation_items``
    does, for what no prompt fits."""
    config = drawing.config
    maker = _maker(drawing)
    grids, first_further = grids_of(config), len(config.retrieval.needles)
    maker.check_grids(grids, "evaluate.retrieval")
    total = sum(grid.tokens for grid in grids)
    prompts = tokens = 0
    for name, chosen in ((NEEDLES, range(first_further)), (FURTHER, range(first_further, len(grids)))):
        files = config.retrieval.files if name == FURTHER else {}
        if not chosen and not files:
            continue
        with pq.ParquetWriter(output / name, PROMPTS, compression="zstd") as writer:
            parts = spread_saved(
                draw,
                (part for number in chosen for part in _parts(number, grids[number])),
                storage.join(context.work_url, "prompts"),
                drawing,
                identity=_identity,
                worth_it=total > WORTH_TOKENS,
            )
            for part in parts:
                prompts, tokens = prompts + part.value["prompts"], tokens + part.value["tokens"]
                with part.on_disk(ROWS) as file:
                    writer.write_table(pq.read_table(file, schema=PROMPTS))
                context.progress(min(tokens, total), total, "tokens")
            for file_name, file_config in files.items():
                items = list(file_items(prompts_of(file_name, file_config), maker.haystack.codec, maker.around))
                writer.write_table(to_table(items))
                prompts, tokens = prompts + len(items), tokens + sum(len(item.prompt) for item in items)
    return prompts, tokens


def all_prompts(
    config: PromptsConfig, tokens: Artifact, tokenizer: StudyTokenizer
) -> tuple[Iterator[Item], Iterator[Item]]:
    """The same without tables, drawn one after another: passkeys and bindings; further tasks and files."""
    asked = config.retrieval
    haystack = _haystack(tokens, tokenizer)
    maker = PromptMaker(tokenizer, haystack, asked.format, config.seed, "evaluation")
    maker.check_grids(grids_of(config), "evaluate.retrieval")

    def further() -> Iterator[Item]:
        yield from evaluation_items(asked, tokenizer, haystack, config.seed, grids=asked.further)
        for name, file in asked.files.items():
            yield from file_items(prompts_of(name, file), maker.haystack.codec, maker.around)

    return evaluation_items(asked, tokenizer, haystack, config.seed), further()


def draw(part: Some, folder: Path, drawing: DrawnFrom) -> dict[str, int]:
    """One task: the rows of a part."""
    maker, grid = _maker(drawing), grids_of(drawing.config)[part.grid]
    items = [maker.asked(grid, asked) for asked in part.asked]
    pq.write_table(to_table(items), folder / ROWS, compression="zstd")
    return {"prompts": len(items), "tokens": sum(len(item.prompt) for item in items)}


def _parts(number: int, grid: Grid) -> Iterator[Some]:
    """Prompts in order, at most ``PART_TOKENS`` tokens of them together, one at least."""
    some: list[Asked] = []
    tokens = 0
    for asked in grid.prompts():
        if some and tokens + asked.length > PART_TOKENS:
            yield Some(number, tuple(some))
            some, tokens = [], 0
        some.append(asked)
        tokens += asked.length
    if some:
        yield Some(number, tuple(some))


def _identity(part: Some, drawing: DrawnFrom) -> str:
    said = json.dumps([drawing.tokens.key, drawing.tokenizer.key, drawing.config.key_fields(), repr(part)])
    return hashlib.sha256(said.encode()).hexdigest()


_MAKERS: list[tuple[tuple[str, ...], PromptMaker]] = []
"""One at most."""


def _maker(drawing: DrawnFrom) -> PromptMaker:
    """Kept for this process's next part: it holds the haystack."""
    config = drawing.config
    known = (drawing.tokens.key, drawing.tokenizer.key, config.retrieval.format, str(config.seed))
    if not _MAKERS or _MAKERS[0][0] != known:
        tokenizer = load_tokenizer(drawing.tokenizer)
        haystack = _haystack(drawing.tokens, tokenizer)
        _MAKERS[:] = [(known, PromptMaker(tokenizer, haystack, config.retrieval.format, config.seed, "evaluation"))]
    return _MAKERS[0][1]


def _haystack(tokens: Artifact, tokenizer: StudyTokenizer) -> NDArray[np.int32]:
    return haystack_of(document_tokens(tokens, "test"), tokenizer.eos_id, tokenizer.bos_id)
