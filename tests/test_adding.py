"""The examples of docs/adding.md, run: what they add goes from the study file to the report."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.errors import StudyError
from pipeline.plugins import VARIABLE, load_plugins
from pipeline.study.graph import expand
from pipeline.study.load import load
from stages import record
from stages.evidence.calibrate.stage import RECORD as CALIBRATE
from stages.record import Record
from stages.stage import Config, Stage
from tests.tiny import write_study

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "adding.md"


def example(name: str) -> str:
    """The page's Python block of that name."""
    found = re.search(rf"^```python {name}\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    assert found is not None, f"{PAGE} has no example {name!r}"
    return found.group(1)


def test_an_arm_a_task_a_claim_and_a_stage_from_outside_reach_the_report(tmp_path: Path) -> None:
    for name in ("arm", "task", "claim", "stage"):
        (tmp_path / f"mine_{name}.py").write_text(example(name))
    study = write_study(tmp_path)
    text = study.read_text()
    arms = text[text.index("arms:\n") : text.index("pretrain:")]
    text = text.replace(arms, "arms:\n  local: {kind: local}\n  mean: {kind: mean}\n")
    text = text.replace(
        "trials: 2, rivals: [1, 2],", "trials: 2, rivals: [1, 2], tasks: {latest: {lengths: [96, 256]}},"
    )
    mixture = "{prompts: [{until: 1, share: 0.5, length: 128}], retrieval_format: compact, retrieval_tasks: [latest]}"
    text = text.replace("monitor_every: 2}", f"monitor_every: 2, mixture: {mixture}}}")
    text += "extra: {weights: {most: 7}}\n"
    study.write_text(re.sub(r"(?ms)^ablate:.*?(?=^summarize)", "", text))
    command = [sys.executable, "-m", "pipeline.cli", "run", "tiny.yaml", "--address", "inline"]
    path = os.pathsep.join([str(REPOSITORY), str(tmp_path)])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        VARIABLE: "mine_arm,mine_task,mine_claim,mine_stage",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.search(r"^X1 +mean-is-worse +\S+", done.stdout, flags=re.M)
    assert len(list((tmp_path / "runs/store/weights").glob("*/attempts/*/norms.parquet"))) == 2  # one for each model
    report = (tmp_path / "runs/store/reports/tiny/report.html").read_text()
    assert "mean: the mean of all values so far" in report and "Is a mean of all values worse" in report
    assert "the newer of two numbers" in report and "a guess: 1.1%" in report
    numbers = pq.read_table(next((tmp_path / "runs/store/report").glob("*/attempts/*/numbers.parquet"))).to_pylist()
    scores = [n for n in numbers if n["section"] == "tasks" and n["unit"] == "accuracy"]
    assert {n["label"] for n in scores} == {f"{a}, latest at {n} tokens" for a in ("local", "mean") for n in (96, 256)}
    assert all(n["n"] == 4 and n["low"] <= n["estimate"] <= n["high"] for n in scores)
    for log in (tmp_path / "runs/store/pretrain").glob("*/attempts/*/train_log.parquet"):
        assert None not in pq.read_table(log)["answer_loss"].to_pylist()  # there were prompts in every batch


def test_a_plugin_that_cannot_be_imported_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "no_such_module")
    load_plugins.cache_clear()
    with pytest.raises(StudyError, match=r"INFINI_STUDY_PLUGINS = 'no_such_module': cannot be imported.*Fix:"):
        load_plugins()
    load_plugins.cache_clear()


def test_a_stage_with_the_name_of_a_section_is_said_with_the_study_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "EXTRAS", {})
    record.register(CALIBRATE)
    with pytest.raises(StudyError, match=r"calibrate: a section of the study has this name"):
        load(write_study(tmp_path), ["extra={calibrate: {}}"])


class Size(Config):
    of: str
    place: str = ""


class Sizes(Stage[Size]):
    name, code_version, inputs = "sizes", 1, ("model",)

    def run(self, config, inputs, output, context):
        raise NotImplementedError


def test_a_stage_says_whose_models_it_reads_and_where_its_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pin(section: Size, folder: Path) -> Size:
        return section.model_copy(update={"place": str(folder / section.of)})

    monkeypatch.setattr(record, "EXTRAS", {})
    record.register(Record(stage=Sizes(), config=Size, kinds=("xl",), pin=pin))
    study = write_study(tmp_path)
    plan = expand(load(study, ["extra={sizes: {of: here}}"], environment={}), None)
    assert [step.id for step in plan.steps if step.stage.name == "sizes"] == ["sizes/xl/0"]
    assert plan["sizes/xl/0"].config.place == str(tmp_path / "here")
    assert plan["sizes/xl/0"].inputs == {"model": "pretrain/xl/0"} and "sizes/xl/0" in plan["report"].inputs
    with pytest.raises(StudyError, match=r"sizes: has no effect, no arm has kind xl"):
        load(study, ["extra={sizes: {of: here}}", "arms={local: {kind: local}}", "ablate=null"], environment={})


def test_a_stage_that_no_plugin_has_is_said_with_the_study_file(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"extra.*weihgts: no plug-in has a stage of this name"):
        load(write_study(tmp_path), ["extra={weihgts: {}}"])
