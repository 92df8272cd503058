"""``infini-study``: one Typer app; every error a user can mend is one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import sys
from typing import Annotated

import typer

from cluster.storage import NotAFile
from pipeline.cli import (
    audit,
    cluster,
    compare,
    convert,
    evaluate,
    export,
    harness,
    human,
    init,
    inspect,
    judge,
    power,
    run,
    scan,
    score,
    view,
    watch,
)
from pipeline.cli.render import open_what_is_closed, spell_what_cannot_be_shown
from pipeline.errors import UserError
from pipeline.interrupt import terminable

app = typer.Typer(
    name="infini-study",
    help="Run the whole Infini-attention study, from raw corpus to a computed verdict for each claim.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
)
for command in (
    init.init,
    run.validate,
    run.plan,
    power.power,
    run.run,
    inspect.status,
    watch.watch,
    inspect.explain,
    inspect.ls,
    inspect.show,
    inspect.lineage,
    inspect.verify,
    inspect.logs,
    inspect.gc,
    view.report,
    view.ui,
    export.export,
    score.score,
    judge.judge,
    evaluate.evaluate,
    compare.compare,
):
    app.command()(command)
app.command("import")(convert.import_)
app.command("lm-eval", context_settings=harness.PASSED_ON)(harness.lm_eval)
audit.app.command()(scan.scan)
app.add_typer(audit.app)
app.add_typer(cluster.app)
app.add_typer(human.app)


def _print_version(asked: bool) -> None:
    if asked:
        from pipeline.cli.render import line
        from pipeline.engine.origin import NAME, version

        line(f"{NAME} {version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


_OF_THE_MACHINE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EEXIST,
    errno.EISDIR,
)


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 a step failed, 2 usage or study file, 4 integrity, 5 cluster unreachable,
    130 interrupted."""
    open_what_is_closed()
    spell_what_cannot_be_shown()
    try:
        with terminable():
            code = app(standalone_mode=False)
    except UserError as error:
        _fail(str(error), error.exit_code)
    except typer.TyperException as error:  # a wrong option or argument
        _usage(error)
    except typer.Abort:
        _fail("aborted", 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE and not isinstance(error, NotAFile):
            raise  # a bug here: its traceback is wanted
        name = str(error.filename or "storage")
        name = name if len(name) <= 300 else f"{name[:300]}..."
        _fail(f"{name}: {error.strerror}. Fix: check free space, permissions and the path", 2)
    else:
        raise SystemExit(code if isinstance(code, int) else 0)


def _usage(error: typer.TyperException) -> None:
    context = getattr(error, "ctx", None)
    if len(sys.argv) == 1:  # no command: the help is printed already
        raise SystemExit(2)
    message = " ".join(getattr(error, "format_message", lambda: str(error))().split())
    command = context.command_path if context is not None else "infini-study"
    dot = "" if message.endswith((".", "?")) else "."
    _fail(f"{message}{dot} Fix: {command} --help lists what there is", 2)


def _fail(message: str, code: int) -> None:
    from cluster.storage import redacted
    from pipeline.cli.render import print_json
    from pipeline.engine.escape import escaped

    message = redacted(message)
    with contextlib.suppress(OSError):  # a full disk, a reader that is gone: the exit code still tells
        if "--json" in sys.argv:
            print_json("error", {"message": message, "errors": message.splitlines(), "exit_code": code})
        else:
            sys.stderr.write("".join(f"error: {escaped(line)}\n" for line in message.rstrip("\n").split("\n")))
    raise SystemExit(code)
