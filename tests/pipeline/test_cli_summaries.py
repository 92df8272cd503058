"""``human export`` and ``human import``, ``judge``: on a recorded study, and what a study file may not say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.engine.store import Store
from pipeline.errors import StudyError
from pipeline.study.graph import expand
from pipeline.study.load import load
from stages.stage import Summary
from tests.stages.summary_inputs import artifacts, examples
from tests.tiny import write_study

JUDGE = "judge={endpoint: {url: 'http://127.0.0.1:9/v1', model: m, price_input: 1, price_output: 1, key_env: NO_KEY}}"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A study of the tiny kind in a store, whose summaries are made (by no model)."""
    folder = tmp_path_factory.mktemp("cli")
    study = write_study(folder)
    arms = ("infini-linear", "infini-delta", "local", "window", "xl")
    made = artifacts(folder / "made", examples(books=4), arms)
    plan = expand(load(study, [JUDGE], environment={}), None)
    store = Store(folder / "store")
    for step in plan.steps:
        name = step.id if step.id == "references" else f"{step.id.rpartition('/')[0]}/0"
        if name not in made or not step.id.startswith(("references", "summarize/")):
            continue
        attempt = store.attempt(step.stage.name, step.key)
        for file in made[name].path().iterdir():
            (attempt.directory / file.name).write_bytes(file.read_bytes())
        store.commit(step.stage.name, step.key, store.seal(attempt), Summary("made", {}), step.record())
    return folder


def command(folder: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_export_rate_import(recorded, tmp_path):
    study, root = str(recorded / "tiny.yaml"), str(recorded / "store")
    said = command(tmp_path, "human", "export", study, str(tmp_path / "kit"), "--items", "20", "--root", root)
    assert "20 pairs on 4 books" in said and "keep key.json" in said
    key = json.loads((tmp_path / "kit" / "key.json").read_text())
    head = {"format": "infini-study human ratings", "version": 1, "export": key["export"]}
    for rater in ("ann", "bob"):
        rated = key["items"][: 20 if rater == "ann" else 12]
        answers = {item["id"]: {"choice": ("left", "right")[i % 2]} for i, item in enumerate(rated)}
        (tmp_path / f"{rater}.json").write_text(json.dumps({**head, "rater": rater, "answers": answers}))
    files = [str(tmp_path / f"{rater}.json") for rater in ("ann", "bob")]
    out = str(tmp_path / "results.json")
    said = command(tmp_path, "human", "import", str(tmp_path / "kit" / "key.json"), *files, "--out", out)
    assert "ann 20 of 20, bob 12 of 20" in said and "Krippendorff's alpha" in said and "Bradley-Terry" in said
    shown = command(tmp_path, "human", "import", str(tmp_path / "kit" / "key.json"), *files, "--out", out, "--json")
    again = command(tmp_path, "human", "import", str(tmp_path / "kit" / "key.json"), *files, files[1], "--out", out)
    assert "bob: 12 answers stand there more than once, and count once" in again and "bob 12 of 20" in again
    assert json.loads(shown)["alpha"] == 1
    plan = expand(load(Path(study), [f"human={{results: {out}}}"], environment={}), None)
    arms = ("infini-linear", "infini-delta", "local", "window", "xl")
    assert set(plan["human"].inputs) == {"references", *(f"summarize/{arm}/0" for arm in arms)}


def test_the_dry_run_of_the_judge_sends_nothing_and_says_what_is_missing(recorded, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NO_KEY", raising=False)
    study, root = str(recorded / "tiny.yaml"), str(recorded / "store")
    said = command(tmp_path, "judge", study, "--set", JUDGE, "--root", root)
    assert "0 answered already" in said and "at most" in said and "export NO_KEY" in said
    fewer = command(tmp_path, "judge", study, "--set", JUDGE, "--root", root, "--documents", "1", "--json")
    everything = command(tmp_path, "judge", study, "--set", JUDGE, "--root", root, "--json")
    assert 0 < json.loads(fewer)["requests"] < json.loads(everything)["requests"]


def test_the_plan_has_the_references_once_and_the_judges_behind_all_summaries(recorded):
    plan = expand(load(recorded / "tiny.yaml", [JUDGE, "seeds=[0, 1]"], environment={}), None)
    ids = [step.id for step in plan.steps]
    assert ids.count("references") == 1 and ids.index("judge") > max(
        ids.index(i) for i in ids if i.startswith("summarize/")
    )
    assert {"references", "judge"} <= set(plan["report"].inputs)
    moved = expand(load(recorded / "tiny.yaml", [JUDGE.replace(":9/", ":8/"), "seeds=[0, 1]"], environment={}), None)
    assert moved["judge"].key == plan["judge"].key, "where the model is served is no part of the key"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([JUDGE, "summarize=null"], "judge: has no effect without summaries"),
        ([JUDGE.replace("judge={", "judge={against: [full], ")], r"judge\.against = 'full'"),
        ([JUDGE.replace("judge={", "judge={decoding: greedy, ")], r"judge\.decoding = 'greedy'"),
        (["claims.summarization.decoding=greedy"], r"claims\.summarization\.decoding = 'greedy'"),
        (["rate={}"], "rate names no model"),
    ],
)
def test_what_cannot_work_is_one_error_before_anything_runs(recorded, overrides, message):
    with pytest.raises(StudyError, match=message):
        load(recorded / "tiny.yaml", overrides, environment={})


def test_models_and_results_that_are_missing_are_named_in_the_plan(recorded):
    for override, message in (
        ("rate={embedding: {path: nowhere}}", r"rate\.embedding\.path = 'nowhere'.*no such folder"),
        ("human={results: nowhere.json}", r"human\.results = 'nowhere\.json'.*human import"),
    ):
        with pytest.raises(StudyError, match=message):
            expand(load(recorded / "tiny.yaml", [override], environment={}), None)
