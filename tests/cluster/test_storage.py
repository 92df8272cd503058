"""Storage helpers: exclusive creation has one winner, files appear whole, refusals name the URL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cluster import storage


@pytest.fixture(params=["local", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3_root"))
    return str(tmp_path / "root") if request.param == "local" else f"memory://{tmp_path.name}"


def test_of_many_concurrent_creators_exactly_one_wins(url: str):
    fs, path = storage.filesystem(url)
    offers = [f"owner {i}".encode() for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda offer: storage.create_exclusive(fs, f"{path}/a/COMMIT.json", offer), offers))
    assert sum(won) == 1
    assert storage.read_bytes(fs, f"{path}/a/COMMIT.json") == offers[won.index(True)]


class Careless(MemoryFileSystem):
    """A store that takes a conditional put and overwrites all the same, as some S3 look-alikes do."""

    rival = b"rival"
    cachable = False

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value)
        super().pipe_file(path, self.rival)  # another writer's put lands right after


def test_a_store_that_ignores_the_condition_is_caught_by_reading_back():
    assert not storage.create_exclusive(Careless(), "/careless/COMMIT.json", b"mine")


def test_writing_leaves_only_the_file_and_reading_a_missing_one_gives_none(url: str):
    fs, path = storage.filesystem(url)
    for text in (b"one", b"two"):
        storage.write_atomic(fs, f"{path}/b/x.json", text)
    assert storage.read_bytes(fs, f"{path}/b/x.json") == b"two"
    assert [str(p).rsplit("/", 1)[-1] for p in fs.ls(f"{path}/b", detail=False)] == ["x.json"]
    assert storage.read_json(fs, f"{path}/b/y.json") is None


def test_a_small_file_is_one_request_on_s3(s3_root: str, monkeypatch: pytest.MonkeyPatch):
    fs, path = storage.filesystem(s3_root)
    storage.write_atomic(fs, f"{path}/COMMIT.json", b"{}")
    asked, call = [], fs._call_s3

    async def counted(method, *arguments, **options):
        asked.append(method)
        return await call(method, *arguments, **options)

    monkeypatch.setattr(fs, "_call_s3", counted)
    assert storage.read_bytes(fs, f"{path}/COMMIT.json") == b"{}" and storage.read_bytes(fs, f"{path}/none") is None
    assert asked == ["get_object", "get_object"]


def test_a_tree_comes_back_as_it_went(url: str, tmp_path: Path):
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "a.bin").write_bytes(bytes(range(256)))
    (source / "empty").write_bytes(b"")
    fs, path = storage.filesystem(url)
    storage.put_tree(fs, f"{path}/tree", source)
    storage.get_tree(fs, f"{path}/tree", tmp_path / "back")
    files = {name: file.read_bytes() for name, file in storage.files_below(tmp_path / "back")}
    assert files == {"deep/er/a.bin": bytes(range(256)), "empty": b""}


def test_unusable_storage_is_refused_with_url_reason_and_fix(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    for bad in (tmp_path / "file" / "root", "nosuchprotocol://bucket/x"):
        with pytest.raises(storage.StorageError) as caught:
            storage.check_writable(bad)
        assert str(bad) in str(caught.value) and "allowed" in str(caught.value)


def test_a_writable_root_is_left_without_a_trace(url: str):
    storage.check_writable(url)
    fs, path = storage.filesystem(url)
    assert storage.sizes_below(fs, path) == {}
