"""Options that several commands share, and how their defaults are found (command line, environment, default)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.places import check_file, check_folder
from pipeline.errors import StudyError, suggestion
from pipeline.tracking.publish import DEFAULT_ROOT

if TYPE_CHECKING:
    from pipeline.engine.plan import Plan
    from pipeline.engine.recorded import RecordedStudy
    from pipeline.engine.store import Store
    from pipeline.study.load import LoadedStudy

MOST_JOBS = 1000  # as execution.jobs of a study

_TRACKING = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks")

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="Study file, for example runs/quickstart.yaml.")]
StudyName = Annotated[
    Path, typer.Argument(metavar="STUDY", help="Study file, or the name of a study that was run with this store.")
]
OfStudy = Annotated[
    str | None, typer.Option("--study", metavar="NAME", help="KEY is a step id of this recorded study.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=V", help="Override a value of the study file; repeatable.")
]
Root = Annotated[
    str | None,
    typer.Option(
        "--root",
        metavar="URL",
        envvar="INFINI_STUDY_ROOT",
        help=f"Where artifacts live: a folder or fsspec URL (default: {DEFAULT_ROOT}).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="STEP", help="Only this stage or step; repeatable.")]
Since = Annotated[
    list[str] | None, typer.Option("--from", metavar="STEP", help="This stage or step and all that needs it.")
]
Until = Annotated[
    list[str] | None, typer.Option("--until", metavar="STEP", help="This stage or step and all it needs.")
]
Arms = Annotated[list[str] | None, typer.Option("--arm", help="Only this arm; repeatable.")]
Seed = Annotated[list[int] | None, typer.Option("--seed", help="Only this seed; repeatable.")]
Force = Annotated[
    list[str] | None, typer.Option("--force", metavar="STEP", help="Make this step again, and what needs it.")
]
Tracking = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow server (default: SQLite below the root). One with a password: by the environment.",
    ),
]


def at_most(most: int, option: str) -> Callable[[int | None], int | None]:
    """For a number that says how much is done at once: raises StudyError for one that cannot be meant."""

    def check(value: int | None) -> int | None:
        if value is not None and value > most:
            raise StudyError(f"{option} = {value}: cannot be meant (allowed: at most {most}). Fix: a smaller number")
        return value

    return check


def root_url(root: str | None) -> str:
    """The root as given, or the default folder below the working directory. Raises StudyError for one of no
    characters, such as a variable of the shell that is not set gives."""
    if root is not None and not root.strip():
        raise StudyError(f"--root = {root!r}: no name. Fix: give a folder or a URL, or leave it out for {DEFAULT_ROOT}")
    return root or DEFAULT_ROOT


def tracking_uri(given: str | None, store: Store) -> str:
    """The MLflow URI as given, or the SQLite file below a local root.

    Raises StudyError for one MLflow does not know, and for a remote root without one: SQLite cannot live in object
    storage.
    """
    from cluster.storage import redacted
    from pipeline.tracking.track import default_tracking_uri

    if not given:
        return default_tracking_uri(store.root)
    scheme, separator, _ = given.partition("://")
    if separator and scheme.split("+")[0] not in _TRACKING:
        raise StudyError(
            f"--tracking-uri = {redacted(given)!r}: MLflow knows no {scheme}:// (allowed: {', '.join(_TRACKING)}). "
            "Fix: give the http(s) address of a server, or sqlite:////folder/mlflow.db"
        )
    return given


def check_tracking(uri: str) -> None:
    """Raises StudyError for a database or folder of this machine that MLflow could not write."""
    place, option = uri.partition("?")[0], "--tracking-uri"
    if place.startswith("sqlite:///") and len(place) > len("sqlite:///"):
        check_file(option, Path(place.removeprefix("sqlite:///")))
    elif place.startswith("file:"):
        check_folder(option, Path(re.sub("^file:(//)?", "", place)))
    elif re.match(r"[\w+-]+:", place) is None and place != "databricks":
        check_folder(option, Path(place))


@dataclass(frozen=True)
class Loaded:
    """A study with its plan and its store."""

    loaded: LoadedStudy
    plan: Plan
    store: Store


def open_study(study: Path, overrides: list[str] | None, root: str | None) -> Loaded:
    """Read the study, open the store, pin the inputs and make the plan. Raises StudyError, also for the name of a
    recorded study: its file is needed here."""
    from pipeline.engine.store import Store
    from pipeline.study.graph import expand
    from pipeline.study.load import load

    store = Store(root_url(root))
    if _may_be_a_name(study) and str(study) in store.studies():
        raise StudyError(
            f"STUDY = {str(study)!r}: a recorded study can be looked at; this needs its study file (allowed: a YAML "
            "file). Fix: give the file that was run"
        )
    loaded = load(study, overrides or ())
    return Loaded(loaded, expand(loaded, pin_cache()), store)


@dataclass(frozen=True)
class Looked:
    """A study to look at, and its store. ``plan``: where a study file was read; a recorded study has none."""

    study: RecordedStudy
    store: Store
    plan: Plan | None


def look(study: Path, overrides: list[str] | None, root: str | None) -> Looked:
    """A study by its file, or by its name as its last run recorded it.

    Raises StudyError for a faulty file, for a name that is not recorded, and for overrides of a recorded study.
    """
    from pipeline.engine.recorded import RecordedStudy, recorded
    from pipeline.engine.store import Store

    if not _may_be_a_name(study):
        opened = open_study(study, overrides, root)
        return Looked(RecordedStudy.of_plan(opened.plan), opened.store, opened.plan)
    store, name = Store(root_url(root)), str(study)
    known = store.studies()
    if name not in known:
        raise StudyError(
            f"STUDY = {name!r}: no such file, and no study of this name is recorded in {store.root}"
            f"{suggestion(name, known)}. Fix: give a study file, or the --root of its run"
        )
    if overrides:
        raise StudyError(
            f"--set {overrides[0]!r}: changes what a study file says, and {name!r} is a recorded study. "
            "Fix: leave --set out, or give the study file"
        )
    return Looked(recorded(store, name), store, None)


def _may_be_a_name(study: Path) -> bool:
    """No file, and written as a study's name can be: a mistyped file name has a dot or a slash."""
    return not os.path.isfile(study) and re.fullmatch(r"[a-z0-9][a-z0-9-]*", str(study)) is not None


def open_store(root: str | None) -> Store:
    """The store of an earlier run. Raises StudyError where there is none."""
    from pipeline.engine.store import Store

    store = Store(root_url(root))
    store.check_there()
    return store


def pin_cache() -> Path | None:
    """Where digests of unchanged external files are kept between commands; None without a home."""
    from stages.data.corpus.files import default_cache

    return default_cache()
