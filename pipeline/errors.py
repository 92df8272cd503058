"""Errors a user sees as one line, each with its exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Base: the message says field, value, allowed form and fix."""

    exit_code = 2


class StudyError(UserError):
    """The study file, an override or an option is wrong."""


class IntegrityError(UserError):
    """A file of an artifact is missing, damaged or not what its manifest says."""

    exit_code = 4


class ClusterUnreachable(UserError):
    """No Ray cluster answers at the given address."""

    exit_code = 5


class UnknownName(UserError):
    """A name that does not exist, with the closest ones that do."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = list(known)
        super().__init__(f"unknown {kind} {name!r}{suggestion(name, names)}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` or the list of what there is."""
    names = [str(n) for n in known]
    if not names:
        return " (there are none)"
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(n) for n in close) + "?"
    return f" (there are: {', '.join(names[:30])}{', ...' if len(names) > 30 else ''})"
