"""Parts of a step's work that were left behind: taken over while they are what was written, made again otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stages.data.saved import saved
from tests.faults.damage import DAMAGES


def made(item: int, folder: Path) -> dict[int, int]:
    (folder / "numbers").write_bytes(bytes(range(item)))
    return {2: item, 10: item}


def identity(item: int) -> str:
    return f"{item:064x}"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("file", ["*.json", "*/numbers"])
def test_a_part_that_was_damaged_is_made_again(damage: Callable[[Path], None], file: str, tmp_path: Path) -> None:
    def part() -> tuple[bool, bytes, object]:
        found = saved(100, made, identity, str(tmp_path))
        with found.on_disk("numbers") as path:
            return found.resumed, path.read_bytes(), found.value

    whole = bytes(range(100))
    assert part()[:2] == (False, whole)
    assert part() == (True, whole, {"2": 100, "10": 100})
    damage(next(tmp_path.glob(file)))
    assert part()[:2] == (False, whole)
    assert part()[:2] == (True, whole)
