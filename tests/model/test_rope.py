"""RoPE: frequencies as transformers scales them, exact far out, and settings that cannot be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from model.config import ModelConfig, RopeScaling, TrunkConfig
from model.rope import Rope, frequencies, rotate
from tests.model.tiny import config

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"type": "linear", "factor": 4.0},
    "llama3": {"type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256, **LLAMA3},
    "llama3-wide": {"type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192}
    | {"low_freq_factor": 1.0, "high_freq_factor": 8.0},
    "yarn": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    "yarn-betas": {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096}
    | {"beta_fast": 20.0, "beta_slow": 2.0, "truncate": False},
    "yarn-attention": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 0.75},
    "yarn-mscale": {"type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096}
    | {"mscale": 1.0, "mscale_all_dim": 0.707},
    "yarn-one-mscale": {"type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 0.5},
    "yarn-short": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4},  # both bounds at dimension 0
}


@pytest.mark.parametrize(("head_dim", "theta"), [(16, 500.0), (64, 10_000.0), (128, 500_000.0)])
@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_frequencies_are_those_of_transformers(name: str, head_dim: int, theta: float) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    fields = dict(SCALINGS[name])
    kind = fields.pop("type")
    theirs = transformers.LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        rope_parameters={"rope_type": kind, "rope_theta": theta, **fields},
    )
    expected, expected_factor = ROPE_INIT_FUNCTIONS[kind](theirs)
    found, factor = frequencies(head_dim, theta, RopeScaling(**SCALINGS[name]))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.double(), rtol=2e-6, atol=0)  # theirs are float32
    assert factor == pytest.approx(expected_factor, rel=1e-12)


def test_without_scaling_nothing_is_scaled() -> None:
    found, factor = frequencies(8, 100.0)
    assert found.tolist() == pytest.approx([1.0, 100**-0.25, 0.1, 100**-0.75], rel=1e-15)
    assert factor == 1


def test_position_a_million_is_as_exact_as_position_one() -> None:
    cos, sin = Rope(4, 10_000.0).table(1_000_000, 2, torch.device("cpu"), torch.bfloat16)
    assert cos.dtype == torch.float32
    angles = [[p * f for f in (1.0, 0.01)] for p in (1_000_000, 1_000_001)]
    torch.testing.assert_close(cos, torch.tensor([[math.cos(a) for a in row] for row in angles]), rtol=0, atol=1e-7)
    torch.testing.assert_close(sin, torch.tensor([[math.sin(a) for a in row] for row in angles]), rtol=0, atol=1e-7)


def test_yarn_turns_and_stretches_and_its_gradient_does_too() -> None:
    rope = Rope(8, 500.0, RopeScaling(**SCALINGS["yarn-attention"]))
    x = torch.randn(1, 5, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    cos, sin = rope.table(3, 5, x.device, x.dtype)
    torch.testing.assert_close(rotate(x, cos, sin).norm(dim=-1), 0.75 * x.norm(dim=-1))
    assert torch.autograd.gradcheck(lambda y: rotate(y, cos, sin), (x,))


def test_built_where_tensors_have_no_data_it_still_computes() -> None:
    with torch.device("meta"):  # as transformers does while it loads
        rope = Rope(8, 500.0, RopeScaling(**SCALINGS["yarn"]))
        cos, _ = rope.table(0, 4, torch.device("cpu"), torch.float32)
    assert torch.equal(cos, Rope(8, 500.0, RopeScaling(**SCALINGS["yarn"])).table(0, 4, cos.device, cos.dtype)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "ntk"}, r"rope_scaling.type = 'ntk': allowed are linear, llama3, yarn"),
        ({"factor": 0.5}, r"rope_scaling.factor = 0.5: allowed are numbers >= 1"),
        ({"type": "yarn", "original_max_position_embeddings": None}, "original_max_position_embeddings is missing"),
        ({"type": "llama3"}, "rope_scaling.low_freq_factor is missing: type = 'llama3' needs it"),
        ({"type": "linear"}, "original_max_position_embeddings = 64: has no effect with type = 'linear'"),
        ({"low_freq_factor": 1.0}, "low_freq_factor = 1.0: has no effect with type = 'yarn'"),
        ({"type": "llama3", "low_freq_factor": 4.0, "high_freq_factor": 4.0}, "must be below high_freq_factor = 4.0"),
        ({"beta_fast": 0.5}, "beta_fast = 0.5: must not be below beta_slow = 1"),
        ({"mscale": 0.0}, "mscale = 0.0: allowed are numbers > 0"),
    ],
)
def test_a_scaling_that_cannot_be_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RopeScaling(**{"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64} | changes)


def test_a_study_file_can_say_it_and_studies_that_do_not_keep_their_keys() -> None:
    study = TypeAdapter(TrunkConfig)
    plain = {"dim": 16, "layers": 2, "heads": 4}
    scaled = study.validate_python(plain | {"rope_scaling": SCALINGS["yarn"]})
    assert scaled.rope_scaling == RopeScaling(**SCALINGS["yarn"])
    assert scaled.key_fields()["rope_scaling"] == SCALINGS["yarn"]
    assert "rope_scaling" not in study.validate_python(plain).key_fields()
    with pytest.raises(ValidationError, match="rope_scaling"):
        study.validate_python(plain | {"rope_scaling": {"type": "yarn", "factor": 4.0, "betafast": 3}})


def test_a_model_config_survives_its_dictionary() -> None:
    for scaling in (None, RopeScaling(**SCALINGS["llama3"])):
        whole = config("infini-delta", trunk={"rope_scaling": scaling})
        assert ModelConfig.from_dict(whole.to_dict()) == whole
    with pytest.raises(ValueError, match="RopeScaling: unknown field 'beta'"):
        ModelConfig.from_dict({"trunk": {"rope_scaling": {"beta": 1}}, "mixer": {}})
