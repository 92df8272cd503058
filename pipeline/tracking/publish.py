"""Copies of artifacts for readers: where the store is, which runs made what, on which machines, in what time."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.engine.control import Commit
    from pipeline.engine.plan import Plan
    from pipeline.engine.recorded import RecordedStudy
    from pipeline.engine.store import Store
    from stages.stage import Place, Stage

DEFAULT_ROOT = "runs/store"
VIEW = "workflowType=machine_learning"  # else MLflow shows its pages for language-model applications
LOCAL_SERVER = "http://127.0.0.1:5000"  # where ``infini-study ui`` serves an SQLite file unless told otherwise


def root_option(root: str) -> str:
    """``" --root DIR"``, or "" where a command finds the store by itself."""
    return "" if Path(root) == Path(DEFAULT_ROOT).resolve() else f" --root {shlex.quote(root)}"


def run_url(tracking_uri: str, experiment: str, run: str) -> str:
    """Address of a run in a browser: of the server (who may enter is the reader's to say), or of ``infini-study ui`` on
    this machine."""
    server = (
        re.sub(r"//[^/]*@", "//", tracking_uri).rstrip("/")
        if tracking_uri.startswith(("http://", "https://"))
        else LOCAL_SERVER
    )
    return f"{server}/#/experiments/{experiment}/runs/{run}?{VIEW}"


def place(study: Plan | RecordedStudy, store: Store, commits: Mapping[str, Commit], file: str = "{}") -> Place:
    """For readers of a study's artifacts. ``commits``: by step id; ``file``: as in ``Place``."""
    from stages.stage import Place

    runs = {}
    for commit in commits.values():
        made = store.mlflow(commit.stage, commit.key)
        if made:
            runs[commit.key] = run_url(made["tracking_uri"], made["experiment_id"], made["run_id"])
    return Place(root_option(store.root), runs, tuple(_facts(study.study_key, commits)), file)


def _facts(study_key: str, commits: Mapping[str, Commit]) -> list[tuple[str, str]]:
    metas = [commit.meta for commit in commits.values()]

    def named(field: str) -> str:
        return ", ".join(dict.fromkeys(str(meta[field]) for meta in metas if meta.get(field)))

    spent = sum(float(meta.get("seconds", 0.0)) for meta in metas)
    made = sorted(commit.created for commit in commits.values())
    facts = (
        [
            ("study key", study_key),
            ("version of infini-study", named("version")),
            ("commit of the code", named("git_commit")),
            ("hardware", named("hardware")),
            ("time of all steps, one after the other", f"{spent:,.0f} s"),
            ("made (UTC)", f"{made[0]} to {made[-1]}"),
        ]
        if commits
        else [("study key", study_key)]
    )
    return [(name, value) for name, value in facts if value]


def publish(study: RecordedStudy, store: Store, stage: Stage[Any], step_id: str, target: Path) -> None:
    """A copy of a committed step's artifact at ``target``, adapted by its ``stage`` to its readers; nothing is done
    where it lies there already. What else is in the folder stays. Raises OSError."""
    commits = study.commits(store)
    to, mark = place(study, store, commits), target / ".key"
    content = f"{commits[step_id].attempt} {hashlib.sha256(repr(to).encode()).hexdigest()}"
    if mark.is_file() and mark.read_text(encoding="utf-8") == content:
        return
    shutil.copytree(store.artifact(commits[step_id]).path(), target, dirs_exist_ok=True)
    stage.publish(target, to)
    mark.write_text(content, encoding="utf-8")
