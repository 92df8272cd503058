"""What pyproject.toml cannot say of the wheel: a package in another place beside those that are found, and the commit
the wheel is built from, which goes into it as pipeline/engine/commit.txt."""

import sys
from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
TOPS = ["pipeline*", "stages*", "model*", "cluster*"]
sys.path.insert(0, str(HERE))  # an isolated build does not see the packages

from pipeline.engine.origin import COMMIT, git_commit  # noqa: E402


class BuildWithCommit(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        commit, file = git_commit(HERE), Path(self.build_lib, COMMIT)
        file.unlink(missing_ok=True)  # an earlier build's
        if commit is not None:
            file.write_text(f"{commit}\n")


setup(
    packages=[*find_namespace_packages(include=TOPS, exclude=["runs*"]), "pipeline.runs"],
    cmdclass={"build_py": BuildWithCommit},
)
