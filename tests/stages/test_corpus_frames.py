"""Packed JSON Lines read from places in the middle: bgzip's blocks and zstd's frames, else in one."""

from __future__ import annotations

import bz2
import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.corpus import check
from stages.data.corpus.config import IngestConfig
from stages.data.corpus.frames import cuts, lines_of


def bgzip(parts: list[bytes]) -> bytes:
    """As htslib writes it: blocks that say how long they are, an empty one last."""
    out = b""
    for part in [*parts, b""]:
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        body = packer.compress(part) + packer.flush()
        extra = b"BC\x02\0" + struct.pack("<H", len(body) + 25)
        out += b"\x1f\x8b\x08\x04" + b"\0" * 4 + b"\0\xff\x06\0" + extra + body
        out += struct.pack("<II", zlib.crc32(part), len(part))
    return out


def frames(parts: list[bytes]) -> bytes:
    """Zstd with and without checksum and size, a skipped frame in between and a table of contents at the end."""
    out = b""
    for at, part in enumerate(parts):
        packer = zstandard.ZstdCompressor(write_checksum=bool(at % 2), write_content_size=bool(at % 3))
        out += packer.compress(part) + (struct.pack("<II", 0x184D2A51, 5) + b"notes" if at % 4 == 1 else b"")
    return out + struct.pack("<II", 0x184D2A5E, 9) + b"\0" * 9


def whole(kind: str, content: bytes) -> bytes:
    if kind == "gz":
        return gzip.decompress(content)
    return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content), read_across_frames=True).read()


PARTS = st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\0", b"\n").replace(b"\1", b"\n\n")), max_size=12)


@pytest.mark.parametrize(("kind", "pack"), [("gz", bgzip), ("zst", frames)])
@given(parts=PARTS, most=st.integers(1, 120))
@settings(max_examples=80, deadline=None)
def test_every_line_of_a_packed_file_begins_in_one_piece(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    pack: Callable[[list[bytes]], bytes],
    parts: list[bytes],
    most: int,
) -> None:
    path = tmp_path_factory.mktemp("packed") / f"a.jsonl.{kind}"
    content = pack(parts)
    path.write_bytes(content)
    assert whole(kind, content) == b"".join(parts)
    begins = cuts(str(path), most)
    ends = [*(at for at, _ in begins[1:]), len(content)]
    found = [lines_of(str(path), at, end, before) for (at, before), end in zip(begins, ends, strict=True)]
    assert [line for some in found for line in some] == io.BytesIO(b"".join(parts)).readlines()
    if most == 1 and len(parts) > 1:
        assert len(begins) >= len(parts)


@pytest.mark.parametrize("pack", [gzip.compress, lambda b: gzip.compress(b) * 3, lambda b: bgzip([b, b])[:-40]])
def test_what_does_not_say_where_its_parts_begin_is_read_in_one(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / "a.gz").write_bytes(pack(b"one\ntwo\n"))
    assert cuts(str(tmp_path / "a.gz"), 1) == [(0, 0)]


def test_large_files_that_one_task_reads_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "SPLIT_BYTES", 10)
    line = b'{"text": "one"}\n' * 9
    made = {
        "one.jsonl.gz": gzip.compress(line),
        "many.jsonl.gz": bgzip([line, line]),
        "many.jsonl.zst": frames([line] * 3),
    }
    made |= {"one.jsonl.zst": zstandard.compress(line), "plain.jsonl": line, "bz.jsonl.bz2": bz2.compress(line)}
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    source = {"kind": "jsonl", "name": "j", "url": str(tmp_path / "*"), "split": "train"}
    named = {Path(file).name for file, *_ in check.in_one_task(IngestConfig.model_validate({"sources": [source]}))}
    assert named == {"one.jsonl.gz", "one.jsonl.zst", "bz.jsonl.bz2"}
    whole = IngestConfig.model_validate({"sources": [{**source, "encoding": ["utf-8", "latin-1"]}]})
    assert len(check.in_one_task(whole)) == 6
