"""Stages from outside: what a plug-in registers, a study file names under ``extra:`` and a plan has a place for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stages.stage import Config, Stage

AVAILABLE = {
    "study": ("documents", "tokens", "tokenizer"),
    "model": ("model", "documents", "tokens", "tokenizer"),
}
"""Inputs that a stage may name, by what it runs once for: the study, or each arm and seed."""


@dataclass(frozen=True, kw_only=True)
class Extra:
    """stage: reads some of ``AVAILABLE[per]``. config: the type of its section. The report has every such step among
    its inputs, so a claim can read its tables: ``evidence.table("NAME/arm/seed", "rows.parquet")``."""

    stage: Stage[Any]
    config: type[Config]
    per: Literal["study", "model"] = "model"


EXTRAS: dict[str, Extra] = {}


def register(extra: Extra) -> None:
    """Make a stage known. Raises ValueError for a name that is taken or an input that there is not."""
    name, allowed = extra.stage.name, AVAILABLE[extra.per]
    if EXTRAS.setdefault(name, extra) is not extra:
        raise ValueError(f"stage {name!r}: there is one already. Fix: another name")
    unknown = set(extra.stage.inputs or ()) - set(allowed)
    if unknown:
        del EXTRAS[name]
        raise ValueError(f"stage {name!r} needs the input {min(unknown)!r}: allowed are {', '.join(allowed)}")


def configs(sections: Mapping[str, Any]) -> dict[str, Config]:
    """The ``extra:`` section of a study file, each entry as the config of its stage. Raises ValueError."""
    made = {}
    for name, section in sections.items():
        if name not in EXTRAS:
            known = ", ".join(EXTRAS) or "none; name its plug-in in INFINI_STUDY_PLUGINS"
            raise ValueError(f"{name}: no plug-in has a stage of this name (there: {known})")
        # as JSON, because only there pydantic takes lists for tuples and yet "3" for no number
        made[name] = EXTRAS[name].config.model_validate_json(json.dumps(section or {}), strict=True)
    return made
