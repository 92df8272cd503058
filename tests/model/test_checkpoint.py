"""Checkpoints: round trips, Hugging Face in both directions, one trunk under every arm, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import graft, import_hf, load, save
from model.config import MixerConfig, ModelConfig
from model.decoder import Decoder
from tests.model.tiny import ARMS, VOCAB, N, config, tokens


def llama(tie: bool, **changes: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    fields = dict(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rope_theta=500.0,
        tie_word_embeddings=tie,
    )
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields | changes)).eval()


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("shards", ["5GB", "20KB"])
def test_imported_llama_with_closed_gate_equals_transformers(tmp_path: Path, tie: bool, shards: str) -> None:
    theirs, ids = llama(tie), tokens(2, 24)
    theirs.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (shards == "20KB")
    with torch.no_grad():
        expected = theirs(ids).logits
        full = graft(tmp_path, MixerConfig(kind="full", segment_length=N), seed=0)
        torch.testing.assert_close(full(ids)[0], expected, rtol=0, atol=1e-5)
        infini = graft(tmp_path, MixerConfig(kind="infini", segment_length=24), seed=0)
        torch.testing.assert_close(infini(ids, None, "gate_closed")[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tie", [True, False])
def test_transformers_opens_what_save_wrote(tmp_path: Path, tie: bool) -> None:
    transformers = pytest.importorskip("transformers")
    model = Decoder(config("full", trunk={"tie_embeddings": tie, "head_dim": 8, "rope_theta": 300.0}), seed=0)
    save(model, tmp_path)
    theirs, ids = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval(), tokens(2, 24)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("arm", ARMS)
def test_save_and_load_give_the_same_model_and_the_same_bytes(tmp_path: Path, arm: str) -> None:
    model, ids = Decoder(config(arm, gate_init=-1.0), seed=0), tokens()
    save(model, tmp_path / "a")
    again = load(tmp_path / "a")
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again(ids)[0], model(ids)[0])
    save(again, tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_every_arm_gets_the_same_trunk_and_fresh_gates(tmp_path: Path) -> None:
    base = Decoder(config("full"), seed=3)
    save(base, tmp_path / "base")
    for name in ARMS:
        mixer = config(name, gate_init=0.5).mixer
        arm = graft(tmp_path / "base", mixer, seed=1)
        assert arm.config == ModelConfig(trunk=base.config.trunk, mixer=mixer, vocab_size=VOCAB)
        for key, tensor in base.state_dict().items():
            assert torch.equal(arm.state_dict()[key], tensor), key
        assert all(torch.equal(beta, torch.full((4,), 0.5)) for beta in arm.gate_parameters())
    with torch.no_grad():
        arm = graft(tmp_path / "base", MixerConfig(kind="infini", segment_length=N), seed=1)
        arm.gate_parameters()[0].fill_(9)
    save(arm, tmp_path / "arm")
    regrafted = graft(tmp_path / "arm", arm.config.mixer, seed=1)  # gates are the arm's own, not the trunk's
    assert regrafted.gates().unique().tolist() == [0.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, r"model_type = 'qwen2' \(allowed: 'llama', 'mistral'\)"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}},
            r"rope_scaling.rope_type = 'yarn' \(allowed: 'default'\)",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 8.0}}, "rope_scaling.rope_type = 'linear'"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_scaling.rope_type = 'dynamic'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"sliding_window": 4096}, "sliding_window = 4096"),
        ({"hidden_size": None}, "hidden_size = None"),
        ({"num_hidden_layers": 3}, "missing .*layers.2"),
        ({"num_hidden_layers": 1}, "not known here .*layers.1"),
    ],
)
def test_what_would_be_computed_differently_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save(Decoder(config("full"), seed=0), tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text()) | changes
    del fields["infini_study"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=message):
        graft(tmp_path, MixerConfig(kind="full", segment_length=N), seed=0)


def test_a_shape_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    save(Decoder(config("full"), seed=0), tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    del fields["infini_study"]
    (tmp_path / "config.json").write_text(json.dumps(fields | {"intermediate_size": 40}))
    with pytest.raises(ValueError, match=r"layers.0.mlp.gate_proj.weight is 64 x 16.*40 x 16"):
        graft(tmp_path, MixerConfig(kind="full", segment_length=N), seed=0)


def test_missing_files_and_foreign_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        load(tmp_path)
    save(Decoder(config("full"), seed=0), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors: no such file"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="graft"):
        load(tmp_path)


def test_import_hf_reads_shape_from_the_config(tmp_path: Path) -> None:
    llama(tie=False, rms_norm_eps=1e-6).save_pretrained(tmp_path)
    tensors, trunk, vocab_size = import_hf(tmp_path)
    assert (trunk.dim, trunk.layers, trunk.n_kv_heads, trunk.d_ffn, vocab_size) == (32, 2, 2, 48, VOCAB)
    assert (trunk.rope_theta, trunk.norm_eps, trunk.tie_embeddings) == (500.0, 1e-6, False)
    assert tensors["lm_head.weight"].shape == (VOCAB, 32)
    assert "layers.1.self_attn.k_proj.weight" in tensors
