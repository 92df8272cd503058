"""What a user sees of a wrong option, a damaged store or a signal: one line, the right exit code, no traceback."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import infini_study
from tests.pipeline.called import Command
from tests.tiny import SOURCE, STUDY, replaced, write_study

OPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "no file": (("validate", "tinny.yaml"), r"no study file at 'tinny\.yaml'; did you mean 'tiny\.yaml'"),
    "a folder": (("validate", "."), r"'\.' is a folder, a study file is needed \(in it: tiny\.yaml\)"),
    "a link to nowhere": (("validate", "dangling"), r"'dangling' is a link that leads nowhere.*Fix"),
    "a name no file can have": (("plan", "n" * 300), r"STUDY = 'n{100}'\.\.\.: a name too long for a file\. Fix"),
    "no study": (("validate",), r"Missing argument 'STUDY'.*Fix"),
    "unknown option": (("validate", "tiny.yaml", "--fo"), r"No such option: --fo.*Fix"),
    "unknown command": (("valdate", "tiny.yaml"), r"No such command 'valdate'. Did you mean 'validate'.*\? Fix"),
    "one argument too many": (("validate", "tiny.yaml", "x"), r"unexpected extra argument.*Fix"),
    "override without value": (("validate", "tiny.yaml", "--set", "x"), r"--set 'x': allowed is a\.b=value"),
    "override without name": (("validate", "tiny.yaml", "--set", "a..b=1"), r"--set 'a\.\.b=1': allowed is"),
    "override of a value's part": (("validate", "tiny.yaml", "--set", "name.x=1"), r"'name' is a single value"),
    "override past a list": (("validate", "tiny.yaml", "--set", "seeds.5=1"), r"allowed: 0 to 0"),
    "override of a thousand sections": (
        ("validate", "tiny.yaml", "--set", f"{'a.' * 5000}b=1"),
        r"--set a\.a\..{20,60}\.\.\.: 5001 names \(allowed: at most 50.*Fix",
    ),
    "a number of many digits": (
        ("validate", "tiny.yaml", "--set", f"pretrain.steps={'9' * 400}"),
        r"pretrain\.steps = a number of more than 300 digits: cannot be meant \(allowed: at most",
    ),
    "judge of a study without": (("judge", "tiny.yaml", "--documents", "3"), r"has no section judge\. Fix"),
    "no predictions": (
        ("score", "nowhere.jsonl"),
        r"PREDICTIONS = 'nowhere\.jsonl': No such file.*Fix",
    ),
    "unknown override": (("validate", "tiny.yaml", "--set", "pretain.steps=1"), r"command line: pretain: unknown key"),
    "wrong override": (("validate", "tiny.yaml", "--set", "pretrain.steps=x"), r"command line: pretrain\.steps = 'x'"),
    "override that is no YAML": (("validate", "tiny.yaml", "--set", "seeds=[1"), r"--set seeds: line 1, column 3: not"),
    "unknown step": (("plan", "tiny.yaml", "--only", "pretran"), r"unknown step 'pretran'; did you mean 'pretrain'"),
    "unknown --force": (("plan", "tiny.yaml", "--force", "x"), r"unknown step 'x' \(there are: "),
    "unknown arm": (("run", "tiny.yaml", "--arm", "lokal"), r"unknown arm 'lokal'; did you mean 'local'"),
    "unknown seed": (("run", "tiny.yaml", "--seed", "7"), r"unknown seed '7' \(there are: 0\)"),
    "no number": (("run", "tiny.yaml", "--seed", "x"), r"Invalid value for '--seed'.*int"),
    "jobs without end": (
        ("run", "tiny.yaml", "--jobs", "100000"),
        r"--jobs = 100000: cannot be meant \(allowed: at most 1000\)\. Fix",
    ),
    "threads without end": (
        ("audit", "scan", "books/train", "--against", "books/test", "--jobs", "100000"),
        r"--jobs = 100000: cannot be meant \(allowed: at most 1000\)\. Fix",
    ),
    "CPUs without end": (
        ("cluster", "up", "--cpus", "100000"),
        r"--cpus = 100000: .*at most 1000\)\. Fix",
    ),
    "GPUs without end": (
        ("cluster", "up", "--gpus", "100000"),
        r"--gpus = 100000: .*at most 1000\)\. Fix",
    ),
    "nothing selected": (("run", "tiny.yaml", "--from", "pretrain", "--until", "ingest"), r"select no step.*Fix"),
    "needs what is not made": (("run", "tiny.yaml", "--only", "report"), r"neither made nor selected.*Fix"),
    "root of no name": (("ls", "--root", ""), r"--root = '': no name\. Fix"),
    "no store": (("ls", "--root", "nowhere"), r"root = .*nowhere.*there is no store.*Fix"),
    "nothing to show": (("show", "ingest", "--root", "nowhere"), r"there is no store"),
    "a file for a store": (("verify", "--root", "tiny.yaml"), r"root = .*tiny.yaml.*there is no store"),
    "nothing to audit": (("audit", "tiny.yaml"), r"step 'decontaminate' of 'tiny' is not made yet\. Fix"),
    "root below a file": (("plan", "tiny.yaml", "--root", "tiny.yaml/x"), r"cannot be read: Not a directory.*Fix"),
    "root that cannot be written": (("run", "tiny.yaml", "--root", "/proc/x"), r"cannot be written: .*Fix"),
    "root of an unknown kind": (("run", "tiny.yaml", "--root", "foo://x"), r"Protocol not known: foo.*allowed"),
    "root in memory": (
        ("run", "tiny.yaml", "--root", "memory://x", "--tracking-uri", "sqlite:///x"),
        r"memory://.*Fix",
    ),
    "tracking of an unknown kind": (
        ("run", "tiny.yaml", "--tracking-uri", "foo://x"),
        r"tracking-uri = 'foo://x'.*Fix",
    ),
    "tracking of a remote root": (("run", "tiny.yaml", "--root", "memory://x"), r"--tracking-uri: needed.*Fix"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_wrong_option_is_one_line(cli: Command, case: str):
    arguments, message = OPTIONS[case]
    Path("dangling").symlink_to("nowhere.yaml")
    said = cli(*arguments)
    assert said.code == 2 and said.out == ""
    assert len(said.faults) == 1 and re.search(message, said.faults[0]), said.err


def test_the_most_jobs_are_those_of_a_study() -> None:
    from annotated_types import Le

    from pipeline.cli.options import MOST_JOBS
    from stages.stage import Execution

    assert Le(MOST_JOBS) in Execution.model_fields["jobs"].metadata


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://x", "word", "127.0.0.1:99999999", "127.0.0.1:²"])
def test_a_cluster_that_does_not_answer_is_exit_code_5(cli: Command, address: str):
    said = cli("run", "tiny.yaml", "--address", address)
    assert said.code == 5 and len(said.faults) == 1 and said.faults[0].startswith(f"--address = '{address}'")


@pytest.mark.parametrize(
    "arguments",
    [
        ("validate", "nope.yaml"),
        ("validate",),
        ("plan", "tiny.yaml", "--seed", "x"),
        ("valdate",),
        ("ls", "--root", "no"),
    ],
)
def test_errors_are_json_where_json_is_asked_for(cli: Command, arguments: tuple[str, ...]):
    said = cli(*arguments, "--json")
    body = json.loads(said.out)
    assert (body["schema_version"], body["command"], body["exit_code"]) == (1, "error", 2) and said.code == 2
    assert body["errors"] == body["message"].splitlines() and said.err == ""


@pytest.mark.parametrize(
    ("command", "streams", "code", "said"),
    [
        ("validate tiny.yaml", ">&-", 0, ""),
        ("validate none.yaml", "<&- >&-", 2, "error: no study file at 'none.yaml'"),
        ("validate none.yaml", "2>/dev/full", 2, ""),
        ("validate none.yaml --json", ">/dev/full", 2, ""),
        ("validate tiny.yaml --json", ">/dev/full", 2, ""),
    ],
)
def test_streams_that_are_closed_or_full_change_no_exit_code(
    cli: Command, tmp_path: Path, command: str, streams: str, code: int, said: str
) -> None:
    cli("validate", "tiny.yaml")  # writes it
    shell = f"{sys.executable} -m pipeline.cli {command} {streams}"
    ended = subprocess.run(shell, shell=True, cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == code and ended.stderr.startswith(said) and len(ended.stderr.splitlines()) == bool(said)


def test_a_pipe_is_no_study_file(cli: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert cli("plan", "pipe.yaml").faults == [
        "'pipe.yaml' is a pipe or a device, a study file is needed. Fix: save it as a file"
    ]


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null"])
def test_a_home_that_cannot_be_written_costs_only_the_digest_cache(
    cli: Command, monkeypatch: pytest.MonkeyPatch, home: str
):
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    assert cli("validate", "tiny.yaml").code == 0


def test_damaged_documents_are_named_and_skipped(cli: Command, books: Path):
    folder = Path("dirty/train")
    for split in ("test", "validation"):
        (Path("dirty") / split).mkdir(parents=True)
        for book in (books / split).glob("*.txt"):
            (Path("dirty") / split / book.name).write_bytes(book.read_bytes())
    folder.mkdir()
    (folder / "good.txt").write_text("A good book. " * 50)
    (folder / "utf16.txt").write_bytes("not UTF-8 ".encode("utf-16") * 50)
    (folder / "nul.txt").write_bytes(b"a\0b" * 50)
    (folder / "void.txt").touch()
    (folder / "1.txt").write_text("another text under a test book's id")
    with open(os.fsencode(folder) + b"/\xff.txt", "w") as file:
        file.write("a name that is not UTF-8")
    Path("dirty/metadata.csv").write_bytes(b"id,title\n1,caf\xe9\n")
    Path("rows.jsonl.gz").write_bytes(b"not gzip")
    more = ", {kind: jsonl, name: rows, url: rows.jsonl.gz, split: train}]"
    text = replaced(SOURCE, SOURCE.replace("url: books", "url: dirty").replace("]", more))
    run = ("run", "tiny.yaml", "--until", "ingest", "--address", "inline", "--root", "store")
    assert cli(*run, study=text).code == 0
    rows = json.loads(cli("show", "ingest", "--table", "problems", "--root", "store", "--json").out)["rows"]
    assert {(row["name"], row["problem"], row["action"]) for row in rows} == {
        ("books/1#2", "same_id", "renamed"),
        ("books/metadata.csv", "undecodable", "skipped"),
        ("books/nul", "nul_byte", "skipped"),
        ("books/train/\\udcff.txt", "undecodable", "skipped"),
        ("books/utf16", "undecodable", "skipped"),
        ("books/void", "empty", "skipped"),
        ("rows/rows.jsonl.gz", "undecodable", "skipped"),
    }
    said = cli(*run, study=text.replace("corpus: {", "corpus: {on_bad_document: fail, "))
    assert said.code == 1 and "on_bad_document = 'fail'" in said.err and "6 bad document(s)" in said.err


def test_sigterm_before_the_first_step_ends_as_ctrl_c_does(cli: Command, tmp_path: Path):
    write_study(tmp_path)
    command = [sys.executable, "-m", "pipeline.cli", "run", "tiny.yaml", "--until", "ingest", "--root", "store"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert any("starting Ray" in line for line in run.stderr)
        run.terminate()
        said = run.stderr.read()
    assert run.returncode == 130 and "running again goes on from there" in said


def test_a_damaged_store_is_exit_code_4_and_says_how_to_mend_it(cli: Command):
    run = ("run", "tiny.yaml", "--until", "decontaminate", "--address", "inline", "--root", "store")
    assert cli(*run).code == 0
    table = next(Path("store/ingest").glob("*/attempts/*/documents/*.parquet"))
    table.write_bytes(table.read_bytes()[:100])
    assert cli("verify", "--root", "store").code == 4
    said = cli(*run, "--force", "decontaminate")
    assert said.code == 4 and "100 bytes instead of" in said.err and "--force ingest" in said.err
    assert cli(*run, "--force", "ingest").code == 0
    commit = next(Path("store/ingest").glob("*/COMMIT.json"))
    edited = commit.read_text().replace('"sha256"', '"sha-of-old"')
    commit.write_text(edited)
    said = cli("verify", "--root", "store")
    assert said.code == 0 and "1 of them were committed before commits had a digest" in said.out
    commit.write_text("{")
    said = cli("verify", "--root", "store", "--json")
    assert said.code == 4 and [p[0].split(": ")[1] for p in json.loads(said.out)["problems"].values()] == [
        "not a readable commit (Expecting property name enclosed in double quotes"
    ]
    said = cli("plan", "tiny.yaml", "--root", "store")
    assert said.code == 4 and len(said.faults) == 1 and "Fix: delete this file" in said.faults[0]
    commit.unlink()
    commit.mkdir()
    said = cli("ls", "--root", "store")
    assert said.code == 4 and len(said.faults) == 1
    assert "COMMIT.json: not a readable commit (no file but a folder, a pipe or a device). Fix: " in said.faults[0]
    commit.rmdir()
    assert cli(*run).code == 0


def test_what_is_not_in_an_artifact_is_told(cli: Command):
    assert cli("run", "tiny.yaml", "--until", "ingest", "--address", "inline", "--root", "store").code == 0
    for arguments, message in (
        (("--table", "nope"), r"unknown table 'nope' \(there are: .*problems\.parquet"),
        (("--table", "problems", "--where", "x == 1"), r"unknown column 'x' \(there are: name, source"),
        (("--table", "problems", "--where", "name=a"), r"--where = 'name=a': one '=' compares .*Fix: name == 'a'"),
        (("--where", "name == 'a'"), r"--where = .*: selects rows of a table. Fix: name it with --table"),
    ):
        said = cli("show", "ingest", "--root", "store", *arguments)
        assert said.code == 2 and re.search(message, said.faults[0])


HEAVY = ("torch", "ray", "pyarrow", "numpy", "mlflow", "datasets", "tokenizers")  # Typer itself imports pydantic


@pytest.mark.parametrize("command", ["", "run", "show", "ui"])
def test_help_imports_nothing_heavy(command: str):
    code = f"import sys; sys.argv = ['infini-study', *'{command}'.split(), '--help']\n"
    code += "from pipeline.cli import app\n"
    code += "try: app.main()\nfinally: print('LOADED', *(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Usage" in done.stdout
    assert not set(HEAVY) & set(done.stdout.rpartition("LOADED")[2].split())


def test_ctrl_c_ends_a_run_with_130_and_it_resumes(tmp_path: Path):
    """In a process of its own, by a real signal while the first step runs."""
    study = write_study(tmp_path)
    command = [sys.executable, "-m", "pipeline.cli", "run", str(study), "--root", str(tmp_path / "store")]
    command += ["--until", "decontaminate", "--no-progress", "--address", "inline"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert isinstance(running.stderr, io.TextIOBase)
        for line in running.stderr:
            if "ingest  started" in line:
                running.send_signal(signal.SIGINT)
                break
        rest = running.stderr.read()
    assert running.returncode == 130 and "Traceback" not in rest and "running again goes on" in rest
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_while_the_command_is_read_is_no_traceback(monkeypatch: pytest.MonkeyPatch):
    class Interrupted:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "pipeline.cli.app":
                raise KeyboardInterrupt

    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "pipeline.cli.app")
    monkeypatch.setattr(infini_study, "claim", lambda: None)
    with pytest.raises(SystemExit) as ended:
        infini_study.main()
    assert ended.value.code == 130


def test_init_writes_a_study_file_that_can_be_planned_and_never_overwrites(cli: Command):
    assert cli("init").out.startswith("quickstart.yaml written")
    planned = cli("plan", "quickstart.yaml", "--json")
    assert planned.code == 0 and json.loads(planned.out)["study"] == "quickstart"
    Path("quickstart.yaml").write_text("mine")
    for arguments, place in (((), "the working directory"), (("--to", "quickstart.yaml"), "--to = 'quickstart.yaml'")):
        said = cli("init", *arguments)
        assert said.code == 2 and said.faults == [
            f"{place}: quickstart.yaml is there already. Fix: name another file with --to"
        ]
    assert Path("quickstart.yaml").read_text() == "mine"


def test_init_names_what_there_is_and_writes_where_it_is_told(cli: Command):
    listed = json.loads(cli("init", "--list", "--json").out)["studies"]
    assert {"arms", "pg19", "quickstart", "small"} <= set(listed) and all(listed.values())
    assert all(name in cli("init", "--list").out for name in listed)
    said = cli("init", "quikstart")
    assert said.code == 2 and "did you mean 'quickstart'" in said.faults[0]
    assert json.loads(cli("init", "small", "--to", "new/mine.yaml", "--json").out)["path"] == "new/mine.yaml"
    assert cli("init", "arms", "--to", "new").code == 0
    assert {path.name for path in Path("new").iterdir()} == {"mine.yaml", "arms.yaml"}
    for path in ("new/mine.yaml", "new/arms.yaml"):
        source = Path(__file__).parents[2] / "runs" / Path(path).name.replace("mine", "small")
        assert Path(path).read_bytes() == source.read_bytes()


def test_version_prints_the_packages_version(cli: Command):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    said = cli("--version")
    assert (said.code, said.out) == (0, f"infini-study {project['version']}\n")


def test_the_plan_names_large_files_that_one_task_reads(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.data.corpus.check.SPLIT_BYTES", 100)
    Path("packed.jsonl.gz").write_bytes(gzip.compress(os.urandom(400)))
    more = "sources: [{kind: jsonl, name: p, url: 'pack*.gz', split: train}, " + SOURCE.removeprefix("sources: [")
    said = cli("plan", "tiny.yaml", "--root", "store", study=STUDY.replace(SOURCE, more))
    assert said.code == 0
    assert f"one task reads all of {tmp_path}/packed.jsonl.gz (0 MB): it is packed in one" in said.err
