"""An external file's bytes, unpacked where its name says that they are packed; its text in whatever encoding.

Local files are opened by their path alone, so that no name (``a::b.gz``) is taken for an fsspec URL.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, cast

from stages.data.corpus.files import is_remote, remote

ZSTD_WINDOW = 2**31  # bytes: what ``zstd --long=31`` may ask for; the usual limit of 2**27 refuses such files
_CHUNK = 2**20
_MARKED = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}  # in this order: the mark of UTF-32-LE begins with that of UTF-16-LE


def opened(location: str) -> AbstractContextManager[BinaryIO]:
    """The file's bytes as a stream. Damage raises EOFError or ValueError."""
    return _unpacked(as_it_is(location), location)


def as_it_is(location: str) -> Any:
    """The file's bytes, not unpacked."""
    if not is_remote(location):
        return open(location.removeprefix("file://"), "rb")
    filesystem, path = remote(location)
    return filesystem.open(path, "rb")


PACKED = (".gz", ".bz2", ".xz", ".zst")


def packed(location: str) -> bool:
    """Does the name say that the file is packed?"""
    return location.lower().endswith(PACKED)


@contextmanager
def _unpacked(file: Any, name: str) -> Iterator[BinaryIO]:
    with file:
        suffix = name[name.rfind(".") :].lower()
        with io.BufferedReader(_Frames(file, suffix), _CHUNK) if suffix in PACKED else file as stream:
            yield cast(BinaryIO, stream)


class _Frames(io.RawIOBase):
    """All frames (members of gzip, streams of bzip2 and xz) of a packed file, zeros behind one left out. The libraries'
    own readers take a zstd file cut short for a whole one, and a damaged stream of bzip2 or xz for the file's end."""

    def __init__(self, file: BinaryIO, suffix: str) -> None:
        self._file = file
        self._new, self._error = _unpacker(suffix)
        self._limit = () if suffix == ".zst" else (io.DEFAULT_BUFFER_SIZE,)  # what stands before damage is given out
        self._frame: Any = None
        self._begun = False
        self._packed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if getattr(self._frame, "needs_input", True):  # of bzip2 and xz: False while it holds more than the limit
                self._packed = self._packed or self._file.read(_CHUNK // 32)
                if not self._packed and (self._frame is not None or not self._begun):
                    raise EOFError("the file ended before the end of its last frame")
                if not self._packed:
                    return 0
            if self._frame is None and self._begun:
                self._packed = self._packed.lstrip(b"\0")
            if self._frame is not None or self._packed:
                self._unpack()
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _unpack(self) -> None:
        if self._frame is None:
            self._frame, self._begun = self._new(), True
        try:
            self._ready = memoryview(self._frame.decompress(self._packed, *self._limit))
        except self._error as error:
            raise ValueError(f"cannot be unpacked: {error}") from error
        ended = self._frame.eof
        self._packed = self._frame.unused_data if ended else getattr(self._frame, "unconsumed_tail", b"")  # of gzip
        self._frame = None if ended else self._frame


def _unpacker(suffix: str) -> tuple[Callable[[], Any], type[Exception]]:
    """(what makes an unpacker of one frame, what it raises for damage)."""
    if suffix == ".gz":
        import zlib

        return lambda: zlib.decompressobj(zlib.MAX_WBITS | 16), zlib.error
    if suffix == ".bz2":
        import bz2

        return bz2.BZ2Decompressor, OSError
    if suffix == ".xz":
        import lzma

        return lzma.LZMADecompressor, lzma.LZMAError
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj, zstandard.ZstdError


def utf8(content: bytes, encodings: Sequence[str]) -> bytes:
    """``content`` as UTF-8: from the first of ``encodings`` that fits, or from what its byte-order mark says where
    any but UTF-8 is named. As it is where none fits: what is wrong with it is then said of UTF-8."""
    if tuple(encodings) == ("utf-8",):
        return content
    if marked := marked_encoding(content):
        encodings = (marked,)
    for name in encodings:
        kind = codecs.lookup(name).name
        if kind in ("utf-16", "utf-32"):  # without a mark anything of even length would do
            continue
        try:
            return content.decode(name).removeprefix("\ufeff").encode()
        except UnicodeError:
            continue
    return content


def marked_encoding(start: bytes) -> str | None:
    """UTF-8, or UTF-16 or UTF-32 in the order of bytes, that the byte-order mark at the start shows."""
    return next((name for mark, name in _MARKED.items() if start.startswith(mark)), None)


def why_not(content: bytes, encodings: Sequence[str]) -> str:
    """What a user may do about a text that ``utf8`` could not read."""
    if tuple(encodings) != ("utf-8",):
        kinds = {codecs.lookup(name).name for name in encodings}
        wide = next((kind for kind in ("utf-16", "utf-32") if kind in kinds), None)
        if wide and marked_encoding(content) is None:
            return f"nor {', '.join(encodings)}: it has no byte-order mark, name {wide}-le or {wide}-be"
        return f"nor {', '.join(encodings)}"
    marked = marked_encoding(content)
    return f"the source's encoding: {marked.rsplit('-', 1)[0] if marked else 'latin-1 or another'} would read it"


def lines(stream: BinaryIO, encodings: Sequence[str]) -> Iterator[bytes]:
    """The lines of a file as UTF-8 (see ``utf8``): of a file in UTF-16 or UTF-32 by its characters, else by its bytes.

    Raises UnicodeDecodeError where a file with such a mark is damaged.
    """
    if tuple(encodings) == ("utf-8",):
        yield from stream
        return
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast(Any, stream))
    first = codecs.lookup(encodings[0]).name
    wide = marked_encoding(buffered.peek(4)[:4]) or (first if first.startswith(("utf-16-", "utf-32-")) else None)
    if wide == "utf-8":
        yield from buffered
        return
    if wide is None:
        yield from (utf8(line, encodings) for line in buffered)
        return
    text = io.TextIOWrapper(buffered, wide, newline="\n")
    for number, line in enumerate(text):
        yield (line.removeprefix("\ufeff") if not number else line).encode(errors="surrogatepass")


def lines_of(stream: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """The lines that begin at bytes ``start`` to ``end`` of an unpacked file."""
    stream.seek(max(0, start - 1))
    at = max(0, start - 1) + (len(stream.readline()) if start else 0)
    while at < end and (line := stream.readline()):
        yield line
        at += len(line)
