"""Two sides on the same items: paired differences with intervals and tests, Benjamini and Hochberg over the grid.

An item is the same where its id and its answers are, in every seed of both sides; what has no partner is counted and in
no number. Of one model a side, right or wrong: McNemar's exact test. Of several seeds, or of shares: the contrast over
seeds and items that a study's claims are decided by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.stage import StageError
from stages.verdict.standalone.sides import CELL, FILES, Matched, Side, answers, matched, texts

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """A minus B in one cell. ``a``, ``b``: means over the ``items`` that both have (scores from 0 to 1; of texts nats
    per token, or bits per byte where the tokenizers differ: ``unit``). ``p``: two-sided, of no difference; ``q``: the
    same by Benjamini and Hochberg over all cells. ``alone_a``, ``alone_b``: items of one side only."""

    label: str
    task: str
    k: int
    length: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    items: int
    seeds: int
    p: float
    q: float
    method: str
    unit: str
    alone_a: int
    alone_b: int


@dataclass(frozen=True)
class Comparison:
    """``scores``, ``texts``: a difference per cell and arm. ``alone``: what has no partner, in words; ``notes``: what a
    reader must know; ``unpaired``: items without a partner, of both sides."""

    a: str
    b: str
    scores: list[Difference]
    texts: list[Difference]
    alone: list[str]
    notes: list[str]
    level: float
    unpaired: int


def compare(a: Side, b: Side, *, level: float = 0.95) -> Comparison:
    """Raises StageError where no arm, no seed or no item is on both sides."""
    pairs, alone = matched(a, b)
    scores, of_texts, notes, unpaired = [], [], [], 0
    for pair in pairs:
        found, left, lone = _scores(pair, level)
        scores += found
        alone += left
        unpaired += lone
        found, left, lone = _texts(pair, level)
        of_texts += found
        alone += left
        unpaired += lone
        asked = {one.task for one in scores if one.label == pair.label}
        if asked and asked <= _files(pair):
            continue  # whose prompts are the same text, however it is cut into tokens
        if pair.same_text is False:
            notes.append(
                f"{pair.label}: needles and questions are the same, the text around them is not (another tokenizer, "
                "text or chat template)"
            )
        elif pair.same_text is None:
            notes.append(f"{pair.label}: whether the text around the needles is the same is not recorded on both sides")
    if not scores and not of_texts:
        raise StageError(
            f"none of the items of {a.name} is an item of {b.name}",
            field="A B",
            value=f"{a.name} {b.name}",
            allowed="the same tasks, lengths and prompts, or the same texts, on both sides",
            fix="evaluate both alike",
        )
    unpaired += sum(one.alone_a + one.alone_b for one in (*scores, *of_texts))
    notes = list(dict.fromkeys(notes))
    return Comparison(a.name, b.name, _adjusted(scores), _adjusted(of_texts), alone, notes, level, unpaired)


def mcnemar(a: Floats, b: Floats) -> tuple[float, int, int]:
    """Exact two-sided p of McNemar's test on right (1) or wrong (0) answers [items], and the items that only A, and
    only B, has right."""
    from scipy import stats

    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    n = only_a + only_b
    return (float(stats.binomtest(only_a, n, 0.5).pvalue) if n else 1.0), only_a, only_b


def paired_proportions(only_a: int, only_b: int, items: int, level: float) -> tuple[float, float]:
    """Interval of the difference of two proportions on the same items: Agresti and Min (2005), Wald's with half an item
    in each of the four cells, so that it does not vanish where both sides are always right or wrong."""
    from scipy import special

    a, b, n = only_a + 0.5, only_b + 0.5, items + 2
    half = float(special.ndtri((1 + level) / 2)) * ((a + b) - (a - b) ** 2 / n) ** 0.5 / n
    return max(-1.0, (a - b) / n - half), min(1.0, (a - b) / n + half)


def _scores(pair: Matched, level: float) -> tuple[list[Difference], list[str], int]:
    """Differences; cells without a pair, in words, and the items in them."""
    left, right = answers(pair.a), answers(pair.b)
    as_long = {task: length for task, length in left[["task", "length"]].to_numpy().tolist() if task in _files(pair)}
    if len(right):  # the same text of a file is as long as A's tokenizer makes it
        right = right.assign(length=right["task"].map(as_long).fillna(right["length"]).astype(int))
    cells = list(dict.fromkeys(map(tuple, [*left[CELL].to_numpy().tolist(), *right[CELL].to_numpy().tolist()])))
    found, alone, lone = [], [], 0
    for task, k, length in cells:
        (a, all_a), (b, all_b) = (_crossed(rows, (task, k, length), len(pair.a)) for rows in (left, right))
        both = [item for item in a.index if item in b.index]
        cell = f"{pair.label}, {task}, k = {k}, {length:,} tokens"
        if not both:
            alone.append(f"{cell}: {all_a} items of A and {all_b} of B, none the same")
            lone += all_a + all_b
            continue
        only = (all_a - len(both), all_b - len(both))
        table_a, table_b = (side.loc[both].to_numpy(float).T for side in (a, b))
        one = _difference(table_a, table_b, None, level)
        one = replace(one, label=pair.label, task=str(task), k=int(k), length=int(length), unit="score")
        found.append(replace(one, alone_a=only[0], alone_b=only[1]))
    return found, alone, lone


def _files(pair: Matched) -> set[str]:
    """Tasks whose prompts stand in files."""
    return {name for run in (*pair.a, *pair.b) for name in run.prompts.get(FILES, {})}


def _crossed(rows: pd.DataFrame, cell: tuple[object, ...], seeds: int) -> tuple[pd.DataFrame, int]:
    """Scores by item with its answers, a column a seed: items that every seed has; and how many there are in all."""
    of = rows[(rows[CELL] == list(cell)).all(axis=1)]
    table = of.pivot_table(index=["item", "answers"], columns="seed", values="score", aggfunc="first")
    whole = table.dropna() if table.shape[1] == seeds else table.iloc[:0]
    return whole, len(of[["item", "answers"]].drop_duplicates())


def _texts(pair: Matched, level: float) -> tuple[list[Difference], list[str], int]:
    """As ``_scores``, of the texts."""
    left, right = texts(pair.a), texts(pair.b)
    all_a, all_b = (side["doc_id"].nunique() for side in (left, right))
    tables = {
        name: [
            side.pivot_table(index=["doc_id", "bytes"], columns="seed", values=name, aggfunc="first").dropna()
            for side in (left, right)
        ]
        for name in ("nll_sum", "tokens")
    }
    nats_a, nats_b = tables["nll_sum"]
    both = [document for document in nats_a.index if document in nats_b.index]
    if not both:
        said = f"{pair.label}: {all_a} texts of A and {all_b} of B, none the same"
        return [], [said] if all_a or all_b else [], all_a + all_b
    tokens = [side.loc[both].iloc[:, 0].to_numpy(float) for side in tables["tokens"]]
    same = bool((tokens[0] == tokens[1]).all())
    octets = np.array([size for _, size in both], dtype=float)
    weights = tokens[0] if same else octets * np.log(2)
    one = _difference(nats_a.loc[both].to_numpy(float).T, nats_b.loc[both].to_numpy(float).T, weights, level)
    unit = "nats per token" if same else "bits per byte"
    alone = {"alone_a": all_a - len(both), "alone_b": all_b - len(both)}
    return [replace(one, label=pair.label, task="text", unit=unit, **alone)], [], 0


def _difference(a: Floats, b: Floats, weights: Floats | None, level: float) -> Difference:
    """Of tables [seeds, items]."""
    from stages.statistics.intervals import hierarchical

    contrast = hierarchical(a - b, weights, level=level)
    total = a.shape[1] if weights is None else weights.sum()
    p, method, low, high = contrast.p(), contrast.method, contrast.low, contrast.high
    if weights is None:
        low, high = max(-1.0, low), min(1.0, high)
    if weights is None and len(a) == 1 and np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        p, only_a, only_b = mcnemar(a[0], b[0])
        low, high = paired_proportions(only_a, only_b, a.shape[1], level)
        method = f"McNemar's exact test, Agresti and Min's interval: right only in A {only_a}, only in B {only_b}"
    return Difference(
        label="",
        task="",
        k=0,
        length=0,
        a=float(a.mean(0).sum() / total),
        b=float(b.mean(0).sum() / total),
        difference=contrast.estimate,
        low=low,
        high=high,
        items=a.shape[1],
        seeds=len(a),
        p=p,
        q=p,
        method=method,
        unit="",
        alone_a=0,
        alone_b=0,
    )


def _adjusted(cells: Sequence[Difference]) -> list[Difference]:
    from stages.statistics.tests import benjamini_hochberg

    adjusted = benjamini_hochberg([one.p for one in cells])
    return [replace(one, q=float(q)) for one, q in zip(cells, adjusted, strict=True)]
