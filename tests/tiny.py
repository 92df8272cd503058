"""A whole study small enough for a test: words of a made-up language, five arms, one seed."""

from __future__ import annotations

import random
from pathlib import Path

STUDY = """
name: tiny
seeds: [0]
corpus: {sources: [{kind: pg19, name: books, url: books}]}
tokenizer: {kind: bytes}
tokenize: {sequence_length: 128, segment_length: 32}
trunk: {dim: 32, layers: 1, heads: 2}
base: {steps: 4, batch_tokens: 256, sequence_length: 32, lr: 3e-3, checkpoint_every: 2}
arms:
  infini-linear: {kind: infini, rule: linear}
  infini-delta: {kind: infini, rule: delta}
  local: {kind: local}
  window: {kind: window}
  xl: {kind: xl}
pretrain: {steps: 4, batch_sequences: 4, lr: 1e-3, checkpoint_every: 2, monitor_every: 2}
evaluate:
  perplexity: {splits: [test], max_tokens_per_document: 256}
  retrieval:
    {format: compact, lengths: [256], depths: [0, 1], trials: 2, rivals: [1, 2], binding_trials: 2, control_trials: 1}
ablate:
  perplexity: {splits: [test], max_tokens_per_document: 128}
  retrieval:
    {format: compact, lengths: [256], depths: [0.0], trials: 2, rivals: [1], binding_trials: 2, control_trials: 0}
summarize: {documents: 2, prompt_tokens: 96, new_tokens: 16}
claims: {minimum_seeds: 3}
"""
SOURCE = "sources: [{kind: pg19, name: books, url: books}]"


def replaced(old: str, new: str) -> str:
    """The study with something else in the place of ``old``."""
    assert old in STUDY
    return STUDY.replace(old, new)


def write_books(folder: Path, books: int = 8, words: int = 1200, seed: int = 0) -> None:
    """``books`` training books and three evaluation books; the last training book holds a passage of test/1."""
    rng = random.Random(seed)
    lexicon = [
        "".join(rng.choice("aeiou" if i % 2 else "bdfgklmnprstv") for i in range(rng.randint(2, 8))) for _ in range(900)
    ]

    def book() -> list[str]:
        text: list[str] = []
        while len(text) < words:
            sentence = [rng.choice(lexicon) for _ in range(rng.randint(5, 15))]
            text += [sentence[0].capitalize(), *sentence[1:-1], sentence[-1] + "."]
        return text

    texts = {f"train/{100 + i}": book() for i in range(books)} | {f"test/{i}": book() for i in (1, 3)}
    texts["validation/2"] = book()
    last = f"train/{100 + books - 1}"
    texts[last] = texts[last][:600] + texts["test/1"][200:420] + texts[last][600:]
    for name, text in texts.items():
        path = folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [" ".join(text[i : i + 11]) for i in range(0, len(text), 11)]
        path.write_text("\n\n".join("\n".join(lines[i : i + 5]) for i in range(0, len(lines), 5)) + "\n")


def write_study(folder: Path) -> Path:
    """books/ and tiny.yaml below ``folder``; the study file's path."""
    write_books(folder / "books")
    study = folder / "tiny.yaml"
    study.write_text(STUDY)
    return study
