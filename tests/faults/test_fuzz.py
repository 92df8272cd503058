"""Whatever stands in a file: it is read, or refused by a clear error, or counted as a problem; nothing else happens.

Each target takes the bytes of a good file after some mutations (bits flipped, pieces cut out, doubled, moved, values of
JSON replaced). The short form runs a few of each; the long one, with ``make test-all``, more than ten thousand.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.engine import lease
from pipeline.engine.recorded import recorded
from pipeline.engine.store import Store
from pipeline.errors import IntegrityError, UserError
from pipeline.study.graph import expand
from pipeline.study.load import load
from stages.data.corpus.config import JsonLines, Parquet, Pg19
from stages.data.corpus.files import ExternalFile
from stages.data.corpus.readers import Raw, pg19_metadata, read
from stages.data.tokens.config import TokenizerConfig
from stages.data.tokens.pin import vocabulary_size
from stages.data.tokens.tokenizer import byte_level
from stages.stage import StageError
from tests.pipeline.recorded_study import record, write_model
from tests.tiny import write_study

SHORT, LONG = 25, 1000

Target = Callable[[bytes], str]
"""Reads the mutated file: "read", "refused" or "counted". Anything it raises is a fault of the reader."""


# Mutations

_plain = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
_value = st.recursive(
    _plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
_NASTY = [b"\0", b"[" * 3000, b"&a *a", b"\xff", b"1e999"]
_share = st.floats(0, 1, exclude_max=True)
_byte_change = st.one_of(
    st.tuples(st.just("flip"), _share, st.integers(0, 7)),
    st.tuples(st.just("cut"), _share, _share),
    st.tuples(st.just("double"), _share, _share),
    st.tuples(st.just("insert"), _share, st.binary(max_size=6) | st.sampled_from(_NASTY)),
    st.tuples(st.just("end"), _share, st.just(0)),
)
_json_change = st.tuples(st.just("json"), st.lists(_share, min_size=1, max_size=6), st.just("gone") | _value)
_changes = st.lists(_byte_change, min_size=1, max_size=3) | st.lists(_json_change, min_size=1, max_size=2)


def mutated(data: bytes, changes: list[Any]) -> bytes:
    """``data`` after the changes; one that does not fit (a value of a file that is no JSON) leaves it as it is."""
    for kind, where, what in changes:
        if kind == "json":
            data = _value_replaced(data, where, what)
            continue
        at = int(where * len(data))
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (1 << what)]) + data[at + 1 :]
        elif kind in ("cut", "double"):
            low, high = sorted((at, int(what * len(data))))
            data = data[:low] + data[high:] if kind == "cut" else data[:high] + data[low:]
        elif kind == "insert":
            data = data[:at] + what + data[at:]
        elif kind == "end":
            data = data[:at]
    return data


def _value_replaced(data: bytes, path: list[float], value: Any) -> bytes:
    try:
        root = json.loads(data)
    except (ValueError, RecursionError):
        return data
    holder: Any = None
    key: Any = None
    here = root
    for share in path:
        names = list(here) if isinstance(here, dict) else list(range(len(here))) if isinstance(here, list) else []
        if not names:
            break
        holder, key = here, names[int(share * len(names))]
        here = holder[key]
    if holder is None:
        return json.dumps(value if value != "gone" else None).encode()
    if value == "gone":
        del holder[key]
    else:
        holder[key] = value
    return json.dumps(root).encode()


# Targets: each is made in a folder and gives a good file's bytes and its reader


def study_file(folder: Path) -> tuple[bytes, Target]:
    path = write_study(folder)
    good = path.read_bytes()

    def target(data: bytes) -> str:
        path.write_bytes(data)
        try:
            expand(load(path, ()), None)
        except UserError as error:
            assert len(str(error)) < 20_000
            return "refused"
        return "read"

    return good, target


def study_as_json(folder: Path) -> tuple[bytes, Target]:
    from pipeline.study.yamlfile import parse

    good, target = study_file(folder)
    return json.dumps(parse(good.decode(), "tiny.yaml")).encode(), target


def commit(folder: Path) -> tuple[bytes, Target]:
    store = record(folder)
    first = next(iter(store.commits()))
    path = Path(store.folder(first.stage, first.key)) / "COMMIT.json"
    good = path.read_bytes()

    def target(data: bytes) -> str:
        path.write_bytes(data)
        try:
            found = store.lookup(first.stage, first.key)
        except IntegrityError as error:
            assert str(path) in str(error) and "Fix:" in str(error)
            return "refused"
        assert found is not None
        if found.sha256:
            assert asdict(found) == asdict(first), "another commit was taken for the one that was made"
        return "read"

    return good, target


def manifest(folder: Path) -> tuple[bytes, Target]:
    store = record(folder)
    first = next(iter(store.commits()))
    path = Path(store.folder(first.stage, first.key)) / "attempts" / f"{first.attempt}.manifest.json"
    good = path.read_bytes()

    def target(data: bytes) -> str:
        path.write_bytes(data)
        try:
            store.artifact(first).path()
        except IntegrityError as error:
            assert data != good and "Fix:" in str(error)
            return "refused"
        assert data == good
        return "read"

    return good, target


def study_record(folder: Path) -> tuple[bytes, Target]:
    store = record(folder)
    (name,) = store.studies()
    path = Path(store.base) / "studies" / f"{name}.json"

    def target(data: bytes) -> str:
        path.write_bytes(data)
        try:
            recorded(store, name)
        except UserError:
            return "refused"
        return "read"

    return path.read_bytes(), target


def lease_file(folder: Path) -> tuple[bytes, Target]:
    store = Store(folder)
    place = store.lease_folder("make", "a" * 64)
    held = lease.LeaseRequest(store.fs, place, lease.this_process()).take()
    assert isinstance(held, lease.Lease)
    path = Path(place) / "1.json"

    def target(data: bytes) -> str:
        path.write_bytes(data)
        try:
            lease.current(store.fs, place)
        except IntegrityError as error:
            assert str(path) in str(error)
            return "refused"
        return "read"

    return path.read_bytes(), target


def _counted(documents: list[Raw]) -> str:
    return "counted" if any(document.problem for document in documents) else "read"


def _file(path: Path) -> ExternalFile:
    return ExternalFile(path.name, str(path), path.stat().st_size, "0" * 64)


def json_lines(folder: Path) -> tuple[bytes, Target]:
    path = folder / "lines.jsonl"
    rows = [{"text": f"Line {i} of some text, with a λ.", "id": f"n{i}", "year": 1800 + i} for i in range(8)]
    source = JsonLines(kind="jsonl", name="web", url=str(path), columns={"text": "text", "id": "id"}, split="train")

    def target(data: bytes) -> str:
        path.write_bytes(data)
        try:
            return _counted(list(read(source, _file(path))))
        except StageError:
            return "refused"

    return "\n".join(json.dumps(row) for row in rows).encode(), target


def parquet(folder: Path) -> tuple[bytes, Target]:
    path = folder / "table.parquet"
    rows = [{"text": f"Row {i} of some text.", "id": i, "meta": {"title": f"T{i}"}} for i in range(30)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)
    good = path.read_bytes()
    source = Parquet(kind="parquet", name="web", url=str(path), columns={"text": "text", "id": "id"}, split="train")

    def target(data: bytes) -> str:
        path.write_bytes(data)
        try:
            return _counted(list(read(source, _file(path))))
        except StageError:
            return "refused"

    return good, target


def text_file(folder: Path) -> tuple[bytes, Target]:
    path = folder / "train" / "12.txt"
    path.parent.mkdir()
    source = Pg19(kind="pg19", name="books", url=str(folder))

    def target(data: bytes) -> str:
        path.write_bytes(data)
        return _counted(list(read(source, ExternalFile("train/12.txt", str(path), len(data), "0" * 64))))

    return "A chapter.\r\nIt was a café; “so they say”.\n".encode() * 4, target


def metadata(folder: Path) -> tuple[bytes, Target]:
    path = folder / "metadata.csv"

    def target(data: bytes) -> str:
        path.write_bytes(data)
        try:
            pg19_metadata(_file(path))
        except ValueError:
            return "refused"
        return "read"

    return b'id,title,author,year\n11,"Alice, again",Carroll,1865\n30,Waves,,1931\n', target


def tokenizer_json(folder: Path) -> tuple[bytes, Target]:
    path = folder / "tokenizer.json"
    byte_level().save(str(path))
    config = TokenizerConfig(kind="file", path=str(path), eos_token="<eos>", pad_token="<pad>")

    def target(data: bytes) -> str:
        path.write_bytes(data)
        try:
            vocabulary_size(config)
        except StageError:
            return "refused"
        return "read"

    return path.read_bytes(), target


def resume_point(folder: Path) -> tuple[bytes, Target]:
    import torch

    from stages.training.pretrain.checkpoint import STATE, Checkpoints, RunState

    warned: list[str] = []
    points = Checkpoints(str(folder), 0, 1, warned.append)
    model = torch.nn.Linear(2, 2)
    state = RunState(rows=[{"step": 1, "loss": 2.5}], samples=["ab"])
    optimizers = [torch.optim.AdamW(model.parameters())]
    for state.step in (1, 2):
        points.save(state, model, optimizers)
    path = folder / "checkpoints" / "step-00000002" / STATE
    good = path.read_bytes()

    def target(data: bytes) -> str:
        path.write_bytes(data)
        warned.clear()
        found = points.load(model, optimizers, any_world_size=True)
        assert found.step in (1, 2)
        if found.step == 2:
            said = json.loads(data)  # a field may be missing that has the value it has by default
            assert RunState(**said) == RunState(**json.loads(good)) or not said.get("digest")
            return "read"
        assert warned and "step-00000002 is damaged" in warned[0]
        return "refused"

    return good, target


def model_config(folder: Path) -> tuple[bytes, Target]:
    from model.checkpoint import load as load_model

    write_model(folder)
    path = folder / "model" / "config.json"

    def target(data: bytes) -> str:
        path.write_bytes(data)
        try:
            load_model(path.parent)
        except ValueError as error:
            assert str(error)
            return "refused"
        return "read"

    return path.read_bytes(), target


def weights(folder: Path) -> tuple[bytes, Target]:
    from model.checkpoint import load as load_model

    write_model(folder)
    path = folder / "model" / "model.safetensors"

    def target(data: bytes) -> str:
        path.unlink()  # an earlier one may still be mapped
        path.write_bytes(data)
        try:
            load_model(path.parent)
        except ValueError:
            return "refused"
        return "read"

    return path.read_bytes(), target


TARGETS = (
    study_file,
    study_as_json,
    commit,
    manifest,
    study_record,
    lease_file,
    json_lines,
    parquet,
    text_file,
    metadata,
    tokenizer_json,
    resume_point,
    model_config,
    weights,
)


def fuzz(make: Callable[[Path], tuple[bytes, Target]], folder: Path, examples: int) -> Counter[str]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    good, target = make(folder)
    assert target(good) == "read"
    ended: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_changes)
    def one(changes: list[Any]) -> None:
        ended[target(mutated(good, changes))] += 1

    one()
    return ended


@pytest.mark.parametrize("make", TARGETS, ids=lambda make: make.__name__)
def test_a_mutated_file_is_read_or_refused(make: Callable[[Path], tuple[bytes, Target]], tmp_path: Path) -> None:
    assert fuzz(make, tmp_path / "files", SHORT).total() >= SHORT


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("make", TARGETS, ids=lambda make: make.__name__)
def test_a_thousand_mutated_files_of_each_kind(make: Callable[[Path], tuple[bytes, Target]], tmp_path: Path) -> None:
    ended = fuzz(make, tmp_path / "files", LONG)
    print(f"{make.__name__}: {dict(ended)}")
    assert ended.total() >= LONG and len(TARGETS) * LONG > 10_000
