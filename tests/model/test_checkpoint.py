"""Checkpoints: round trips, Hugging Face in both directions, one trunk under every arm, clear refusals."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import graft, import_hf, load, save
from model.config import MixerConfig, ModelConfig
from model.decoder import Decoder
from tests.model.tiny import ARMS, VOCAB, N, config, tokens

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
SCALINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "linear": {"rope_scaling": {"type": "linear", "factor": 3.0}},  # as transformers 4 spells it
    "llama3": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 300.0, **LLAMA3}},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 300.0, "factor": 4.0}},  # from max_position_...
}


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
        initializer_range=0.15,  # attention far from uniform
        eos_token_id=[3, 4],
    )
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields | deepcopy(changes))).eval()


def same_tensors(a: Any, b: Any) -> None:
    a, b = a.state_dict(), b.state_dict()
    assert set(a) == set(b)
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype and torch.equal(tensor, b[name]), name


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_imported_llama_with_closed_memory_equals_transformers(
    tmp_path: Path, tie: bool, kv_heads: int, scaling: str
) -> None:
    theirs, ids = llama(tie, num_key_value_heads=kv_heads, **SCALINGS[scaling]), tokens(2, 24)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(ids).logits
        full = graft(tmp_path, MixerConfig(kind="full", segment_length=N), seed=0)
        torch.testing.assert_close(full(ids)[0], expected, rtol=0, atol=1e-5)
        infini = graft(tmp_path, MixerConfig(kind="infini", segment_length=24), seed=0)
        torch.testing.assert_close(infini(ids, None, "gate_closed")[0], expected, rtol=0, atol=1e-5)
        local = graft(tmp_path, MixerConfig(kind="local", segment_length=32), seed=0)
        torch.testing.assert_close(local(ids)[0], expected, rtol=0, atol=1e-5)
        if scaling != "none":  # else nothing was tested
            assert full.config.trunk.rope_scaling is not None
            plain = Decoder(replace(full.config, trunk=replace(full.config.trunk, rope_scaling=None)), seed=0)
            plain.load_state_dict(full.state_dict())
            assert (plain(ids)[0] - expected).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("tie", "shards"), [(True, None), (False, 20_000)])
def test_a_llama_imported_and_saved_again_is_the_same_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype, scaling: str, tie: bool, shards: int | None
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = llama(tie, **SCALINGS[scaling]).to(dtype)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="5GB" if shards is None else "20KB")
    ours = graft(tmp_path / "theirs", MixerConfig(kind="full", segment_length=N), seed=0, dtype=None)
    save(ours, tmp_path / "ours", like=tmp_path / "theirs", shard_bytes=shards)
    for folder in ("theirs", "ours"):
        assert (tmp_path / folder / "model.safetensors.index.json").is_file() == (shards is not None)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert type(again) is type(theirs)
    same_tensors(again, theirs)
    same_tensors(load(tmp_path / "ours"), ours)
    meaning = {**theirs.config.to_dict(), "_name_or_path": "", "infini_study": ours.config.to_dict()}
    meaning["rope_parameters"].pop("type", None)  # the older name of rope_type, left beside it
    assert {**again.config.to_dict(), "_name_or_path": ""} == meaning


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_spelling_of_transformers_4_means_the_same(tmp_path: Path, scaling: str) -> None:
    llama(True, **SCALINGS[scaling]).save_pretrained(tmp_path)
    _, trunk, size = import_hf(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    rope, dtype = fields.pop("rope_parameters"), fields.pop("dtype")
    fields |= {"rope_theta": rope.pop("rope_theta"), "torch_dtype": dtype}
    rope["type"] = rope.pop("rope_type")
    fields["rope_scaling"] = None if scaling == "none" else rope
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert import_hf(tmp_path)[1:] == (trunk, size)


@pytest.mark.parametrize("arm", ARMS)
def test_rounding_to_bfloat16_leaves_the_gates_alone(tmp_path: Path, arm: str) -> None:
    model = Decoder(config(arm, gate_init=0.123), seed=0).eval()
    save(model, tmp_path / "rounded", dtype=torch.bfloat16)
    save(Decoder(config("full"), seed=0), tmp_path / "base", dtype=torch.bfloat16)
    for again in (load(tmp_path / "rounded"), graft(tmp_path / "base", model.config.mixer, seed=0, dtype=None)):
        gates = {id(beta) for beta in again.gate_parameters()}
        for (name, mine), theirs in zip(again.named_parameters(), model.parameters(), strict=True):
            assert mine.dtype == (torch.float32 if id(mine) in gates else torch.bfloat16), name
            if id(mine) in gates:
                assert torch.equal(mine, theirs)
        with torch.no_grad():  # and it runs as it is
            assert again.eval()(tokens())[0].dtype == torch.bfloat16
    assert torch.equal(load(tmp_path / "rounded").embed_tokens.weight, model.embed_tokens.weight.bfloat16())


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
        ({"model_type": "gemma2"}, r"model_type = 'gemma2' \(allowed: 'llama', 'mistral', 'qwen2', "),
        (
            {"rope_scaling": {"rope_type": "proportional", "factor": 8.0}},
            r"rope_scaling.rope_type = 'proportional' \(allowed: 'default', 'linear', 'llama3', 'yarn', 'dynamic', ",
        ),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_parameters.factor is missing"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "gain": 1.0}}, "rope_scaling.gain is not known"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "config.json: rope_scaling.factor = 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor = 0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}"),
        ({"attention_bias": True}, r"missing \['layers.0.self_attn.q_proj.bias'"),
        ({"mlp_bias": True}, "mlp_bias = True"),
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


def test_an_own_head_in_a_tied_checkpoint_is_refused(tmp_path: Path) -> None:
    llama(tie=False).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"tie_word_embeddings": True}))
    with pytest.raises(ValueError, match=r"tie_word_embeddings = True, but lm_head\.weight differs"):
        import_hf(tmp_path)


def test_keeping_the_dtype_needs_one(tmp_path: Path) -> None:
    theirs = llama(tie=True)
    theirs.model.norm.bfloat16()
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"dtype = None, but the tensors' differ: .*norm\.weight is bfloat16"):
        import_hf(tmp_path, None)
    assert {tensor.dtype for tensor in import_hf(tmp_path)[0].values()} == {torch.float32}


def test_a_lost_gate_is_told_not_drawn_anew(tmp_path: Path) -> None:
    save(Decoder(config("infini-linear"), seed=0), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.self_attn.beta"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing \['layers\.1\.self_attn\.beta'\]"):
        load(tmp_path)


def test_shards_are_found_again_and_do_not_outlive_a_save_in_one_file(tmp_path: Path) -> None:
    first, second = (Decoder(config("infini-linear"), seed=seed) for seed in (0, 1))
    save(first, tmp_path, shard_bytes=3000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    same_tensors(load(tmp_path), first)
    save(second, tmp_path)
    same_tensors(load(tmp_path), second)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"index\.json: not an index of safetensors"):
        load(tmp_path)


def test_only_full_attention_says_it_is_a_llama(tmp_path: Path) -> None:
    for arm in ARMS:
        save(Decoder(config(arm), seed=0), tmp_path / arm)
        fields = json.loads((tmp_path / arm / "config.json").read_text())
        assert fields["model_type"] == ("llama" if arm == "full" else "infini_study")


@pytest.mark.parametrize("arm", ["local", "window", "xl"])
def test_arms_without_parameters_of_their_own_open_as_a_llama_by_name(tmp_path: Path, arm: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = Decoder(config(arm, segment_length=24), seed=0)
    save(model, tmp_path)
    theirs, ids = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval(), tokens(2, 24)
    with torch.no_grad():  # within one segment they are the vanilla decoder
        torch.testing.assert_close(theirs(ids).logits, model(ids)[0], rtol=0, atol=1e-5)
