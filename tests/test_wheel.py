"""What is installed: the command works from a folder whose files have our packages' names, and brings study files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.engine.store import Store
from tests.pipeline.test_origin import repository
from tests.support import executed
from tests.tiny import write_study

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("cluster", "model", "pipeline", "stages")
FILES = (".gitignore", "LICENSE", "README.md", "infini_study.py", "pyproject.toml", "setup.py")
ENVIRONMENT = {
    k: v
    for k, v in os.environ.items()
    if not k.startswith(("RAY_ADDRESS", "INFINI_STUDY", "MLFLOW_TRACKING", "PYTHON"))
}


@dataclass(frozen=True)
class Installed:
    """An environment of its own with the wheel, built from a checkout whose commit is ``commit``."""

    wheel: Path
    python: Path
    commit: str

    def __call__(
        self, folder: Path, *arguments: str, path: str | None = None, module: bool = False, timeout: float = 250
    ) -> subprocess.CompletedProcess[str]:
        """The command, run in ``folder``; ``path``: PYTHONPATH; ``module``: as ``python -m infini_study``."""
        command = [str(self.python), "-m", "infini_study"] if module else [str(self.python.with_name("infini-study"))]
        cache = {"XDG_CACHE_HOME": str(folder / "cache")}
        environment = ENVIRONMENT | cache | ({} if path is None else {"PYTHONPATH": path})
        return executed([*command, *arguments], folder, environment, timeout)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Its dependencies are those of this environment, on its search path after its own packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source, environment = folder / "source", folder / "environment"
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "runs").mkdir()
    for path in (*(REPOSITORY / name for name in FILES), *(REPOSITORY / "runs").glob("*.*")):
        shutil.copy(path, source / path.relative_to(REPOSITORY))
    commit = repository(source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([*pip, "--python", str(python), "install", *offline, str(wheel)], check=True, env=ENVIRONMENT)
    return Installed(wheel, python, commit)


def hostile(folder: Path) -> Path:
    """A folder with what has our packages' names: two modules, two packages. Whoever imports one ends."""
    for number, name in enumerate(PACKAGES):
        path = folder / f"{name}.py" if number % 2 else folder / name / "__init__.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"raise SystemExit('hostile {name} imported')\n")
    return folder


def test_the_wheel_holds_the_four_packages_the_command_and_each_study_file_once(installed: Installed) -> None:
    names = [name for name in zipfile.ZipFile(installed.wheel).namelist() if ".dist-info/" not in name]
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, "infini_study.py"}
    assert {f"{name}/py.typed" for name in PACKAGES} <= set(names)
    studies = [name for name in names if name.startswith("pipeline/runs/") and name.endswith(".yaml")]
    assert sorted(studies) == [f"pipeline/runs/{path.name}" for path in sorted((REPOSITORY / "runs").glob("*.yaml"))]
    sources = {
        str(path.relative_to(REPOSITORY))
        for name in PACKAGES
        for path in (REPOSITORY / name).rglob("*")
        if path.suffix in (".py", ".html", ".csv", ".json") or path.parent.name == "deploy"
    }
    assert sources - set(names) == set()


@pytest.mark.parametrize("way", ["command", "module", "path"])
def test_the_command_starts_in_a_folder_whose_files_have_our_names(
    installed: Installed, tmp_path: Path, way: str
) -> None:
    folder = hostile(tmp_path)
    options = {"module": way == "module", "path": str(folder) if way == "path" else None}
    told = installed(folder, "--help", **options)
    assert told.returncode == 0 and "init" in told.stdout, told.stderr
    wrote = installed(folder, "init", **options)
    assert wrote.stdout.startswith("quickstart.yaml written"), wrote.stderr
    assert (folder / "quickstart.yaml").read_bytes() == (REPOSITORY / "runs/quickstart.yaml").read_bytes()
    write_study(folder)
    planned = installed(folder, "plan", "tiny.yaml", **options)
    assert planned.returncode == 0 and re.search(r"^tiny: \d+ to run$", planned.stdout, flags=re.M), planned.stderr


def test_the_version_is_the_packages(installed: Installed, tmp_path: Path) -> None:
    version = installed.wheel.name.split("-")[1]
    assert installed(tmp_path, "--version").stdout == f"infini-study {version}\n"


def test_a_module_of_our_name_that_is_imported_already_is_refused(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("")
    done = subprocess.run(
        [str(installed.python), "-c", "import model, infini_study; infini_study.main()"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*model\.py.* own package model .*Fix: .*\n", done.stderr)


@pytest.mark.slow
def test_a_study_runs_on_ray_in_a_folder_whose_files_have_our_names(installed: Installed, tmp_path: Path) -> None:
    """As Ray tasks and two workers of Ray Train: none imports the folder's. What is made names its code."""
    folder = hostile(tmp_path)
    study = write_study(folder)
    text = study.read_text()
    arms = text[text.index("arms:\n") : text.index("pretrain:")]
    text = text.replace(arms, "arms:\n  local: {kind: local}\n  infini-delta: {kind: infini, rule: delta}\n")
    study.write_text(re.sub(r"(?ms)^ablate:.*?(?=^summarize)", "", text))
    done = installed(folder, "run", "tiny.yaml", "--set", "execution.train_workers=2", "--no-progress")
    assert done.returncode == 0, done.stderr[-4000:]
    store = folder / "runs" / "store"
    report = (store / "reports/tiny/report.html").read_text()
    version = installed.wheel.name.split("-")[1]
    assert {(c.meta["version"], c.meta["git_commit"]) for c in Store(store).commits()} == {(version, installed.commit)}
    assert installed.commit in report and re.search(rf"version of infini-study</t[dh]>\s*<td>{version}<", report)
    assert not [path for path in store.rglob("*.log") if "hostile" in path.read_text()]
