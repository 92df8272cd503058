"""The quickstart under two disjoint sets of seeds: no verdict moves between supported and refuted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[1] / "runs" / "quickstart.yaml"
ENVIRONMENT = {
    k: v for k, v in os.environ.items() if not k.startswith(("RAY_ADDRESS", "INFINI_STUDY", "MLFLOW_TRACKING"))
}


def verdicts(folder: Path, seeds: str) -> dict[str, str]:
    """Claim -> decision of the study under these seeds, run to its report."""
    store = ["--root", str(folder / "store"), "--set", f"seeds={seeds}"]
    for command in (["run", "--quiet"], ["report", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *command, str(STUDY), *store],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
    return {row["claim"]: row["decision"] for row in json.loads(done.stdout)["report"]["verdicts"]}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_claim_moves_between_supported_and_refuted(tmp_path):
    one, other = verdicts(tmp_path, "[0, 1, 2]"), verdicts(tmp_path, "[3, 4, 5]")
    assert one.keys() == other.keys()
    assert not {claim for claim in one if {one[claim], other[claim]} == {"supported", "refuted"}}, (one, other)
