"""``watch``: what another process computes, seen through the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.storage import join
from pipeline.engine.lease import Lease, LeaseRequest, this_process
from pipeline.engine.store import Store
from stages.training.pretrain.channel import PROGRESS, Writer
from tests.pipeline.called import Command, caller
from tests.pipeline.recorded_study import NEVER_MADE, key, record


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return record(tmp_path / "store")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return caller(tmp_path, monkeypatch, capsys.readouterr)


def hold(store: Store) -> Lease:
    """Take the lease of the one step that is not made."""
    taken = LeaseRequest(store.fs, store.lease_folder("summarize", key(NEVER_MADE)), this_process()).take()
    assert isinstance(taken, Lease)
    return taken


def test_a_step_that_a_driver_holds_is_shown_with_what_its_training_tells(store: Store, cli: Command) -> None:
    said = cli("watch", "quickstart", "--root", "store", "--once")
    assert said.code == 0 and "5 of 6 steps made, 0 being computed" in said.out
    lease = hold(store)
    channel = Writer(join(store.work_url("summarize", key(NEVER_MADE)), PROGRESS))
    for step in range(1, 4):  # monitors are read now and then
        channel.row(
            {"step": step, "loss": 3.0 - step / 4, "tokens_per_s": 12345.6, "mfu": 0.412, "gate_mean": None}
            | ({"gate_mean": 0.31, "erase_lambda_max": 1.25, "z_min": 0.5} if step == 2 else {}),
            3,
        )
    channel.warn("checkpoint step-00000002 is damaged")
    (found,) = cli("watch", "quickstart", "--root", "store", "--json").json["running"]
    assert (found["step"], found["at"], found["of"]) == (NEVER_MADE, 3, 3) and "process" in found["by"]
    assert (found["loss"], found["gate_mean"], found["erase_lambda_max"], found["z_min"]) == (2.25, 0.31, 1.25, 0.5)
    said = cli("watch", "quickstart", "--root", "store", "--once")
    assert "λ_max" in said.out and "41.2%" in said.out and "12,346" in said.out and "1 being computed" in said.out
    assert f"warning: {NEVER_MADE}: checkpoint step-00000002 is damaged" in said.out
    lease.release()
    assert cli("watch", "quickstart", "--root", "store", "--json").json["running"] == []


def test_a_progress_file_that_is_half_written_hides_nothing_else(store: Store, cli: Command) -> None:
    hold(store)
    place = Path(join(store.work_url("summarize", key(NEVER_MADE)), PROGRESS))
    place.parent.mkdir(parents=True)
    for text in ("{", "[]", '{"rows": 3}'):
        place.write_text(text)
        (found,) = cli("watch", "quickstart", "--root", "store", "--json").json["running"]
        assert found["step"] == NEVER_MADE and "at" not in found


def test_it_ends_when_all_is_made(tmp_path: Path, store: Store, cli: Command) -> None:
    steps = store.study_record("quickstart")
    steps["steps"].pop(NEVER_MADE)
    store.record_study({name: steps[name] for name in ("study", "study_key", "steps")})
    said = cli("watch", "quickstart", "--root", "store")
    assert said.code == 0 and "5 of 5 steps made" in said.out
