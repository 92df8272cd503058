"""Memory that is freed stays with the process; in a process of its own, since the setting stays too."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from model.allocator import keep_freed_memory

STEPS = """
import resource, torch
from model.allocator import keep_freed_memory
assert keep_freed_memory()
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**22) for _ in range(8)]  # 16 MiB each
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first, *_, last = [step() for _ in range(12)]
print(first, last)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallopt"), reason="a setting of glibc"
)
def test_later_steps_find_their_pages_in_place() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    first, last = map(int, done.stdout.split())
    assert last < first / 10


def test_elsewhere_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
