"""All arms side by side: tokens/s and peak memory, forward and training step, over N and T."""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import torch

from bench.speed.measure import Sample, measure, peak_flops
from bench.speed.rows import FULL, LOOP, PEER, Row, build
from model.config import TrunkConfig
from model.decoder import Decoder

FIRST = ("local", "infini")
"""Rows that a T and N is not measured without."""
GROWTH = 1.15
"""A row's time at 4 T over 4 times its time at T, for the prediction of what fits the time left."""


def run(args: argparse.Namespace, trunk: TrunkConfig) -> list[dict[str, Any]]:
    """One record per (T, N, row), shortest T first; longer ones as far as ``args.minutes`` reach. Within a T and N the
    rows take turns, round after round, so that a busy moment of the machine hits all of them."""
    deadline = time.monotonic() + 60 * args.minutes
    records: list[dict[str, Any]] = []
    last: dict[tuple[int, str], float] = {}  # seconds of one sample at the T before
    peak = peak_flops(args.device, args.peak_tflops)
    for previous, length in zip([None, *args.lengths[:-1]], args.lengths, strict=True):
        for n in args.segments:
            if n > length:
                continue
            wanted = [name for name in args.rows if _fits(name, n, length, previous, last, args.row_seconds or 5.0)]
            costs = {name: _expected(name, n, length, previous, last) * (args.repeats + 1) for name in wanted}
            optional = [name for name in sorted(costs, key=lambda name: costs[name]) if not name.startswith(FIRST)]
            while optional and time.monotonic() + sum(costs.values()) > deadline:
                del costs[optional.pop()]  # the slowest rows go first
            wanted = [name for name in wanted if name in costs]
            if not wanted or time.monotonic() + sum(costs.values()) > deadline:
                continue
            rows = build(wanted, trunk, n, args.vocab, args.device)
            for row in rows.values():
                if isinstance(row.module, Decoder):
                    row.module.chunk_tokens = args.chunk
                    row.module.activation_checkpointing = args.chunk is not None and args.chunk < length
            if args.compile:
                rows = {name: _compiled(row) for name, row in rows.items()}
            samples = _rounds(rows, length, args)
            for name, taken in samples.items():
                last[n, name] = max(s.forward + s.training for s in taken)
                records.append(_record(name, rows[name], n, length, taken, samples, args.batch, peak))
            print_table([r for r in records if (r["N"], r["T"]) == (n, length)])
    return records


def _compiled(row: Row) -> Row:
    """Layer by layer, as training does it; others' models as a whole."""
    if not isinstance(row.module, Decoder):
        return replace(row, loss=torch.compile(row.loss, dynamic=False))
    for layer in row.module.layers:
        layer.compile(dynamic=False)
    return row


def _rounds(rows: dict[str, Row], length: int, args: argparse.Namespace) -> dict[str, list[Sample]]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(args.vocab, (args.batch, length), generator=generator).to(args.device)
    taken: dict[str, list[Sample]] = {name: [] for name in rows}
    for round_ in range(args.repeats + 1):  # the first warms up, and measures memory
        for name, row in rows.items():
            taken[name].append(measure(row, tokens, memory=round_ == 0, clock=args.clock))
    return taken


def _fits(
    name: str, n: int, length: int, previous: int | None, last: dict[tuple[int, str], float], limit: float
) -> bool:
    return previous is None or ((n, name) in last and _expected(name, n, length, previous, last) < limit)


def _expected(name: str, n: int, length: int, previous: int | None, last: dict[tuple[int, str], float]) -> float:
    if previous is None or (n, name) not in last:
        return 0.0
    ratio = length / previous
    return last[n, name] * (ratio**2 if name in FULL or name == "landmark" else ratio * GROWTH)


def _record(
    name: str,
    row: Row,
    n: int,
    length: int,
    taken: list[Sample],
    samples: dict[str, list[Sample]],
    batch: int,
    peak: float | None,
) -> dict[str, Any]:
    def against(other: str, part: str) -> float | None:
        """Median over rounds of how many times faster this row was than the other in the same round."""
        if other not in samples or other == name:
            return None
        pairs = zip(samples[other][1:], taken[1:], strict=True)
        return float(statistics.median(getattr(a, part) / getattr(b, part) for a, b in pairs))

    tokens = batch * length
    forward, training = (statistics.median(getattr(s, part) for s in taken[1:]) for part in ("forward", "training"))
    flops = row.flops(length) if row.flops else None
    return {
        "row": name,
        "N": n,
        "T": length,
        "forward_tokens_per_s": tokens / forward,
        "training_tokens_per_s": tokens / training,
        "forward_x_local": against("local", "forward"),
        "training_x_local": against("local", "training"),
        "forward_x_loop": against(name + LOOP, "forward"),
        "training_x_loop": against(name + LOOP, "training"),
        "training_x_peer": against(PEER + name.removeprefix("infini-"), "training"),
        "forward_peak_bytes": taken[0].forward_bytes,
        "training_peak_bytes": taken[0].training_bytes,
        "training_flops_per_s": None if flops is None else flops * tokens / training,
        "mfu": None if flops is None or peak is None else flops * tokens / training / peak,
    }


def print_table(records: list[dict[str, Any]]) -> None:
    """One T and N."""
    first = records[0]
    print(f"\nT = {first['T']:,}, N = {first['N']:,}")
    print(
        f"{'':30}{'tokens/s':>20}{'x local':>14}{'x its loop':>14}{'x peer':>8}{'peak MiB':>16}{'GFLOP/s':>9}"
        f"{'MFU':>7}\n{'':30}{'forward':>10}{'train':>10}{'fwd':>7}{'train':>7}{'fwd':>7}{'train':>7}{'train':>8}"
        f"{'fwd':>8}{'train':>8}"
    )
    for r in records:
        print(
            f"{r['row']:30}{r['forward_tokens_per_s']:10,.0f}{r['training_tokens_per_s']:10,.0f}"
            f"{_number(r['forward_x_local'], 7)}{_number(r['training_x_local'], 7)}"
            f"{_number(r['forward_x_loop'], 7)}{_number(r['training_x_loop'], 7)}{_number(r['training_x_peer'], 8)}"
            f"{_mebibytes(r['forward_peak_bytes'])}{_mebibytes(r['training_peak_bytes'])}"
            f"{_number(r['training_flops_per_s'] and r['training_flops_per_s'] / 1e9, 9, 0)}{_number(r['mfu'], 7, 3)}",
            flush=True,
        )


def _number(value: float | None, width: int, digits: int = 2) -> str:
    return " " * width if value is None else f"{value:{width},.{digits}f}"


def _mebibytes(value: int | None) -> str:
    return f"{'?':>8}" if value is None else f"{value / 2**20:8,.0f}"
