"""Two sides of a comparison: studies, runs or evaluations, each as rows by arm and seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stages.data.tasks.haystack import format_of
from stages.data.tasks.task import CONTROL
from stages.stage import Artifact, StageError

if TYPE_CHECKING:
    import pandas as pd

CELL = ["task", "k", "length"]
FILES = "files"
"""Of ``Run.prompts``: task -> digest of the file that its prompts stand in."""


@dataclass(frozen=True)
class Run:
    """Tables of one evaluation. ``seed``: of training; ``prompts``: what its prompts are made of, by name (the seed
    that draws them, tokenizer, text)."""

    arm: str
    seed: int
    tables: Artifact
    prompts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """``name``: as the user called it."""

    name: str
    runs: tuple[Run, ...]

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(run.arm for run in self.runs))

    def of(self, arm: str) -> list[Run]:
        return [run for run in self.runs if run.arm == arm]


@dataclass(frozen=True)
class Matched:
    """One arm of each side. ``a``, ``b``: runs, of the same seeds in the same order. ``drawn_alike``: prompts come from
    one seed; ``same_text``: and are the same to the token (None: not known of both)."""

    label: str
    a: tuple[Run, ...]
    b: tuple[Run, ...]
    same_text: bool | None


def matched(a: Side, b: Side) -> tuple[list[Matched], list[str]]:
    """The arms of both sides, and what stays alone, in words. A side of one arm is compared with one of one arm,
    whatever their names. Raises StageError where nothing can be paired."""
    alone: list[str] = []
    if len(a.arms) == len(b.arms) == 1:
        pairs = [(a.arms[0], b.arms[0])]
    else:
        pairs = [(arm, arm) for arm in a.arms if arm in b.arms]
        alone += [f"arm {arm}: only in {a.name}" for arm in a.arms if arm not in b.arms]
        alone += [f"arm {arm}: only in {b.name}" for arm in b.arms if arm not in a.arms]
    if not pairs:
        raise StageError(
            f"no arm of {a.name} ({', '.join(a.arms)}) is in {b.name} ({', '.join(b.arms)})",
            field="A B",
            value=f"{a.name} {b.name}",
            fix="name one arm of each, as STUDY:ARM",
        )
    found = []
    for one, other in pairs:
        left, right = a.of(one), b.of(other)
        label = one if one == other else f"{one} against {other}"
        seeds = [run.seed for run in left if run.seed in {r.seed for r in right}]
        if not seeds and len(left) == len(right) == 1:
            chosen = (tuple(left), tuple(right))
        else:
            chosen = tuple(tuple(r for s in seeds for r in side if r.seed == s) for side in (left, right))  # type: ignore[assignment]
            for name, side in ((a.name, left), (b.name, right)):
                alone += [f"{label}, seed {r.seed}: only in {name}" for r in side if r.seed not in seeds]
        if not chosen[0]:
            continue
        _check_drawn(label, *chosen)
        found.append(Matched(label, *chosen, _same_text(*chosen)))
    if not found:
        raise StageError(
            "no training seed is on both sides", field="A B", value=f"{a.name} {b.name}", fix="compare single runs"
        )
    return found, alone


def _check_drawn(label: str, a: tuple[Run, ...], b: tuple[Run, ...]) -> None:
    for name, fix in (("seed", "--seed"), ("format", "--format")):
        values = {format_of(str(run.prompts[name])) for run in (*a, *b) if name in run.prompts}
        if len(values) > 1:
            raise StageError(
                f"{label}: the prompts of the two sides are drawn from another {name} each",
                field=f"{name} of the prompts",
                value=", ".join(sorted(values)),
                fix=f"evaluate both with one {fix}",
            )


def _same_text(a: tuple[Run, ...], b: tuple[Run, ...]) -> bool | None:
    names = ("tokenizer", "haystack", "chat_template")
    known = [tuple(run.prompts.get(name) or "" for name in names) for run in (*a, *b)]
    if any("tokenizer" not in run.prompts or "haystack" not in run.prompts for run in (*a, *b)):
        return None
    return len(set(known)) == 1


def answers(runs: tuple[Run, ...]) -> pd.DataFrame:
    """seed (0, 1, ... in the order of ``runs``), task, k, length, item, answers, score; without controls. Items of a
    file are those of its bytes."""
    import pandas as pd

    parts = []
    for seed, run in enumerate(runs):
        asked, tasks = (_table(run.tables, name) for name in ("retrieval.parquet", "tasks.parquet"))
        if len(asked):
            asked = asked.assign(k=asked["rivals"], score=asked["correct"], answers=[[x] for x in asked["expected"]])
        for table in (asked, tasks):
            if len(table):
                rows = table[[*CELL, "item", "answers", "score"]]
                rows = rows[~rows["task"].str.endswith(CONTROL)]
                pins = rows["task"].map(run.prompts.get(FILES, {}))
                rows = rows.assign(item=rows["item"].where(pins.isna(), rows["item"] + " " + pins.astype(str)))
                parts.append(rows.assign(seed=seed, answers=[tuple(one) for one in rows["answers"]]))
    columns = [*CELL, "item", "answers", "score", "seed"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def texts(runs: tuple[Run, ...]) -> pd.DataFrame:
    """seed, doc_id, nll_sum (nats), tokens, bytes of every scored document."""
    import pandas as pd

    parts = []
    for seed, run in enumerate(runs):
        table = _table(run.tables, "perplexity.parquet")
        if len(table):
            by = table.groupby("doc_id", as_index=False).agg({"nll_sum": "sum", "tokens": "sum", "bytes": "first"})
            parts.append(by.assign(seed=seed))
    columns = ["doc_id", "nll_sum", "tokens", "bytes", "seed"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


_USED = {
    "retrieval.parquet": ["task", "rivals", "length", "item", "expected", "correct"],
    "tasks.parquet": [*CELL, "item", "answers", "score"],
    "perplexity.parquet": ["doc_id", "nll_sum", "tokens", "bytes"],
}


def _table(artifact: Artifact, name: str) -> pd.DataFrame:
    """Raises StageError for a file that is no whole table of an evaluation."""
    import pandas as pd
    import pyarrow as pa

    try:
        path = artifact.path(name)
    except FileNotFoundError:
        return pd.DataFrame()
    wanted = _USED[name]
    try:
        return pd.read_parquet(path, columns=wanted)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise StageError(
            f"not the table that an evaluation writes: {' '.join(str(error).split())[:200]}",
            field=name,
            value=str(path),
            allowed=f"Parquet with {', '.join(wanted)}",
            fix="evaluate again, into another folder",
        ) from error
