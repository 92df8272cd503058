"""What the fault tests compare with: undisturbed runs of the toy study and of the tiny one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.store import Store
from pipeline.study.yamlfile import parse
from tests.faults import Faults
from tests.faults.drivers import contents, driver, result
from tests.tiny import write_study


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    return Faults(tmp_path / "faults")


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of an undisturbed run of the toy study."""
    folder = tmp_path_factory.mktemp("expected")
    done = result(driver(folder / "root", Faults(folder / "faults")))
    assert done["exit"] == 0
    digests: dict[str, str] = done["digests"]
    return digests


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study's file, its books beside it; of its arms one that has a memory and one that has none."""
    path = write_study(tmp_path_factory.mktemp("tiny"))
    study: dict[str, Any] = parse(path.read_text(), path.name)
    study["arms"] = {name: study["arms"][name] for name in ("infini-delta", "local")}
    path.write_text(json.dumps(study))
    return path


@pytest.fixture(scope="session")
def clean(tiny: Path) -> Path:
    """The local store of an undisturbed run of the tiny study."""
    root = tiny.parent / "clean"
    done = result(driver(root, Faults(tiny.parent / "faults"), f"study={tiny}"), timeout=500)
    assert done["exit"] == 0, done["errors"][-4000:]
    return root


@pytest.fixture(scope="session")
def promised(clean: Path) -> dict[str, str]:
    """What every run of the tiny study must come to, by step."""
    return contents(Store(clean))
