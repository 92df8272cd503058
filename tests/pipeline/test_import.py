"""``infini-study import``: checkpoints that are no safetensors, as folders that a study starts from."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import graft
from model.config import MixerConfig, TrunkConfig
from stages.training.pretrain.config import BaseConfig
from stages.training.pretrain.imported import check_folder
from tests.model.test_families import theirs
from tests.model.tiny import VOCAB, tokens
from tests.pipeline.called import caller


@pytest.fixture
def convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command in ``tmp_path``."""
    return caller(tmp_path, monkeypatch, capsys.readouterr, before="import")


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A tiny Qwen 2 as people still have them: .bin, a tokenizer, a second stop token in generation_config alone."""
    model = theirs("qwen2")
    folder = tmp_path / "pickled"
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"eos_token_id": 3}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 2]}))
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.add_special_tokens(["<turn>", "<eos>"])
    words.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def test_pickled_weights_become_a_base_that_a_study_takes_as_it_is_printed(
    convert: Any, pickled: Path, tmp_path: Path
) -> None:
    code, out, err = convert("pickled", "base", "--json")
    assert code == 0, err
    said = json.loads(out)
    sections = said["study"]
    assert said["stop_tokens"] == ["<eos>", "<turn>"]
    assert sections["tokenizer"] == {"kind": "file", "path": "base/tokenizer.json", "eos_token": "<eos>"}
    assert (tmp_path / "base" / "tokenizer.json").is_file()
    check_folder(BaseConfig(**sections["base"], trunk=TrunkConfig(**sections["trunk"])), VOCAB)
    assert json.loads((tmp_path / "base" / "config.json").read_text())["eos_token_id"] == [3, 2]
    with torch.no_grad():
        expected = theirs("qwen2")(tokens()).logits
        found, _ = graft("base", MixerConfig(kind="full", segment_length=1), seed=0)(tokens())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    code, out, _ = convert("pickled", "again")  # the same bytes, so the same revision
    assert code == 0 and sections["base"]["revision"] in out and "attention_bias" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none", "new"), "SOURCE = 'none': no such checkpoint"),
        (("pickled", "pickled"), "DIR = 'pickled': is there already"),
        (("empty", "new"), "SOURCE = 'empty'.*transformers cannot read it"),
        (("several", "new"), "SOURCE = 'several': holds several.*a.gguf, b.gguf"),
        (("gpt2", "new"), "model_type = 'gpt2'.*allowed: 'llama'"),
        (
            ("part", "new"),
            r"transformers cannot read it: 1 of the weights are not in its files, such as model\.norm\.weight",
        ),
    ],
)
def test_what_cannot_be_imported_is_one_line_and_nothing_is_written(
    convert: Any, pickled: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    for name in ("empty", "several", "gpt2"):
        (tmp_path / name).mkdir()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "several" / name).touch()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    shutil.copytree(pickled, tmp_path / "part")
    weights = torch.load(tmp_path / "part" / "pytorch_model.bin")
    torch.save({k: v for k, v in weights.items() if k != "model.norm.weight"}, tmp_path / "part" / "pytorch_model.bin")
    code, out, err = convert(*arguments)
    assert code == 2 and out == ""
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err
    assert not (tmp_path / "new").exists()
