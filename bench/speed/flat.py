"""Cost per token against T: flat for bounded memory, growing for full attention. Long sequences run in chunks
(``Decoder.chunk_tokens``), training recomputes each chunk in its backward pass."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from bench.speed.measure import Sample, measure
from bench.speed.rows import FULL, Row, build
from model.config import TrunkConfig
from model.decoder import Decoder


def run(args: argparse.Namespace, trunk: TrunkConfig) -> list[dict[str, Any]]:
    """One record per row and T, for N = args.segments[0], while ``args.minutes`` last. ``args.rows``: which.

    A shorter T is run more often, on ``REPEATED`` tokens in all (full attention: twice), half of the runs before the
    longer ones and half after them, so that a machine that becomes slower does not look like a cost that grows with T.
    """
    deadline = time.monotonic() + 60 * args.minutes
    n = args.segments[0]
    print(f"\nN = {n:,}, chunks of {args.chunk:,} tokens; microseconds a token, and relative to the shortest T")
    print(
        f"{'':30}{'T':>10}{'runs':>6}{'forward':>10}{'train':>10}{'fwd':>8}{'train':>8}"
        f"{'peak MiB: fwd':>15}{'train':>8}"
    )
    records: list[dict[str, Any]] = []
    for name, row in build(args.rows, trunk, n, args.vocab, args.device).items():
        if isinstance(row.module, Decoder):
            row.module.chunk_tokens = max(args.chunk // n, 1) * n
            row.module.activation_checkpointing = True
        samples: dict[int, list[Sample]] = {}
        _measure(row, min(args.lengths), args)  # warms up
        _nested(name, row, sorted(args.lengths), samples, args, deadline)
        of_row = [_record(name, n, length, taken) for length, taken in sorted(samples.items())]
        for record in of_row:
            for part in _PARTS:
                record[f"{part}_x_shortest"] = record[f"{part}_us_per_token"] / of_row[0][f"{part}_us_per_token"]
            _print(record)
        records += of_row
    return records


REPEATED = 131_072
"""Tokens that runs of a shorter T have together."""


def _nested(
    name: str,
    row: Row,
    lengths: list[int],
    samples: dict[int, list[Sample]],
    args: argparse.Namespace,
    deadline: float,
) -> None:
    """Half of the runs of lengths[0], all of the longer ones, the other half."""
    length, longer = lengths[0], lengths[1:]
    half = max(REPEATED // length // 2, 1) if longer and name not in FULL else 1
    taken = samples.setdefault(length, [])
    taken += [_measure(row, length, args, memory=k == 0) for k in range(half)]
    while longer:
        seconds = _expected(name, taken[0], length, longer[0])
        if seconds <= args.row_seconds and time.monotonic() + seconds <= deadline:
            _nested(name, row, longer, samples, args, deadline)
            taken += [_measure(row, length, args) for _ in range(half)]
            return
        longer = longer[1:]


def _measure(row: Row, length: int, args: argparse.Namespace, *, memory: bool = False) -> Sample:
    tokens = torch.randint(args.vocab, (1, length), generator=torch.Generator().manual_seed(0)).to(args.device)
    return measure(row, tokens, memory=memory, clock=args.clock)


def _record(name: str, n: int, length: int, taken: list[Sample]) -> dict[str, Any]:
    return {
        "row": name,
        "N": n,
        "T": length,
        "runs": len(taken),
        "forward_us_per_token": statistics.mean(s.forward for s in taken) / length * 1e6,
        "training_us_per_token": statistics.mean(s.training for s in taken) / length * 1e6,
        "forward_peak_bytes": taken[0].forward_bytes,
        "training_peak_bytes": taken[0].training_bytes,
    }


def _expected(name: str, seen: Sample, length: int, longer: int) -> float:
    times = longer / length
    return (seen.forward + seen.training) * times * (times if name in FULL else 1)


def _print(record: dict[str, Any]) -> None:
    peaks = [f"{b / 2**20:,.0f}" if b is not None else "?" for b in (record[f"{p}_peak_bytes"] for p in _PARTS)]
    print(
        f"{record['row']:30}{record['T']:10,}{record['runs']:6}{record['forward_us_per_token']:10.2f}"
        f"{record['training_us_per_token']:10.2f}{record['forward_x_shortest']:8.3f}"
        f"{record['training_x_shortest']:8.3f}{peaks[0]:>15}{peaks[1]:>8}",
        flush=True,
    )


_PARTS = ("forward", "training")
