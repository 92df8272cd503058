"""The tables of summaries, as the rules of C10 and the report read them: one task and level at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.evidence.summarize.baselines import BASELINES
from stages.evidence.summarize.lexical import COLUMNS
from stages.evidence.summarize.written import NO_SEED, REFERENCE
from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.verdict import Source

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BASELINES", "MODEL_METRICS", "NO_SEED", "REFERENCE", "Summaries", "in_training"]

MODEL_METRICS = ("embedding", "bertscore", "nli")
LEVELS = ("book", "chapter", "document")  # the wholest first


@dataclass(frozen=True)
class Summaries:
    """Summaries of one task and level at the first length, by one decoding. ``table``: system, seed, doc_id, book and
    every metric that was measured. ``trained``: books in the training corpus. ``first``: is it what decides?"""

    task: str
    level: str
    decoding: str
    table: pd.DataFrame
    metrics: tuple[str, ...]
    trained: frozenset[str]
    first: bool = True

    @classmethod
    def of(cls, evidence: Evidence, task: str | None = None, level: str | None = None) -> Summaries | None:
        """What decides (``claims.summarization``), or another task or level; None where there is none."""
        import pandas as pd

        table, rule = evidence.summaries, evidence.rules.summarization
        if not len(table):
            return None
        table = _with_columns(table)
        tasks = list(dict.fromkeys(table["task"]))
        first_task = rule.task if rule.task in tasks else tasks[0]
        chosen = task or first_task
        table = table[table["task"] == chosen]
        levels = [name for name in LEVELS if name in set(table["level"])]
        first_level = rule.level if rule.level in levels else levels[0]
        decodings = list(dict.fromkeys(table["decoding"]))
        decoding = rule.decoding if rule.decoding in decodings else decodings[0]
        rows = table[(table["level"] == (level or first_level)) & (table["decoding"] == decoding)]
        rows = rows[rows["length"] == table["length"].iloc[0]].rename(columns={"arm": "system"})
        shared = ["system", "seed", "doc_id", "book"]
        own = rows[[*shared, *(name for name in COLUMNS if name in rows)]]
        others = evidence.table("references", "baselines.parquet")
        if len(others):
            others = others[(others["task"] == chosen) & (others["level"] == (level or first_level))]
            others = evidence.scored(others).assign(seed=NO_SEED)
            own = pd.concat([own, others[[*shared, *(name for name in COLUMNS if name in others)]]], ignore_index=True)
        ratings = evidence.table("rate", "ratings.parquet")
        if len(ratings):
            ratings = ratings[(ratings["task"] == chosen) & (ratings["level"] == (level or first_level))]
            ratings = ratings[ratings["decoding"].isin(["", decoding])]
            given = ratings[["system", "seed", "doc_id", *MODEL_METRICS]].dropna(axis=1, how="all")
            own = own.merge(given, on=["system", "seed", "doc_id"], how="left")
        known = tuple(name for name in (*COLUMNS, *MODEL_METRICS) if name in own and own[name].notna().any())
        is_first = (chosen, level or first_level) == (first_task, first_level)
        return cls(chosen, level or first_level, decoding, own, known, in_training(evidence), is_first)

    @property
    def what(self) -> str:
        """The task, with the level where texts are not the study's own documents."""
        return self.task if self.level == "document" else f"{self.task} {self.level}"

    def rows(self, system: str, metric: str, *, trained: bool = False) -> pd.DataFrame:
        """Rows of a system in which the metric is measured, of books in the training corpus or of the others."""
        if metric not in self.metrics:
            return self.table.iloc[:0]
        own = self.table[(self.table["system"] == system) & self.table[metric].notna()]
        return own[own["book"].isin(self.trained) == trained]

    def mean(self, system: str, metric: str) -> float | None:
        """Over seeds and texts; None where there is none."""
        rows = self.rows(system, metric)
        return float(rows[metric].mean()) if len(rows) else None

    def judged(self, evidence: Evidence, source: str, a: str | None = None, b: str | None = None) -> pd.DataFrame:
        """Comparisons of ``source`` (judge, human) on books outside the training corpus, with ``gain``: share won by
        ``a`` less one half. All of them where no pair is named."""
        table = evidence.table(source, "comparisons.parquet")
        if not len(table):
            return table
        table = table[(table["task"] == self.task) & (table["level"] == self.level) & ~table["book"].isin(self.trained)]
        table = evidence.scored(table).assign(gain=lambda rows: rows["score"] - 0.5)
        if a is None or b is None:
            return table
        one = table[(table["a"] == a) & (table["b"] == b)]
        other = table[(table["a"] == b) & (table["b"] == a)].assign(
            gain=lambda rows: -rows["gain"], score=lambda rows: 1 - rows["score"]
        )
        import pandas as pd

        return pd.concat([one, other], ignore_index=True)

    def filter(self, a: str, b: str) -> str:
        """Row filter of the comparisons of two systems."""
        where = f"task == '{self.task}' and level == '{self.level}'"
        return f"{where} and ((a == '{a}' and b == '{b}') or (a == '{b}' and b == '{a}'))"

    def sources(self, evidence: Evidence, system: str, metric: str, where: str) -> tuple[Source, ...]:
        """The rows behind a system's metric."""
        if metric in MODEL_METRICS:
            return (evidence.source("rate", "ratings.parquet", f"system == '{system}' and {where}"),)
        if system in BASELINES:
            return (evidence.source("references", "baselines.parquet", f"system == '{system}' and {where}"),)
        return evidence.sources("summarize", "summaries.parquet", f"{where} and decoding == '{self.decoding}'", system)


def in_training(evidence: Evidence) -> frozenset[str]:
    """Books of the pairs that the audit of the tasks found in the training corpus: by id, by text or by a summary."""
    table, audit = evidence.summaries, evidence.table("taskaudit", "tasks.parquet")
    if not len(table) or not len(audit):
        return frozenset()
    found = audit[audit["task"].str.startswith("summarize") & (audit["found"] != "no")]
    books = set(found["id"].dropna().astype(str))
    items = evidence.table("references", "items.parquet")
    if len(items):
        numbers = set(found["item"])
        books |= {row.book for row in items.itertuples() if any(n in numbers for n in row.rows)}
    return frozenset(books & set(table["book"]))


def _with_columns(table: pd.DataFrame) -> pd.DataFrame:
    """With level, length, decoding and book, where a table has none of them."""
    missing = {"level": "document", "length": "", "decoding": "sample"}
    added = {name: value for name, value in missing.items() if name not in table}
    return table.assign(**added) if "book" in table else table.assign(**added, book=table["doc_id"])
