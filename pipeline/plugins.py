"""What others add to a study: their arms, retrieval tasks, claims and stages.

A plug-in is a module that registers something when it is imported (``model.arms.register``,
``stages.data.tasks.register``, ``stages.verdict.claims.table.register``, ``stages.record.register``). It is named by an
entry point of the group ``infini_study``, or in the environment: ``INFINI_STUDY_PLUGINS=mine,theirs.arms``. All are
imported before a study file is read, and in every worker.
"""

from __future__ import annotations

import functools
import importlib
import os
from importlib import metadata

from pipeline.errors import StudyError

GROUP = "infini_study"
VARIABLE = "INFINI_STUDY_PLUGINS"


@functools.cache
def load_plugins() -> tuple[str, ...]:
    """Import every plug-in, once in a process; their modules' names. Raises StudyError where one cannot be imported."""
    named = {part.strip(): VARIABLE for part in os.environ.get(VARIABLE, "").split(",") if part.strip()}
    named |= {point.value: f"entry point {point.name} of {GROUP}" for point in metadata.entry_points(group=GROUP)}
    for module, origin in named.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever the module does wrong, the study cannot be read as it was meant
            raise StudyError(
                f"{origin} = {module!r}: cannot be imported: {type(error).__name__}: {error}. "
                "Fix: install the package (on every machine of the cluster), or take it out"
            ) from error
    return tuple(named)
