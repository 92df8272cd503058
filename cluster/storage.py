"""Files on any fsspec URL: the few operations the engine's control files and artifacts need.

Control files (commits, leases, study records) are read and written whole, without listings caches, and appear
whole or not at all: a local file is written beside its place, synced, then linked or renamed; an object store's
put is atomic by itself. ``create_exclusive`` is the one primitive that decides races.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import io
import json
import math
import os
import re
import stat
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import xxhash
from fsspec.implementations.local import LocalFileSystem
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

PART = 16 * 2**20  # bytes of a large file that travel in one request
PARTS_AT_ONCE = 4
LARGEST = 2**30  # bytes of a file that is read whole
_MEMORY_LOCK = threading.Lock()  # fsspec's memory filesystem checks and writes in two steps


class StorageError(Exception):
    """Storage that cannot be used as asked; names the URL, the reason and the fix."""

    exit_code = 2


class NotAFile(OSError):
    """A folder, a pipe, a device, a link in a circle or something without end stands where a file should."""


def filesystem(url: str | Path) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of ``url`` and the path on it; listings are never cached.

    Raises StorageError for a protocol no installed package serves.
    """
    try:
        fs, path = fsspec.core.url_to_fs(str(url), use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise StorageError(
            f"root = {redacted(str(url))!r}: {redacted(str(error))} (allowed: a local path, file://, memory://, s3:// "
            "or another fsspec URL)"
        ) from error
    return fs, path.rstrip("/") if len(path) > 1 else path


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """True where paths of ``fs`` can be opened by any program on this machine."""
    return isinstance(fs, LocalFileSystem)


def local_path(url: str | Path) -> Path | None:
    """The local path behind ``url``, or None for remote and in-memory storage."""
    text = str(url)
    if "://" in text and not text.startswith(("file://", "local://")):
        return None
    fs, path = filesystem(url)
    return Path(path) if is_local(fs) else None


def reason(error: BaseException) -> str:
    """An error of any filesystem in one line."""
    if isinstance(error, OSError) and error.strerror:
        return redacted(str(error.strerror))
    return redacted(f"{type(error).__name__}: {' '.join(str(error).split())}")


_PASSWORD = re.compile(r"(://[^:/?#@\s]*:)[^\s?'\"]*@")
_TOKEN = re.compile(r"(https?://)[^:/?#@\s]+@")
_PARAMETER = re.compile(r"([?&;][\w-]*(?:password|passwd|pwd|token|secret|key)[\w-]*=)[^&;\s'\"]*", re.IGNORECASE)


def redacted(text: str) -> str:
    """``text`` with ``***`` for every password, token and key in its URLs: what may be printed and stored. Two URLs
    that differ in these alone become one."""
    return _PARAMETER.sub(r"\1***", _TOKEN.sub(r"\1***@", _PASSWORD.sub(r"\1***@", text)))


def check_bare(url: str, field: str) -> None:
    """Raises StorageError for a URL with a password, token or key in it: it would stand in logs, in error messages and
    beside what is made."""
    if "://" in url and (shown := redacted(url)) != url:
        raise StorageError(
            f"{field} = {shown!r}: holds a password, which would be written down wherever the URL is (allowed: a URL "
            "without). Fix: take it out; storage finds credentials in its own variables or files (AWS_*, "
            "~/.config/fsspec)"
        )


def join(url: str | Path, *names: str) -> str:
    """``url`` with ``names`` below it."""
    return "/".join([str(url).rstrip("/"), *names])


def retrying(seconds: float = 30.0) -> Retrying:
    """Retry what a later try may mend (network, throttling), for about ``seconds``; anything else is raised at once."""
    return Retrying(
        retry=retry_if_exception(transient),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        stop=stop_after_delay(seconds),
        reraise=True,
    )


_BROKEN_OFF = {"aiohttp.client_exceptions.ClientError", "botocore.exceptions.HTTPClientError"}


def transient(error: BaseException) -> bool:
    """Could the same call succeed a moment later? Missing files, refused access and a full disk could not."""
    never = FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, NotAFile
    if isinstance(error, never):
        return False
    if isinstance(error, OSError):
        return error.errno not in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ENAMETOOLONG)
    # What the client libraries of object stores raise when an answer breaks off is no OSError.
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    return isinstance(error, (TimeoutError, http.client.HTTPException)) or not kinds.isdisjoint(_BROKEN_OFF)


def read_bytes(fs: fsspec.AbstractFileSystem, path: str) -> bytes | None:
    """The whole file, or None where there is none. Raises NotAFile."""
    try:
        if is_local(fs):
            return _read_local(path)
        # What is read whole is small: one request, where s3fs would ask for the size first.
        return bytes(fs.cat_file(path, **({"max_concurrency": 1} if "s3" in fs.protocol else {})))
    except FileNotFoundError:
        return None


def open_local(path: str | Path) -> io.BufferedReader:
    """A local file for reading. Raises NotAFile for what would be waited for or read without end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ENODEV):
            raise NotAFile(error.errno, error.strerror, str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAFile(errno.EISDIR, "no file but a folder, a pipe or a device", str(path))
    return open(descriptor, "rb")


def _read_local(path: str) -> bytes:
    with open_local(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > LARGEST:
            raise NotAFile(errno.EFBIG, f"{size:,} bytes, where at most {LARGEST:,} are read", path)
        return file.read()


def read_json(fs: fsspec.AbstractFileSystem, path: str) -> Any | None:
    """The parsed file, or None where there is none. Raises ValueError on anything but JSON."""
    data = read_bytes(fs, path)
    return None if data is None else json.loads(data)


def to_json(value: Any) -> bytes:
    """Readable JSON with a fixed key order; NaN and objects JSON cannot hold raise ValueError or TypeError."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_checked(fs: fsspec.AbstractFileSystem, path: str, value: dict[str, Any]) -> None:
    """``value`` with a hash of itself, for ``read_checked``."""
    value = json.loads(to_json(value))  # as it will be read
    write_atomic(fs, path, to_json(value | {"check": xxhash.xxh3_64(to_json(value)).hexdigest()}))


def read_checked(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """What ``write_checked`` wrote; None where there is nothing, or something else."""
    try:
        value = read_json(fs, path)
    except (ValueError, RecursionError, NotAFile):
        return None
    if not isinstance(value, dict):
        return None
    check = value.pop("check", None)
    return value if check == xxhash.xxh3_64(to_json(value)).hexdigest() else None


def _synced_sibling(path: str, data: bytes) -> Path:
    """``data``, durable, in a new file in the folder of ``path``."""
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    sibling = place.parent / f".{place.name}.{uuid.uuid4().hex[:12]}.tmp"
    with sibling.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return sibling


def _sync_folder(folder: Path) -> None:
    """Make a new name in ``folder`` survive a power cut, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network filesystems refuse to sync a folder; the name is then as durable as they make it
    finally:
        os.close(descriptor)


def write_atomic(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Replace ``path``: a reader sees the old or the new content, never a part."""
    if not is_local(fs):
        fs.pipe_file(path, data)
        return
    sibling = _synced_sibling(path, data)
    try:
        os.replace(sibling, path)
    except OSError:
        sibling.unlink(missing_ok=True)
        raise
    _sync_folder(Path(path).parent)


def create_exclusive(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> bool:
    """Create ``path`` with ``data`` unless it exists; True for the one caller whose data it now holds.

    ``data`` must differ between callers (an owner id inside): stores that take a conditional put and do not honour
    it are caught by reading the winner back.
    """
    if is_local(fs):
        return _create_exclusive_local(path, data)
    if fs.exists(path):
        return read_bytes(fs, path) == data
    try:
        with _MEMORY_LOCK:
            fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        pass  # another won, or an earlier try of ours whose answer got lost
    except OSError as error:
        if not _precondition_failed(error):
            raise
    return read_bytes(fs, path) == data


def _precondition_failed(error: BaseException) -> bool:
    """Is it the answer 412 to a conditional put? Of that s3fs makes an OSError like that for any other bad request."""
    answer = getattr(error.__cause__, "response", None)
    return isinstance(answer, dict) and answer.get("ResponseMetadata", {}).get("HTTPStatusCode") == 412


def _create_exclusive_local(path: str, data: bytes) -> bool:
    sibling = _synced_sibling(path, data)
    try:
        os.link(sibling, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        # No hard links here (FAT, some FUSE mounts): exclusive, though a crash in the write would leave a part.
        try:
            with Path(path).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            return False
    finally:
        sibling.unlink(missing_ok=True)
    _sync_folder(Path(path).parent)
    return True


def fingerprint(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any]:
    """Size of a file, and xxh3 of a local one (to read remote ones back would double the traffic). Raises OSError."""
    if not is_local(fs):
        return {"size": int(fs.size(path))}
    hasher = xxhash.xxh3_64()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while chunk := file.read(1 << 22):
            hasher.update(chunk)
    return {"size": size, "xxh3": hasher.hexdigest()}


def fingerprints(fs: fsspec.AbstractFileSystem, folder: str) -> dict[str, dict[str, Any]]:
    """Those of all files below ``folder``, by their path in it."""
    base = folder.rstrip("/") + "/"
    sizes = sizes_below(fs, folder)  # of remote files all there is, in one listing
    return {
        path[path.index(base) + len(base) :]: fingerprint(fs, path) if is_local(fs) else {"size": size}
        for path, size in sorted(sizes.items())
    }


def files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a local folder as (posix path relative to it, path), sorted by that path."""
    found = ((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    yield from sorted(found)


def _parts(fs: fsspec.AbstractFileSystem, size: int) -> dict[str, int]:
    """Options of ``put_file``: s3fs would hold ten parts of 50 MiB in memory. S3 takes 10,000 parts of a file."""
    if "s3" not in fs.protocol:
        return {}
    return {"chunksize": max(PART, math.ceil(size / 10_000)), "max_concurrency": PARTS_AT_ONCE}


def put_tree(fs: fsspec.AbstractFileSystem, path: str, folder: Path) -> None:
    """Copy every file below the local ``folder`` to the same names below ``path``, retrying each."""
    for name, file in files_below(folder):
        target = f"{path}/{name}"
        for attempt in retrying():
            with attempt:
                fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
                fs.put_file(str(file), target, **_parts(fs, file.stat().st_size))


REFERENCE = ".reference.json"
"""Behind the name of a file that stands for one in storage: see ``refer``."""


def refer(target: Path, url: str, size: int, sha256: str) -> None:
    """Let the file at ``url`` be the one at ``target`` once the folder of ``target`` is put into the same storage: its
    bytes are then copied there, by the storage itself, and never pass through this machine."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_name(target.name + REFERENCE).write_bytes(to_json({"url": url, "size": size, "sha256": sha256}))


def references_below(folder: Path) -> dict[str, dict[str, Any]]:
    """What ``refer`` left below a local folder: posix path of the file meant -> url, size, sha256."""
    found = (path for _, path in files_below(folder) if path.name.endswith(REFERENCE))
    return {
        path.relative_to(folder).as_posix().removesuffix(REFERENCE): json.loads(path.read_bytes()) for path in found
    }


def copy_file(url: str, fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Copy the file at ``url``, of the same storage as ``fs``, to ``path``, retrying."""
    source = filesystem(url)[1]
    for attempt in retrying():
        with attempt:
            fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            fs.cp_file(source, path)


def get_file(fs: fsspec.AbstractFileSystem, path: str, target: Path, size: int | None = None) -> None:
    """Fetch one file, of ``size`` bytes where that is known, to ``target``; it appears there whole or not at all. A
    large one comes in parts, of which only those are fetched again that broke off. Raises FileNotFoundError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.parent / f".{target.name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        if size is None and not is_local(fs):
            for attempt in retrying():
                with attempt:
                    size = int(fs.size(path))
        if is_local(fs) or size is None or size <= PART:
            for attempt in retrying():
                with attempt:
                    fs.get_file(path, str(part))
        else:
            _get_in_parts(fs, path, part, size)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _get_in_parts(fs: fsspec.AbstractFileSystem, path: str, target: Path, size: int) -> None:
    with target.open("wb") as file:
        for first in range(0, size, PART * PARTS_AT_ONCE):
            starts = list(range(first, min(size, first + PART * PARTS_AT_ONCE), PART))
            ends = [min(size, start + PART) for start in starts]
            for attempt in retrying():
                with attempt:
                    found = fs.cat_ranges([path] * len(starts), starts, ends, on_error="raise")
                    if [len(data) for data in found] != [end - start for start, end in zip(starts, ends, strict=True)]:
                        raise ConnectionError(f"{path}: an answer broke off")
            for data in found:
                file.write(data)


def sizes_below(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, int]:
    """Bytes of every file below ``path``, by its path. Some object stores go on listing a folder after its last file
    went: such names are left out. Local links to folders are not followed: they may lead anywhere, and round. Raises
    PermissionError for a local folder that this user may not list: what is in it is not missing."""
    if is_local(fs):
        return dict(_local_sizes(path))
    found = fs.find(path, detail=True)
    return {str(name): int(info["size"]) for name, info in found.items() if info["type"] == "file"}


def _local_sizes(path: str) -> Iterator[tuple[str, int]]:
    def refused(error: OSError) -> None:  # anything else went while it was looked for
        if isinstance(error, PermissionError):
            raise error

    for folder, _, names in os.walk(path, onerror=refused):
        for name in sorted(names):
            place = f"{folder}/{name}"
            with contextlib.suppress(OSError):  # a link to nowhere; gone meanwhile
                status = os.stat(place)
                if stat.S_ISREG(status.st_mode):
                    yield place, status.st_size


def get_tree(fs: fsspec.AbstractFileSystem, path: str, folder: Path) -> None:
    """Fetch every file below ``path`` to the same names below the local ``folder``."""
    base = path.rstrip("/") + "/"
    for found, size in sorted(sizes_below(fs, path).items()):
        get_file(fs, found, folder / found[found.index(base) + len(base) :], size)


def remove_tree(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Delete ``path`` and what is below it; nothing there is fine. Of a local link the link."""
    if is_local(fs) and not (os.path.isdir(path) and not os.path.islink(path)):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path)
        return
    try:
        fs.rm(path, recursive=True)
    except FileNotFoundError:
        return


def check_writable(url: str | Path) -> None:
    """Write, read back and delete a small file below ``url``, creating the folder.

    Raises StorageError naming the URL, the reason and the fix.
    """
    fs, path = filesystem(url)
    probe = f"{path}/.writable-{uuid.uuid4().hex[:12]}"
    try:
        fs.makedirs(path, exist_ok=True)
        fs.pipe_file(probe, b"probe")
        if fs.cat_file(probe) != b"probe":
            raise OSError("a file written there reads back differently")
        fs.rm_file(probe)
    except Exception as error:  # every filesystem raises its own kinds; all mean: cannot be used
        raise StorageError(
            f"root = {redacted(str(url))!r}: storage cannot be written: {reason(error)} (allowed: a folder or "
            "bucket this user may write to). Fix: choose another with --root, or check permissions, credentials and "
            "free space"
        ) from error
