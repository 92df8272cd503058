"""The losses of alignment against TRL's own trainers, on the same weights and rows; needs ``pip install trl``."""

from __future__ import annotations

import pytest
import torch

from model import checkpoint
from stages.data.tokens.load import load_tokenizer
from stages.training.align.chat import Turn, encode
from stages.training.align.config import ChatFormat
from stages.training.align.examples import read_examples
from stages.training.align.preference import Preference, reference
from stages.training.pretrain.objective import LIKELIHOOD
from stages.training.tuning.rows import padded
from tests.stages.evaluation_inputs import build, decoder

pytestmark = pytest.mark.slow
for package in ("accelerate", "trl"):
    pytest.importorskip(package, reason="TRL is not installed: pip install 'infini-study[trainers]'")

PAIRS = [
    {"prompt": "Where did nobody go? ", "chosen": "To the bridge.", "rejected": "To the old town, along the river."},
    {"prompt": "And what ran along it? ", "chosen": "The wall and so on.", "rejected": "No."},
]
BETA = 0.3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Tokenizer and two full-attention models, in our form and in transformers'."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("trl")
    inputs = build(folder)
    codec = load_tokenizer(inputs["tokenizer"])
    eos = codec.backend.id_to_token(codec.eos_id)
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(inputs["tokenizer"].path("tokenizer.json")), eos_token=eos, pad_token=eos
    )
    models = {}
    for name, seed in (("policy", 0), ("reference", 1)):
        ours = decoder("full", vocab_size=codec.vocab_size, seed=seed)
        checkpoint.save(ours, folder / name)
        models[name] = (ours, AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32))
    return folder, codec, theirs, models


def options(folder, kind, **more):
    return kind(
        output_dir=str(folder / "out"), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False, **more
    )


def ours(objective, model, batch):
    """Loss and gradient of a matrix of the first layer."""
    model.train().zero_grad()
    tokens = torch.from_numpy(batch.tokens)
    first, second = (torch.from_numpy(weights) for weights in objective.weights(batch, tokens.shape[1]))
    nll, _ = model.training_nll(tokens, first + second > 0)
    losses = objective.losses(nll, first[:, 1:], second[:, 1:])
    loss = losses[0] if isinstance(objective, Preference) else losses[1]
    loss.backward()
    return loss.item(), model.layers[0].self_attn.q_proj.weight.grad


def test_the_loss_of_preferences_is_trls(made):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    folder, codec, tokenizer, models = made
    trainer = DPOTrainer(
        models["policy"][1],
        models["reference"][1],
        options(folder, DPOConfig, beta=BETA, max_length=None),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer,
    )
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    models["policy"][1].zero_grad()
    theirs = trainer.compute_loss(models["policy"][1], inputs)
    theirs.backward()

    examples = read_examples(PAIRS, "dpo", codec, ChatFormat(), 200, "pairs").examples
    rows = [row for example in examples for row in example]
    batch = padded(rows, torch.arange(4).numpy())
    lengths = sorted(int(mask.sum()) for mask in inputs["completion_mask"])
    assert sorted(int(mask.sum()) for mask in batch.mask) == lengths  # the same tokens, each with its end
    nats = reference(models["reference"][0], rows, 4, torch.device("cpu"), False, None)
    loss, gradient = ours(Preference(dict(enumerate(nats)), 2, BETA), models["policy"][0], batch)
    assert loss == pytest.approx(theirs.item(), rel=1e-4) and abs(loss - 0.6931) > 1e-3
    of_theirs = models["policy"][1].model.layers[0].self_attn.q_proj.weight.grad
    torch.testing.assert_close(gradient, of_theirs, rtol=1e-3, atol=1e-6)


def test_the_loss_of_conversations_is_trls(made):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    folder, codec, tokenizer, models = made
    rows = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
    trainer = SFTTrainer(
        models["policy"][1],
        options(folder, SFTConfig, completion_only_loss=True, max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    models["policy"][1].zero_grad()
    theirs = trainer.compute_loss(models["policy"][1], inputs)
    theirs.backward()
    encoded = [encode(codec, ChatFormat(), (Turn("", row["prompt"]), Turn("", row["completion"]))) for row in rows]
    batch = padded(encoded, torch.arange(2).numpy())
    loss, gradient = ours(LIKELIHOOD, models["policy"][0], batch)
    assert loss == pytest.approx(theirs.item(), rel=1e-4)
    of_theirs = models["policy"][1].model.layers[0].self_attn.q_proj.weight.grad
    torch.testing.assert_close(gradient, of_theirs, rtol=1e-3, atol=1e-6)
