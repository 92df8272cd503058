"""Pins external inputs: which files a source reads, with size and digest, and the digest of that listing.

``pin`` runs in every ``plan``, also in a fully cached run, so it imports no heavy library and looks digests of local
files up in a JSON file by (path, size, mtime): only new or touched files are read.
"""

from __future__ import annotations

import glob as globbing
import hashlib
import importlib.util
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePosixPath
from typing import Any

from stages.data.corpus.config import (
    SPLITS,
    CorpusSource,
    Hub,
    IngestConfig,
    JsonLines,
    Parquet,
    Pg19,
    PythonDocs,
    SplitName,
    TextFiles,
)
from stages.data.corpus.files import (
    DigestCache,
    ExternalFile,
    book_id,
    glob_of,
    is_remote,
    local_glob,
    remote,
    stable_share,
    unescaped,
)
from stages.data.pinned import agreed
from stages.stage import StageError

# Not documentation: test suites, bundled copies of other projects, example scripts, other people's packages.
SKIPPED_FOLDERS = frozenset(
    (
        *("test", "tests", "testing", "idle_test", "idlelib", "lib2to3", "turtledemo", "ensurepip", "__pycache__"),
        *("site-packages", "dist-packages", "_vendor", "vendored", "externals", "extern"),
    )
)
Listing = Mapping[str, Sequence[Mapping[str, Any]]]
"""Source name -> its files, each with ``name``, ``size``, ``digest``: the content of listing.json."""

Found = tuple[str, str, Mapping[str, Any] | None]
"""A file that was found: its name in the source, its location, and what a remote storage's listing says of it."""


def pin(config: IngestConfig, base_dir: Path, cache: Path | None = None) -> IngestConfig:
    """The config with absolute locations and every source's ``pin``.

    ``cache`` is the JSON file of known digests. Raises StageError for a missing or empty input, and where a pin
    written in the study file does not match what is there.
    """
    from stages.data.corpus.check import check_files

    digests = DigestCache(cache)
    sources = []
    listed = []
    for index, source in enumerate(config.sources):
        resolved = resolve(source, base_dir)
        files = list_files(resolved, digests, f"corpus.sources.{index}")
        listed.append((resolved, files))
        if not any(file.size for file in files) and not (isinstance(source, Hub) and source.revision):
            raise StageError(
                f"all {len(files)} file(s) of the source are empty",
                field=f"corpus.sources.{index}",
                value=source.name,
                allowed="at least one file with text",
                fix="fill the files or remove the source",
            )
        what, field = f"the input of source {source.name!r}", f"corpus.sources.{index}.pin"
        found = agreed(listing_digest(files), source.pin, field=field, what=what)
        sources.append(resolved.model_copy(update={"pin": found}))
    digests.save()
    check_files(listed)
    return config.model_copy(update={"sources": tuple(sources)})


def listing(config: IngestConfig, base_dir: Path, cache: Path | None = None) -> Listing:
    """Source name -> its files (name, size, digest): what ``listing.json`` of the artifact holds."""
    digests = DigestCache(cache)
    found = {
        source.name: [
            file.entry() for file in list_files(resolve(source, base_dir), digests, f"corpus.sources.{index}")
        ]
        for index, source in enumerate(config.sources)
    }
    digests.save()
    return found


def changes(old: Listing, new: Listing) -> list[str]:
    """What differs between two listings, one line a file: ``changed: train/11.txt``.

    File names carry their source's name (``books: train/11.txt``) only where there is more than one source.
    """
    several = len(set(old) | set(new)) > 1
    lines = []
    for source in sorted(set(old) | set(new)):
        before = {entry["name"]: (entry["size"], entry["digest"]) for entry in old.get(source, ())}
        after = {entry["name"]: (entry["size"], entry["digest"]) for entry in new.get(source, ())}
        for name in sorted(before | after):
            if before.get(name) == after.get(name):
                continue
            word = "added" if name not in before else "removed" if name not in after else "changed"
            lines.append(f"{word}: {source}: {name}" if several else f"{word}: {name}")
    return lines


def listing_digest(files: Iterable[ExternalFile]) -> str:
    """``sha256:<hex>`` over the canonical JSON of a source's files."""
    text = json.dumps([file.entry() for file in files], sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def resolve(source: CorpusSource, base_dir: Path) -> CorpusSource:
    """The source with an absolute location; a Hub id stays as it is unless a folder of that name exists."""
    if isinstance(source, PythonDocs):
        return source
    if isinstance(source, Hub):
        folder = Path(os.path.normpath(base_dir / Path(os.path.expanduser(source.path))))
        return source.model_copy(update={"path": str(folder)}) if folder.is_dir() else source
    return source.model_copy(update={"url": located(source.url, base_dir)})


def located(url: str, base_dir: Path) -> str:
    """The absolute form of a location; a remote one is that already."""
    if is_remote(url):
        return url
    return os.path.normpath(base_dir.absolute() / Path(os.path.expanduser(url.removeprefix("file://"))))


def list_files(source: CorpusSource, digests: DigestCache, field: str) -> list[ExternalFile]:
    """Every file the resolved ``source`` reads, sorted by name. ``field`` is its place in the study, for errors.

    A data set on the Hub is one entry: its id, configuration and commit. Raises StageError where nothing is found.
    """
    if isinstance(source, PythonDocs):
        return _described(_python_files(source, field), digests)
    if isinstance(source, Hub):
        return _hub_files(source, digests, field)
    if not is_remote(source.url):
        return _url_files(source, digests, field)
    try:
        return _url_files(source, digests, field)
    except StageError:
        raise
    except Exception as error:  # each kind of storage raises its own; all mean: cannot be read from here
        raise StageError(
            f"cannot be read: {type(error).__name__}: {' '.join(str(error).split())}",
            field=f"{field}.url",
            value=source.url,
            allowed="a path, or an fsspec URL this machine can read (s3://, gs://, https://, ...)",
            fix="check URL, credentials and network; some protocols need a package of their own (s3fs, gcsfs)",
        ) from error


def _url_files(source: Pg19 | Parquet | JsonLines | TextFiles, digests: DigestCache, field: str) -> list[ExternalFile]:
    if isinstance(source, Pg19):
        return _described(_pg19_files(source, field), digests)
    found = list(_glob(_pattern(source)))
    if not found:
        raise StageError(
            "no such file, or nothing matches",
            field=f"{field}.url",
            value=source.url,
            allowed="a path, a glob or an fsspec URL of files",
            fix="correct the path; relative paths start at the folder of the study file",
        )
    return _described(found, digests)


def _pattern(source: Parquet | JsonLines | TextFiles) -> str:
    """The source's url; of a folder of papers the glob of its LaTeX files."""
    if not (isinstance(source, TextFiles) and source.papers):
        return source.url
    there = os.path.isdir(source.url) if not is_remote(source.url) else _remote_folder(source.url)
    return f"{source.url.rstrip('/')}/**/*.tex" if there else source.url


def _remote_folder(url: str) -> bool:
    filesystem, path = remote(url)
    return not globbing.has_magic(path) and bool(filesystem.isdir(path))


def _described(found: Iterable[Found], digests: DigestCache) -> list[ExternalFile]:
    listed = sorted(found, key=lambda entry: entry[:2])
    local = [(location, os.stat(location)) for _, location, info in listed if info is None]
    known = iter(zip(local, digests.digests(local), strict=True))
    files = []
    for name, location, info in listed:
        if info is not None:
            files.append(_remote_file(name, location, info))
        else:
            (_, status), digest = next(known)
            files.append(ExternalFile(name, location, status.st_size, digest))
    return files


def _remote_file(name: str, url: str, info: Mapping[str, Any]) -> ExternalFile:
    """Size and entity tag where the storage lists one; otherwise the content is read and hashed."""
    tag = next((str(info[key]) for key in ("ETag", "etag", "md5Hash", "content_md5") if info.get(key)), None)
    if tag is not None:
        return ExternalFile(name, url, int(info["size"]), "etag:" + tag.strip('"'))
    filesystem, path = remote(url)
    content = filesystem.cat_file(path)
    return ExternalFile(name, url, len(content), "sha256:" + hashlib.sha256(content).hexdigest())


def _glob(url: str) -> Iterator[Found]:
    """The files that match; names are relative to the longest part without wildcards. What a storage says of its
    files comes with its listing: one request for a thousand files."""
    if is_remote(url):
        # never a listing that is older than this plan
        filesystem, path = remote(url)
        filesystem.invalidate_cache()
        pattern = glob_of(path, filesystem.exists) if "[" in path else path
        root = _fixed_part(pattern)
        if pattern == globbing.escape(path) or not globbing.has_magic(path):  # all of it is there by this very name
            listed = {path: filesystem.info(path)} if filesystem.isfile(path) else {}
        else:
            listed = filesystem.glob(pattern, detail=True)
        for found, info in listed.items():
            if info["type"] == "file":
                yield str(PurePosixPath(found).relative_to(root)), filesystem.unstrip_protocol(found), info
        return
    pattern = glob_of(url, os.path.lexists)
    fixed = _fixed_part(pattern)
    for found in local_glob(pattern):
        yield Path(found).relative_to(fixed).as_posix(), found, None


def _fixed_part(pattern: str) -> str:
    """The folder that names of files are relative to."""
    parts = pattern.split("/")
    wild = (
        i
        for i, part in enumerate(parts)
        if globbing.has_magic(part.replace("[[]", "").replace("[*]", "").replace("[?]", ""))
    )
    return "/".join(map(unescaped, parts[: next(wild, len(parts) - 1)])) or "/"


def _pg19_files(source: Pg19, field: str) -> list[Found]:
    root = source.url.rstrip("/")
    found: list[Found] = []
    for split in SPLITS:
        books = [(f"{split}/{name}", url, info) for name, url, info in _glob(f"{root}/{split}/*.txt")]
        if source.ids is not None:
            books = [book for book in books if book_id(book[0]) in source.ids]
        if source.limit is not None:
            books = sorted(books, key=lambda book: stable_share(book_id(book[0])))[: source.limit]
        found += books
    if not found and source.ids is None:
        raise StageError(
            "no book found in PG-19's layout",
            field=f"{field}.url",
            value=source.url,
            allowed="a folder with train/*.txt, validation/*.txt, test/*.txt",
            fix="correct the path; relative paths start at the folder of the study file",
        )
    missing = sorted(set(source.ids or ()) - {book_id(name) for name, *_ in found})
    if missing:
        raise StageError(
            f"no such book below {source.url}: {', '.join(missing[:5])}",
            field=f"{field}.ids",
            value=missing[0],
            fix="remove the id, or add the file train|validation|test/<id>.txt",
        )
    return [*found, *_glob(f"{root}/metadata.cs[v]")]


def possible_splits(source: CorpusSource) -> set[SplitName]:
    """Splits the resolved source may have documents of, as far as that is known without reading them."""
    if isinstance(source, Hub):
        return set(source.splits)
    by_name = isinstance(source, Pg19) or (isinstance(source, TextFiles) and not source.papers)
    if isinstance(source, Pg19 | TextFiles) and by_name and not is_remote(source.url):
        from stages.data.corpus.files import split_of_file

        names = [name for name, *_ in (_pg19_files(source, "") if isinstance(source, Pg19) else _glob(source.url))]
        found = {split_of_file(source, name) for name in names}
        return {split for split in SPLITS if split in found}
    split = getattr(source, "split", None)
    return {split} if split in SPLITS else set(SPLITS)


def most_test_bytes(source: CorpusSource) -> int | None:
    """At most so many bytes of text the resolved source has in the test split; None where only reading it says that."""
    if not isinstance(source, Pg19 | TextFiles) or is_remote(source.url) or source.encoding != ("utf-8",):
        return None
    from stages.data.corpus.files import split_of_file

    found = _pg19_files(source, "") if isinstance(source, Pg19) else list(_glob(_pattern(source)))
    own = [(name, location) for name, location, _ in found if split_of_file(source, name) in ("test", None)]
    if any(location.lower().endswith((".gz", ".bz2", ".xz", ".zst")) for _, location in own):
        return None
    return sum(os.path.getsize(location) for _, location in own)


def _python_files(source: PythonDocs, field: str) -> Iterator[Found]:
    standard = sysconfig.get_paths()["stdlib"]
    yield from _walk("stdlib", standard)
    for package in source.packages:
        spec = _package(package)
        if spec is None or spec.origin is None or not os.path.isfile(spec.origin):
            raise StageError(
                "no such installed package",
                field=f"{field}.packages",
                value=package,
                allowed="import names of installed packages with Python source",
                fix="install it in this environment or remove the name",
            )
        if spec.submodule_search_locations:
            for folder in spec.submodule_search_locations:
                yield from _walk(package, folder)
        else:
            yield f"{package}.py", spec.origin, None


def _package(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name) if name.isidentifier() else None
    except ValueError:  # a module without a spec, such as __main__
        return None


def _walk(prefix: str, root: str) -> Iterator[Found]:
    for folder, children, names in os.walk(root):
        children[:] = sorted(c for c in children if c not in SKIPPED_FOLDERS and not c.startswith("config-"))
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        base = prefix if inside == "." else f"{prefix}/{inside}"
        for name in sorted(names):
            if name.endswith(".py"):
                yield f"{base}/{name}", os.path.join(folder, name), None


def _hub_files(source: Hub, digests: DigestCache, field: str) -> list[ExternalFile]:
    if os.path.isabs(source.path):
        if source.revision is not None:
            raise StageError(
                "a local folder has no revision; its files are pinned by their digests",
                field=f"{field}.revision",
                value=source.revision,
                fix="remove revision",
            )
        found = [
            entry
            for entry in _glob(f"{source.path}/**/*")
            if not any(part.startswith(".") for part in PurePosixPath(entry[0]).parts)
        ]
        if not found:
            raise StageError("the folder holds no file", field=f"{field}.path", value=source.path)
        return _described(found, digests)
    if source.revision is None:
        raise StageError(
            "a data set on the Hub must be pinned to a commit (and no local folder of this name exists)",
            field=f"{field}.revision",
            value=None,
            allowed="40 hexadecimal digits",
            fix="copy the commit from the data set's page, Files and versions",
        )
    name = f"{source.path}@{source.config or 'default'}"
    return [ExternalFile(name, source.path, 0, f"commit:{source.revision}")]
