"""Families next to Llama: what transformers computes of their checkpoints, the same trunk under every arm, refusals."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import graft, import_hf, load, save
from model.config import MixerConfig, ModelConfig, RopeScaling, TrunkConfig
from model.cost import cost
from model.decoder import Decoder
from model.llama import family_of
from model.trace import through_layers
from tests.model.tiny import ARMS, VOCAB, N, config, decoder, tokens

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 300.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}, {"attention_bias": "qkv"}),
    "qwen3": ("Qwen3", {"head_dim": 16}, {"qk_norm": "head"}),
    "qwen3 biased": ("Qwen3", {"attention_bias": True}, {"qk_norm": "head", "attention_bias": "qkvo"}),
    "olmo2": ("Olmo2", {}, {"qk_norm": "whole", "norm_position": "after"}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}, {"nope_layers": (1, 3)}),
    "biased": ("Llama", {"attention_bias": True}, {"attention_bias": "qkvo"}),
    "dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 300.0}}, {}),
    "longrope": ("Llama", {"rope_parameters": LONGROPE}, {}),
    "mistral": ("Mistral", {"sliding_window": 12}, {"sliding_window": 12}),
}
# every option that a trunk has, at once
TRUNK: dict[str, Any] = {
    "attention_bias": "qkvo",
    "qk_norm": "head",
    "norm_position": "after",
    "nope_layers": (1,),
    "layers": 2,
}


def theirs(family: str, **changes: Any) -> Any:
    """A tiny model of transformers with every parameter drawn at random, biases and norms too."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    name, fields, _ = FAMILIES[family]
    shape = dict(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.15,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=[3, 4],
        pad_token_id=None,
    )
    settings = getattr(transformers, f"{name}Config")(**deepcopy(shape | fields | changes))
    model = getattr(transformers, f"{name}ForCausalLM")(settings).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in parameter_name))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    base, ids = theirs(family), tokens(2, 24)
    base.save_pretrained(tmp_path)
    length = 12 if family == "mistral" else 24  # attention to no more than the base's window
    with torch.no_grad():
        expected = base(ids).logits
        full = graft(tmp_path, MixerConfig(kind="full", segment_length=1), seed=0)
        torch.testing.assert_close(full(ids)[0], expected, rtol=0, atol=1e-5)
        first, state = full(ids[:, :11])
        rest, _ = full(ids[:, 11:], state)
        torch.testing.assert_close(torch.cat([first, rest], dim=1), expected, rtol=0, atol=1e-5)
        for kind, knockout in (("infini", "gate_closed"), ("local", None), ("window", None)):
            arm = graft(tmp_path, MixerConfig(kind=kind, segment_length=length), seed=0)
            y, _ = arm(ids[:, :length], None, knockout)
            torch.testing.assert_close(y, expected[:, :length], rtol=0, atol=1e-5)
        window = graft(tmp_path, MixerConfig(kind="window", segment_length=length), seed=0)
        torch.testing.assert_close(window(ids)[0], expected, rtol=0, atol=1e-5)
        xl = graft(tmp_path, MixerConfig(kind="xl", segment_length=length // 2), seed=0)
        torch.testing.assert_close(xl(ids[:, :length])[0], expected[:, :length], rtol=0, atol=1e-5)
    for option, value in FAMILIES[family][2].items():
        assert getattr(full.config.trunk, option) == value


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_imported_and_saved_again_is_the_same_to_transformers(tmp_path: Path, family: str) -> None:
    transformers = pytest.importorskip("transformers")
    base = theirs(family)
    base.save_pretrained(tmp_path / "theirs")
    save(
        graft(tmp_path / "theirs", MixerConfig(kind="full", segment_length=1), seed=0, dtype=None),
        tmp_path / "ours",
        like=tmp_path / "theirs",
    )
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(base)
    for name, tensor in base.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, base(tokens()).logits)
    meant, found = base.config.to_dict(), again.config.to_dict()
    for name in meant.keys() - {"_name_or_path", "rope_parameters", "no_rope_layer_interval"}:
        assert found[name] == meant[name], name


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_streams_on_a_trunk_with_every_option(arm: str) -> None:
    model = decoder(arm, trunk=TRUNK | ({} if arm == "landmark" else {"sliding_window": 26}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "_norm.weight")):
                parameter.copy_(torch.linspace(-0.5, 1.5, parameter.numel()).roll(len(name)))
        whole, _ = model(tokens())
        state, parts = None, []
        for part in torch.split(tokens(), [3, 13, 1, 12], 1):
            logits, state = model(part, state)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-10)
    if arm not in ("rmt", "landmark"):
        state = through_layers(model, tokens(), None, lambda *visited: None)
        assert state.position == tokens().shape[1]


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains_saves_and_counts_every_option(tmp_path: Path, arm: str) -> None:
    model = Decoder(config(arm, trunk=TRUNK), seed=0)
    assert cost(model.config, 29).parameters == sum(p.numel() for p in model.parameters())
    model.loss(tokens()).backward()
    unmoved = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert {name for name in unmoved if "k_proj.bias" not in name} == set()  # softmax may not see what all keys share
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.config == model.config
    same = graft(tmp_path, MixerConfig(kind="full", segment_length=1), seed=0)
    for name, tensor in same.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_biases_start_at_zero_whatever_was_drawn_before() -> None:
    biases = [p for name, p in Decoder(config(trunk=TRUNK), seed=0).named_parameters() if name.endswith("bias")]
    assert len(biases) == 2 * 4 and not any(bias.any() for bias in biases)


def test_norms_of_queries_and_keys_do_not_leave_autocast() -> None:
    model = Decoder(config("infini-delta", trunk={"qk_norm": "whole"}), seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        _, state = model(tokens())
    live = state.layers[0].live
    assert live.k.dtype == live.v.dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["xl", "compressive"])
def test_the_cache_trains_no_layer_below_through_norms_and_biases(family: str) -> None:
    """What xl's fast path promises holds where keys are biased and normed: the next segment sees constants of x."""
    mixer = Decoder(config(family, trunk={"qk_norm": "head", "attention_bias": "qkv"}), seed=0).mixers()[0].train()
    x = torch.randn(2, 3 * N, 16, requires_grad=True)
    _, own, shown = mixer.seen_twice(x)
    torch.testing.assert_close(own.k, shown.k)
    (gradient,) = torch.autograd.grad(shown.k.sum() + shown.v.sum(), x, allow_unused=True)
    assert gradient is None
    (gradient,) = torch.autograd.grad(own.k.square().sum(), x)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2, "layer_types": None},
            "use_sliding_window = True",
        ),
        ("qwen3", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types: 'sliding_attention'"),
        ("olmo2", {"model_type": "olmo"}, "model_type = 'olmo'.*'llama', .*'olmo2'"),
        ("longrope", {"rope_parameters": LONGROPE | {"short_factor": [1.0]}}, "short_factor has 1 numbers.*= 4"),
        ("longrope", {"rope_parameters": LONGROPE | {"long_factor": None}}, "long_factor is missing"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ],
)
def test_what_would_be_computed_differently_is_refused_by_name(
    tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    theirs(family).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | changes))
    with pytest.raises(ValueError, match=message):
        import_hf(tmp_path)


def test_a_window_that_no_layer_has_is_none(tmp_path: Path) -> None:
    theirs("qwen2").save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 4}
    fields.pop("layer_types")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert import_hf(tmp_path)[1].sliding_window is None


@pytest.mark.parametrize(
    ("mixer", "message"),
    [
        ({"kind": "local", "segment_length": 13}, "reaches 13 tokens.*sliding_window = 12"),
        ({"kind": "xl", "segment_length": 7}, "reaches 14 tokens"),
        ({"kind": "landmark", "segment_length": 4}, "reaches everything"),
        ({"kind": "rmt", "segment_length": 8, "memory_tokens": 3}, "reaches 14 tokens"),
    ],
)
def test_an_arm_that_looks_behind_the_bases_window_is_refused(mixer: dict[str, Any], message: str) -> None:
    for bound in ({"sliding_window": 12}, {"rope_scaling": RopeScaling(**_dynamic(12))}):
        trunk = TrunkConfig(dim=16, layers=2, heads=2, **bound)
        with pytest.raises(ValueError, match=message.replace("sliding_window", next(iter(bound)) + ".*")):
            ModelConfig(trunk=trunk, mixer=MixerConfig(**mixer), vocab_size=VOCAB)
        for allowed in ({"kind": "full"}, {"kind": "infini"}, {"kind": "linear"}, {"kind": "deltanet"}):
            ModelConfig(trunk=trunk, mixer=MixerConfig(segment_length=12, **allowed), vocab_size=VOCAB)


def test_full_attention_is_refused_where_the_bases_rope_becomes_another() -> None:
    trunk = {"rope_scaling": RopeScaling(**_dynamic(12))}
    model, window = Decoder(config("full", trunk=trunk), seed=0), Decoder(config("window", trunk=trunk), seed=0)
    _, state = model(tokens(1, 12))
    with pytest.raises(ValueError, match=r"full attention over 13 tokens.*original_max_position_embeddings = 12"):
        model(tokens(1, 1), state)
    window(tokens(1, 30))  # distances, not positions, are what counts


def test_pickled_weights_are_refused_with_the_command_that_converts_them(tmp_path: Path) -> None:
    theirs("biased").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: pickled.*Fix: infini-study import .* NEW_FOLDER"):
        import_hf(tmp_path)


def test_options_that_a_trunk_does_not_use_are_no_part_of_its_keys_nor_of_its_config() -> None:
    plain = TrunkConfig(dim=16, layers=2, heads=2)
    old = {"dim", "layers", "heads", "kv_heads", "head_dim", "ffn_dim", "rope_theta", "norm_eps", "tie_embeddings"}
    assert plain.key_fields().keys() == old
    assert plain.to_dict().keys() == old | {"rope_scaling"}
    for option, value in (TRUNK | {"sliding_window": 5}).items():
        if option != "layers":
            changed = TrunkConfig(**{"dim": 16, "layers": 2, "heads": 2, option: value})
            assert changed.key_fields() == plain.key_fields() | {option: value}


def test_a_trunk_of_no_family_says_so() -> None:
    mixed = config("full", trunk={"qk_norm": "whole", "nope_layers": (0,)})
    assert family_of(mixed) is None
    assert family_of(config("full")) == "llama" and family_of(config("local")) is None


def _dynamic(length: int) -> dict[str, Any]:
    return {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": length}
