"""``infini-study compare``, and ``evaluate`` of an artifact: a small recorded study made by the stages themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.engine.store import Store
from stages.evidence.evaluate.stage import STAGE, EvaluateConfig
from tests.pipeline.called import Command, caller
from tests.stages.evaluation_inputs import build, decoder, save
from tests.support import LocalContext

ARMS, SEEDS = ("infini", "local"), (0, 1)
ASKED = {"format": "compact", "lengths": [256, 320], "trials": 5, "rivals": [1, 2], "binding_trials": 3}


def key(step: str) -> str:
    return hashlib.sha256(step.encode()).hexdigest()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the study ``tiny`` is recorded: two arms, two seeds, each trained (not really) and evaluated."""
    root = tmp_path_factory.mktemp("study")
    inputs = build(root / "inputs")
    size = inputs["tokenizer"].json("meta.json")["vocab_size"]
    store, steps = Store(root / "store", root / "cache"), {}

    def commit(step: str, needs: dict[str, str], config: dict[str, Any], write: Callable[[Path], Any]) -> None:
        stage, _, rest = step.partition("/")
        arm, _, seed = rest.partition("/")
        meta = {
            "step": step,
            "stage": stage,
            "code_version": 1,
            "config": config,
            "arm": arm or None,
            "inputs": {name: key(one) for name, one in needs.items()},
            "seed": int(seed) if seed else None,
            "source_digest": "0",
        }
        steps[step] = {**meta, "key": key(step)}
        attempt = store.attempt(stage, key(step))
        summary = write(attempt.directory)
        store.commit(stage, key(step), store.seal(attempt), summary, meta)

    def copied(name: str) -> Callable[[Path], Any]:
        import shutil

        from stages.stage import Summary

        def write(folder: Path) -> Summary:
            shutil.copytree(inputs[name].directory, folder, dirs_exist_ok=True)
            return Summary(name)

        return write

    for step, name in (("ingest", "documents"), ("tokenizer", "tokenizer"), ("tokenize", "tokens")):
        commit(step, {}, {}, copied(name))
    known = {"tokenizer": "tokenizer", "tokens": "tokenize"}
    config = EvaluateConfig.model_validate({"retrieval": ASKED | {"tasks": {"niah_multivalue": {}}}})
    for arm in ARMS:
        for seed in SEEDS:
            inputs["model"] = save(decoder(arm, vocab_size=size, seed=seed), root / f"{arm}{seed}")
            commit(f"pretrain/{arm}/{seed}", known, {}, copied("model"))
            needs = known | {"documents": "ingest", "model": f"pretrain/{arm}/{seed}"}
            commit(
                f"evaluate/{arm}/{seed}",
                needs,
                config.key_fields(),
                lambda folder: STAGE.run(config, inputs, folder, LocalContext(str(root / "work"))),
            )
    store.record_study({"study": "tiny", "study_key": key("study"), "steps": steps})
    return root / "store"


@pytest.fixture
def cli(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return caller(tmp_path, monkeypatch, capsys.readouterr, behind=f"--root {study}")


TASKS = ("--tasks", "passkey,niah_multivalue", "--lengths", "256,320", "--samples", "5", "--format", "compact")


def test_an_artifact_is_asked_what_its_study_asked_it(cli: Command, study: Path) -> None:
    code, out, err = cli("evaluate", "pretrain/infini/0", *TASKS, "--out", "mine", "--json", "-q")
    said = json.loads(out)
    assert (code, err) == (0, "") and said["haystack"]["from"] == "the study's test split"
    stored = Store(study, study.parent / "cache")
    artifact = stored.artifact(next(c for c in stored.commits() if c.step == "evaluate/infini/0"))
    for table in ("retrieval", "tasks"):
        theirs = pd.read_parquet(artifact.path(f"{table}.parquet"))
        theirs = theirs[theirs["task"].isin(["passkey", "niah_multivalue"])].reset_index(drop=True)
        mine = pd.read_parquet(f"mine/{table}.parquet")
        pd.testing.assert_frame_equal(mine, theirs, rtol=1e-5)  # the study's batches are larger
    code, out, err = cli("compare", "mine", "evaluate/infini/0", "--json")
    found = json.loads(out)
    assert code == 0 and all(one["difference"] == 0 and one["p"] == 1 for one in found["scores"])
    assert found["notes"] == [] and len(found["scores"]) == 4 and found["unpaired"] == 6 + 4
    assert [one.partition(":")[0] for one in found["alone"]] == [  # asked of the study's models only
        *(f"pretrain/infini/0 against infini, bindings, k = {k}, 320 tokens" for k in (1, 2)),
        "pretrain/infini/0 against infini",
    ]
    assert found["alone"][-1].endswith(": 0 texts of A and 4 of B, none the same")


def test_two_arms_of_a_study_over_its_seeds(cli: Command) -> None:
    code, out, _ = cli("compare", "tiny:infini", "tiny:local", "--out", "page", "--json")
    found = json.loads(out)
    assert code == 0 and {one["seeds"] for one in found["scores"]} == {2}
    assert {one["task"] for one in found["scores"]} == {"passkey", "bindings", "niah_multivalue"}
    assert found["notes"] == [] and found["unpaired"] == 0  # one study: the same prompts to the token
    (text,) = found["texts"]
    assert text["unit"] == "nats per token" and text["items"] == 4 and text["difference"] != 0
    assert "infini against local" in Path("page/report.html").read_text()
    code, out, err = cli("compare", "tiny", "tiny", "--out", "page")
    assert code == 0 and "infini" in out and "0 items without a partner" in out
    assert "A and B are one and the same" in err


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ("tiny", "tine", "no folder, no recorded study (tiny)"),
        ("tiny:infinity", "tiny", "did you mean 'infini'?"),
        ("pretrain/infini/0", "tiny", "pretrain/infini/0 is no evaluation"),
        (".", "tiny", "holds no finished evaluation"),
        ("tiny", " ", "B = ' ': no name"),
    ],
)
def test_what_cannot_be_compared_is_one_error(cli: Command, a: str, b: str, said: str) -> None:
    code, out, err = cli("compare", a, b)
    assert code == 2 and out == "" and said in err and len(err.splitlines()) == 1


def test_a_mistyped_folder_is_named_where_there_is_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = caller(tmp_path, monkeypatch, capsys.readouterr)
    code, _, err = bare("compare", "runs/a", "runs/b")
    assert code == 2 and "A = 'runs/a': no folder of this name; of the store: root = " in err


def _facts(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        facts = json.loads((folder / "evaluation.json").read_text())
        change(facts)
        (folder / "evaluation.json").write_text(json.dumps(facts))

    return damage


def _table(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    return lambda folder: change(pd.read_parquet(folder / name)).to_parquet(folder / name)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_facts(lambda facts: facts.pop("identity")), "holds no finished evaluation"),
        (_facts(lambda facts: facts.update(identity=[])), "holds no finished evaluation"),
        (_facts(lambda facts: facts.pop("name")), "holds no finished evaluation"),
        (lambda folder: (folder / "tasks.parquet").write_bytes(b"x"), "not the table that an evaluation writes"),
        (_table("tasks.parquet", lambda rows: rows.drop(columns="item")), "tasks.parquet = 'b/tasks.parquet': not the"),
    ],
)
def test_a_damaged_evaluation_is_one_error(cli: Command, damage: Callable[[Path], Any], said: str) -> None:
    cli("evaluate", "pretrain/local/0", *TASKS, "--out", "b", "-q")
    damage(Path("b"))
    code, out, err = cli("compare", "tiny:infini", "b")
    assert code == 2 and out == "" and said in err and len(err.splitlines()) == 1


def test_evaluations_of_other_seeds_do_not_pair(cli: Command) -> None:
    for seed in ("0", "1"):
        cli("evaluate", "pretrain/local/0", "--seed", seed, *TASKS, "--out", f"seed{seed}", "-q")
    code, _, err = cli("compare", "seed0", "seed1")
    assert code == 2 and "drawn from another seed" in err
    assert np.isfinite(pd.read_parquet("seed0/tasks.parquet")["answer_nll"]).all()
