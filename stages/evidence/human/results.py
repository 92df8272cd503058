"""Results of ``human import`` as tables, and what they say: win rates, agreement, strengths."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.pinned import read_unchanged
from stages.evidence.human.config import HumanConfig
from stages.evidence.human.merge import RESULTS, items_of
from stages.evidence.summarize.written import everything
from stages.stage import Artifact, Context, StageError, Summary
from stages.statistics.agreement import Game, bradley_terry, krippendorff_alpha, preferences_agree
from stages.statistics.intervals import Estimate, clustered_mean

_NAMED = [(name, pa.string()) for name in ("doc_id", "book", "task", "level")]
_PAIR = [("item", pa.string()), ("a", pa.string()), ("b", pa.string()), ("seed", pa.int64()), *_NAMED]
RATED = pa.schema([*_PAIR, ("rater", pa.string()), ("choice", pa.string()), ("score", pa.float64())])
COMPARED = pa.schema([*_PAIR, ("raters", pa.int64()), ("score", pa.float64()), ("metrics", pa.string())])

TableRow = Mapping[str, Any]


def rows_of(results: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(one row per item and rater, one per item that anybody rated). ``a`` and ``b`` are the systems in the order of
    their names, ``score`` is ``a``'s: 1 better, 0 worse, 0.5 a tie. ``metrics``: a's less b's, as JSON."""
    ratings, compared = [], []
    for item in results["items"]:
        left, right = item["left"], item["right"]
        a, b, sign = (left, right, 1) if _order(left) <= _order(right) else (right, left, -1)
        seed = max(a["seed"], b["seed"])
        shared = {"item": item["id"], "a": a["system"], "b": b["system"], "seed": seed}
        shared |= {name: item[name] for name, _ in _NAMED}
        scores = []
        for rater, choice in item["answers"].items():
            score = 0.5 + sign * {"left": 0.5, "right": -0.5, "tie": 0.0}[choice]
            ratings.append({**shared, "rater": rater, "choice": choice, "score": score})
            scores.append(score)
        if scores:
            both = set(a["measured"]) & set(b["measured"])
            less = {name: a["measured"][name] - b["measured"][name] for name in sorted(both)}
            mean = sum(scores) / len(scores)
            compared.append({**shared, "raters": len(scores), "score": mean, "metrics": json.dumps(less)})
    return ratings, compared


def _order(side: TableRow) -> tuple[bool, str]:
    """Models before what no model wrote, then by name; a reference before a baseline."""
    return side["seed"] < 0, str(side["system"])


@dataclass(frozen=True)
class Said:
    """``wins``: (a, b) -> share of comparisons that ``a`` wins, books drawn. ``alpha``: Krippendorff's, over raters, or
    None. ``strengths``: Bradley-Terry. ``metrics``: share of decided comparisons in which the metric
    prefers what people prefer."""

    wins: dict[tuple[str, str], Estimate]
    alpha: float | None
    strengths: dict[str, Estimate]
    metrics: dict[str, Estimate]
    raters: dict[str, int]


def said(ratings: Sequence[TableRow], compared: Sequence[TableRow], *, level: float = 0.95) -> Said:
    """What people's comparisons come to."""
    by_pair: dict[tuple[str, str], list[TableRow]] = {}
    units: dict[str, list[str]] = {}  # as they were shown: the sides are random, so is what chance agrees on
    raters: dict[str, int] = {}
    for row in compared:
        by_pair.setdefault((row["a"], row["b"]), []).append(row)
    for row in ratings:
        units.setdefault(row["item"], []).append(row["choice"])
        raters[row["rater"]] = raters.get(row["rater"], 0) + 1
    wins = {
        pair: clustered_mean([r["score"] for r in rows], [r["book"] for r in rows], level=level)
        for pair, rows in by_pair.items()
    }
    games = [Game(r["a"], r["b"], r["score"], r["book"]) for r in compared]
    return Said(
        wins,
        krippendorff_alpha(list(units.values())),
        bradley_terry(games, level=level) if games else {},
        _metrics(compared, level),
        raters,
    )


def _metrics(compared: Sequence[TableRow], level: float) -> dict[str, Estimate]:
    differences = [json.loads(row["metrics"]) for row in compared]
    found = {}
    for name in sorted({name for one in differences for name in one}):
        known = [
            (row["score"] - 0.5, one[name], row["book"])
            for row, one in zip(compared, differences, strict=True)
            if name in one and row["score"] != 0.5
        ]
        if known:
            people, metric, books = zip(*known, strict=True)
            found[name] = clustered_mean(preferences_agree(people, metric), list(books), level=level)
    return found


def tables(config: HumanConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
    """ratings.parquet and comparisons.parquet. Raises StageError where the results are of other summaries than the
    study's."""
    results = read_results(read_unchanged(Path(config.results), config.pin, field="human.pin"), config.results)
    texts = {
        (w.system, w.seed, *w.name, hashlib.sha256(w.text.encode()).hexdigest()) for w in everything(inputs).written
    }
    for item in results["items"]:
        for side in (item["left"], item["right"]):
            place = (side["system"], side["seed"], item["task"], item["level"], item["doc_id"], side["sha256"])
            if place not in texts:
                raise StageError(
                    f"item {item['id']} was another summary by {side['system']} than the study has now",
                    field="human.results",
                    value=config.results,
                    fix="rate the summaries of this study: infini-study human export",
                )
    ratings, compared = rows_of(results)
    pq.write_table(pa.Table.from_pylist(ratings, RATED), output / "ratings.parquet")
    pq.write_table(pa.Table.from_pylist(compared, COMPARED), output / "comparisons.parquet")
    metrics = {
        "raters": float(len(results["raters"])),
        "comparisons": float(len(compared)),
        "ratings": float(len(ratings)),
    }
    return Summary(
        headline=f"{len(ratings)} ratings of {len(compared)} pairs by {len(results['raters'])} people",
        metrics=metrics,
        tables={"comparisons": "comparisons.parquet", "ratings": "ratings.parquet"},
    )


def read_results(content: bytes, name: str) -> dict[str, Any]:
    """Raises StageError for what human import did not write."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or value.get("format") != RESULTS or not isinstance(value.get("raters"), dict):
        raise StageError(
            "not results of human import",
            field="human.results",
            value=name,
            fix="infini-study human import KEY RATINGS",
        )
    items_of(value, "human.results", name, "infini-study human import KEY RATINGS")
    return value
