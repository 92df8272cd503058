"""``infini-study lm-eval``: lm-evaluation-harness with our checkpoints as a model and our tasks among its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from pipeline.cli.render import line
from pipeline.errors import StudyError

MODEL = "infini_study"
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
"""Of the command: from the first word on all is lm_eval's; --help in front is ours."""

TARGET = "stages.evidence.standalone.harness:StudyLM"


def lm_eval(context: typer.Context) -> None:
    """lm-evaluation-harness with all of its arguments; it then knows --model infini_study and our tasks, infini_NAME.

    Without arguments: the folder of the tasks, for lm_eval --include_path. The tag infini_study is all of them.
    """
    from pipeline.plugins import load_plugins
    from stages.evidence.standalone.harness_tasks import write_tasks
    from stages.stage import StageError

    load_plugins()
    folder = _folder()
    try:
        write_tasks(folder)
    except OSError as error:
        raise StudyError(f"{folder}: {error.strerror}. Fix: set XDG_CACHE_HOME to a folder you may write to") from error
    arguments = list(context.args)
    if not arguments:
        line(str(folder))
        return
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise StudyError("lm_eval is not installed. Fix: pip install 'infini-study[lm-eval]'") from error
    import lm_eval.models  # noqa: F401  # its own models first
    from lm_eval.api.registry import model_registry

    if MODEL not in model_registry:
        model_registry.register(MODEL, target=TARGET)
    if "--include_path" not in arguments and arguments[0] != "ls":
        arguments += ["--include_path", str(folder)]
    sys.argv = ["lm_eval", *arguments]
    try:
        cli_evaluate()
    except StageError as error:  # of our model; what the harness itself raises has its own traceback
        raise StudyError(str(error)) from error


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "infini-study" / "lm-eval"
