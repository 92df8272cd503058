"""The C library's allocator, for programs that allocate the same large tensors step after step."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST = 2**25  # glibc takes no larger one; blocks above it go back to the system as before


def keep_freed_memory(at_most: int = 2**30) -> bool:
    """Have the process keep up to ``at_most`` bytes of what it frees in blocks of up to 32 MiB, so that the next step
    finds its pages in place; False where there is no such setting (it is glibc's).

    By default glibc gives large blocks back to the system, and the system clears every page anew.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, at_most))
