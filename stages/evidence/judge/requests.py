"""Everything that is asked, made from the summaries alone: the same list in the dry run and in the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stages.evidence.judge.config import JudgeConfig
from stages.evidence.judge.prompts import SYSTEM, context_of, pair_prompt, sentences_of, sentences_prompt
from stages.evidence.summarize.written import NO_SEED, REFERENCE, Everything
from stages.stage import StageError

Name = tuple[str, str, str]


@dataclass(frozen=True)
class Request:
    """One request. ``a``, ``b``: the systems compared, in the order they are shown (``b`` is "" for sentences).
    ``swapped``: whether that is the reverse of how the pair is counted. ``body``: what is sent."""

    kind: str  # "pair" or "sentences"
    name: Name
    seed: int
    a: str
    b: str
    swapped: bool
    repeat: int
    text: str
    body: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        """By which the answer is kept: of all that is sent."""
        return hashlib.sha256(json.dumps(self.body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    @property
    def characters(self) -> int:
        """Of what the model reads."""
        return sum(len(message["content"]) for message in self.body["messages"])


def requests(config: JudgeConfig, found: Everything) -> list[Request]:
    """In the order in which they are counted. Raises StageError for an arm or a task that the summaries do not have."""
    _check(config, found)
    return [*_pairs(config, found), *(_sentences(config, found) if config.sentences else ())]


def compared(config: JudgeConfig, found: Everything) -> list[tuple[str, str]]:
    """The pairs of systems: arms against arms, arms against what no model wrote, and what is known."""
    judged = [arm for arm in found.arms if config.arms is None or arm in (*config.arms, *config.against)]
    pairs = [(arm, other) for other in config.against for arm in judged if arm not in config.against]
    pairs += [(arm, baseline) for arm in judged for baseline in config.baselines]
    return [*pairs, (REFERENCE, "shuffled")]


def _pairs(config: JudgeConfig, found: Everything) -> Iterator[Request]:
    texts = found.of(config.decoding)
    seeds = sorted({w.seed for w in found.written if w.seed != NO_SEED})
    for name in _names(config, found):
        item = found.items[name]
        for a, b in compared(config, found):
            shown = item.references[1:] if a == REFERENCE else item.references
            words = config.source_words or (config.reference_words if a == REFERENCE else 0)
            context = context_of(item.text, shown, words, config.reference_words)
            for seed in [NO_SEED] if a == REFERENCE else seeds:
                one = texts.get((a, seed, name))
                two = texts.get((b, seed, name)) or texts.get((b, NO_SEED, name))
                if one is None or two is None:
                    continue
                for repeat in range(config.repeats):
                    for swapped in (False, True):
                        first, second = (two, one) if swapped else (one, two)
                        text = pair_prompt(context, first.text, second.text)
                        body = _body(config, text, repeat)
                        shown_as = (first.system, second.system)
                        yield Request("pair", name, seed, *shown_as, swapped, repeat, text, body)


def _sentences(config: JudgeConfig, found: Everything) -> Iterator[Request]:
    texts, names = found.of(config.decoding), set(_names(config, found))
    for (system, seed, name), written in texts.items():
        judged = seed == NO_SEED or config.arms is None or system in (*config.arms, *config.against)
        if name in names and judged and sentences_of(written.text):
            item = found.items[name]
            references = item.references[1:] if system == REFERENCE else item.references
            context = context_of(item.text, references, config.source_words, config.reference_words)
            text = sentences_prompt(context, written.text)
            for repeat in range(config.repeats):
                yield Request("sentences", name, seed, system, "", False, repeat, text, _body(config, text, repeat))


def _names(config: JudgeConfig, found: Everything) -> list[Name]:
    """Items that are judged: the first of each task and level."""
    counts: dict[tuple[str, str], int] = {}
    names: list[Name] = []
    for task, level, doc in found.items:
        counts[task, level] = counts.get((task, level), 0) + 1
        if task in config.tasks and counts[task, level] <= config.documents:
            names.append((task, level, doc))
    return names


def _body(config: JudgeConfig, text: str, repeat: int) -> dict[str, Any]:
    model = config.endpoint.model if config.endpoint else str(config.local and config.local.pin)
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}],
        "temperature": config.temperature,
        "max_tokens": config.answer_tokens,
    }
    return body | ({"seed": repeat} if config.repeats > 1 else {})


def _check(config: JudgeConfig, found: Everything) -> None:
    for field, names, known in (
        ("arms", config.arms or (), found.arms),
        ("against", config.against, found.arms),
        ("tasks", config.tasks, list(dict.fromkeys(task for task, _, _ in found.items))),
        ("decoding", (config.decoding,), list(dict.fromkeys(w.decoding for w in found.written if w.decoding))),
    ):
        for name in names:
            if name not in known:
                raise StageError(
                    "not among the summaries", field=f"judge.{field}", value=name, allowed=", ".join(known) or "none"
                )
