"""Peak memory of a million streamed tokens against that of 64K, each length in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch

from bench.speed.measure import peak_resident
from model.config import MixerConfig, ModelConfig, Rule, TrunkConfig
from model.decoder import Decoder, DecoderState


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One record per rule and length; the tokens are drawn chunk by chunk, so nothing here is as long as T."""
    print(f"\nStreaming in chunks of {args.chunk:,} tokens through 2 layers, dim 64; the whole process's peak memory")
    print(f"{'':16}{'T':>12}{'peak MiB':>11}{'x shortest':>12}{'state bytes':>13}{'tokens/s':>11}")
    records: list[dict[str, Any]] = []
    for rule in ("linear", "delta"):
        base = None
        for length in args.lengths:
            command = [sys.executable, "-m", "bench.speed", "stream-one", rule, str(length), "--chunk", str(args.chunk)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            record = {"row": f"infini-{rule}", "T": length} | json.loads(done.stdout)
            base = base or record["peak_bytes"]
            record["x_shortest"] = record["peak_bytes"] / base
            records.append(record)
            print(
                f"{record['row']:16}{length:12,}{record['peak_bytes'] / 2**20:11,.1f}{record['x_shortest']:12.4f}"
                f"{record['state_bytes']:13,}{record['tokens_per_s']:11,.0f}",
                flush=True,
            )
    return records


@torch.no_grad()
def one(rule: Rule, length: int, chunk: int) -> dict[str, Any]:
    """Stream ``length`` random tokens through a small infini model: state_bytes, tokens_per_s, and peak_bytes of this
    process since it began."""
    trunk = TrunkConfig(dim=64, layers=2, heads=2)
    mixer = MixerConfig(kind="infini", rule=rule, segment_length=256)
    decoder = Decoder(ModelConfig(trunk=trunk, mixer=mixer, vocab_size=256), seed=0)
    generator, state = torch.Generator().manual_seed(0), None
    start, nll, targets = time.perf_counter(), 0.0, 0
    tokens = torch.randint(256, (1, chunk), generator=generator)
    for done in range(0, length, chunk):
        hidden, state = decoder.hidden(tokens[:, : length - done], state)
        following = torch.randint(256, (1, chunk), generator=generator)
        expected = torch.cat([tokens[:, 1 : hidden.shape[1]], following[:, :1]], dim=1)
        nll += decoder.token_nll(hidden, expected).sum().item()
        targets += hidden.shape[1]
        tokens = following
    seconds = time.perf_counter() - start
    assert isinstance(state, DecoderState)
    return {
        "peak_bytes": peak_resident(),
        "state_bytes": state.bytes(),
        "tokens_per_s": length / seconds,
        "mean_nll": nll / targets,
    }
