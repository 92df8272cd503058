"""Studies from Python: opened by name, artifacts, tables, models; the notebook runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from pipeline.api import Study
from pipeline.errors import StudyError, UnknownName
from tests.pipeline.recorded_study import ARMS, NEVER_MADE, key, record

NOTEBOOK = Path(__file__).parents[2] / "docs" / "explore.ipynb"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded") / "store"
    record(folder, model=True)
    return folder


def test_a_recorded_study_is_opened_by_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFINI_STUDY_ROOT", str(root))
    study = Study("quickstart")
    assert study.name == "quickstart" and len(study.steps) == 6
    assert [step for step, made in study.steps.items() if not made] == [NEVER_MADE]
    assert "5 of 6 steps made" in repr(study)
    order = list(study.steps)
    assert order.index("pretrain/local/0") < order.index("evaluate/local/0") < order.index("report")


def test_an_artifact_shows_what_it_is(root: Path) -> None:
    made = Study("quickstart", root)["evaluate/local/0"]
    assert (made.key, made.summary, made.config) == (key("evaluate/local/0"), {"loss": 3.0}, {"steps": 40})
    assert made.inputs == {"pretrain": "pretrain/local/0"} and made.tables == ["retrieval"]
    by_name, by_file = made.table("retrieval"), made.table("retrieval.parquet")
    pd.testing.assert_frame_equal(by_name, by_file)
    assert len(by_name) == 24 and made.path("retrieval.parquet").is_file()


def test_a_trained_model_computes(root: Path) -> None:
    decoder = Study("quickstart", root)["pretrain/infini-delta/0"].model()
    logits, _ = decoder(torch.zeros(1, 8, dtype=torch.long))
    assert not decoder.training and logits.shape[:2] == (1, 8)


def test_verdicts_and_figures_of_the_report(root: Path) -> None:
    study = Study("quickstart", root)
    assert study.verdicts()["claim"].tolist() == ["C1"]
    figure = study.figure("retrieval_lengths")
    assert figure._repr_svg_() == "<svg/>" and figure.data["length"].tolist() == [64]


def test_what_is_not_there_is_one_clear_error(root: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"'quikstart'.*did you mean 'quickstart'\?.*Fix"):
        Study("quikstart", root)
    with pytest.raises(StudyError, match=r"'quickstart'.*\(there are none\).*Fix"):
        Study("quickstart", tmp_path)
    with pytest.raises(StudyError, match=r"--set 'pretrain.steps=1'.*recorded study.*Fix"):
        Study("quickstart", root, overrides=("pretrain.steps=1",))
    study = Study("quickstart", root)
    with pytest.raises(UnknownName, match=r"unknown step 'pretrain/infini-dleta/0'; did you mean"):
        study["pretrain/infini-dleta/0"]
    with pytest.raises(StudyError, match=r"not made yet"):
        study[NEVER_MADE]
    with pytest.raises(UnknownName, match=r"unknown table of pretrain/local/0 'trainlog'; did you mean 'train_log'"):
        study["pretrain/local/0"].table("trainlog")
    with pytest.raises(UnknownName, match=r"unknown file of pretrain/local/0 'nope'"):
        study["pretrain/local/0"].path("nope")
    with pytest.raises(StudyError, match=r"step = 'evaluate/local/0': holds no model.*Fix"):
        study["evaluate/local/0"].model()
    with pytest.raises(UnknownName, match=r"unknown figure 'retrieval'"):
        study.figure("retrieval")


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, pipeline.api; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ray", "pyarrow", "numpy", "pandas", "mlflow", "datasets"} & set(loaded)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "runs" / "store")
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")  # where Jupyter runs it
    monkeypatch.setitem(os.environ, "MPLBACKEND", "Agg")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    scope: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}:{cell['id']}", "exec"), scope)
    found = scope["found"]
    assert isinstance(found, pd.DataFrame) and set(found.columns) == set(ARMS)
