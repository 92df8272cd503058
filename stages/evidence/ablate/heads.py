"""The memory of one head at a time knocked out, on the prompts the whole model was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from model.decoder import Decoder, HeadKnockout, Knockout
from model.generate import prefill
from stages.data.tasks.prompts import Item
from stages.evidence.ablate.config import HeadsConfig
from stages.evidence.evaluate.forward import PASS_TOKENS, batches
from stages.evidence.evaluate.retrieval import said_and_nll

if TYPE_CHECKING:
    from stages.data.tokens.load import StudyTokenizer

HEADS = pa.schema(
    [
        ("layer", pa.int64()),
        ("head", pa.int64()),
        ("knockout", pa.string()),
        ("task", pa.string()),
        ("item", pa.string()),
        ("correct", pa.int8()),
        ("intact", pa.int8()),
        ("answer_nll", pa.float64()),
        ("intact_nll", pa.float64()),
    ]
)


def choose(items: Sequence[Item], config: HeadsConfig) -> list[Item]:
    """The prompts to ask: ``max_items`` spread evenly over tasks and lengths, two of each at least (``swap`` needs a
    neighbour)."""
    groups: dict[tuple[str, int], list[Item]] = {}
    for item in items:
        groups.setdefault((item.task, len(item.prompt)), []).append(item)
    most = len(items) if config.max_items is None else max(config.max_items // len(groups), 2)
    chosen = []
    for members in groups.values():
        step = max(1, len(members) / most)
        chosen += [members[int(i * step)] for i in range(min(most, len(members)))]
    return chosen


LAYERS = HEADS.remove(HEADS.get_field_index("head"))
"""Of whole layers."""


@torch.inference_mode()
def score(
    decoder: Decoder,
    tokenizer: StudyTokenizer,
    items: Sequence[Item],
    config: HeadsConfig,
    intact: Mapping[str, Mapping[str, Any]],
    progress: Callable[[int], None],
    *,
    layers: bool = False,
) -> list[dict[str, Any]]:
    """Rows of heads.parquet, or with ``layers`` of layers.parquet. ``intact``: the retrieval row of each item without
    a knock-out. ``progress`` is called with the tokens of each batch of prompts."""
    trunk, device = decoder.config.trunk, next(decoder.parameters()).device
    by_length: dict[int, list[Item]] = {}
    for item in items:
        by_length.setdefault(len(item.prompt), []).append(item)
    heads: list[int | None] = [None] if layers else [*range(trunk.heads)]
    rows = []
    for name in config.knockouts:
        for layer, head in ((layer, head) for layer in range(trunk.layers) for head in heads):
            knockout = HeadKnockout(Knockout(name), layer, head)
            for length, members in by_length.items():
                for batch in batches([length] * len(members), PASS_TOKENS[device.type], pairs=name == "swap"):
                    asked = [members[i] for i in batch]
                    prompts = torch.tensor([item.prompt for item in asked], device=device)
                    hidden, state = prefill(decoder, prompts, knockout, budget=PASS_TOKENS[device.type])
                    said = said_and_nll(decoder, hidden, state, asked, knockout)
                    for item, (tokens, nats) in zip(asked, said, strict=True):
                        before = intact[item.item]
                        answer = item.record.read(tokenizer.decode(tokens))
                        row = {
                            "layer": layer,
                            "head": head,
                            "knockout": name,
                            "task": item.task,
                            "item": item.item,
                            "correct": int(answer == item.expected),
                            "intact": before["correct"],
                            "answer_nll": nats,
                            "intact_nll": before["answer_nll"],
                        }
                        rows.append({name: value for name, value in row.items() if name != "head" or not layers})
                    progress(length * len(asked))
    return rows
