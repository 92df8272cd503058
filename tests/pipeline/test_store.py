"""The store: one winner per key, damage found by name, equal digests everywhere, garbage that is really garbage."""

from __future__ import annotations

import json
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import storage
from pipeline.engine.control import Commit
from pipeline.engine.garbage import collect
from pipeline.engine.lease import LeaseRequest, this_process
from pipeline.engine.recorded import recorded
from pipeline.engine.store import Store
from pipeline.errors import IntegrityError, StudyError
from stages.data.saved import saved
from stages.stage import Summary
from stages.verdict.report.build import copy_pages
from tests.faults.toys import toy_plan

KEY, OTHER = "a" * 64, "b" * 64


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        return Store(request.getfixturevalue("s3_root"), tmp_path / "cache")
    root = tmp_path / "root" if request.param == "local" else f"memory://{tmp_path.name}"
    return Store(root, tmp_path / "cache")


def make(store: Store, key: str = KEY, text: str = "hello", token: int = 1, replace: bool = False) -> Commit:
    attempt = store.attempt("ingest", key, token)
    (attempt.directory / "docs").mkdir()
    (attempt.directory / "docs" / "a.txt").write_text(text)
    (attempt.directory / "b.bin").write_bytes(b"\0" * 1000)
    summary = Summary(f"said {text}", {"documents": 1.0})
    return store.commit("ingest", key, store.seal(attempt), summary, {"step": "ingest"}, replace=replace)


def stored_file(store: Store, commit: Commit, name: str) -> str:
    return f"{store.folder(commit.stage, commit.key)}/attempts/{commit.attempt}/{name}"


def test_a_commit_is_found_again_and_its_files_read(store: Store):
    assert store.lookup("ingest", KEY) is None
    made = make(store)
    found = store.lookup("ingest", KEY)
    assert found == made and found.headline == "said hello" and found.files == 2
    artifact = store.artifact(found)
    assert artifact.path("docs/a.txt").read_text() == "hello"
    assert sorted(p.name for p in artifact.path().rglob("*") if p.is_file()) == ["a.txt", "b.bin"]
    assert artifact.summary == {"documents": 1.0}
    assert store.lookup_many([("ingest", KEY), ("ingest", OTHER)]) == {KEY: made}


def _hello(item: str, folder: Path) -> None:
    (folder / "said.txt").write_text(item)


def _name(item: str) -> str:
    return item * 8


def test_what_a_task_left_in_storage_becomes_a_file_without_coming_here(store: Store):
    """The artifact is the one whose files were all written by the step itself."""
    part = saved("hello", _hello, _name, store.work_url("ingest", KEY))
    part = saved("hello", _hello, _name, store.work_url("ingest", KEY))
    assert part.resumed
    attempt = store.attempt("ingest", KEY, 1)
    part.place("said.txt", attempt.directory / "docs" / "a.txt")
    (attempt.directory / "b.bin").write_bytes(b"\0" * 1000)
    assert (attempt.directory / "docs" / "a.txt").exists() == store.local
    placed = store.commit("ingest", KEY, store.seal(attempt), Summary(""), {})
    assert placed.digest == make(store, OTHER).digest
    artifact = store.artifact(placed)
    assert artifact.path("docs/a.txt").read_text() == "hello" and not list(artifact.damages(deep=True))
    assert artifact.sizes("docs") == {"docs/a.txt": 5} and list(artifact.sizes()) == ["b.bin", "docs/a.txt"]


def test_the_second_to_finish_adopts_the_first_and_leaves_nothing(store: Store):
    slow = store.attempt("ingest", KEY, 1)
    (slow.directory / "x").write_text("zombie")
    winner = make(store, token=2)
    adopted = store.commit("ingest", KEY, store.seal(slow), Summary("zombie"), {})
    assert adopted == winner == store.lookup("ingest", KEY)
    assert collect(store, {KEY}) == []


def test_a_half_written_attempt_is_never_read(store: Store):
    attempt = store.attempt("ingest", KEY, 1)
    (attempt.directory / "half").write_text("...")
    assert store.lookup("ingest", KEY) is None and list(store.commits()) == []


def test_digests_do_not_depend_on_where_the_store_is(tmp_path: Path):
    roots = [tmp_path / "a", tmp_path / "elsewhere" / "b", f"memory://{tmp_path.name}-digest"]
    assert len({make(Store(root, tmp_path / "cache")).digest for root in roots}) == 1


def test_an_artifact_travels_to_another_process_by_pickle(store: Store):
    artifact = pickle.loads(pickle.dumps(store.artifact(make(store))))
    assert artifact.path("docs/a.txt").read_text() == "hello"


def test_a_name_the_artifact_never_had_is_named_with_what_there_is(store: Store):
    with pytest.raises(FileNotFoundError, match=r"ingest aaaaaaaaaaaa: no file 'nope' \(there are: b.bin, docs\)"):
        store.artifact(make(store)).path("nope")


def test_verify_names_every_damaged_file(store: Store):
    commit = make(store)
    assert store.verify(commit) == []
    storage.write_atomic(store.fs, stored_file(store, commit, "b.bin"), b"\1" * 1000)
    assert store.verify(commit, deep=False) == []
    assert store.verify(commit) == [f"{stored_file(store, commit, 'b.bin')}: sha256 differs from the manifest"]
    store.fs.rm_file(stored_file(store, commit, "docs/a.txt"))
    assert f"{stored_file(store, commit, 'docs/a.txt')}: missing" in store.verify(commit, deep=False)


def flip(store: Store, path: str) -> None:
    """Change one byte of a stored file; its size stays."""
    data = bytearray(store.fs.cat_file(path))
    data[-1] ^= 1
    storage.write_atomic(store.fs, path, bytes(data))


def test_a_flipped_byte_in_an_input_is_found_at_its_first_use(store: Store):
    commit = make(store)
    flip(store, stored_file(store, commit, "docs/a.txt"))
    with pytest.raises(IntegrityError, match=r"docs/a\.txt: sha256 differs from the manifest\. Fix: make it again"):
        store.artifact(commit).path("docs")
    assert store.artifact(commit).path("b.bin").stat().st_size == 1000


@pytest.mark.parametrize("change", [lambda path: path.write_text("HELLO"), lambda path: path.write_text("longer text")])
def test_a_damaged_copy_of_a_remote_file_is_named_by_verify_and_fetched_again(tmp_path: Path, change):
    store = Store(f"memory://{tmp_path.name}-copies", tmp_path / "cache")
    commit = make(store)
    copy = store.artifact(commit).path("docs/a.txt")
    change(copy)
    assert store.verify(commit) == [
        f"{copy}: this machine's copy differs from the manifest. Fix: delete it, it is fetched again"
    ]
    assert store.artifact(commit).path("docs/a.txt").read_text() == "hello"
    assert store.verify(commit) == []


def commit_file(store: Store) -> str:
    return f"{store.folder('ingest', KEY)}/COMMIT.json"


def edit_commit(store: Store, **fields: object) -> None:
    value = json.loads(store.fs.cat_file(commit_file(store)))
    value = {name: item for name, item in {**value, **fields}.items() if item is not ...}
    storage.write_atomic(store.fs, commit_file(store), json.dumps(value).encode())


def test_an_edited_number_in_a_commit_is_found(store: Store):
    made = make(store)
    edit_commit(store, metrics={"documents": 2.0})
    with pytest.raises(IntegrityError, match=r"changed after it was committed.*Fix: delete this file"):
        store.lookup("ingest", KEY)
    edit_commit(store, metrics={"documents": 1.0})  # written with another layout, it says the same
    assert store.lookup("ingest", KEY) == made


def test_a_commit_made_before_commits_had_a_digest_is_accepted(store: Store):
    made = make(store)
    edit_commit(store, sha256=...)
    found = store.lookup("ingest", KEY)
    assert found is not None and found.sha256 == "" and found.metrics == made.metrics and store.verify(found) == []


@pytest.mark.parametrize(
    "fields",
    [{"bytes": "many"}, {"figures": "a.png"}, {"metrics": [1]}, {"metrics": {"a": "b"}}, {"digest": None}]
    + [{"meta": meta} for meta in (3, {"inputs": []}, {"seconds": "long"}, {"config": 1})]
    + [{"files": ...}],
    ids=str,
)
def test_a_commit_with_a_field_of_another_type_is_named_with_the_field(store: Store, fields: dict[str, object]):
    make(store)
    edit_commit(store, sha256=..., **fields)
    with pytest.raises(IntegrityError, match=r"COMMIT\.json: not a readable commit \(.*: .*\)\. Fix: delete this file"):
        store.lookup("ingest", KEY)


def test_reading_a_damaged_input_fails_with_its_name_and_the_fix(store: Store):
    commit = make(store)
    storage.write_atomic(store.fs, stored_file(store, commit, "docs/a.txt"), b"hello, and more")
    with pytest.raises(IntegrityError, match=r"docs/a\.txt: .*Fix: make it again with --force") as caught:
        store.artifact(commit).path("docs")
    assert caught.value.exit_code == 4


def test_a_remote_file_that_changed_but_kept_its_size_is_not_taken(tmp_path: Path):
    store = Store(f"memory://{tmp_path.name}-same-size", tmp_path / "cache")
    commit = make(store)
    storage.write_atomic(store.fs, stored_file(store, commit, "docs/a.txt"), b"HELLO")
    with pytest.raises(IntegrityError, match="sha256 differs"):
        store.artifact(commit).path("docs/a.txt")


DEEP = b"[" * 100_000


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": 99}', DEEP, b'{"schema": ' + DEEP], ids=range(6))
def test_a_damaged_commit_is_an_integrity_error_with_its_path(store: Store, content: bytes):
    make(store)
    path = f"{store.folder('ingest', KEY)}/COMMIT.json"
    storage.write_atomic(store.fs, path, content)
    with pytest.raises(IntegrityError, match="Fix: delete this file") as caught:
        store.lookup("ingest", KEY)
    assert path in str(caught.value)


def test_a_damaged_manifest_is_noticed(store: Store):
    commit = make(store)
    storage.write_atomic(store.fs, stored_file(store, commit, "")[:-1] + ".manifest.json", b"{}")
    assert "the manifest is not the one that was committed" in store.verify(commit)[0]


def test_a_forced_commit_replaces_and_spares_the_old_files_until_gc(store: Store):
    old = make(store, text="old")
    new = make(store, text="new", token=2, replace=True)
    store.tidy(new, replaced=old)
    assert store.lookup("ingest", KEY) == new
    assert store.artifact(old).path("docs/a.txt").read_text() == "old"
    assert [garbage.reason for garbage in collect(store, {KEY}, delete=True)] == [
        "an attempt that was not committed"
    ] * 1
    assert store.verify(new) == [] and collect(store, {KEY}) == []


def test_gc_keeps_what_named_studies_need_and_is_dry_by_default(store: Store):
    plan = toy_plan()
    kept = [step for step in plan.steps if step.stage.name != "total"]
    for step in kept:
        make_for = store.attempt(step.stage.name, step.key, 1)
        (make_for.directory / "x").write_text("x")
        store.commit(step.stage.name, step.key, store.seal(make_for), Summary("x"), step.record())
    store.record_study(plan.record())
    checkpoint = store.work_url("total", plan["total"].key) + "/checkpoint"
    storage.write_atomic(store.fs, checkpoint, b"resume me")
    make(store)  # needed by nobody
    assert store.kept() == {step.key for step in plan.steps} and store.studies() == ["toy"]
    found = collect(store, store.kept())
    assert [garbage.path for garbage in found] == [store.folder("ingest", KEY)] and found[0].bytes > 1000
    assert store.lookup("ingest", KEY) is not None
    collect(store, store.kept(), delete=True)
    assert store.lookup("ingest", KEY) is None
    assert store.fs.exists(checkpoint)
    assert {commit.key for commit in store.commits()} == {step.key for step in kept}


class Skewed:
    """The clock of a machine that is four hours behind."""

    monotonic, sleep = time.monotonic, time.sleep

    @staticmethod
    def time() -> float:
        return time.time() - 4 * 3600


def test_gc_leaves_a_key_with_a_live_lease_alone(store: Store, monkeypatch: pytest.MonkeyPatch):
    attempt = store.attempt("ingest", KEY, 1)
    (attempt.directory / "x").write_text("being written")
    storage.write_atomic(store.fs, store.work_url("ingest", KEY) + "/checkpoint", b"")
    there = replace(this_process(), machine="another machine")
    lease = LeaseRequest(store.fs, store.lease_folder("ingest", KEY), there, ttl=3).take()
    monkeypatch.setattr("pipeline.engine.lease.time", Skewed)
    lease.start(lambda reason: None)
    assert collect(store, {KEY}, delete=True) == collect(store, set(), delete=True) == []
    lease.release()
    assert [garbage.path for garbage in collect(store, set())] == [store.folder("ingest", KEY)]


def test_gc_takes_the_lease_of_a_silent_driver_which_then_cannot_commit(store: Store):
    attempt = store.attempt("ingest", KEY, 1)
    (attempt.directory / "x").write_text("finished by a driver that is frozen now")
    sealed = store.seal(attempt)
    there = replace(this_process(), machine="another machine")
    frozen = LeaseRequest(store.fs, store.lease_folder("ingest", KEY), there).take()
    found = collect(store, {KEY}, delete=True, ttl=0.2)
    assert [garbage.reason for garbage in found] == ["an attempt that was not committed"]
    assert sealed.id in found[0].path and not frozen.held()


def test_gc_finds_what_cut_off_writes_left(tmp_path: Path):
    store = Store(tmp_path)
    make(store)
    folder = Path(store.folder("ingest", KEY))
    (folder / "lease").mkdir()
    left = [folder / "lease" / ".1.json.00ff.tmp", folder / ".COMMIT.json.00ff.tmp", tmp_path / ".writable-00ff"]
    for path in [*left, young := folder / ".mlflow.json.00ff.tmp"]:
        path.write_text("half")
        os.utime(path, (0, 0) if path != young else None)
    assert {garbage.path for garbage in collect(store, {KEY})} == set(map(str, left))
    collect(store, {KEY}, delete=True)
    assert young.is_file() and not any(path.exists() for path in left) and collect(store, {KEY}) == []


@pytest.mark.parametrize("ahead", [4 * 3600, -4 * 3600])
def test_gc_with_a_clock_that_is_hours_off_knows_old_writes_from_those_under_way(tmp_path: Path, monkeypatch, ahead):
    store = Store(tmp_path)
    make(store)
    folder, true = Path(store.folder("ingest", KEY)), time.time
    old, young = folder / ".COMMIT.json.00ff.tmp", folder / ".mlflow.json.00ff.tmp"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (true() - 7200,) * 2)
    monkeypatch.setattr(time, "time", lambda: true() + ahead)
    collect(store, {KEY}, delete=True)
    assert young.is_file() and not old.exists()


def test_the_record_of_a_study_holds_its_last_plan(store: Store):
    assert store.study_record("toy") == {}
    store.record_study(toy_plan().record())
    store.record_study(toy_plan(n=5).record())
    steps = store.study_record("toy")["steps"]
    assert steps["make"]["config"] == {"n": 5} and steps["make"]["key"] == toy_plan(n=5)["make"].key
    with pytest.raises(StudyError, match="not usable as a name"):
        store.study_record("../../etc/passwd")


@pytest.mark.parametrize("content", [DEEP, b"[]", b"{}", b'{"study": "toy", "study_key": "", "steps": {"a": 1}}'])
def test_a_damaged_record_of_a_study_is_named_with_the_fix(store: Store, content: bytes):
    storage.write_atomic(store.fs, f"{store.base}/studies/toy.json", content)
    with pytest.raises(IntegrityError, match=r"studies/toy\.json: not readable .* Fix: delete it"):
        store.study_record("toy")
    assert store.mlflow("ingest", KEY) is None
    storage.write_atomic(store.fs, f"{store.folder('ingest', KEY)}/mlflow.json", content)
    assert store.mlflow("ingest", KEY) is None


def test_a_record_whose_steps_need_what_is_none_of_them_is_named_with_the_fix(store: Store):
    record = toy_plan().record()
    store.record_study(record)
    for steps in ({"make": record["steps"]["make"] | {"inputs": {"x": "b" * 64}}}, _in_circles(record["steps"])):
        store.record_study(record | {"steps": record["steps"] | steps})
        with pytest.raises(IntegrityError, match=r"studies/toy\.json: not readable .* Fix: delete it"):
            recorded(store, "toy")


def _in_circles(steps: dict[str, Any]) -> dict[str, Any]:
    return {"make": steps["make"] | {"inputs": {"x": steps["make"]["key"]}}}


def test_an_attempt_without_files_cannot_be_sealed(store: Store):
    with pytest.raises(ValueError, match="wrote no file"):
        store.seal(store.attempt("ingest", KEY))


def test_commit_files_are_readable_json_with_what_a_person_looks_for(tmp_path: Path):
    store = Store(tmp_path)
    make(store)
    value = json.loads((tmp_path / "ingest" / KEY / "COMMIT.json").read_text())
    assert {"attempt", "created", "digest", "headline", "key", "meta", "metrics"} <= set(value)


def test_the_report_takes_the_pages_of_audits_along_from_every_store(store: Store, tmp_path: Path):
    """Also of one that found nothing, whose folder of evidence is empty, and of pages that storage elsewhere holds."""
    inputs = {}
    for number, (step, pages) in enumerate(
        (("decontaminate", ["001"]), ("taskaudit", []), ("tuningaudit/sft", ["001"]))
    ):
        key, stage = f"{number}" * 64, step.split("/")[0]
        attempt = store.attempt(stage, key, 1)
        (attempt.directory / "evidence").mkdir()
        for name in ("audit", *(f"evidence/{page}" for page in pages)):
            (attempt.directory / f"{name}.html").write_text(name)
        made = store.commit(stage, key, store.seal(attempt), Summary("said"), {"step": step})
        inputs[step] = store.artifact(made)
    found = copy_pages(inputs, tmp_path)
    assert [page["path"] for page in found] == ["audit/audit.html", "audit-tasks/audit.html", "audit-sft/audit.html"]
    copied = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("audit*/**/*.html")}
    assert copied == {*(page["path"] for page in found), "audit/evidence/001.html", "audit-sft/evidence/001.html"}
