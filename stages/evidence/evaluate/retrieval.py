"""Scoring retrieval prompts: greedy answers and the teacher-forced likelihood of the right one, from one prefill.

The likelihood (nats per answer token) is continuous, so it shows differences between small models long before exact
accuracy leaves chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig
from model.decoder import AnyKnockout, Decoder, DecoderState
from model.generate import continuation, prefill
from stages.data.tasks.haystack import Format
from stages.data.tasks.prompts import Item
from stages.evidence.evaluate.forward import PASS_TOKENS, Progress, batches
from stages.evidence.evaluate.sharing import Together, most_branches, read_tree, trees

if TYPE_CHECKING:
    from stages.data.tokens.load import StudyTokenizer

BLOCK_TOKENS = 2**22  # of the prompts that are held at once; constant, as the tokens of a pass are


def score(
    decoder: Decoder,
    tokenizer: StudyTokenizer,
    items: Sequence[Item],
    progress: Progress,
    *,
    knockout: str | None = None,
) -> list[dict[str, Any]]:
    """Rows of retrieval.parquet in the order of ``items``."""
    segment = decoder.config.mixer.segment_length
    found = answers(decoder, tokenizer, items, progress, knockout=knockout)
    return [row(item, item.record.read(said), nats, segment) for item, (said, nats) in zip(items, found, strict=True)]


def blocks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """``items`` in order, of one task and k and at most ``BLOCK_TOKENS`` tokens together (one item at least)."""
    block: list[Item] = []
    tokens = 0
    for item in items:
        tokens += len(item.prompt)
        if block and (tokens > BLOCK_TOKENS or (item.task, item.k) != (block[0].task, block[0].k)):
            yield block
            block, tokens = [], len(item.prompt)
        block.append(item)
    if block:
        yield block


def answers(
    decoder: Decoder,
    tokenizer: StudyTokenizer,
    items: Sequence[Item],
    progress: Progress,
    *,
    knockout: str | None = None,
    share: bool = True,
) -> list[tuple[str, float]]:
    """What the model goes on with after each prompt, and the nats of the right answer (``answer_nll``). ``share``: what
    prompts have in common at their beginning is read once."""
    found: dict[int, tuple[str, float]] = {}
    device = next(decoder.parameters()).device.type
    for group in together(items, decoder.config, device, knockout=knockout, share=share):
        said = ask(decoder, tokenizer, [items[i] for i in group.members], progress, tree=group.tree, knockout=knockout)
        found.update(zip(group.members, said, strict=True))
    return [found[index] for index in range(len(items))]


def together(
    items: Sequence[Item], config: ModelConfig, device: str, *, knockout: str | None = None, share: bool = True
) -> list[Together]:
    """Which prompts are read together: those that begin alike as trees (``share``), all others by tokens of a pass.

    Prompts of a batch are equally long, so no pad ever enters a memory. Under a knock-out, of which one swaps the
    memories of a batch, there are no trees.
    """
    by_length: dict[tuple[int, int], list[int]] = {}
    for index, item in enumerate(items):
        by_length.setdefault((len(item.prompt), item.budget), []).append(index)
    groups = []
    for (length, _), members in by_length.items():
        if share and knockout in (None, "none"):
            most = most_branches(config, length, device)
            for tree in trees([items[i].prompt for i in members], config.mixer.segment_length, most):
                groups.append(Together(tuple(members[i] for i in tree.members), tree=True))
        joined = {i for group in groups for i in group.members}
        alone = [i for i in members if i not in joined]
        for batch in batches([length] * len(alone), PASS_TOKENS[device], pairs=knockout == "swap"):
            groups.append(Together(tuple(alone[i] for i in batch)))
    return groups


@torch.inference_mode()
def ask(
    decoder: Decoder,
    tokenizer: StudyTokenizer,
    items: Sequence[Item],
    progress: Progress,
    *,
    tree: bool = False,
    knockout: str | None = None,
) -> list[tuple[str, float]]:
    """``answers`` to prompts that are read together."""
    device = next(decoder.parameters()).device
    prompts = torch.tensor([item.prompt for item in items])
    if tree:
        hidden, state = read_tree(decoder, prompts, progress=progress)
    else:
        budget = PASS_TOKENS[device.type]
        hidden, state = prefill(decoder, prompts.to(device), knockout, budget=budget, told=progress)
    return [(tokenizer.decode(ids), nats) for ids, nats in said_and_nll(decoder, hidden, state, items, knockout)]


def said_and_nll(
    decoder: Decoder, hidden: Tensor, state: DecoderState, items: Sequence[Item], knockout: AnyKnockout = None
) -> Iterator[tuple[list[int], float]]:
    """The likeliest tokens behind each prompt, as many as its budget, and ``answer_nll``; ``hidden`` [B, 1, C] and
    ``state`` are where its prompt ends."""
    nll = answer_nll(decoder, hidden, state, items, knockout)
    said = torch.stack([*continuation(decoder, hidden, state, items[0].budget, knockout=knockout)], dim=1)
    return zip(said.tolist(), nll, strict=True)


def answer_nll(
    decoder: Decoder, hidden: Tensor, state: DecoderState, items: Sequence[Item], knockout: AnyKnockout = None
) -> list[float]:
    """Mean nats of each answer's tokens that count; ``hidden`` [B, 1, C] and ``state`` are where its prompt ends."""
    longest = max(len(item.answer_ids) for item in items)
    # shorter answers are padded behind their end, where causality hides the pads from them
    padded = [[*item.answer_ids, *[0] * (longest - len(item.answer_ids))] for item in items]
    targets = torch.tensor(padded, device=hidden.device)
    if longest > 1:
        more, _ = decoder.hidden(targets[:, :-1], state, knockout)
        hidden = torch.cat([hidden, more], dim=1)
    nll = decoder.token_nll(hidden, targets).double().cpu().numpy()
    return [float(nats[: len(item.counted)][list(item.counted)].mean()) for nats, item in zip(nll, items, strict=True)]


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Accuracy and answer_nll of each task (bindings: of each k), of the passkeys beyond the local segment, and the
    control of shuffled answers: the accuracy if every prompt got its successor's answer."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in rows:
        name = f"{one['task']}.k{one['rivals']}" if one["task"].startswith("bindings") else one["task"]
        groups.setdefault(name, []).append(one)
        if one["task"] == "passkey" and one["beyond_local"]:
            groups.setdefault("passkey.beyond_local", []).append(one)
    numbers: dict[str, float] = {}
    for name, members in groups.items():
        numbers[f"{name}.accuracy"] = float(np.mean([r["correct"] for r in members]))
        numbers[f"{name}.answer_nll"] = float(np.mean([r["answer_nll"] for r in members]))
        numbers[f"{name}.n"] = float(len(members))
    asked = groups.get("passkey", [])
    if len(asked) > 1:
        answers = [r["answer"] for r in asked[1:] + asked[:1]]
        numbers["passkey.shuffled_accuracy"] = float(
            np.mean([a == r["expected"] for a, r in zip(answers, asked, strict=True)])
        )
    return numbers


def row_of(table: str, item: Item, said: str, nll: float, segment_length: int, format: Format) -> dict[str, Any]:
    """The prompt's row of ``table``: retrieval, or tasks; ``said``: what the model went on with."""
    if table == "tasks":
        return task_row(item, said, nll, segment_length, format)
    return row(item, item.record.read(said), nll, segment_length)


def row(item: Item, answer: str, nll: float, segment_length: int) -> dict[str, Any]:
    """The row of retrieval.parquet of one prompt.

    answer: the number that was said, "" for none. nll: mean nats of the right answer's digits. segment_length: N
    tokens of the model that answered, which says what lies beyond its local segment.
    """
    return {
        "task": item.task,
        "item": item.item,
        "length": item.length,
        "prompt_tokens": len(item.prompt),
        "depth": item.depth,
        "rivals": item.k,
        "asked_rank": item.asked_rank,
        "values": list(item.values),
        "expected": item.expected,
        "answer": answer,
        "correct": int(answer == item.expected),
        "in_set": int(answer in item.values),
        "answer_nll": nll,
        "distance": item.distance,
        "beyond_local": item.beyond_local(segment_length),
    }


def task_row(item: Item, said: str, nll: float, segment_length: int, format: Format) -> dict[str, Any]:
    """The row of tasks.parquet of one prompt; ``said``: what the model went on with."""
    task = item.record
    answer = task.read(said)
    return {
        "task": item.task,
        "item": item.item,
        "length": item.length,
        "prompt_tokens": len(item.prompt),
        "k": item.k,
        "depth": item.depth,
        "values": list(item.values),
        "answers": list(item.answers),
        "answer": answer,
        "score": task.score(answer, item.answers),
        "chance": None if task.chance is None else task.chance(format, item.k),
        "answer_nll": nll,
        "distance": item.distance,
        "beyond_local": item.beyond_local(segment_length),
        "budget": item.budget,
        "offsets": list(item.offsets),
        "segments": item.segments(segment_length),
    }


def summarise_tasks(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean score and answer_nll of each task."""
    numbers: dict[str, float] = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        members = [row for row in rows if row["task"] == task]
        numbers[f"{task}.score"] = float(np.mean([row["score"] for row in members]))
        numbers[f"{task}.answer_nll"] = float(np.mean([row["answer_nll"] for row in members]))
        numbers[f"{task}.n"] = float(len(members))
    return numbers
