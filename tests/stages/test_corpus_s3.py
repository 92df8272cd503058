"""Object storage: sources are read from a real S3 server, and parts of the work are kept there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.data.corpus.config import IngestConfig
from stages.data.corpus.pin import changes, listing, pin
from stages.data.corpus.stage import STAGE
from stages.data.tokens.config import TokenizerConfig
from stages.data.tokens.pin import pin_tokenizer, vocabulary_size
from stages.stage import StageError
from tests.support import LocalContext, documents_of, settled


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system of an S3 server of its own, with the empty bucket ``corpus``."""
    server_module = pytest.importorskip("moto.server", reason="moto[s3] is not installed")
    import s3fs

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir("corpus")
    yield files
    files.rm("corpus", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def ingest(tmp_path: Path, name: str, *sources: dict[str, Any], work: str) -> tuple[Path, LocalContext]:
    config = pin(IngestConfig.model_validate({"sources": sources}), tmp_path)
    output, context = tmp_path / name, LocalContext(work)
    output.mkdir()
    STAGE.run(config, {}, output, context)
    return settled(output), context


def test_sources_of_every_kind_are_read_from_s3(bucket: Any, tmp_path: Path) -> None:
    for split, ids in {"train": (11, 12), "validation": (20,), "test": (30,)}.items():
        for number in ids:
            bucket.pipe(f"corpus/books/{split}/{number}.txt", f"Book {number}.\n".encode())
    with bucket.open("corpus/rows/a.parquet", "wb") as file:
        pq.write_table(pa.table({"text": ["One.", "Two."]}), file)
    bucket.pipe("corpus/lines/b.jsonl", b'{"text": "Three."}\n{"text": "Four."}\n')
    bucket.pipe("corpus/plain/deep/c.txt", b"Five.")
    sources = [
        {"kind": "pg19", "name": "books", "url": "s3://corpus/books"},
        {"kind": "parquet", "name": "rows", "url": "s3://corpus/rows/*.parquet", "split": "train"},
        {"kind": "jsonl", "name": "lines", "url": "s3://corpus/lines/b.jsonl", "split": "train"},
        {"kind": "text", "name": "plain", "url": "s3://corpus/plain/**/*.txt", "split": "train"},
    ]
    output, _ = ingest(tmp_path, "first", *sources, work="s3://corpus/work")
    assert {row["doc_id"]: row["text"] for row in documents_of(output / "documents")} == {
        "books/11": "Book 11.\n",
        "books/12": "Book 12.\n",
        "books/20": "Book 20.\n",
        "books/30": "Book 30.\n",
        "rows/a.parquet:0000000": "One.",
        "rows/a.parquet:0000001": "Two.",
        "lines/b.jsonl:0000000": "Three.",
        "lines/b.jsonl:0000001": "Four.",
        "plain/deep/c.txt": "Five.",
    }
    again, context = ingest(tmp_path, "second", *sources, work="s3://corpus/work")
    assert any("4 of 4 groups of files were read by an earlier attempt" in line for line in context.logged)
    assert [p.read_bytes() for p in sorted((again / "documents").iterdir())] == [
        p.read_bytes() for p in sorted((output / "documents").iterdir())
    ]


def test_a_changed_object_is_noticed_and_a_missing_bucket_is_one_error(bucket: Any, tmp_path: Path) -> None:
    bucket.pipe({"corpus/a/one.txt": b"One.", "corpus/a/two.txt": b"Two."})
    config = IngestConfig.model_validate(
        {"sources": [{"kind": "text", "name": "t", "url": "s3://corpus/a/*.txt", "split": "train"}]}
    )
    before, old = pin(config, tmp_path), listing(config, tmp_path)
    bucket.pipe({"corpus/a/one.txt": b"Uno.", "corpus/a/three.txt": b"Three."})
    assert changes(old, listing(config, tmp_path)) == ["changed: one.txt", "added: three.txt"]
    assert pin(config, tmp_path).key_fields() != before.key_fields()
    missing = config.sources[0].model_copy(update={"url": "s3://nowhere/a/*.txt"})
    with pytest.raises(StageError, match=r"sources\.0\.url = 's3://nowhere"):
        pin(config.model_copy(update={"sources": (missing,)}), tmp_path)


def test_a_tokenizer_is_read_from_s3(bucket: Any, tmp_path: Path) -> None:
    from stages.data.tokens.tokenizer import byte_level

    bucket.pipe("corpus/t/tokenizer.json", byte_level().to_str().encode())
    config = TokenizerConfig(kind="file", path="s3://corpus/t/tokenizer.json", eos_token="<eos>")
    assert vocabulary_size(pin_tokenizer(config, tmp_path)) == 258
    with pytest.raises(StageError, match=r"tokenizer\.path = 's3://corpus/t/other\.json'"):
        pin_tokenizer(config.model_copy(update={"path": "s3://corpus/t/other.json"}), tmp_path)
