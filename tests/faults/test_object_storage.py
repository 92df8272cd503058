"""A real S3 server behind a network that fails: races have one winner, files travel whole, studies end the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import storage
from pipeline.engine.store import Store
from tests import seaweed
from tests.faults import Faults
from tests.faults.drivers import REPOSITORY, contents, driver, result, sound
from tests.faults.proxy import ALL, Proxy, Weather, proxying


@pytest.fixture
def proxy(s3_server: str, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The network before the server, still sound; this process and those it starts use it."""
    import s3fs

    with proxying(s3_server, Weather(seed=7, slow=0.2)) as proxy:
        for name, value in seaweed.environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("INFINI_STUDY_CACHE", str(tmp_path / "cache"))
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


RACER = """
import sys
from cluster import storage
fs, path = storage.filesystem(sys.argv[1])
for number in range(int(sys.argv[3])):
    for retry in storage.retrying():
        with retry:
            won = storage.create_exclusive(fs, f"{path}/{number}.json", f"{sys.argv[2]} {number}".encode())
    print(int(won))
"""


def test_of_processes_that_race_for_keys_over_a_failing_network_one_wins_each(proxy: Proxy, s3_root: str):
    """Also one whose conditional create was done and its answer lost: it finds its own data there."""
    proxy.weather.share = 0.2
    command = [sys.executable, "-c", RACER, f"{s3_root}/race"]
    racers = [
        subprocess.Popen([*command, str(name), "12"], stdout=subprocess.PIPE, cwd=REPOSITORY, text=True)
        for name in range(4)
    ]
    told = [[int(word) for word in racer.communicate(timeout=120)[0].split()] for racer in racers]
    assert all(racer.returncode == 0 for racer in racers), "losing is no error, nor is a fault of the network"
    fs, path = storage.filesystem(f"{s3_root}/race")
    for number in range(12):
        winners = [name for name in range(4) if told[name][number]]
        assert len(winners) == 1
        assert storage.read_bytes(fs, f"{path}/{number}.json") == f"{winners[0]} {number}".encode()
    assert sum(proxy.injected.values()) > 20 and proxy.injected["lost answer"]


def test_the_toy_study_over_a_failing_network_ends_with_the_same_files(
    proxy: Proxy, s3_root: str, faults: Faults, expected: dict[str, str]
):
    proxy.weather.share = 0.1
    done = [result(one) for one in [driver(s3_root, faults) for _ in range(2)]]
    assert [(one["exit"], one["digests"]) for one in done] == [(0, expected)] * 2, done[0]["errors"]
    made = [step for one in done for step, state in one["states"].items() if state == "done"]
    assert sorted(made) == sorted(expected), "each step was computed by one of the two drivers"
    proxy.weather.share = 0.0
    assert sound(Store(s3_root)) == expected


def test_a_network_that_is_gone_for_good_is_said_before_any_work(proxy: Proxy, s3_root: str, faults: Faults):
    proxy.weather.share, proxy.weather.kinds = 1.0, ("reset",)
    failed = driver(s3_root, faults, env={"AWS_MAX_ATTEMPTS": "1"})
    _, errors = failed.communicate(timeout=120)
    assert failed.returncode and f"root = '{s3_root}': storage cannot be" in errors
    assert faults.visits("make", "start") == 0


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_large_files_travel_in_parts_and_come_back_whole(proxy: Proxy, s3_root: str, tmp_path: Path, share: float):
    size = 5 * storage.PART + 4321
    (tmp_path / "tree").mkdir()
    block = os.urandom(1 << 20)
    with (tmp_path / "tree" / "large.bin").open("wb") as file:
        for number in range(size // len(block)):
            file.write(number.to_bytes(8, "little") + block[8:])
        file.write(block[: size % len(block)])
    fs, path = storage.filesystem(f"{s3_root}/large")
    proxy.weather.share = share
    storage.put_tree(fs, path, tmp_path / "tree")
    assert proxy.requests["POST"] >= 2, "a multipart upload was begun and completed"
    storage.get_tree(fs, path, tmp_path / "back")
    assert (tmp_path / "back" / "large.bin").read_bytes() == (tmp_path / "tree" / "large.bin").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_study_on_ray_killed_twice_and_resumed_over_a_failing_network(
    proxy: Proxy, s3_root: str, tiny: Path, faults: Faults, promised: dict[str, str]
):
    """5% of the requests fail; the driver is killed in training and again in an evaluation; then two finish at once."""
    proxy.weather.share = 0.05
    proxy.weather.kinds = tuple(kind for kind in ALL if kind != "slow")
    fs, base = storage.filesystem(s3_root)
    for stage in ("pretrain", "evaluate"):
        running = driver(s3_root, faults, f"study={tiny}", address="local")
        end = time.monotonic() + 300
        while running.poll() is None and time.monotonic() < end:
            with ThreadPoolExecutor(1) as alone:
                begun = alone.submit(lambda stage=stage: fs.exists(f"{base}/{stage}") and fs.ls(f"{base}/{stage}"))
                if begun.result():
                    break
            time.sleep(0.5)
        assert running.poll() is None, running.communicate()[1][-4000:]
        running.send_signal(signal.SIGKILL)
        running.communicate()
    both = [driver(s3_root, faults, f"study={tiny}", address="local") for _ in range(2)]
    done = [result(one, timeout=500) for one in both]
    assert [one["exit"] for one in done] == [0, 0], done[0]["errors"][-3000:] + done[1]["errors"][-3000:]
    proxy.weather.share = 0.0
    assert contents(Store(s3_root)) == promised
    print(f"requests {dict(proxy.requests)}, injected {dict(proxy.injected)}")
