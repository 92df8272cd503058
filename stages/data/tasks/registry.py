"""The retrieval tasks, by name: those of this repository, and those that others ``register`` before a study is read.

A task of this repository is a file of its own and its name in ``OWN``.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

from stages.data.tasks.counting import COMMON, FREQUENT
from stages.data.tasks.facts import FACTS
from stages.data.tasks.filler import PASSKEY_IN_FILLER
from stages.data.tasks.many import NEEDLES
from stages.data.tasks.needles import BINDINGS, PASSKEY
from stages.data.tasks.niah import NIAH
from stages.data.tasks.nth import NTH
from stages.data.tasks.questions import QUESTIONS
from stages.data.tasks.recall import MQAR, OVERWRITE
from stages.data.tasks.task import CONTROL, Task
from stages.data.tasks.tracking import TRACKING
from stages.data.tasks.unsaid import UNSAID

RULER = (*NIAH, TRACKING[0], COMMON, FREQUENT, *QUESTIONS)
"""The thirteen of RULER (Hsieh et al. 2024, arXiv:2404.06654)."""

OWN = (PASSKEY, BINDINGS, *RULER, *TRACKING[1:], PASSKEY_IN_FILLER, MQAR, OVERWRITE, UNSAID, NTH, FACTS, NEEDLES)
TASKS: dict[str, Task] = {task.name: task for task in OWN}


def register(task: Task) -> None:
    """Make a task known. Raises ValueError if another one has its name, or the name is that of controls."""
    if task.name.endswith(CONTROL):
        raise ValueError(f"task {task.name!r}: {CONTROL!r} ends the names of controls. Fix: another name")
    if TASKS.setdefault(task.name, task) is not task:
        raise ValueError(f"task {task.name!r}: there is such a task already. Fix: another name")


def task_of(name: str) -> Task:
    """The record. Raises ValueError naming what is allowed."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1)
        raise ValueError(
            f"task {reprlib.repr(name)}: allowed are {', '.join(TASKS)}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return TASKS[name]


def check_worded(format: str, names: Iterable[str], field: str) -> None:
    """Raises ValueError, naming ``field``, if one of the tasks has no wording of this format."""
    for name in names:
        if format not in (formats := task_of(name).formats):
            raise ValueError(
                f"{field} = {format!r}: the task {name} has no such wording (allowed with it: {', '.join(formats)}; "
                f"tasks that have it: {', '.join(worded(format))})"
            )


def worded(format: str) -> list[str]:
    """Names of the tasks that have a wording of this format."""
    return [task.name for task in TASKS.values() if format in task.formats]
