"""Stages that read what a study makes, and are read by nothing but the report: one record each.

Those of this repository have a section of their name in the study file (``pipeline/study/study.py``), those that a
plug-in registers one under ``extra:``; the plan has the same place for both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stages.stage import Config, Stage

AVAILABLE = {
    "study": ("documents", "tokens", "tokenizer", "prompts"),
    "model": ("model", "documents", "tokens", "tokenizer", "prompts"),
    "summaries": (),
}
"""Inputs that a stage may name, by what it runs once for: the study, each arm and seed, or all summaries of a study:
then its inputs are the steps ``references`` and ``summarize/ARM/SEED`` (``inputs = None``)."""


def _as_it_is(section: Config, folder: Path) -> Config:
    return section


@dataclass(frozen=True, kw_only=True)
class Record:
    """stage: reads some of ``AVAILABLE[per]``. config: the type of its section. kinds: of the arms whose models it runs
    for; none: all. pin: (section, folder of the study file) -> config of the step, with external files found and pinned
    by digest; raises StageError. The report has every such step among its inputs, so a claim can read its tables:
    ``evidence.table("NAME/arm/seed", "rows.parquet")``."""

    stage: Stage[Any]
    config: type[Config]
    per: Literal["study", "model", "summaries"] = "model"
    kinds: tuple[str, ...] = ()
    pin: Callable[[Any, Path], Config] = _as_it_is


EXTRAS: dict[str, Record] = {}


def register(record: Record) -> None:
    """Make a stage known. Raises ValueError for a name that is taken or an input that there is not."""
    name, allowed = record.stage.name, AVAILABLE[record.per]
    if EXTRAS.setdefault(name, record) is not record:
        raise ValueError(f"stage {name!r}: there is one already. Fix: another name")
    unknown = set(record.stage.inputs or ()) - set(allowed)
    if unknown:
        del EXTRAS[name]
        raise ValueError(f"stage {name!r} needs the input {min(unknown)!r}: allowed are {', '.join(allowed)}")


def configs(sections: Mapping[str, Any]) -> list[tuple[Record, Config]]:
    """The ``extra:`` section of a study file, each entry as the record and the config of its stage. Raises
    ValueError."""
    made = []
    for name, section in sections.items():
        if name not in EXTRAS:
            known = ", ".join(EXTRAS) or "none; name its plug-in in INFINI_STUDY_PLUGINS"
            raise ValueError(f"{name}: no plug-in has a stage of this name (there: {known})")
        # as JSON, because only there pydantic takes lists for tuples and yet "3" for no number
        config = EXTRAS[name].config.model_validate_json(json.dumps(section or {}), strict=True)
        made.append((EXTRAS[name], config))
    return made
