"""A training on another schedule: when the learning rate has decayed, and where tokens stand."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
import torch

from model import checkpoint
from model.config import MixerConfig, ModelConfig, RopeScaling, TrunkConfig
from model.cost import cost
from model.decoder import Decoder
from stages.training.pretrain import optim
from stages.training.pretrain.config import MixtureConfig, PretrainConfig, PromptPhase
from stages.training.pretrain.flops import flops_per_step
from stages.training.pretrain.recipe import of_pretrain
from stages.training.pretrain.schedule import ScheduleSettings
from stages.training.pretrain.stage import PRETRAIN
from tests.stages.pretraining import make_inputs, pretrain_config
from tests.support import LocalContext

TRUNK = TrunkConfig(dim=32, layers=2, heads=2)
LOCAL, FULL = (MixerConfig(kind=kind, segment_length=16) for kind in ("local", "full"))


def config(mixer: MixerConfig = LOCAL, **fields: object) -> PretrainConfig:
    settings = {"steps": 100, "batch_sequences": 2, "sequence_length": 128, "lr": 1e-3, "warmup_steps": 10}
    return PretrainConfig(**settings | fields, mixer=mixer, seed=0)


def rates(settings: PretrainConfig) -> list[float]:
    recipe = of_pretrain(settings)
    return [
        optim.schedule(
            step,
            steps=recipe.decay_steps,
            warmup_steps=recipe.warmup_steps,
            kind=recipe.schedule,
            least=recipe.min_lr_share,
        )
        for step in range(recipe.steps)
    ]


def test_the_horizon_is_where_the_cosine_ends():
    own, longer, shorter = (rates(config(horizon=horizon)) for horizon in (1, 4, 0.5))
    assert own[-1] == pytest.approx(0.1) and own[:10] == longer[:10]  # the warm-up is the same
    assert longer == rates(config(steps=400))[:100] and longer[-1] > 0.85
    assert shorter[:50] == rates(config(steps=50)) and shorter[49:] == pytest.approx([0.1] * 51)


def test_an_option_that_is_not_used_is_not_in_the_key():
    assert not {"horizon", "rope_theta", "rope_scaling"} & set(config().key_fields())
    scaled = config(rope_scaling=RopeScaling(type="linear", factor=2.0)).key_fields()
    assert scaled["rope_scaling"] == {"type": "linear", "factor": 2.0}


def test_positions_of_a_graft_are_those_it_is_given_and_are_kept(tmp_path):
    """What is trained with other positions is read with them, too: logits are those of a model built so."""
    scaling = RopeScaling(type="linear", factor=4.0)
    base = Decoder(ModelConfig(trunk=TRUNK, mixer=FULL, vocab_size=64), seed=1)
    checkpoint.save(base, tmp_path / "base")
    changed = checkpoint.graft(tmp_path / "base", FULL, seed=0, rope_theta=5e5, rope_scaling=scaling)
    checkpoint.save(changed, tmp_path / "arm", like=tmp_path / "base")
    fields = json.loads((tmp_path / "arm" / "config.json").read_text())
    assert fields["rope_theta"] == 5e5 and fields["rope_scaling"]["factor"] == 4.0
    trunk = TRUNK.with_positions(5e5, scaling)
    expected = Decoder(ModelConfig(trunk=trunk, mixer=FULL, vocab_size=64), seed=2)
    expected.load_state_dict(base.state_dict())
    tokens = torch.arange(48)[None] % 64
    with torch.inference_mode():
        read = checkpoint.load(tmp_path / "arm").nll(tokens)
        assert torch.equal(read, expected.nll(tokens))
        assert not torch.allclose(read, base.nll(tokens))
    untouched = checkpoint.graft(tmp_path / "base", FULL, seed=0)
    assert untouched.config.trunk == TRUNK and TRUNK.with_positions(None, None) == TRUNK


def test_the_flops_of_a_step_are_those_of_its_pieces():
    """The slow reference: every step's rows, cut as the loop cuts them."""
    phases = (
        PromptPhase(until=0.25, share=0.5, length=32, text_length=32),
        PromptPhase(until=1.0, share=0.25, length=64, text_length=128),
    )
    settings = config(FULL, mixture=MixtureConfig(prompts=phases), steps=40)
    recipe, total = of_pretrain(settings), 0.0
    model = ModelConfig(trunk=TRUNK, mixer=FULL, vocab_size=300)
    for step in range(recipe.steps):
        tokens = settings.batch_sequences * settings.sequence_length
        for share, length in (
            (recipe.share_at(step), recipe.prompt_length_at(step)),
            (1 - recipe.share_at(step), recipe.length_at(step)),
        ):
            total += tokens * share * cost(model, length).flops_per_token_training
    assert flops_per_step(settings, TRUNK, 300) == pytest.approx(total / 40)
    many = settings.model_copy(update={"steps": 40_000, "warmup_steps": 2_000})
    assert flops_per_step(many, TRUNK, 300) == pytest.approx(total / 40)


def test_gates_and_positions_stay_where_an_arm_has_none():
    linear = MixerConfig(kind="linear", segment_length=16)
    schedule = ScheduleSettings(gate_lr=0.5, rope_theta=100.0, lr=2e-3)
    assert schedule.apply(config()) == config(lr=2e-3, rope_theta=100.0)
    assert schedule.apply(config(linear)) == config(linear, lr=2e-3)
    memory = MixerConfig(kind="infini", segment_length=16)
    assert schedule.apply(config(memory)).gate_lr == 0.5


def test_a_training_takes_its_horizon_and_positions_and_leaves_them_in_its_model(tmp_path):
    """The same batches as on the arm's own schedule; its learning rates until training ends are those of a run four
    times as long."""
    inputs, logs = make_inputs(tmp_path / "inputs"), {}
    changes = ScheduleSettings(horizon=4, rope_theta=5e5)
    own = pretrain_config({"kind": "local"}, warmup_steps=2)
    for name, settings in {"own": own, "other": changes.apply(own)}.items():
        (tmp_path / name).mkdir()
        PRETRAIN.run(settings, inputs, tmp_path / name, LocalContext(str(tmp_path / f"{name}-work")))
        logs[name] = pq.read_table(tmp_path / name / "train_log.parquet").to_pandas()
    digests = [pq.read_table(tmp_path / name / "samples.parquet")["sample_ids_digest"].to_pylist() for name in logs]
    assert digests[0] == digests[1]
    expected = [3e-3 * rate for rate in rates(own.model_copy(update={"steps": 48}))[:12]]
    assert logs["other"]["lr"].tolist() == pytest.approx(expected)
    assert logs["own"]["lr"].iloc[-1] == pytest.approx(3e-4) and logs["other"]["lr"].iloc[-1] > 2.5e-3
    assert logs["other"]["loss"].iloc[0] != logs["own"]["loss"].iloc[0]  # positions are others from the first step on
    thetas = [checkpoint.load(tmp_path / name / "model").config.trunk.rope_theta for name in logs]
    assert thetas == [1e4, 5e5]
