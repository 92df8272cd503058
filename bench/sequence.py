"""One training step on a long sequence by one rank and by ranks that share it: ``python -m bench.sequence``.

Every rank is a process (gloo) with one thread. Printed per number of ranks: the loss and the gradient's norm, which
must agree; the peak of a rank's resident set beyond what it held before the step; the bytes a rank handed to the
others; and the seconds of the step, which say something only where every rank has a core of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from bench.speed.measure import peak_resident
from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.decoder import Decoder
from model.ranks import Ranks

KINDS: dict[str, dict[str, Any]] = {
    "infini-linear": {"kind": "infini", "rule": "linear"},
    "infini-delta": {"kind": "infini", "rule": "delta"},
    "window": {"kind": "window"},
}


class Counting(Ranks):
    """Counts the bytes that this rank hands to others."""

    sent = 0

    def gather(self, x: Tensor) -> Tensor:
        self.sent += x.nbytes * (self.size - 1)
        return super().gather(x)

    def sum_of_own(self, x: Tensor) -> Tensor:
        self.sent += x.nbytes // self.size * (self.size - 1)
        return super().sum_of_own(x)

    def shift(self, x: Tensor, by: int) -> Tensor:
        self.sent += x.nbytes if 0 <= self.rank + by < self.size else 0
        return super().shift(x, by)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sequence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tokens", type=int, default=2**20, help="T (1,048,576)")
    add("--ranks", type=lambda text: tuple(map(int, text.split(","))), default=(1, 2), help="numbers of ranks (1,2)")
    add("--arm", choices=KINDS, default="infini-delta")
    add("--dim", type=int, default=32, help="width; two layers, heads of 32")
    add("--segment", type=int, default=256, help="N")
    args = parser.parse_args(argv)
    print(f"{args.arm}, T = {args.tokens:,}, N = {args.segment}, 2 layers, dim {args.dim}; one training step")
    print(f"{'ranks':>6}{'loss':>12}{'|gradient|':>13}{'peak MiB a rank':>17}{'KB handed on':>14}{'seconds':>9}")
    for size in args.ranks:
        found = run(size, args)
        print(
            f"{size:6}{sum(one['loss'] for one in found):12.6f}{found[0]['norm']:13.6f}"
            f"{max(one['peak'] for one in found) / 2**20:17,.0f}{max(one['sent'] for one in found) / 1e3:14,.1f}"
            f"{max(one['seconds'] for one in found):9.1f}",
            flush=True,
        )


def run(size: int, args: argparse.Namespace) -> list[dict[str, float]]:
    """What each of ``size`` ranks measured."""
    # glibc gives what is freed back at once: else a rank's peak is that of its heap's fragments
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "262144"
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_rank, (size, folder, args), nprocs=size, start_method="spawn")
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]


def _rank(rank: int, size: int, folder: str, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    trunk = TrunkConfig(dim=args.dim, layers=2, heads=max(1, args.dim // 32), ffn_dim=2 * args.dim)
    mixer = MixerConfig(**KINDS[args.arm], segment_length=args.segment)
    decoder = Decoder(ModelConfig(trunk=trunk, mixer=mixer, vocab_size=64), seed=0)
    decoder.activation_checkpointing = True
    ranks = Counting()
    if size > 1:
        decoder.split_sequences(ranks)
    step(decoder, args.segment * 2 * size)  # warms up
    ranks.sent, held, start = 0, peak_resident(), time.perf_counter()
    loss, norm = step(decoder, args.tokens)
    found = {"loss": loss, "norm": norm, "peak": peak_resident() - held, "sent": ranks.sent}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found | {"seconds": time.perf_counter() - start}))
    dist.barrier()
    dist.destroy_process_group()


def step(decoder: Decoder, length: int) -> tuple[float, float]:
    """This rank's part of the mean nll, and the norm of the whole gradient."""
    tokens = torch.randint(64, (1, length), generator=torch.Generator().manual_seed(0))
    decoder.zero_grad()
    loss = decoder.training_nll(tokens)[0].sum() / (length - 1)
    loss.backward()
    for parameter in decoder.parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
    return loss.item(), float(
        torch.nn.utils.get_total_norm([p.grad for p in decoder.parameters() if p.grad is not None])
    )


if __name__ == "__main__":
    main()
