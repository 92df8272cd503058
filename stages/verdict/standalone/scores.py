"""Scores of one evaluation: a cell per task, k and length with its interval, and effective lengths.

The intervals are those of a study's report, from the same functions; one model has one seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config import MixerConfig, TrunkConfig
from stages.data.tasks.haystack import Format
from stages.data.tasks.needles import BINDINGS, PASSKEY
from stages.data.tasks.registry import TASKS
from stages.folder import FolderArtifact
from stages.stage import StageError
from stages.verdict.claims.config import ClaimsConfig, Retrieval
from stages.verdict.claims.effects import accuracy
from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.verdict import Number, Source

if TYPE_CHECKING:
    import pandas as pd

TABLES = ("retrieval.parquet", "tasks.parquet")


@dataclass(frozen=True)
class Cell:
    """One task at one k and length: ``score`` (0 to 1) with its interval, prompts, nats per token of the right answer,
    ``chance`` of a guess (None: not uniform)."""

    task: str
    k: int
    length: int
    score: float
    low: float
    high: float
    n: int
    answer_nll: float
    chance: float | None


@dataclass(frozen=True)
class Reached:
    """``effective``: the longest length, all shorter ones asked included, whose lower bound clears ``threshold``; None:
    not the shortest either. ``tested``: the longest asked."""

    task: str
    k: int
    effective: int | None
    tested: int
    threshold: float


def evidence_of(folder: Path, name: str, mixer: Mapping[str, Any], threshold: float = 0.9) -> Evidence:
    """The tables in ``folder`` as those of the only arm and seed of a study."""
    return Evidence(
        {f"evaluate/{name}/0": FolderArtifact(folder, key="")},
        arms={name: MixerConfig(**mixer)},
        seeds=(0,),
        trunk=TrunkConfig(dim=2, layers=1, heads=1),  # nothing here asks for it
        rules=ClaimsConfig(retrieval=Retrieval(threshold=threshold)),
    )


def answers(evidence: Evidence) -> pd.DataFrame:
    """arm, seed, task, k, length, item, score, answer_nll of both tables."""
    import pandas as pd

    columns = ["arm", "seed", "task", "k", "length", "item", "score", "answer_nll"]
    parts = []
    asked = evidence.retrieval
    if len(asked):
        parts.append(asked.assign(k=asked["rivals"], score=asked["correct"].astype(float))[columns])
    if len(evidence.tasks):
        parts.append(evidence.tasks[columns])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def cells(evidence: Evidence, rows: pd.DataFrame, format: Format) -> list[Cell]:
    """Of every task, k and length, in the order they were asked, in the wording ``format``."""
    made: list[Cell] = []
    for (task, k, length), cell in rows.groupby(["task", "k", "length"], sort=False):
        number = accuracy("", "", cell.assign(correct=cell["score"]), sources=(), rules=evidence.rules)
        record = TASKS.get(str(task))  # none of prompts of files
        chance = None if record is None else record.chance
        made.append(
            Cell(
                str(task),
                int(k),
                int(length),
                number.estimate,
                number.low or 0.0,
                1.0 if number.high is None else number.high,
                len(cell),
                float(cell["answer_nll"].mean()),
                None if chance is None else chance(format, int(k)),
            )
        )
    return made


def reached(evidence: Evidence, rows: pd.DataFrame) -> list[Reached]:
    """Effective length of every task and k."""
    from stages.statistics.curves import effective_length

    threshold, made = evidence.rules.retrieval.threshold, []
    for (task, k), of in rows.groupby(["task", "k"], sort=False):
        found = effective_length(
            of["length"],
            of["score"],
            seeds=of["seed"],
            items=of["item"],
            threshold=threshold,
            level=1 - evidence.rules.alpha,
        )
        made.append(Reached(str(task), int(k), found.unbroken, found.longest_tested, threshold))
    return made


def effective_numbers(found: list[Reached], name: str) -> list[Number]:
    """The same for the page."""
    return [
        Number(
            f"effective.{one.task}.k{one.k}",
            f"{one.task}{_k(one)}: longest prompt with {one.threshold:.0%}",
            float(one.effective or 0),
            unit="tokens",
            method=f"lower bound of the interval; tested up to {one.tested:,}",
            sources=(_rows(one, name),),
            note="none of the lengths tested" if one.effective is None else "",
        )
        for one in found
    ]


def _k(one: Reached) -> str:
    return f", k = {one.k}" if one.task in TASKS and TASKS[one.task].most > 1 else ""


def _rows(one: Reached, name: str) -> Source:
    table, k = (TABLES[0], "rivals") if one.task in (PASSKEY.name, BINDINGS.name) else (TABLES[1], "k")
    return Source(f"evaluate/{name}/0", "", table, f"task == '{one.task}' and {k} == {one.k}")


def read_facts(folder: Path, field: str) -> dict[str, Any]:
    """evaluation.json of a folder. Raises StageError for another folder."""
    import json

    from stages.evidence.standalone.run import RECORD

    try:
        facts = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if not (isinstance(facts["name"], str) and isinstance(facts["identity"], dict) and facts["model"]["mixer"]):
            raise TypeError(RECORD)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StageError(
            f"holds no finished evaluation ({RECORD})",
            field=field,
            value=str(folder),
            fix="run infini-study evaluate to its end first",
        ) from error
    assert isinstance(facts, dict)
    return facts
