"""Plans: ids, keys that follow what a step depends on, selection, and decisions with their reasons."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.arms import KINDS
from pipeline.engine import sources
from pipeline.engine.lease import LeaseRequest, this_process
from pipeline.engine.plan import Plan, PlanBuilder, Selection, decide, differences
from pipeline.engine.store import Store
from pipeline.errors import UnknownName
from stages.stage import Config, Stage, Summary


class Amount(Config):
    amount: int = 1


def stage(name: str, version: int = 1) -> Stage[Amount]:
    class Toy(Stage[Amount]):
        def run(self, config, inputs, output, context):
            (output / "value").write_text(str(config.amount))
            return Summary(f"amount {config.amount}")

    Toy.name, Toy.code_version = name, version
    return Toy()


def plan(corpus: int = 1, lr: int = 1, version: int = 1) -> Plan:
    graph = PlanBuilder()
    data = graph.add(stage("ingest"), Amount(amount=corpus), {})
    runs = [
        graph.add(stage("pretrain", version), Amount(amount=lr), {"tokens": data}, arm=arm, seed=seed)
        for arm in ("local", "delta")
        for seed in (0, 1)
    ]
    graph.add(stage("report"), Amount(), {run: run for run in runs})
    return graph.plan("toy")


def make(store: Store, whole: Plan, *ids: str) -> None:
    for step in whole.steps:
        if not ids or step.id in ids:
            attempt = store.attempt(step.stage.name, step.key)
            summary = step.stage.run(step.config, {}, attempt.directory, None)
            store.commit(step.stage.name, step.key, store.seal(attempt), summary, step.record())
    store.record_study(whole.record())


def actions(decisions) -> dict[str, str]:
    return {step: decision.action for step, decision in decisions.items()}


def test_a_plan_lists_each_stage_once_and_reads_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store, whole = Store(f"memory://{tmp_path.name}-requests", tmp_path / "cache"), plan()
    asked: list[str] = []
    for name in ("ls", "cat_file", "info"):
        ask = getattr(store.fs, name)
        monkeypatch.setattr(store.fs, name, lambda *a, ask=ask, name=name, **o: (asked.append(name), ask(*a, **o))[1])
    assert set(actions(decide(whole, store)).values()) == {"run"}
    listings = asked.count("ls")
    assert asked.count("cat_file") == 0 and listings <= 2 * 3, (
        "of three stages; one more where earlier artifacts are sought"
    )
    make(store, whole)
    asked.clear()
    assert set(actions(decide(whole, store)).values()) == {"reuse"}
    assert (asked.count("ls"), asked.count("cat_file")) == (3, len({step.key for step in whole.steps}))
    for lr in range(2, 12):  # what nobody's last plan has is not read to say why a step runs
        make(store, plan(lr=lr))
    asked.clear()
    decisions = decide(plan(lr=99), store)
    assert decisions["pretrain/local/0"].reason == "amount: 11 -> 99"
    assert asked.count("cat_file") <= 4, "ingest, the study's record, its last training and report"
    assert asked.count("ls") <= 3 + 1 + 2 + 2


def test_a_change_reaches_the_keys_of_everything_downstream_and_nothing_else():
    before, after = plan(), plan(lr=2)
    changed = {a.id for a, b in zip(before.steps, after.steps, strict=True) if a.key != b.key}
    assert changed == {"pretrain/local/0", "pretrain/local/1", "pretrain/delta/0", "pretrain/delta/1", "report"}
    assert all(a.key != b.key for a, b in zip(before.steps, plan(corpus=2).steps, strict=True))
    assert before.study_key == plan().study_key != after.study_key


def test_a_step_cannot_be_planned_before_its_input_or_twice():
    graph = PlanBuilder()
    with pytest.raises(KeyError):
        graph.add(stage("tokenize"), Amount(), {"documents": "ingest"})
    graph.add(stage("ingest"), Amount(), {})
    with pytest.raises(ValueError, match="twice"):
        graph.add(stage("ingest"), Amount(), {})


def test_a_stage_is_given_the_inputs_it_declares():
    picky = stage("tokenize")
    type(picky).inputs = ("documents",)
    with pytest.raises(ValueError, match=r"given \[\], the stage declares \['documents'\]"):
        PlanBuilder().add(picky, Amount(), {})


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(only=("pretrain",)), 4),
        (Selection(only=("pretrain/local",)), 2),
        (Selection(since=("pretrain/local/0",)), 2),
        (Selection(until=("pretrain/local/0",)), 2),
        (Selection(arms=("local",)), 3),
        (Selection(arms=("local",), seeds=(1,)), 2),
        (Selection(), 6),
    ],
)
def test_selection(selection, expected):
    assert len(selection.targets(plan())) == expected


def test_unknown_steps_are_answered_with_near_ones():
    with pytest.raises(UnknownName, match="did you mean 'pretrain'"):
        Selection(only=("pretrian",)).targets(plan())


def test_what_is_made_is_reused_and_what_changed_says_why(tmp_path: Path):
    store = Store(tmp_path)
    assert {d.reason for d in decide(plan(), store).values()} == {"never made"}
    make(store, plan())
    assert set(actions(decide(plan(), store)).values()) == {"reuse"}
    decisions = decide(plan(lr=2), store)
    assert actions(decisions)["ingest"] == "reuse"
    assert decisions["pretrain/local/0"].reason == "amount: 1 -> 2"
    assert "input pretrain/delta/0" in decisions["report"].reason and "and 1 more" in decisions["report"].reason
    assert decide(plan(version=2), store)["pretrain/local/0"].reason == "code_version: 1 -> 2"


def test_a_step_that_a_run_never_came_to_was_never_made(tmp_path: Path):
    store = Store(tmp_path)
    make(store, plan(), "ingest")  # the record of the run names every step, its leases only what it began
    store.record_study(plan(lr=2).record())
    step = plan()["pretrain/local/0"]
    assert decide(plan(), store)[step.id].reason == "never made"
    LeaseRequest(store.fs, store.lease_folder("pretrain", step.key), this_process()).take()
    assert decide(plan(), store)[step.id].reason == "started earlier, not finished"


def test_differences_are_to_the_last_artifact_not_to_the_last_plan(tmp_path: Path):
    store = Store(tmp_path)
    make(store, plan())
    store.record_study(plan(lr=2).record())  # a run that was stopped before it made anything
    assert decide(plan(lr=3), store)["pretrain/local/0"].reason == "amount: 1 -> 3"
    assert decide(plan(lr=2), store)["pretrain/local/0"].reason == "amount: 1 -> 2"


def test_a_field_that_is_new_is_a_difference_even_if_it_is_none():
    before = {"code_version": 1, "config": {}, "inputs": {}}
    assert differences(before, {**before, "config": {"a": None}}) == ["a: not there -> None"]


def test_force_makes_a_step_and_what_needs_it_again(tmp_path: Path):
    store = Store(tmp_path)
    make(store, plan())
    decisions = decide(plan(), store, Selection(force=("pretrain/local/0",)))
    assert [s for s, a in actions(decisions).items() if a == "run"] == ["pretrain/local/0", "report"]
    assert decisions["report"].reason == "pretrain/local/0 is made again"


def test_a_selected_step_whose_input_is_missing_is_blocked_with_the_reason(tmp_path: Path):
    store = Store(tmp_path)
    assert decide(plan(), store, Selection(only=("report",)))["report"].action == "blocked"
    make(store, plan(), "ingest")
    decisions = decide(plan(), store, Selection(only=("pretrain/local",)))
    assert actions(decisions)["pretrain/local/0"] == "run"
    assert actions(decisions)["pretrain/delta/0"] == "skip"


def test_changed_source_without_a_new_code_version_is_warned_of(tmp_path: Path, monkeypatch):
    store = Store(tmp_path)
    make(store, plan())
    assert not any(d.warning for d in decide(plan(), store).values())
    monkeypatch.setattr("pipeline.engine.plan.source_digest", lambda module: "other")
    assert "code_version (1) did not" in (decide(plan(), store)["ingest"].warning or "")


def test_differences_name_nested_fields():
    before = {"code_version": 1, "config": {"optim": {"lr": 0.1}, "rivals": [1, 2]}, "inputs": {"a": "1" * 64}}
    now = {"code_version": 1, "config": {"optim": {"lr": 0.2}, "rivals": [1, 4]}, "inputs": {"a": "2" * 64}}
    assert differences(before, now) == [
        "optim.lr: 0.1 -> 0.2",
        "rivals.1: 2 -> 4",
        f"input a: {'1' * 12} -> {'2' * 12}",
    ]


def test_source_digest_follows_what_the_stage_imports_and_nothing_else(tmp_path: Path):
    package = tmp_path / "toystage"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "stage.py").write_text(
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from toystage import typed\n\n"
        "def run():\n    from toystage.work import (\n        one,\n    )\n"
    )
    for name in ("work", "other", "typed"):
        (package / f"{name}.py").write_text("one = 1\n")
    said = "from pipeline.engine.sources import source_digest; print(source_digest('toystage.stage'))"
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def digest() -> str:  # each time in a process of its own: a running one has read the files
        command = [sys.executable, "-c", said]
        return subprocess.run(command, env=os.environ | path, capture_output=True, text=True, check=True).stdout

    before = digest()
    (package / "other.py").write_text("one = 2\n")
    (package / "typed.py").write_text("one = 2\n")
    assert digest() == before
    (package / "work.py").write_text("one = 2\n")
    assert digest() != before


def test_a_stages_closure_reaches_the_kernel_it_calls_and_no_other_stage():
    found = sources.closure("stages.data.dedup.stage")
    assert {"stages.data.matching.normalize", "stages.data.parallel", "stages.stage"} <= set(found)
    assert not any(name.startswith(("stages.evidence", "stages.verdict", "model")) for name in found)


def test_every_arms_mixer_is_in_the_closure_of_what_trains_it():
    """They are imported by name: a changed mixer that nothing notices would be served from old artifacts."""
    for stage in ("pretrain", "finetune"):
        found = sources.closure(f"stages.training.{stage}.stage")
        assert {f"model{arm.mixer.partition(':')[0]}" for arm in KINDS.values()} <= set(found)


def test_a_changed_plug_in_is_warned_of_where_a_stage_may_use_it(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").write_text("from mine import arm\n")
    (tmp_path / "mine/arm.py").write_text("from model.arms import register\nfrom mine import mixer\n")
    (tmp_path / "mine/mixer.py").write_text("one = 1\n")
    said = (
        "from pipeline.engine.sources import plugin_digests as of\n"
        "print(of('stages.training.pretrain.stage', ['mine']), of('stages.data.dedup.stage', ['mine']))"
    )
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def digests() -> str:  # each time in a process of its own: a running one has read the files
        command = [sys.executable, "-c", said]
        return subprocess.run(command, env=os.environ | path, capture_output=True, text=True, check=True).stdout

    before = digests()
    assert before.startswith("{'mine': ") and before.endswith(" {}\n")  # dedup knows no arms
    (tmp_path / "mine/mixer.py").write_text("one = 2\n")
    assert digests() != before


def test_a_step_made_with_another_source_of_a_plug_in_says_so(tmp_path: Path, monkeypatch):
    store = Store(tmp_path)
    monkeypatch.setattr("pipeline.engine.plan.plugin_digests", lambda module, plugins: {"mine": "1"})
    make(store, plan())
    assert not any(d.warning for d in decide(plan(), store).values())
    monkeypatch.setattr("pipeline.engine.plan.plugin_digests", lambda module, plugins: {"mine": "2", "new": "1"})
    assert "plug-in 'mine' changed" in (decide(plan(), store)["ingest"].warning or "")
