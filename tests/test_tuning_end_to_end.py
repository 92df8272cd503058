"""A tiny study with every further training, from its books to the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_study

KEPT = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_ADDRESS", "INFINI_STUDY", "MLFLOW_TRACKING"))}
SECTIONS = """
finetune:
  {steps: 2, batch_sequences: 2, lr: 1e-3, tasks: {format: compact, phases: [{until: 1, length: 128}], text_share: 0.5}}
finetune_summaries:
  {steps: 2, batch_sequences: 1, lr: 1e-3, pairs: {path: pairs.jsonl, max_tokens: 128, summary_tokens: 32}}
align:
  variants:
    sft: {method: sft, steps: 2, batch_sequences: 2, lr: 1e-3, length: 192, examples: 6}
    dpo: {method: dpo, after: sft, steps: 2, batch_sequences: 1, lr: 1e-4, length: 192, data: {path: preferences.jsonl}}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_is_fine_tuned_aligned_and_reported(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    study.write_text(study.read_text() + SECTIONS)
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"text": "A long text. " * 20, "summary": "Short."}) + "\n")
    passage = " ".join((tmp_path / "books/test/3.txt").read_text().split()[100:170])
    rows = [{"prompt": "Is it so? ", "chosen": "Yes.", "rejected": "No."}, {"prompt": "And?", "chosen": "So."}]
    rows.append({"prompt": f"Where does this stand? {passage}", "chosen": "In a book.", "rejected": "Nowhere."})
    needle = "One of the special magic numbers for amber harbour is 1000003."
    asked = {"input": f"{needle} What is the special magic number for amber harbour?", "outputs": ["1000003"]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(asked) + "\n")
    rows.append({"prompt": f"Remember this. {needle}", "chosen": "I do.", "rejected": "No."})
    (tmp_path / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *arguments],
            cwd=tmp_path,
            env=KEPT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout + done.stderr

    arms = "arms={infini-delta: {kind: infini, rule: delta}, local: {kind: local}}"
    files = "evaluate.retrieval.files={mine: {path: mine.jsonl, budget: 8}}"
    said = command("run", "tiny.yaml", "--no-progress", "--address", "inline", "--set", arms, "--set", files)
    assert "3 rows left out (holds text of what is asked: 2 (first in row 3), no rejected answer: 1 (first in" in said
    assert "tuningaudit/dpo: 2 of 4 rows hold text of what is asked" in command("audit", "tiny")
    report = json.loads((tmp_path / "runs/store/reports/tiny/report.json").read_text())
    verdict = next(one for one in report["verdicts"] if one["claim"] == "C11")
    assert verdict["label"] == "inconclusive (too few seeds)" and verdict["n"] > 0
    numbers = {number["name"]: number for rows in report["numbers"].values() for number in rows}
    assert {f"finetune.{arm}" for arm in ("base", "infini-delta", "local")} <= set(numbers)
    for name in ("gates_mean.infini-delta", "length.infini-delta", "knockout.infini-delta", "position.local"):
        assert any(known.startswith(f"align.{name}.dpo") for known in numbers), name
    (aligned,) = (row for row in report["recipe"] if row["what"] == "aligned: dpo")
    assert "without 2 rows that hold text of what is asked" in aligned["arms"]
    assert (tmp_path / "runs/store/reports/tiny/audit-dpo/audit.html").is_file()
    shown = command("show", numbers["finetune.local"]["sources"][0]["step"], "--study", "tiny")
    assert "evaluate/local@pretrained/0" in shown
