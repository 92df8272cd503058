"""What the control files of a store say, COMMIT.json, mlflow.json and studies/<name>.json: read, checked, written."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cluster import storage
from pipeline.engine.records import read_object, typed, typed_json

SCHEMA = 1
KEY = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"\w[\w.-]*")  # of a stage or an attempt: one folder of the store


@dataclass(frozen=True)
class Commit:
    """What COMMIT.json says. ``digest`` is the sha256 of the manifest: equal digests mean equal files. ``sha256``
    is that of all else COMMIT.json says, "" in one made before there was such.

    ``meta`` is ``Step.record()`` (step, code_version, config, inputs, arm, seed, source_digest) and what the run
    added: ``seconds``, ``version``, ``git_commit``, ``host``, ``deterministic``, ``warnings``, ``study``.
    """

    stage: str
    key: str
    attempt: str
    digest: str
    files: int
    bytes: int
    headline: str
    metrics: Mapping[str, float]
    tables: Mapping[str, str]
    figures: tuple[str, ...]
    created: str  # UTC, ISO 8601, seconds
    meta: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @property
    def step(self) -> str:
        """Id of the step it was first made for."""
        return str(self.meta.get("step", self.stage))


@dataclass(frozen=True)
class Tracked:
    """What mlflow.json says."""

    tracking_uri: str
    experiment_id: str
    run_id: str
    model_id: str = ""


@dataclass(frozen=True)
class _Meta:
    """Of which type those fields of ``Commit.meta`` are that the engine and the command line read."""

    step: str = ""
    code_version: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    arm: str | None = None
    seed: int | None = None
    seconds: float = 0.0
    plugins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _OfMeta:
    """A commit's ``meta`` alone."""

    meta: _Meta


@dataclass(frozen=True)
class _RecordedStep:
    """What the record of a study must say of each step."""

    key: str
    stage: str
    code_version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    arm: str | None
    seed: int | None


@dataclass(frozen=True)
class _StudyRecord:
    """What studies/<name>.json must say."""

    study: str
    study_key: str
    steps: Mapping[str, _RecordedStep]


def _sha256(commit: Mapping[str, Any]) -> str:
    """The digest of a commit's fields but this one."""
    return hashlib.sha256(storage.to_json({k: v for k, v in commit.items() if k != "sha256"})).hexdigest()


_OWN_LINE = re.compile(rb'^ "sha256": "[0-9a-f]*",\n', re.M)


def _sha256_of_rest(data: bytes) -> str:
    """``_sha256`` of a commit as it was written, from the bytes alone: the line of the digest left out."""
    return hashlib.sha256(_OWN_LINE.sub(b"", data, count=1)).hexdigest()


def read_commit(data: bytes, stage: str, key: str) -> Commit:
    """The COMMIT.json of a stage and key. Raises ValueError saying what is wrong with it."""
    value = read_object(data)
    if value.get("schema") != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    commit = typed_json(Commit, data)
    typed_json(_OfMeta, data)
    if "sha256" in value and commit.sha256 != _sha256_of_rest(data) and commit.sha256 != _sha256(value):
        raise ValueError("it was changed after it was committed")
    if not _NAME.fullmatch(commit.attempt):
        raise ValueError(f"its attempt {commit.attempt!r} is no name")
    if (commit.stage, commit.key) != (stage, key):
        raise ValueError(f"it belongs to {commit.stage} {commit.key[:12]}")
    return commit


def written(commit: Commit) -> tuple[Commit, bytes]:
    """(the commit with its digest, its COMMIT.json)."""
    value = json.loads(storage.to_json({"schema": SCHEMA, **asdict(commit)}))  # as it will be read
    sha256 = _sha256(value)
    return replace(commit, sha256=sha256), storage.to_json({**value, "sha256": sha256})


def read_study(data: bytes) -> dict[str, Any]:
    """A studies/<name>.json. Raises ValueError saying what is wrong with it."""
    value = read_object(data)
    for step, said in typed(_StudyRecord, value).steps.items():
        if not (_NAME.fullmatch(said.stage) and KEY.fullmatch(said.key)):
            raise ValueError(f"steps.{step}: its stage or its key is none")
    return value
