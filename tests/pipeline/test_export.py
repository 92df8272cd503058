"""``infini-study export``: a model of the store as a folder that transformers opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from model.checkpoint import save
from model.decoder import Decoder
from pipeline.engine.store import Attempt, Store
from stages.stage import Summary
from tests.model.tiny import config
from tests.pipeline.called import caller

BASE, ARM, TOKENIZER = "a" * 64, "b" * 64, "c" * 64


def write_tokenizer(folder: Path) -> None:
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.add_special_tokens(["<pad>", "<eos>"])
    words.save(str(folder / "tokenizer.json"))
    meta = {"kind": "file", "vocab_size": words.get_vocab_size(), "eos_id": 3, "pad_id": 2}
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command on a store with a base, an arm and their tokenizer; (exit code, stdout, stderr)."""
    store = Store(tmp_path / "store", tmp_path / "cache")

    def commit(stage: str, step: str, key: str, write: Any) -> None:
        attempt: Attempt = store.attempt(stage, key)
        write(attempt.directory)
        store.commit(stage, key, store.seal(attempt), Summary(step), {"step": step, "inputs": {"tokenizer": TOKENIZER}})

    commit("tokenizer", "tokenizer", TOKENIZER, write_tokenizer)
    for step, key, arm in (("base", BASE, "full"), ("pretrain/infini-delta/0", ARM, "infini-delta")):
        model = Decoder(config(arm), seed=0)
        commit(step.split("/")[0], step, key, lambda folder, model=model: save(model, folder / "model"))
    return caller(tmp_path, monkeypatch, capsys.readouterr, before="export", behind="--root store")


def test_a_step_or_a_key_is_written_with_its_tokenizer_and_code(export: Any, tmp_path: Path) -> None:
    code, out, _ = export("pretrain/infini-delta/0", "arm")
    assert code == 0 and "AutoModelForCausalLM.from_pretrained('arm', trust_remote_code=True)" in out
    fields = json.loads((tmp_path / "arm" / "config.json").read_text())
    assert (fields["eos_token_id"], fields["pad_token_id"]) == (3, 2)
    names = json.loads((tmp_path / "arm" / "tokenizer_config.json").read_text())
    assert (names["eos_token"], names["pad_token"]) == ("<eos>", "<pad>")
    assert (tmp_path / "arm" / "tokenizer.json").is_file()
    assert (tmp_path / "arm" / "modeling_infini_study.py").is_file()

    code, out, _ = export(BASE[:12], "base", "--dtype", "bfloat16", "--json")
    assert code == 0 and json.loads(out)["step"] == "base"
    assert sorted(json.loads(out)["files"]) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((tmp_path / "base" / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tokenizer", "new"], "KEY = 'tokenizer': tokenizer holds no model"),
        (["pretrain/local/0", "new"], "pretrain/local/0"),
        (["base", "store"], "DIR = 'store': is there already"),
        (["base", "new", "--dtype", "int8"], "--dtype = 'int8': allowed are float32, bfloat16, float16"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_nothing_is_written(
    export: Any, tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, out, err = export(*arguments)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and message in err
    assert not (tmp_path / "new").exists()
