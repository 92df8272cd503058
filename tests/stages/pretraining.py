"""A tokens artifact, a tokenizer's meta and a tiny base, for the training tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from model.config import MixerConfig, TrunkConfig
from stages.training.pretrain.stage import BASE, BaseConfig, PretrainConfig
from tests.support import LocalArtifact, LocalContext

LENGTH, SEGMENT, VOCABULARY = 64, 16, 97
TRUNK = TrunkConfig(dim=32, layers=2, heads=2)


def write_tokens(
    directory: Path,
    *,
    rows: int = 96,
    shards: int = 2,
    seed: int = 0,
    length: int = LENGTH,
    documents: tuple[int, ...] = (1,),
) -> LocalArtifact:
    """Rows of a noisy repeating pattern, so that a model can learn something; two sources, padded tails. documents:
    rows of each document, over and over."""
    rng = np.random.default_rng(seed)
    start, stride = rng.integers(0, VOCABULARY, (rows, 1)), rng.integers(1, 4, (rows, 1))
    tokens = ((start + stride * np.arange(length)) % VOCABULARY).astype(np.int32)
    mask = np.ones((rows, length), np.uint8)
    mask[::7, length // 2 :] = 0
    source = np.array(["books" if i % 3 else "math" for i in range(rows)])
    (directory / "train").mkdir(parents=True)
    places = np.resize(np.concatenate([np.arange(n) for n in documents]), rows)
    for shard, part in enumerate(np.array_split(np.arange(rows), shards)):
        table = pa.table(
            {
                "tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens[part].ravel()), length),
                "loss_mask": pa.FixedSizeListArray.from_arrays(pa.array(mask[part].ravel()), length),
                "doc_id": [f"d{i}" for i in part],
                "offset": pa.array(places[part] * length),
                "source": source[part].tolist(),
            }
        )
        name = f"data-{shard:05d}-of-{shards:05d}.arrow"
        with pa.ipc.new_stream(str(directory / "train" / name), table.schema) as stream:
            stream.write_table(table)
    meta = {"sequence_length": length, "segment_length": SEGMENT, "vocab_size": VOCABULARY}
    (directory / "meta.json").write_text(json.dumps(meta))
    return LocalArtifact(directory)


def make_inputs(directory: Path, documents: tuple[int, ...] = (1,)) -> dict[str, LocalArtifact]:
    """``tokens``, ``tokenizer`` and a ``base`` of five steps."""
    tokens = write_tokens(directory / "tokens", documents=documents)
    (directory / "tokenizer").mkdir()
    (directory / "tokenizer" / "meta.json").write_text(json.dumps({"vocab_size": VOCABULARY}))
    inputs = {"tokens": tokens, "tokenizer": LocalArtifact(directory / "tokenizer")}
    (directory / "base").mkdir()
    config = BaseConfig(trunk=TRUNK, steps=5, batch_tokens=128, sequence_length=SEGMENT, lr=3e-3)
    BASE.run(config, inputs, directory / "base", LocalContext(str(directory / "base-work")))
    return {**inputs, "base": LocalArtifact(directory / "base")}


def pretrain_config(mixer: dict[str, Any] | None = None, **changes: Any) -> PretrainConfig:
    """A dozen steps of infini-linear."""
    arm = MixerConfig(**{"kind": "infini", "segment_length": SEGMENT, **(mixer or {})})
    fields: dict[str, Any] = {"steps": 12, "batch_sequences": 4, "sequence_length": LENGTH, "lr": 3e-3, "seed": 0}
    return PretrainConfig(mixer=arm, **{**fields, "checkpoint_every": 5, "monitor_every": 6, **changes})
