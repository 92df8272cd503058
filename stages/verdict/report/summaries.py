"""Numbers of the summaries: every metric beside what a text's beginning and another book's summary score by it, the
judge with its biases, people with their agreement. What a baseline scores as well says so: no evidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stages.evidence.human.results import said
from stages.evidence.summarize.lexical import DESCRIBED, LEXICAL
from stages.statistics.intervals import Estimate, clustered_mean
from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.summaries import no_evidence, score
from stages.verdict.claims.verdict import Number, Source
from stages.verdict.claims.written import BASELINES, MODEL_METRICS, REFERENCE, Summaries

if TYPE_CHECKING:
    import pandas as pd

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum", "rouge")


def numbers(evidence: Evidence) -> list[Number]:
    """All of them, in the order of the page."""
    table = evidence.summaries
    if not len(table):
        return []
    made: list[Number] = []
    cells = table[["task", *(["level"] if "level" in table else [])]].drop_duplicates().itertuples(index=False)
    for cell in cells:
        found = Summaries.of(evidence, cell.task, getattr(cell, "level", "document"))
        if found is not None:
            made += [*_scores(evidence, found), *_by_length(evidence, found)]
    return [*made, *_judge(evidence), *_people(evidence)]


def _scores(evidence: Evidence, found: Summaries) -> Iterator[Number]:
    """Arms, then summaries no model wrote, by every metric that ranks; of what decides also what describes."""
    metrics = [*LEXICAL, *MODEL_METRICS, *(DESCRIBED if found.first else ())]
    for metric in metrics:
        for system in (*evidence.arms, *BASELINES, *((REFERENCE,) if metric in MODEL_METRICS else ())):
            one = score(evidence, system, metric, found)
            if one is None:
                continue
            about = {"arm": system, "task": found.what, "metric": metric}
            kind = "rouge" if metric in ROUGE and system in evidence.arms else "summary"
            mark = no_evidence(found, system, metric) if system in evidence.arms and metric not in DESCRIBED else ""
            yield replace(one, note=mark).of(kind="baseline" if system in BASELINES else kind, **about)
    for system in evidence.arms:
        apart = score(evidence, system, evidence.rules.summarization.metric, found, trained=True)
        if apart is not None:
            yield apart


def _by_length(evidence: Evidence, found: Summaries) -> Iterator[Number]:
    """The geometric mean of ROUGE over what was read of the text, where several lengths were."""
    table = evidence.summaries
    if "length" not in table or "rouge" not in table:
        return
    rows = table[(table["task"] == found.task) & (table["level"] == found.level)]
    rows = rows[(rows["decoding"] == found.decoding) & ~rows["book"].isin(found.trained)]
    if rows["length"].nunique() < 2:
        return
    for (length, arm), cell in rows.groupby(["length", "arm"], sort=False):
        mean = clustered_mean(cell["rouge"], cell["book"].tolist(), level=1 - evidence.rules.alpha)
        where = f"task == '{found.task}' and level == '{found.level}' and length == '{length}'"
        read = round(float(cell["prompt_tokens"].mean()))
        yield _number(
            f"summary_length.{arm}.{found.what}.{length}",
            f"{arm}, {found.what}: rouge, {length if length == 'whole' else f'{int(length):,} tokens'} read",
            mean,
            "F1",
            evidence.sources("summarize", "summaries.parquet", where, str(arm)),
        ).of(kind="summary_length", arm=str(arm), task=found.what, read=read)


def _judge(evidence: Evidence) -> Iterator[Number]:
    """What the judge is worth, and the share of sentences of each system that do not confuse it."""
    quality = evidence.document("judge", "quality.json")
    if not quality:
        return
    source = (evidence.source("judge", "answers.parquet", "kind == 'pair'"),)
    for name, label, unit in (
        ("first_wins", "judge: what is shown first wins (50% without bias)", "share of decided answers"),
        ("same_both_orders", "judge: names the same winner in both orders", "share of pairs"),
        ("ties", "judge: ties", "share of answers"),
        ("self_agreement", "judge: agrees with itself when asked again", "share of repeated answers"),
        ("known_truth", "judge: prefers a text's own reference to another book's", "share won"),
    ):
        if quality.get(name) is not None:
            n = int(quality["answers"])
            yield Number(f"judge.{name}", label, float(quality[name]), n=n, unit=unit, method="count", sources=source)
    unread = quality["malformed"] / max(1, quality["answers"])
    yield Number(
        "judge.malformed",
        "judge: answers that could not be read",
        unread,
        n=int(quality["answers"]),
        unit="share of answers",
        method="count",
        sources=(evidence.source("judge", "answers.parquet"),),
    )
    rows = evidence.scored(evidence.table("judge", "sentences.parquet"))
    for system, own in rows.groupby("system", sort=False) if len(rows) else ():
        mean = clustered_mean(own["score"], own["book"].tolist(), level=1 - evidence.rules.alpha)
        where = (evidence.source("judge", "sentences.parquet", f"system == '{system}'"),)
        yield _number(
            f"judge.sentences.{system}",
            f"{system}: sentences that do not confuse the judge",
            mean,
            "share of sentences",
            where,
        )
    yield from _judge_and_people(evidence)


def _judge_and_people(evidence: Evidence) -> Iterator[Number]:
    """Of the comparisons that people decided: how often the judge is on their side."""
    people, judge = evidence.table("human", "comparisons.parquet"), evidence.table("judge", "comparisons.parquet")
    if not len(people) or not len(judge):
        return
    shared = ["seed", "doc_id", "task", "level"]
    sides = pd_concat([judge, judge.rename(columns={"a": "b", "b": "a"}).assign(score=lambda r: 1 - r["score"])])
    both = people.merge(sides, on=["a", "b", *shared], suffixes=("", "_judge"))
    both = both[both["score"] != 0.5]
    if len(both):
        agree = [
            0.5 if j == 0.5 else float((j > 0.5) == (p > 0.5))
            for p, j in zip(both["score"], both["score_judge"], strict=True)
        ]
        mean = clustered_mean(agree, both["book"].tolist(), level=1 - evidence.rules.alpha)
        source = (evidence.source("human", "comparisons.parquet"), evidence.source("judge", "comparisons.parquet"))
        yield _number("judge.people", "judge: prefers what people prefer", mean, "share of comparisons", source)


def _people(evidence: Evidence) -> Iterator[Number]:
    """Win rates, agreement of raters, strengths, and which metrics are on people's side."""
    ratings, compared = (evidence.table("human", f"{name}.parquet") for name in ("ratings", "comparisons"))
    if not len(compared):
        return
    rows: list[dict[str, Any]] = evidence.scored(compared).to_dict("records")
    found = said(evidence.scored(ratings).to_dict("records"), rows, level=1 - evidence.rules.alpha)
    source = (evidence.source("human", "comparisons.parquet"),)
    for (a, b), wins in found.wins.items():
        where = (evidence.source("human", "comparisons.parquet", f"a == '{a}' and b == '{b}'"),)
        yield _number(f"human.wins.{a}.{b}", f"people: {a} against {b}", wins, "share won", where)
    if found.alpha is not None:
        raters = (evidence.source("human", "ratings.parquet"),)
        yield Number(
            "human.alpha",
            "people: Krippendorff's alpha over raters",
            found.alpha,
            n=len(found.raters),
            unit="alpha",
            method="nominal",
            sources=raters,
        )
    for name, strength in found.strengths.items():
        yield _number(f"human.strength.{name}", f"people: strength of {name}", strength, "log odds", source)
    for metric, share in found.metrics.items():
        yield _number(
            f"human.metric.{metric}", f"{metric}: prefers what people prefer", share, "share of comparisons", source
        )


def _number(name: str, label: str, value: Estimate, unit: str, sources: tuple[Source, ...]) -> Number:
    return Number(name, label, value.estimate, value.low, value.high, value.n, unit, value.method, sources)


def pd_concat(tables: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(tables, ignore_index=True)
