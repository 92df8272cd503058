"""Cost per token against T: flat for bounded memory, growing for full attention. Long sequences run in chunks
(``Decoder.chunk_tokens``), training recomputes each chunk in its backward pass."""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from model.bench.measure import measure
from model.bench.rows import FULL, Row, build
from model.config import TrunkConfig
from model.decoder import Decoder


def run(args: argparse.Namespace, trunk: TrunkConfig) -> list[dict[str, Any]]:
    """One record per row and T, for N = args.segments[0]; the best of as many repeats as the longest T has tokens'
    worth of, at least one, while ``args.minutes`` last. ``args.rows``: which."""
    deadline = time.monotonic() + 60 * args.minutes
    n = args.segments[0]
    rows = build(args.rows, trunk, n, args.vocab, args.device)
    for row in rows.values():
        if isinstance(row.module, Decoder):
            row.module.chunk_tokens = max(args.chunk // n, 1) * n
            row.module.activation_checkpointing = True
    print(f"\nN = {n:,}, chunks of {args.chunk:,} tokens; microseconds a token, and relative to the shortest T")
    print(f"{'':30}{'T':>10}{'forward':>10}{'train':>10}{'fwd':>8}{'train':>8}{'peak MiB: fwd':>15}{'train':>8}")
    records: list[dict[str, Any]] = []
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in rows}
    for length in args.lengths:
        for name, row in rows.items():
            before = seen[name]
            if length > args.lengths[0] and not before:
                continue
            expected = _expected(before[-1], name, length) if before else 0.0
            if expected > args.row_seconds or time.monotonic() + expected > deadline:
                continue
            record = _measure(name, row, n, length, args)
            for part in _PARTS:
                shortest = (before or [record])[0][f"{part}_us_per_token"]
                record[f"{part}_x_shortest"] = record[f"{part}_us_per_token"] / shortest
            before.append(record)
            records.append(record)
            _print(record)
    return records


def _measure(name: str, row: Row, n: int, length: int, args: argparse.Namespace) -> dict[str, Any]:
    tokens = torch.randint(args.vocab, (1, length), generator=torch.Generator().manual_seed(0)).to(args.device)
    if length == args.lengths[0]:
        measure(row, tokens, memory=False, clock=args.clock)  # warm up
    repeats = max(1, min(args.repeats, max(args.lengths) // length))
    samples = [measure(row, tokens, memory=r == 0, clock=args.clock) for r in range(repeats)]
    return {
        "row": name,
        "N": n,
        "T": length,
        "forward_us_per_token": min(s.forward for s in samples) / length * 1e6,
        "training_us_per_token": min(s.training for s in samples) / length * 1e6,
        "forward_peak_bytes": samples[0].forward_bytes,
        "training_peak_bytes": samples[0].training_bytes,
    }


def _expected(before: dict[str, Any], name: str, length: int) -> float:
    seconds = (before["forward_us_per_token"] + before["training_us_per_token"]) * length / 1e6
    return float(seconds * (length / before["T"] if name in FULL else 1))


def _print(record: dict[str, Any]) -> None:
    peaks = [f"{b / 2**20:,.0f}" if b is not None else "?" for b in (record[f"{p}_peak_bytes"] for p in _PARTS)]
    print(
        f"{record['row']:30}{record['T']:10,}{record['forward_us_per_token']:10.2f}"
        f"{record['training_us_per_token']:10.2f}{record['forward_x_shortest']:8.3f}"
        f"{record['training_x_shortest']:8.3f}{peaks[0]:>15}{peaks[1]:>8}",
        flush=True,
    )


_PARTS = ("forward", "training")
