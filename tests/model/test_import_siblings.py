"""Checkpoints next to those that are read: the same logits, or one line that names what is different."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import graft, import_hf
from model.config import MixerConfig
from tests.model.test_families import FAMILIES, theirs
from tests.model.tiny import tokens

BASES = ["qwen2", "qwen3", "olmo2", "smollm3", "biased", "mistral"]
"""One of ``FAMILIES`` a family."""
ROPE = {"rope_type": "default", "rope_theta": 77.0}
YARN = {"rope_type": "yarn", "rope_theta": 77.0, "factor": 4.0, "original_max_position_embeddings": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "wide heads": {"head_dim": 16},
    "as many key heads": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "theta in rope_parameters": {"rope_parameters": ROPE},
    "yarn": {"rope_parameters": YARN},
    "one layer": {"num_hidden_layers": 1},
    "norm_eps": {"rms_norm_eps": 1e-3},
}


def edit(folder: Path, changes: dict[str, Any]) -> None:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | changes))


def equal(folder: Path) -> None:
    """Full attention and infini with closed gates compute what transformers does of ``folder`` in float32."""
    transformers = pytest.importorskip("transformers")
    ids = tokens(2, 12)
    with torch.no_grad():
        expected = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
        full = graft(folder, MixerConfig(kind="full", segment_length=1), seed=0)
        torch.testing.assert_close(full(ids)[0], expected, rtol=0, atol=1e-4)
        infini = graft(folder, MixerConfig(kind="infini", segment_length=12), seed=0)
        torch.testing.assert_close(infini(ids, None, "gate_closed")[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", BASES)
def test_a_variant_of_a_family_computes_the_same(tmp_path: Path, family: str, variant: str) -> None:
    changes = dict(VARIANTS[variant])
    if family == "mistral":
        changes["sliding_window"] = None
    if family == "smollm3" and variant == "one layer":
        changes["no_rope_layers"] = [1]
    theirs(family, **changes).save_pretrained(tmp_path)
    equal(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", BASES)
def test_halves_in_shards_are_read_as_they_are(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    theirs(family).to(dtype).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    equal(tmp_path)
    assert {tensor.dtype for tensor in import_hf(tmp_path, None)[0].values()} == {dtype}
    next(tmp_path.glob("model-00002-*.safetensors")).unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-\d+\.safetensors: no such file"):
        import_hf(tmp_path)


@pytest.mark.parametrize("family", BASES)
def test_fields_that_are_left_out_mean_what_they_mean_to_transformers(tmp_path: Path, family: str) -> None:
    theirs(family, **({"sliding_window": None} if family == "mistral" else {})).save_pretrained(tmp_path)
    stated = {
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "intermediate_size",
        "tie_word_embeddings",
        "head_dim",
        "attention_bias",
        "no_rope_layers",
        "rope_parameters",
        "pad_token_id",  # smollm3's default is none of these few tokens
    }
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in fields.items() if k in stated}))
    equal(tmp_path)


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_moe": ("Qwen2Moe", {}),
    "qwen3_moe": ("Qwen3Moe", {}),
    "mixtral": ("Mixtral", {}),
    "gemma": ("Gemma", {"head_dim": 8}),
    "gemma2": ("Gemma2", {"head_dim": 8}),
    "phi3": ("Phi3", {}),
    "olmo": ("Olmo", {}),
    "olmo3": ("Olmo3", {}),
    "granite": ("Granite", {}),
    "cohere": ("Cohere", {}),
    "stablelm": ("StableLm", {}),
    "gpt_neox": ("GPTNeoX", {}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_architecture_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(FAMILIES, kind, (*OTHERS[kind], {}))
    theirs(kind).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=rf"config\.json: model_type = '{kind}' \(allowed: 'llama', 'mistral', 'qwen2', "
    ):
        import_hf(tmp_path)


@pytest.mark.parametrize("family", ["biased", "smollm3"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"full_attention": YARN}}, r"rope_parameters\.full_attention = .*one for all layers"),
        ({"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor = 0\.5"),
        ({"rope_parameters": None, "rope_scaling": YARN | {"factor": "4"}}, r"rope_scaling\.factor = '4'"),
        ({"rope_scaling": "yarn"}, r"rope_scaling = 'yarn' \(allowed: an object\)"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"hidden_size": 32.0}, r"hidden_size = 32\.0 \(allowed: a whole number >= 1\)"),
        ({"vocab_size": -1}, r"vocab_size = -1"),
        ({"vocab_size": 10**12}, r"vocab_size = 1000000000000: the weights beside it are of another model"),
        (
            {"num_hidden_layers": 10**9, "no_rope_layers": None},
            r"num_hidden_layers = 1000000000 \(allowed: 1 to 10000\)",
        ),
        ({"num_attention_heads": 10**9}, r"heads = 1000000000"),
        ({"num_key_value_heads": "2"}, r"num_key_value_heads = '2'"),
        ({"num_key_value_heads": 3}, r"kv_heads = 3: must divide heads = 4"),
        ({"head_dim": [8]}, r"head_dim = \[8\]"),
        ({"head_dim": True}, r"head_dim = True"),
        ({"rms_norm_eps": "1e-5"}, r"rms_norm_eps = '1e-5' \(allowed: a number > 0\)"),
        ({"rms_norm_eps": None}, r"rms_norm_eps = None"),
        ({"tie_word_embeddings": "false"}, r"tie_word_embeddings = 'false' \(allowed: true, false\)"),
        ({"attention_bias": 1}, r"attention_bias = 1 \(allowed: true, false\)"),
        ({"layer_types": "full_attention"}, r"layer_types = 'full_attention' \(allowed: a list\)"),
    ],
)
def test_a_config_that_is_not_what_it_should_be_is_refused_by_field_and_value(
    tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    theirs(family).save_pretrained(tmp_path)
    edit(tmp_path, changes)
    with pytest.raises(ValueError, match=message) as refused:
        graft(tmp_path, MixerConfig(kind="full", segment_length=1), seed=0)
    assert "config.json" in str(refused.value) and len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("layers", [[1, 0], [1, 0, 2, 0], ["a"] * 4])
def test_layers_without_rope_are_named_for_every_layer(tmp_path: Path, layers: list[Any]) -> None:
    theirs("smollm3").save_pretrained(tmp_path)
    edit(tmp_path, {"no_rope_layers": layers})
    with pytest.raises(ValueError, match=r"no_rope_layers = .*allowed: 0 or 1 for each of 4 layers"):
        import_hf(tmp_path)


def test_weights_that_the_config_does_not_tell_of_are_refused(tmp_path: Path) -> None:
    theirs("biased").save_pretrained(tmp_path)
    edit(tmp_path, {"attention_bias": False})
    with pytest.raises(ValueError, match=r"not known here \['layers\.0\.self_attn"):
        graft(tmp_path, MixerConfig(kind="full", segment_length=1), seed=0)
