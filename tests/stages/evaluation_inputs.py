"""Small real inputs for the stages that read a trained model: documents, tokens and models made by the real code."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from model import checkpoint
from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.decoder import Decoder
from stages.data.tokens.config import TokenizeConfig, TokenizerConfig
from stages.data.tokens.stage import TOKENIZE, TOKENIZER
from tests.support import LocalArtifact, LocalContext

SEGMENT = 32
WORDS = "river wall bridge town asked went along where nobody after last old ran it of the and so we left"
TRUNK = TrunkConfig(dim=32, layers=2, heads=2)


def prose(words: int, seed: int) -> str:
    rng = random.Random(seed)
    sentences = []
    while words > 0:
        n = rng.randint(6, 14)
        sentences.append(" ".join(rng.choices(WORDS.split(), k=n)).capitalize() + ".")
        words -= n
    return " ".join(sentences)


def write_documents(folder: Path) -> LocalArtifact:
    """Four held-out documents (two of one length) and two to train on, each with a title, an opening and a body."""
    (folder / "documents").mkdir(parents=True)
    sizes = {"test": (150, 60, 150, 6), "train": (400, 300)}
    rows = []
    for split, words in sizes.items():
        for i, n in enumerate(words):
            text = f"Part {i}\n\n{prose(14, 90 + i)}\n\n{prose(n, i)}" if n > 6 else "Short."
            rows.append({"doc_id": f"{split}{i}", "split": split, "source": "made", "text": text})
    schema = pa.schema([(name, pa.string()) for name in ("doc_id", "split", "source")] + [("text", pa.large_string())])
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "documents" / "part-00000.parquet")
    return LocalArtifact(folder)


def build(root: Path) -> dict[str, LocalArtifact]:
    """``documents``, ``tokenizer`` (bytes) and ``tokens`` (sequences of 64, segments of SEGMENT)."""
    context = LocalContext(str(root / "work"))
    made = {"documents": write_documents(root / "documents")}
    for name, stage, config in (
        ("tokenizer", TOKENIZER, TokenizerConfig(kind="bytes")),
        ("tokens", TOKENIZE, TokenizeConfig(sequence_length=64, segment_length=SEGMENT)),
    ):
        folder = root / name
        folder.mkdir()
        stage.run(config, made, folder, context)
        made[name] = LocalArtifact(folder)
    return made


def decoder(kind: str = "infini", *, vocab_size: int, seed: int = 0, **options: object) -> Decoder:
    mixer = MixerConfig(kind=kind, segment_length=SEGMENT, **options)
    return Decoder(ModelConfig(trunk=TRUNK, mixer=mixer, vocab_size=vocab_size), seed=seed).eval()


def save(model: Decoder, folder: Path) -> LocalArtifact:
    checkpoint.save(model, folder / "model")
    return LocalArtifact(folder)
