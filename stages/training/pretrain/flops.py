"""Floating-point operations of a training run by the cost model, at the lengths that its batches are really read in."""

from __future__ import annotations

from collections import defaultdict

from model.config import ModelConfig, TrunkConfig
from model.cost import cost
from stages.training.pretrain.config import PretrainConfig
from stages.training.pretrain.recipe import of_pretrain

_SAMPLED = 1000  # steps that stand for all: phases and curricula are shares of the steps


def flops_per_step(config: PretrainConfig, trunk: TrunkConfig, vocabulary: int) -> float:
    """FLOPs of one optimiser step, mean over the steps: tokens x FLOPs per token (``model/cost.py``) of text and of
    prompts, each in pieces of its phase's length."""
    recipe = of_pretrain(config.model_copy(update={"steps": min(config.steps, _SAMPLED), "warmup_steps": 0}))
    model = ModelConfig(trunk=trunk, mixer=config.mixer, vocab_size=vocabulary)
    share: dict[int, float] = defaultdict(float)  # of the tokens, by the length of the piece they are in
    for step in range(recipe.steps):
        prompts = recipe.share_at(step)
        share[recipe.length_at(step)] += (1 - prompts) / recipe.steps
        share[recipe.prompt_length_at(step)] += prompts / recipe.steps
    mean = sum(part * cost(model, length).flops_per_token_training for length, part in share.items() if part)
    return config.batch_sequences * config.sequence_length * mean
