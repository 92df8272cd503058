"""The house: which room may import which, no circles, and what may stand in the lowest rooms."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = tuple(
    (
        "pipeline.api pipeline.cli pipeline.tracking pipeline.study pipeline.engine pipeline.plugins pipeline.errors "
        "pipeline.interrupt stages.verdict stages.evidence stages.training stages.data stages.statistics "
        "stages.display stages.record stages.stage model cluster"
    ).split()
)
"""From the top down: a room may import from those below it."""


def modules() -> dict[str, Path]:
    found = {}
    for top in ("pipeline", "stages", "model", "cluster"):
        for path in (ROOT / top).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Modules of the house, and top packages of others, that the file imports: anywhere, for type checking too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


ARROWS = {
    name: {found for found in imports(path) if found in MODULES and found != name} for name, path in MODULES.items()
}


def room(module: str) -> str | None:
    return next((room for room in ROOMS if module == room or module.startswith(f"{room}.")), None)


def test_rooms_import_downwards_only() -> None:
    up = [
        f"{module} -> {other}"
        for module, others in ARROWS.items()
        for other in others
        if (here := room(module)) and (there := room(other)) and ROOMS.index(here) > ROOMS.index(there)
    ]
    assert up == []


@pytest.mark.parametrize(("one", "other"), [("pipeline.tracking", "pipeline.study"), ("model", "cluster")])
def test_rooms_beside_each_other_do_not_know_each_other(one: str, other: str) -> None:
    assert not [f"{a} -> {b}" for a, bs in ARROWS.items() for b in bs if {room(a), room(b)} == {one, other}]


def test_the_engine_knows_no_study_and_no_stage_but_the_contract() -> None:
    known = {b for a, bs in ARROWS.items() if room(a) == "pipeline.engine" for b in bs}
    assert {room(b) for b in known} <= {
        "pipeline.engine",
        "pipeline.plugins",
        "pipeline.errors",
        "pipeline.interrupt",
        "stages.stage",
        "cluster",
    }


def test_there_are_no_circles() -> None:
    """Not even of imports for type checking alone. Removes what imports nothing more, until nothing is left."""
    left = {module: set(others) for module, others in ARROWS.items()}
    while done := [module for module, others in left.items() if not others]:
        for module in done:
            del left[module]
        for others in left.values():
            others.difference_update(done)
    circle = {module for module in left if any(module in others for others in left.values())}
    assert circle == set()


def test_the_model_needs_torch_and_safetensors_only() -> None:
    allowed = {"torch", "safetensors", "numpy", "pydantic", "model", *sys.stdlib_module_names}
    outside = {
        (name, found)
        for name, path in MODULES.items()
        if name.startswith("model") and "huggingface" not in name
        for found in imports(path)
        if found.partition(".")[0] not in allowed
    }
    assert outside == set()


def test_the_command_claims_the_packages_before_it_imports_any() -> None:
    """What runs before the claim, and in every Ray worker, is the standard library alone."""
    tree = ast.parse((ROOT / "infini_study.py").read_text())
    at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in at_import if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in at_import if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)
    assert set(imports(ROOT / "infini_study.py")) & set(MODULES) == {"pipeline.cli.app"}


def test_a_name_of_a_class_means_one_thing() -> None:
    """Classes, and names of types that a module gives (the same type may be named in several)."""
    places: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, set()).add(name)
            elif isinstance(node, ast.Assign) and isinstance(one := node.targets[0], ast.Name) and is_type(one.id):
                places.setdefault(one.id, set()).add(ast.unparse(node.value))
    assert {name: sorted(found) for name, found in places.items() if len(found) > 1} == {}


def is_type(name: str) -> bool:
    return name[0].isupper() and not name.isupper()


def test_every_stage_package_has_its_config_and_its_stage() -> None:
    """``config.py`` is cheap to import: declarations; ``stage.py`` holds the class."""
    packages = {path.parent for path in (ROOT / "stages").rglob("stage.py") if path.parent != ROOT / "stages"}
    assert [str(p) for p in packages if not (p / "config.py").is_file()] == []
