"""Looking commands with the name of a recorded study in place of its file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.called import Command, caller
from tests.pipeline.recorded_study import NEVER_MADE, key, record

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command on a store in which "quickstart" is recorded."""
    record(tmp_path / "store")
    return caller(tmp_path, monkeypatch, capsys.readouterr, behind="--root store")


def test_status_explain_and_report_need_no_file(cli: Command) -> None:
    code, out, _ = cli("status", "quickstart", "--json")
    stages = json.loads(out)["stages"]
    assert code == 0 and (stages["pretrain"]["made"], stages["summarize"]["made"]) == (2, 0)
    code, out, _ = cli("explain", "quickstart", "pretrain/local/0")
    assert code == 0 and "pretrain/local/0: reuse (made " in out and key("pretrain/infini-delta/0")[:12] in out
    code, out, _ = cli("explain", "quickstart", NEVER_MADE, "--json")
    assert code == 0 and json.loads(out)["reason"] == "planned, not made yet"
    code, out, _ = cli("report", "quickstart")
    assert code == 0 and "memory-is-used" in out


def test_a_record_whose_steps_do_not_fit_together_is_named(cli: Command, tmp_path: Path) -> None:
    path = tmp_path / "store" / "studies" / "quickstart.json"
    record = json.loads(path.read_text())
    step = next(step for step in record["steps"].values() if step["inputs"])
    for other in ("0" * 64, step["key"]):  # of no step, of itself
        step["inputs"] |= dict.fromkeys(step["inputs"], other)
        path.write_text(json.dumps(record))
        code, _, errors = cli("status", "quickstart")
        assert code == 4 and "studies/quickstart.json: not readable" in errors and "Fix: delete it" in errors


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "lambda = -1 +- sigma: too few seeds for e or \\u5b57"),
        ("latin-1", "lambda = -1 ± sigma: too few seeds for é or \\u5b57"),
        ("utf-8", "λ = −1 ± σ: too few seeds for é or 字"),
    ],
)
def test_what_the_output_cannot_hold_is_spelled(tmp_path: Path, encoding: str, shown: str) -> None:
    record(tmp_path / "store")
    command = [sys.executable, "-m", "pipeline.cli", "report", "quickstart", "--root", str(tmp_path / "store")]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, cwd=REPOSITORY, env=environment, check=False)
    assert done.returncode == 0 and shown in done.stdout.decode(encoding), done.stderr


def test_steps_are_those_of_the_named_study(cli: Command) -> None:
    of_study = ("--study", "quickstart")
    code, out, _ = cli("show", "evaluate/local/0", *of_study, "--json")
    assert code == 0 and json.loads(out)["key"] == key("evaluate/local/0")
    code, out, _ = cli("lineage", "report", *of_study, "--json")
    assert code == 0 and {entry["step"] for entry in json.loads(out)["lineage"]} > {"report", "pretrain/local/0"}
    assert cli("logs", NEVER_MADE, *of_study)[0] == 0 and cli("verify", "report", *of_study)[0] == 0
    assert len(json.loads(cli("ls", *of_study, "--json")[1])["artifacts"]) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("status", "quikstart"), "no study of this name is recorded"),
        (("status", "quikstart"), "did you mean 'quickstart'?"),
        (("status", "quickstart", "--set", "seeds=[1]"), "--set 'seeds=[1]': changes what a study file says"),
        (("explain", "quickstart", "pretrian/local/0"), "unknown step 'pretrian/local/0'; did you mean"),
        (("explain", "quickstart", "pretrain"), "pretrain/local/0"),
        (("plan", "quickstart"), "a recorded study can be looked at; this needs its study file"),
        (("run", "quickstart"), "a recorded study can be looked at; this needs its study file"),
        (("power", "quickstart"), "a recorded study can be looked at; this needs its study file"),
        (("audit", "quickstart"), "unknown step 'decontaminate'"),
        (("show", "report", "--study", "quick"), "unknown study 'quick'"),
        (("verify", "--study", "quickstart"), "Fix: name a step"),
        (("show", NEVER_MADE, "--study", "quickstart"), "is not made yet"),
    ],
)
def test_a_wrong_name_is_one_line(cli: Command, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = cli(*arguments)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and message in err
