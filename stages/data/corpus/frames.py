"""Packed files that can be read from places in the middle: zstd in several frames, and gzip as bgzip writes it.

A frame is unpacked without those before it. Where frames begin is read off their headers, nothing is unpacked for it;
gzip's own members do not say how long they are, so only bgzip's, which do, can be told apart.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from stages.data.corpus.opened import ZSTD_WINDOW, as_it_is

SPLIT_BYTES = 64 * 2**20  # of a file that is read in pieces of about so many bytes
SUFFIXES = (".gz", ".zst")
_CHUNK = 2**17
_ZSTD, _SKIPPED = 0xFD2FB528, range(0x184D2A50, 0x184D2A60)
_RUN = 1  # type of a zstd block that is one byte over and over
_BGZIP = b"\x1f\x8b\x08\x04"


def may_have_frames(location: str) -> bool:
    """By its name."""
    return location.lower().endswith(SUFFIXES)


def cuts(location: str, most: int) -> list[tuple[int, int]]:
    """Places of frames about ``most`` bytes apart, each with the place of the frame before it: from the first, (0, 0),
    on; one alone where the file has to be read from its beginning."""
    step = _after_zstd if location.lower().endswith(".zst") else _after_bgzip
    found = [(0, 0)]
    before = place = 0
    with as_it_is(location) as file:
        while (after := step(file, place)) is not None:
            before, place = place, after
            if place - found[-1][0] >= most:
                found.append((place, before))
        size = file.seek(0, 2)
    if place != size:  # damaged, or packed in another way: read as one, which says what is wrong
        return found[:1]
    return [cut for cut in found if cut[0] < size]


def alone(location: str) -> bool:
    """Is the packed file one frame, or in frames that do not say how long they are? Then it is read from its beginning.
    Raises OSError where it cannot be opened."""
    if not may_have_frames(location):
        return True
    step = _after_zstd if location.lower().endswith(".zst") else _after_bgzip
    with as_it_is(location) as file:
        after = step(file, 0)
        return after is None or after >= file.seek(0, 2)


def _after_bgzip(file: BinaryIO, place: int) -> int | None:
    """Where the block at ``place`` ends, None where there is none. (SAM format specification, 4.1.)"""
    file.seek(place)
    head = file.read(18)
    if len(head) < 18 or head[:4] != _BGZIP or head[12:16] != b"BC\x02\0":
        return None
    return place + int(struct.unpack("<H", head[16:])[0]) + 1


def _after_zstd(file: BinaryIO, place: int) -> int | None:
    """Where the frame at ``place`` ends, None where there is none. (RFC 8878, 3.1.)"""
    file.seek(place)
    head = file.read(18)
    if len(head) < 8:
        return None
    magic, size = struct.unpack("<II", head[:8])
    if magic in _SKIPPED:
        return place + 8 + int(size)
    if magic != _ZSTD:
        return None
    described = head[4]
    single = described >> 5 & 1
    content = (0 if not single else 1, 2, 4, 8)[described >> 6]
    at = place + 5 + (not single) + (0, 1, 2, 4)[described & 3] + content
    while True:
        file.seek(at)
        block = file.read(3)
        if len(block) < 3:
            return None
        word = int.from_bytes(block, "little")
        at += 3 + (1 if word >> 1 & 3 == _RUN else word >> 3)
        if word & 1:
            return at + (4 if described >> 2 & 1 else 0)


def lines_of(location: str, start: int, end: int, before: int) -> Iterator[bytes]:
    """The lines that begin in the frames from ``start`` to ``end``; ``before``: the frame before (``cuts``)."""
    begins, mine = before == 0, False  # does a line begin here; did the one at hand begin in these frames
    known = begins
    parts: list[bytes] = []
    for frame, data in _frames(location, before):
        if frame < start:
            begins, known = (data.endswith(b"\n"), True) if data else (begins, known)
            continue
        if not known:  # the frame before is empty
            yield from lines_of(location, start, end, 0)
            return
        *whole, rest = data.split(b"\n")
        for part in whole:
            if begins and frame >= end:
                return
            if begins or mine:
                yield b"".join([*parts, part, b"\n"])
            begins, mine, parts = True, False, []
        if frame >= end and not mine:
            return
        if rest:
            mine = mine or begins
            begins = False
            if mine:
                parts.append(rest)
    if parts:
        yield b"".join(parts)


def _frames(location: str, place: int) -> Iterator[tuple[int, bytes]]:
    """(where its frame begins, some bytes of it unpacked), from the frame at ``place`` on. Raises EOFError, ValueError
    or zlib.error for damage."""
    new = _zstd() if location.lower().endswith(".zst") else _gzip
    with as_it_is(location) as file:
        file.seek(place)
        packed = b""
        while packed := packed or file.read(_CHUNK):
            frame, unpacker = place, new()
            while not unpacker.eof:
                packed = packed or file.read(_CHUNK)
                if not packed:
                    raise EOFError("the file ended before the end of its last frame")
                place += len(packed)
                try:
                    data = unpacker.decompress(packed)
                except Exception as error:
                    if isinstance(error, zlib.error):
                        raise
                    raise ValueError(f"not zstd: {error}") from error
                packed = unpacker.unused_data if unpacker.eof else b""
                place -= len(packed)
                yield frame, data


def _gzip() -> Any:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)


def _zstd() -> Callable[[], Any]:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj
