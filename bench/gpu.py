"""Every GPU number of docs/performance.md on one card, in ten minutes: ``python -m bench.gpu`` (``make bench-gpu``).

A 1B model in bfloat16 under autocast, its memory in float32, compiled layer by layer: tokens/s, peak memory and MFU of
infini, window and local at 32K tokens, and of infini at 256K in chunks of 32K; then the goals, each reached, missed or
not measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.speed.__main__ import SIZES
from bench.speed.__main__ import main as speed

ROWS = ("window", "infini-delta", "infini-linear", "local")
LONG_ROWS = ("infini-delta", "infini-linear")
Records = dict[tuple[str, int], dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda")
    add("--size", choices=SIZES, default="1b")
    add("--lengths", type=lambda text: tuple(map(int, text.split(","))), default=(32_768, 262_144), help="short,long T")
    add("--segment", type=int, default=2048, help="N")
    add("--minutes", type=float, default=10.0, help="begin nothing that would end later")
    add("--eager", action="store_true", help="without torch.compile")
    args = parser.parse_args(argv)
    short, long = args.lengths
    deadline = time.monotonic() + 60 * args.minutes
    found: Records = {}
    for length, rows in ((short, ROWS), (long, LONG_ROWS)):
        minutes = (deadline - time.monotonic()) / 60
        if minutes > 0:
            found |= _measure(args, rows, length, chunk=short, minutes=minutes)
    print()
    for goal, value, least in goals(found, short, long):
        said = "not measured" if value is None else f"{value:.3f} ({'reached' if value >= least else 'missed'})"
        print(f"{goal:60}{said}")


def goals(found: Records, short: int, long: int) -> list[tuple[str, float | None, float]]:
    """(goal, what was measured, the least that reaches it)."""

    def rate(row: str, length: int) -> float | None:
        record = found.get((row, length))
        return None if record is None else float(record["training_tokens_per_s"])

    def ratio(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a / b

    delta, window = rate("infini-delta", short), rate("window", short)
    return [
        (f"infini-delta / window, tokens/s of training at {short:,}, >= 0.9", ratio(delta, window), 0.9),
        (f"MFU of infini-delta at {short:,}, >= 0.5", (found.get(("infini-delta", short)) or {}).get("mfu"), 0.5),
        (f"tokens/s at {long:,} / at {short:,}, infini-delta, >= 0.95", ratio(rate("infini-delta", long), delta), 0.95),
    ]


def _measure(args: argparse.Namespace, rows: Sequence[str], length: int, *, chunk: int, minutes: float) -> Records:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "numbers.json"
        options = {
            "--device": args.device,
            "--size": args.size,
            "--rows": ",".join(rows),
            "--lengths": length,
            "--segments": args.segment,
            "--chunk": chunk,
            "--minutes": minutes,
            "--row-seconds": 60 * minutes,
            "--json": target,
        }
        speed(
            ["arms", *(str(part) for pair in options.items() for part in pair), *([] if args.eager else ["--compile"])]
        )
        return {(record["row"], record["T"]): record for record in json.loads(target.read_text())["arms"]}


if __name__ == "__main__":
    main()
