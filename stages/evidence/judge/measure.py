"""From answers to comparisons and labels, and to what the judge is worth: its position bias, whether it agrees with
itself, and whether it knows a summary of the text from one of another book."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from stages.evidence.summarize.written import REFERENCE

TableRow = Mapping[str, Any]
NAMED = ("doc_id", "book", "task", "level")


def comparisons(rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    """One row per pair of systems, seed and item that was answered in both orders, from the side of ``a``: ``first``
    (share won where a is shown first; a tie is a half), ``second`` (where it is shown second), ``score`` their mean."""
    groups: dict[tuple[Any, ...], dict[bool, list[float]]] = defaultdict(lambda: {False: [], True: []})
    for row in rows:
        if row["kind"] == "pair" and row["read_as"] is not None:
            a, b = (row["b"], row["a"]) if row["swapped"] else (row["a"], row["b"])
            won = {"A": 1.0, "B": 0.0, "tie": 0.5}[row["read_as"]]
            groups[a, b, row["seed"], *(row[n] for n in NAMED)][row["swapped"]].append(
                1 - won if row["swapped"] else won
            )
    made = []
    for (a, b, seed, *named), by_order in groups.items():
        first, second = by_order[False], by_order[True]
        if first and second:
            one, two = sum(first) / len(first), sum(second) / len(second)
            made.append(
                {"a": a, "b": b, "seed": seed, **dict(zip(NAMED, named, strict=True)), "score": (one + two) / 2}
                | {"first": one, "second": two, "answers": len(first) + len(second)}
            )
    return made


def sentence_rows(rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    """One row per summary: ``score`` = 1 - confusing sentences / sentences (mean over repeats), ``labels`` given."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "sentences" and row["read_as"] is not None:
            groups[row["a"], row["seed"], *(row[n] for n in NAMED)].append(json.loads(row["read_as"]))
    made = []
    for (system, seed, *named), read in groups.items():
        confusing = sum(len(one["labels"]) for one in read) / len(read)
        labels = sorted({label for one in read for given in one["labels"].values() for label in given})
        count = read[0]["sentences"]
        made.append(
            {"system": system, "seed": seed, **dict(zip(NAMED, named, strict=True)), "sentences": count}
            | {"confusing": confusing, "score": 1 - confusing / count, "labels": labels}
        )
    return made


def quality(rows: Sequence[TableRow], pairs: Sequence[TableRow]) -> dict[str, Any]:
    """Of all answers: how many are malformed (``refused`` by the server among them). Of the comparisons: ``first_wins``
    (share of decided answers for what was shown first; 0.5 without bias), ``same_both_orders`` (share of repeats that
    name one winner, or a tie, in both orders), ``ties``, ``self_agreement`` (share of pairs of repeats of one question
    that agree; None without repeats), ``known_truth`` (score of a text's own reference against another book's)."""
    read = [row for row in rows if row["kind"] == "pair" and row["read_as"] is not None]
    decided = [row for row in read if row["read_as"] != "tie"]
    won = {(*_question(r), r["swapped"], r["repeat"]): r["read_as"] for r in read}
    both = [
        (won[key], won[*key[:-2], True, key[-1]]) for key in won if not key[-2] and (*key[:-2], True, key[-1]) in won
    ]
    other = {"A": "B", "B": "A", "tie": "tie"}
    repeats: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for key, value in won.items():
        repeats[key[:-1]].append(value)
    agree = total = 0
    for values in repeats.values():
        counts = Counter(values)
        total += len(values) * (len(values) - 1) // 2
        agree += sum(n * (n - 1) // 2 for n in counts.values())
    truth = [pair["score"] for pair in pairs if pair["a"] == REFERENCE]
    return {
        "answers": len(rows),
        "malformed": sum(row["read_as"] is None for row in rows),
        "refused": sum(row["answer"] is None for row in rows),
        "first_wins": _share(sum(row["read_as"] == "A" for row in decided), len(decided)),
        "same_both_orders": _share(sum(other[one] == two for one, two in both), len(both)),
        "ties": _share(len(read) - len(decided), len(read)),
        "self_agreement": _share(agree, total),
        "known_truth": _share(sum(truth), len(truth)),
    }


def _question(row: TableRow) -> tuple[Any, ...]:
    """The two systems in one order, the seed and the item."""
    systems = (row["b"], row["a"]) if row["swapped"] else (row["a"], row["b"])
    return (*systems, row["seed"], *(row[name] for name in NAMED))


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
