"""Artifacts on any fsspec URL: attempts, the fenced commit, lookup, verification and garbage.

    <root>/<stage>/<key>/attempts/<attempt>/...             what one try of the step wrote
    <root>/<stage>/<key>/attempts/<attempt>.manifest.json   path, size, sha256 of each of its files
    <root>/<stage>/<key>/COMMIT.json                        the one attempt that counts; created conditionally
    <root>/<stage>/<key>/lease/  logs/  work/  mlflow.json  who computes, what it said, what outlives a crash
    <root>/studies/<name>.json                              the last plan of each named study

An attempt without a commit is never read. Of two drivers that finish the same step one creates ``COMMIT.json``;
the other adopts that artifact and discards its own, so outputs are never mixed, whatever became of the lease.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from dataclasses import replace as replace_field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cluster import storage
from pipeline.engine.artifact import StoredArtifact, build_manifest
from pipeline.engine.control import KEY, SCHEMA, Commit, Tracked, read_commit, read_study, written
from pipeline.engine.records import read_object, typed
from pipeline.errors import IntegrityError, StudyError

if TYPE_CHECKING:
    from stages.stage import Summary

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Attempt:
    """One try of a step: ``directory`` (local, exists, empty) is what the stage writes into."""

    id: str
    stage: str
    key: str
    directory: Path


@dataclass(frozen=True)
class Sealed:
    """A finished attempt whose files are in the store and whose manifest is written; can be committed."""

    id: str
    digest: str
    files: int
    bytes: int


def _why(error: Exception) -> str:
    return str(error.strerror) if isinstance(error, OSError) else str(error)


def default_cache() -> Path:
    """Where files of remote stores are kept on this machine."""
    base = os.environ.get("INFINI_STUDY_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "infini-study"
    )
    return Path(base)


class Store:
    """All artifacts below ``root_url`` (a local path or any fsspec URL). Picklable."""

    def __init__(self, root_url: str | Path, cache_dir: str | Path | None = None) -> None:
        local = storage.local_path(root_url)
        self.root = str(local) if local is not None else str(root_url).rstrip("/")
        self.cache = str(cache_dir or default_cache())
        try:
            storage.check_bare(self.root, "root")
            self.fs, self.base = storage.filesystem(self.root)
        except storage.StorageError as error:
            raise StudyError(str(error)) from error
        self.local = local is not None

    def __reduce__(self) -> tuple[Any, ...]:
        return (Store, (self.root, self.cache))

    def check_writable(self) -> None:
        """Raises StudyError naming the root, the reason and the fix."""
        try:
            storage.check_writable(self.root)
        except storage.StorageError as error:
            raise StudyError(str(error)) from error

    # Places

    def folder(self, stage: str, key: str) -> str:
        """Path of the artifact's folder on the store's filesystem."""
        return f"{self.base}/{stage}/{key}"

    def url(self, stage: str, key: str) -> str:
        """URL (or local path) of the artifact's folder."""
        return f"{self.root}/{stage}/{key}"

    def work_url(self, stage: str, key: str) -> str:
        """Where the step keeps what must outlive a crash."""
        return f"{self.url(stage, key)}/work"

    def lease_folder(self, stage: str, key: str) -> str:
        """Where ``lease.Claim`` keeps the lease of the step."""
        return f"{self.folder(stage, key)}/lease"

    # Reading

    def lookup(self, stage: str, key: str) -> Commit | None:
        """The committed artifact of this key, or None: one small read. Raises IntegrityError on a damaged commit."""
        path = f"{self.folder(stage, key)}/COMMIT.json"
        try:
            data = storage.read_bytes(self.fs, path)
            if data is None:
                return None
            return read_commit(data, stage, key)
        except (ValueError, storage.NotAFile) as error:
            raise IntegrityError(
                f"{path}: not a readable commit ({_why(error)}). Fix: delete this file; the step is then made again"
            ) from error

    def present(self, stages: Iterable[str]) -> dict[str, set[str]]:
        """By stage, the keys that have a folder: one listing a stage. Raises StudyError for a store that cannot be
        read."""

        def names(stage: str) -> set[str]:
            try:
                found = self.fs.ls(f"{self.base}/{stage}", detail=False)
            except FileNotFoundError:
                return set()
            return {str(path).rstrip("/").rsplit("/", 1)[-1] for path in found}

        wanted = list(dict.fromkeys(stages))
        return dict(zip(wanted, self._ask(names, wanted), strict=True))

    def lookup_many(
        self, wanted: Iterable[tuple[str, str]], present: Mapping[str, set[str]] | None = None
    ) -> dict[str, Commit]:
        """The commits there are, by key. Of several, those without a folder in the listing (``present``) are not asked
        for. Raises StudyError for a store that cannot be read."""
        pairs = list(dict.fromkeys(wanted))
        if present is None and len(pairs) > 1:
            present = self.present(stage for stage, _ in pairs)
        there = [(stage, key) for stage, key in pairs if present is None or key in present[stage]]
        return {c.key: c for c in self._ask(lambda pair: self.lookup(*pair), there) if c is not None}

    def _ask(self, ask: Callable[[A], B], of: Iterable[A]) -> list[B]:
        """``map`` for reading. Raises StudyError for a store that cannot be read."""
        try:
            return self.map(ask, of)
        except IntegrityError:
            raise
        except Exception as error:  # every kind of storage raises its own; all mean: cannot be used
            raise StudyError(self._unreadable(error)) from error

    def check_there(self) -> None:
        """For commands that only look: raises StudyError where there is no store, or none that can be read."""
        try:
            listed = self.fs.ls(self.base, detail=False)  # of a file: the file
            there = any(name.rstrip("/") != self.base.rstrip("/") for name in listed)
        except FileNotFoundError:
            there = False
        except Exception as error:
            raise StudyError(self._unreadable(error)) from error
        if not there:
            raise StudyError(
                f"root = {storage.redacted(self.root)!r}: there is no store, nothing was run there yet (allowed: the "
                "--root of an earlier run). Fix: give that one, or run a study first"
            )

    def _unreadable(self, error: Exception) -> str:
        name = error.filename if isinstance(error, OSError) else None
        place = f" at {storage.redacted(str(name))}" if name not in (None, self.base) else ""
        return (
            f"root = {storage.redacted(self.root)!r}: storage cannot be read: {storage.reason(error)}{place} (allowed: "
            "a folder or bucket this user may read). Fix: choose another with --root, or check permissions, "
            "credentials and network"
        )

    def artifact(self, commit: Commit) -> StoredArtifact:
        """The artifact's files, for stages and the command line."""
        base = f"{self.url(commit.stage, commit.key)}/attempts/{commit.attempt}"
        return StoredArtifact(commit.stage, commit.key, base, commit.digest, self.cache, dict(commit.metrics))

    def verify(self, commit: Commit, deep: bool = True) -> list[str]:
        """What is wrong with the artifact's files, one line each: sizes, and with ``deep`` every sha256."""
        try:
            return list(self.artifact(commit).damages(deep))
        except IntegrityError as error:
            return [str(error)]

    def keys(self, stage: str | None = None) -> Iterator[tuple[str, str]]:
        """(stage, key) of every artifact that was begun, or those of one stage, by stage and key."""
        for name in self.names(self.base) if stage is None else [stage]:
            if name in ("studies", "mlartifacts") or name.startswith(".") or not self.fs.isdir(f"{self.base}/{name}"):
                continue
            for key in self.names(f"{self.base}/{name}"):
                if KEY.fullmatch(key):
                    yield name, key

    def commits(self, stage: str | None = None) -> Iterator[Commit]:
        """Every committed artifact, or those of one stage, by stage and key."""
        yield from (c for c in self.map(lambda pair: self.lookup(*pair), self.keys(stage)) if c is not None)

    def begun(self, stage: str, key: str) -> bool:
        """Has anybody started on this key? The plan of a run names steps it never came to, so it is no sign of that;
        a lease is taken first, and stays beside the key."""
        return bool(self.names(self.lease_folder(stage, key)))

    def logs(self, stage: str, key: str) -> list[tuple[str, str]]:
        """(attempt, text) of the step's logs, the newest last."""
        folder = f"{self.folder(stage, key)}/logs"
        with contextlib.suppress(FileNotFoundError):
            names = sorted(str(path) for path in self.fs.ls(folder, detail=False) if str(path).endswith(".log"))
            texts = [self._text(path) for path in names]
            return [(path.rsplit("/", 1)[-1][:-4], text) for path, text in zip(names, texts, strict=True)]
        return []

    def _text(self, path: str) -> str:
        try:
            return (storage.read_bytes(self.fs, path) or b"").decode("utf-8", "replace")
        except storage.NotAFile as error:
            return f"(not readable: {error.strerror})"

    # Writing

    def attempt(self, stage: str, key: str, token: int = 0) -> Attempt:
        """A new try with an empty local folder; ``token`` is the number of the lease it is made under.

        In a local store the folder is its final place; otherwise ``seal`` uploads it.
        """
        name = f"{token:06d}-{time.time_ns() // 10**6:012x}-{uuid.uuid4().hex[:12]}"  # sorts by age
        if self.local:
            directory = Path(self.folder(stage, key)) / "attempts" / name
        else:
            directory = Path(self.cache) / "staging" / name
        directory.mkdir(parents=True)
        return Attempt(name, stage, key, directory)

    def seal(self, attempt: Attempt) -> Sealed:
        """Put the attempt's files into the store and write their manifest. Raises ValueError if it has no files."""
        manifest, entries = build_manifest(attempt.directory)
        if not entries:
            raise ValueError(f"stage {attempt.stage!r} wrote no file into its output folder")
        place = f"{self.folder(attempt.stage, attempt.key)}/attempts/{attempt.id}"
        if not self.local:
            for name, meant in storage.references_below(attempt.directory).items():
                storage.copy_file(meant["url"], self.fs, f"{place}/{name}")
                (attempt.directory / (name + storage.REFERENCE)).unlink()
            storage.put_tree(self.fs, place, attempt.directory)
            shutil.rmtree(attempt.directory)
        for retry in storage.retrying():
            with retry:
                storage.write_atomic(self.fs, f"{place}.manifest.json", manifest)
        digest = hashlib.sha256(manifest).hexdigest()
        return Sealed(attempt.id, digest, len(entries), sum(entry.size for entry in entries))

    def commit(
        self, stage: str, key: str, sealed: Sealed, summary: Summary, meta: Mapping[str, Any], *, replace: bool = False
    ) -> Commit:
        """Make the attempt the artifact, unless the key already has one: then that one is returned and this
        attempt is discarded. ``replace`` (a forced step) puts it in the place of the one there is."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        mine = Commit(
            stage,
            key,
            sealed.id,
            sealed.digest,
            sealed.files,
            sealed.bytes,
            summary.headline,
            dict(summary.metrics),
            dict(summary.tables),
            tuple(summary.figures),
            now,
            dict(meta),
        )
        mine, data = written(mine)
        path = f"{self.folder(stage, key)}/COMMIT.json"
        for retry in storage.retrying():
            with retry:
                if replace:
                    storage.write_atomic(self.fs, path, data)
                    return mine
                storage.create_exclusive(self.fs, path, data)
                winner = self.lookup(stage, key)
        if winner is None:
            raise IntegrityError(f"{path}: vanished right after it was created. Fix: end what deletes files there")
        if winner.attempt != sealed.id:
            self.discard(stage, key, sealed.id)
        return winner

    def discard(self, stage: str, key: str, attempt: str) -> None:
        """Delete an attempt that was not committed."""
        place = f"{self.folder(stage, key)}/attempts/{attempt}"
        storage.remove_tree(self.fs, f"{place}.manifest.json")
        storage.remove_tree(self.fs, place)
        if not self.local:
            shutil.rmtree(Path(self.cache) / "staging" / attempt, ignore_errors=True)

    def tidy(self, commit: Commit, replaced: Commit | None = None) -> None:
        """After a commit: delete the work folder and the attempts made under this lease or earlier ones. Attempts
        under a later lease belong to a driver that is still alive and will notice by itself; an artifact that was
        ``replaced`` may be in use by another study and is left to ``gc``."""
        token = commit.attempt.split("-")[0]
        for name in self.attempts(commit.stage, commit.key):
            if name not in (commit.attempt, replaced and replaced.attempt) and name.split("-")[0] <= token:
                self.discard(commit.stage, commit.key, name)
        self.clear_work(commit.stage, commit.key)

    def clear_work(self, stage: str, key: str) -> None:
        """Delete what an earlier try of the step left for the next."""
        storage.remove_tree(self.fs, f"{self.folder(stage, key)}/work")

    def note_mlflow(
        self, stage: str, key: str, *, tracking_uri: str, experiment_id: str, run_id: str, model_id: str = ""
    ) -> None:
        """Remember the MLflow run that makes this artifact, and the logged model if it is one; of the URI no
        password."""
        value = Tracked(storage.redacted(tracking_uri), experiment_id, run_id, model_id)
        storage.write_atomic(self.fs, f"{self.folder(stage, key)}/mlflow.json", storage.to_json(asdict(value)))

    def mlflow(self, stage: str, key: str) -> dict[str, str] | None:
        """What ``note_mlflow`` was told of the run that made the artifact, ``tracking_uri`` as ``storage.redacted`` has
        it; None if it was not tracked or the note cannot be read: it only leads to the run."""
        try:
            data = storage.read_bytes(self.fs, f"{self.folder(stage, key)}/mlflow.json")
            noted = typed(Tracked, read_object(data or b""))
        except (ValueError, storage.NotAFile):
            return None
        return asdict(replace_field(noted, tracking_uri=storage.redacted(noted.tracking_uri)))

    # Named studies

    def record_study(self, record: Mapping[str, Any]) -> None:
        """Keep ``Plan.record()`` under the study's name, for ``status``, ``explain`` and ``gc``."""
        value = {"schema": SCHEMA, **record}
        storage.write_atomic(self.fs, self._study_path(record["study"]), storage.to_json(value))

    def study_record(self, study: str) -> dict[str, Any]:
        """``{study, study_key, steps: {id: {key, stage, config, ...}}}`` of the last run, or {} if there was none."""
        path = self._study_path(study)
        try:
            data = storage.read_bytes(self.fs, path)
            if data is None:
                return {}
            return read_study(data)
        except (ValueError, storage.NotAFile) as error:
            raise IntegrityError(
                f"{path}: not readable ({_why(error)}). Fix: delete it; the next run writes it anew"
            ) from error

    def studies(self) -> list[str]:
        """Names of the recorded studies. Raises StudyError for a store that cannot be read."""
        try:
            found = self.fs.ls(f"{self.base}/studies", detail=False)
        except FileNotFoundError:
            return []
        except Exception as error:  # every kind of storage raises its own
            raise StudyError(self._unreadable(error)) from error
        names = [str(path).rsplit("/", 1)[-1] for path in found]
        return sorted(name[:-5] for name in names if name.endswith(".json") and not name.startswith("."))

    def kept(self) -> set[str]:
        """Keys that the last plan of any recorded study needs."""
        return {s["key"] for study in self.studies() for s in self.study_record(study).get("steps", {}).values()}

    # Helpers

    def _study_path(self, study: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", study):
            raise StudyError(f"study = {study!r}: not usable as a name (allowed: letters, digits, '.', '_', '-')")
        return f"{self.base}/studies/{study}.json"

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in self.fs.ls(folder, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def attempts(self, stage: str, key: str) -> list[str]:
        names = self.names(f"{self.folder(stage, key)}/attempts")
        return sorted({n.removesuffix(".manifest.json") for n in names if not n.startswith(".")})

    def map(self, ask: Callable[[A], B], of: Iterable[A]) -> list[B]:
        """``ask`` of each, in order; of a remote store many at a time."""
        if self.local:
            return list(map(ask, of))
        with ThreadPoolExecutor(max_workers=16) as pool:
            return list(pool.map(ask, of))
