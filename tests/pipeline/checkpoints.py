"""Small checkpoints as folders: our own exports, a GPT-2 of transformers, and text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch

from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.decoder import Decoder
from model.export import export
from stages.data.tokens.tokenizer import byte_level

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
MIXERS = {"full": MixerConfig(kind="full", segment_length=1), "infini": MixerConfig(kind="infini", segment_length=64)}


def write(root: Path) -> Path:
    """root/full, root/infini, root/gpt2 (a context of 512) and root/text/*.txt."""
    root.mkdir(parents=True, exist_ok=True)
    tokenizer = root / "tokenizer.json"
    byte_level().save(str(tokenizer))
    for name, mixer in MIXERS.items():
        config = ModelConfig(trunk=TrunkConfig(dim=32, layers=2, heads=2), mixer=mixer, vocab_size=258)
        export(Decoder(config, seed=0), root / name, tokenizer=tokenizer, special_tokens={"bos": 1, "eos": 1, "pad": 0})
    _gpt2(root / "gpt2", tokenizer)
    rng = random.Random(0)
    words = ["".join(rng.choices("abdefgilmnorstu", k=rng.randint(2, 8))) for _ in range(300)]
    (root / "text").mkdir()
    for number in range(4):
        (root / "text" / f"{number}.txt").write_text(" ".join(rng.choices(words, k=400)) + ".\n")
    return root


def _gpt2(folder: Path, tokenizer: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=258, n_positions=512, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
    GPT2LMHeadModel(shape).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
