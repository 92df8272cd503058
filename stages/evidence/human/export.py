"""Blind pairs for people: which are chosen, and the files that raters get.

Every pair of systems gets the same number of items, spread over books and seeds; each system stands on the left as
often as on the right; the order is random. Raters see neither arms nor seeds nor which item is a test of attention (a
person's summary of the text against one of another book). What stands behind each item is in the key alone, which
stays with the one who exports.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from stages.evidence.judge.prompts import excerpt
from stages.evidence.summarize.baselines import BASELINES
from stages.evidence.summarize.config import Decoding, SummaryTask
from stages.evidence.summarize.items import SummaryExample
from stages.evidence.summarize.written import NO_SEED, REFERENCE, Everything, Written
from stages.stage import StageError

KEY = "infini-study human key"
RATINGS = "infini-study human ratings"
VERSION = 1
EXCERPT_WORDS = 450
FILES = ("rate.html", "label-studio.json", "label-studio.xml", "key.json")
LABEL_STUDIO = """<View>
  <Style>.pair {display: flex; gap: 2em} .pair > div {flex: 1} .text {white-space: pre-wrap}</Style>
  <Header value="Which summary tells better what happens in the text?"/>
  <View className="text"><Text name="context" value="$context"/></View>
  <View className="pair">
    <View className="text"><Header value="Left"/><Text name="left" value="$left"/></View>
    <View className="text"><Header value="Right"/><Text name="right" value="$right"/></View>
  </View>
  <Choices name="choice" toName="left" choice="single-radio" required="true" showInline="true">
    <Choice value="left" hotkey="1"/><Choice value="tie" hotkey="2"/><Choice value="right" hotkey="3"/>
  </Choices>
</View>
"""


@dataclass(frozen=True)
class Chosen:
    """One item: a text and two summaries of it, as they are shown."""

    id: str
    example: SummaryExample
    left: Written
    right: Written

    @property
    def context(self) -> str:
        """What raters see of the text: a summary by a person where none of the two is that one, and parts of it."""
        known = (
            self.example.references[1:]
            if REFERENCE in (self.left.system, self.right.system)
            else self.example.references
        )
        parts = [f"A summary by a person:\n{known[0].strip()}"] if known else []
        parts.append(f"From the text:\n{excerpt(self.example.text, EXCERPT_WORDS)}")
        return "\n\n".join(parts)


def choose(
    found: Everything,
    *,
    items: int,
    against: Sequence[str],
    baselines: Sequence[str],
    arms: Sequence[str] = (),
    task: str = "condense",
    decoding: str = "sample",
    seed: int = 0,
) -> list[Chosen]:
    """``items`` comparisons in random order. Raises StageError where an arm is unknown or there are too few texts."""
    for option, names, known in (
        ("--against", against, tuple(found.arms)),
        ("--arm", arms, tuple(found.arms)),
        ("--baseline", baselines, BASELINES),
        ("--task", (task,), get_args(SummaryTask)),
        ("--decoding", (decoding,), get_args(Decoding)),
    ):
        for name in names:
            if name not in known:
                raise StageError("no such one", field=option, value=name, allowed=", ".join(known) or "none")
    judged = [arm for arm in found.arms if not arms or arm in (*arms, *against)]
    pairs = [(arm, other) for other in against for arm in judged if arm not in against]
    pairs += [(arm, baseline) for arm in judged for baseline in baselines] + [(REFERENCE, "shuffled")]
    texts, rng = found.of(decoding), random.Random(seed)
    each = {pair: _candidates(found, texts, pair, task, rng) for pair in pairs}
    each = {pair: candidates for pair, candidates in each.items() if candidates}
    if not each:
        raise StageError(f"no two summaries of the task {task} by {decoding}", field="--task", value=task)
    chosen: list[tuple[Written, Written]] = []
    sides = {pair: rng.random() < 0.5 for pair in each}
    turn = 0
    while len(chosen) < items and any(turn < len(candidates) for candidates in each.values()):
        for pair, candidates in each.items():
            if turn < len(candidates) and len(chosen) < items:
                one, two = candidates[turn]
                chosen.append((one, two) if sides[pair] != bool(turn % 2) else (two, one))
        turn += 1
    rng.shuffle(chosen)
    return [
        Chosen(f"{number:04d}-{rng.getrandbits(32):08x}", found.items[left.name], left, right)
        for number, (left, right) in enumerate(chosen, 1)
    ]


def _candidates(
    found: Everything,
    texts: Mapping[tuple[str, int, tuple[str, str, str]], Written],
    pair: tuple[str, str],
    task: str,
    rng: random.Random,
) -> list[tuple[Written, Written]]:
    """The pair on every text, books in turn, then seeds in turn; at most one seed of a text."""
    a, b = pair
    by_book: dict[str, list[tuple[str, str, str]]] = {}
    for name, item in found.items.items():
        if name[0] == task:
            by_book.setdefault(item.book, []).append(name)
    books = list(by_book)
    rng.shuffle(books)
    seeds = sorted({w.seed for w in found.written if w.seed != NO_SEED})
    rng.shuffle(seeds)
    made: list[tuple[Written, Written]] = []
    for turn in range(max(map(len, by_book.values()), default=0)):
        for book in books:
            if turn < len(by_book[book]):
                name = by_book[book][turn]
                seed = seeds[len(made) % len(seeds)] if seeds else NO_SEED
                one = texts.get((a, seed, name)) or texts.get((a, NO_SEED, name))
                two = texts.get((b, seed, name)) or texts.get((b, NO_SEED, name))
                if one is not None and two is not None and one.text.strip() != two.text.strip():
                    made.append((one, two))
    return made


def write(
    chosen: Sequence[Chosen],
    study: str,
    folder: Path,
    scores: Mapping[tuple[str, int, tuple[str, str, str]], Mapping[str, float | None]],
) -> str:
    """The files of FILES below ``folder``; returns the id of the export. ``scores``: further metrics of a summary, by
    system, seed and item."""
    export = hashlib.sha256("".join(f"{c.id}{_sha(c.left)}{_sha(c.right)}" for c in chosen).encode()).hexdigest()[:16]
    tasks = [{"item": c.id, "context": c.context, "left": c.left.text, "right": c.right.text} for c in chosen]
    folder.mkdir(parents=True, exist_ok=True)
    page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    data = json.dumps({"export": export, "format": RATINGS, "version": VERSION, "tasks": tasks}, ensure_ascii=True)
    page = page.replace('"the pairs"', data.replace("<", "\\u003c"))
    (folder / "rate.html").write_text(page, encoding="utf-8")
    (folder / "label-studio.json").write_text(
        json.dumps([{"data": {"export": export, **task}} for task in tasks], indent=1, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
    (folder / "label-studio.xml").write_text(LABEL_STUDIO, encoding="utf-8")
    items = [_behind(c, scores) for c in chosen]
    key = {"format": KEY, "version": VERSION, "export": export, "study": study, "items": items}
    (folder / "key.json").write_text(json.dumps(key, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return export


def _behind(
    chosen: Chosen, scores: Mapping[tuple[str, int, tuple[str, str, str]], Mapping[str, float | None]]
) -> dict[str, Any]:
    """What the key says of an item."""
    item = chosen.example
    named = {"task": item.task, "level": item.level, "doc_id": item.doc_id, "book": item.book}

    def side(one: Written) -> dict[str, Any]:
        further = scores.get((one.system, one.seed, one.name), {})
        known = {name: value for name, value in {**one.measured, **further}.items() if value is not None}
        return {"system": one.system, "seed": one.seed, "sha256": _sha(one), "measured": known}

    return {"id": chosen.id, **named, "left": side(chosen.left), "right": side(chosen.right)}


def _sha(written: Written) -> str:
    return hashlib.sha256(written.text.encode()).hexdigest()
