"""``python -m bench.speed [what]``; without ``what``, all of it in about ten minutes on two cores.

arms    tokens/s and peak memory, forward and training step, over N and T: the twelve arms, the segment loop, the
        package infini-transformer-pytorch and transformers' Llama with SDPA full attention at the same size; without
        ``what`` also in a wider model
flat    cost per token from 8K to 256K tokens, in chunks
stream  peak memory of a million streamed tokens, each length in a process of its own
scan    the delta rule's recurrence against an associative scan
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.speed import arms, flat, scans, stream
from bench.speed.rows import LLAMA, PEER, names
from model.allocator import keep_freed_memory
from model.config import TrunkConfig

SIZES: dict[str, dict[str, Any]] = {
    "small": {"dim": 128, "layers": 4, "heads": 4},
    "medium": {"dim": 256, "layers": 4, "heads": 4},
    "large": {"dim": 768, "layers": 2, "heads": 6},  # the width of runs/pg19.yaml, in fewer layers
    "1b": {"dim": 2048, "layers": 16, "heads": 32, "kv_heads": 8, "ffn_dim": 8192},
}
SEGMENTS, LENGTHS = (64, 128, 512, 2048), (2048, 8192, 32_768, 131_072)
FLAT_ROWS, FLAT_LENGTHS = ("infini-linear", "infini-delta", "local", "full"), (8192, 32_768, 262_144)
WIDE_ROWS = ["local", "infini-linear", "infini-delta"]
STREAM_LENGTHS = (65_536, 262_144, 1_048_576)


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    if args.what == "stream-one":
        print(json.dumps(stream.one(args.rule, args.length, args.chunk)))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # the memory's float32 products on tensor cores, in TF32
    keep_freed_memory()  # as the training worker does; of every row, since all run in this process
    trunk = TrunkConfig(**SIZES[args.size])
    result: dict[str, Any] = {"machine": machine(args.device), "size": args.size, "torch": torch.__version__}
    print(f"{result['machine']}; torch {torch.__version__}; {args.size}: {SIZES[args.size]}, vocabulary {args.vocab}")
    if args.what in ("all", "arms"):
        print(f"batch {args.batch}; medians of {args.repeats} rounds, ratios within rounds")
        _say_if_missing(args.rows)
        result["arms"] = arms.run(_for(args, lengths=LENGTHS, segments=SEGMENTS, minutes=4.0), trunk)
        if args.what == "all" and args.size == "small":
            wide = _for(args, lengths=(8192,), segments=(512,), minutes=3.0, row_seconds=20.0, rows=WIDE_ROWS)
            wide.repeats = max(args.repeats, 5)  # few rows and slow ones, so that noise would be all one sees
            print(f"\nwider: {SIZES['large']}")
            result["wide"] = arms.run(wide, TrunkConfig(**SIZES["large"]))
    if args.what in ("all", "flat"):
        rows = FLAT_ROWS if args.rows == names() else args.rows
        result["flat"] = flat.run(
            _for(args, lengths=FLAT_LENGTHS, segments=(512,), minutes=4.0, row_seconds=90.0, chunk=2048, rows=rows),
            trunk,
        )
    if args.what in ("all", "stream"):
        result["stream"] = stream.run(_for(args, lengths=STREAM_LENGTHS, chunk=2048))
    if args.what in ("all", "scan"):
        result["scan"] = scans.run(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def machine(device: str) -> str:
    """What this runs on, in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def _for(args: argparse.Namespace, **defaults: Any) -> argparse.Namespace:
    """The arguments, with these values where the command line gave none."""
    values = vars(args)
    return argparse.Namespace(**values | {k: v for k, v in defaults.items() if k == "rows" or values.get(k) is None})


def _say_if_missing(rows: Sequence[str]) -> None:
    for name, package in ((LLAMA, "transformers"), (PEER, "infini-transformer-pytorch")):
        if any(row.startswith(name) for row in rows) and importlib.util.find_spec(package.replace("-", "_")) is None:
            print(f"{name.strip()}: not measured, {package} is not installed (pip install {package})")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whats = ("all", "arms", "flat", "stream", "scan")
    sub = parser.add_subparsers(dest="what", metavar="what")
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("--size", choices=SIZES, default="small", help="model size (default small)")
    add("--rows", type=lambda text: text.split(","), default=names(), help="rows by name, comma-separated (all)")
    add("--lengths", type=_numbers, help=f"T, comma-separated (arms: {_text(LENGTHS)}; flat: {_text(FLAT_LENGTHS)})")
    add("--segments", type=_numbers, help=f"N, comma-separated (arms: {_text(SEGMENTS)}; flat: 512)")
    add("--batch", type=int, default=1, help="sequences a step (1)")
    add("--vocab", type=int, default=512, help="vocabulary size (512)")
    add("--chunk", type=int, help="tokens a chunk of a sequence (arms: all in one; flat, stream: 2048)")
    add("--repeats", type=int, default=3, help="timed rounds after the first (3)")
    add("--minutes", type=float, help="begin nothing that would end later (arms: 4, flat: 4)")
    add("--row-seconds", type=float, help="leave out rows that would take longer for one sample (arms: 5, flat: 90)")
    add("--threads", type=int, help="CPU threads (torch's default)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: of this process, for a busy machine, 1 thread")
    add("--device", default="cpu", help="torch device; cuda runs under bfloat16 autocast")
    add("--compile", action="store_true", help="torch.compile every row (arms)")
    add("--peak-tflops", type=float, help="dense bf16 peak that MFU is relative to (default: by the GPU's name)")
    add("--json", type=Path, help="also write all numbers to this file")
    for what in whats:
        sub.add_parser(what, parents=[common])
    one = sub.add_parser("stream-one")
    one.add_argument("rule", choices=("linear", "delta"))
    one.add_argument("length", type=int)
    one.add_argument("--chunk", type=int, default=2048)
    args = parser.parse_args(argv)
    if args.what is None:
        args = parser.parse_args(["all", *(argv or [])])
    unknown = [name for name in getattr(args, "rows", []) if name not in names()]
    if unknown:
        parser.error(f"--rows {unknown[0]!r}: allowed are {', '.join(names())}")
    return args


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted(int(part) for part in text.split(",")))


def _text(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


if __name__ == "__main__":
    main()
