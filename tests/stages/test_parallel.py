"""Work spread over processes that stay: results in order, each once, a lost process is no lost result."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from stages.data.parallel import Hands, spread
from stages.stage import StageError

STAYING = Hands(cpus=1.0, stay=True)


def worked(item: int, folder: str) -> tuple[int, int]:
    """Item 0 is the slowest; item 3 ends its process the first time it is tried; item 9 is refused."""
    if item == 0:
        time.sleep(0.5)
    if item == 3 and not Path(folder, "tried").exists():
        Path(folder, "tried").touch()
        os._exit(1)
    if item == 9:
        raise StageError("nine is refused", field="item", value=9)
    return item, os.getpid()


def test_those_who_stay_do_all_in_order_and_are_replaced_when_lost(ray_session: None, tmp_path: Path) -> None:
    waited: list[int] = []
    done = list(spread(worked, range(8), str(tmp_path), hands=STAYING, waiting=lambda: waited.append(1)))
    assert [item for item, _ in done] == list(range(8))
    assert len({process for _, process in done}) <= 3 and (tmp_path / "tried").exists()
    assert os.getpid() not in {process for _, process in done}
    assert list(spread(worked, [], str(tmp_path), hands=STAYING)) == []


def test_a_refusal_arrives_as_itself(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="nine is refused"):
        list(spread(worked, [8, 9], str(tmp_path), hands=STAYING))
