"""Version and commit recorded with an artifact are the code's own, never those of a repository or package around it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from pipeline.engine.origin import COMMIT, git_commit, version


def repository(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True)
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_source_tree_that_is_the_repository_names_its_commit(tmp_path: Path):
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "infini-study"\n')
    commit = repository(tmp_path)
    assert git_commit(tmp_path) == commit
    project.write_text('[project]\nname = "infini-study"\nversion = "7.1"\n')
    assert git_commit(tmp_path) == f"{commit}-dirty"
    assert version(tmp_path) == "7.1"  # not that of an infini-study installed in the environment


def test_a_repository_around_the_code_is_not_asked(tmp_path: Path):
    repository(tmp_path)
    installed, copied = tmp_path / ".venv" / "site-packages", tmp_path / "copied"
    for folder in (installed, copied):
        folder.mkdir(parents=True)
    (copied / "pyproject.toml").write_text('[project]\nname = "infini-study"\n')
    assert git_commit(installed) is None and git_commit(copied) is None
    record = installed / "infini_study-1.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: infini-study\nVersion: 1\n")
    assert (version(installed), git_commit(installed)) == ("1", None)
    (installed / COMMIT).parent.mkdir(parents=True)
    (installed / COMMIT).write_text("b" * 40 + "\n")
    assert git_commit(installed) == "b" * 40  # said by the wheel
    origin = {"url": "https://host/x", "vcs_info": {"vcs": "git", "commit_id": "a" * 40}}
    (record / "direct_url.json").write_text(json.dumps(origin))
    assert git_commit(installed) == "a" * 40
