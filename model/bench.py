"""Tokens per second of every arm, and of a segment loop computing the same numbers: ``python -m model.bench``.

The segment loop is how Infini-attention is usually written: the whole model runs on one segment, hands its state to the
next, and gradients flow back through all of them. Ratios are to local attention, the arm every other one extends.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.cost import cost
from model.decoder import Decoder

ARMS: dict[str, dict[str, str]] = {
    "local": {"kind": "local"},
    "infini-linear": {"kind": "infini", "rule": "linear"},
    "infini-delta": {"kind": "infini", "rule": "delta"},
    "window": {"kind": "window"},
    "xl": {"kind": "xl"},
    "full": {"kind": "full"},
}


def main() -> None:
    args = _arguments()
    torch.manual_seed(0)
    tokens = torch.randint(args.vocab, (args.batch, args.length), device=args.device)
    trunk = TrunkConfig(dim=args.dim, layers=args.layers, heads=args.heads)
    work: dict[str, tuple[Decoder, Callable[[Tensor], Tensor]]] = {}
    for name, fields in ARMS.items():
        mixer = MixerConfig(**fields, segment_length=args.segment)  # type: ignore[arg-type]
        decoder = Decoder(ModelConfig(trunk=trunk, mixer=mixer, vocab_size=args.vocab), seed=0).to(args.device)
        work[name] = decoder, decoder.loss
        if mixer.kind == "infini":
            work[f"{name}, segment loop"] = decoder, _segment_loop(decoder)
    # round after round over all arms, so that a busy moment of the machine hits all of them
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(args.repeats + 1):
        for name, (decoder, loss) in work.items():
            times[name].append(_measure(decoder, tokens, loss))
    rows = {}
    for name, (decoder, _) in work.items():
        forward, training = (statistics.median(column) for column in zip(*times[name][1:], strict=True))
        rows[name] = forward, training, cost(decoder.config, args.length).flops_per_token_training
    print(
        f"{args.device}, {torch.get_num_threads()} threads; dim {args.dim}, {args.layers} layers, {args.heads} heads, ",
        end="",
    )
    print(
        f"vocabulary {args.vocab}, batch {args.batch}, T = {args.length}, N = {args.segment}; median of {args.repeats}"
    )
    print(f"{'arm':29}{'forward':>12}{'training':>12}  tokens/s {'forward':>8}{'training':>10}  x local {'GFLOP/s':>9}")
    for name, (forward, training, flops) in rows.items():
        base = rows["local"]
        print(
            f"{name:29}{tokens.numel() / forward:12,.0f}{tokens.numel() / training:12,.0f}{'':11}"
            f"{forward / base[0]:8.2f}{training / base[1]:10.2f}{'':9}{flops * tokens.numel() / training / 1e9:9.1f}"
        )


def _segment_loop(decoder: Decoder) -> Callable[[Tensor], Tensor]:
    """The same loss, one segment at a time through the whole model."""

    def loss(tokens: Tensor) -> Tensor:
        state, hidden = None, []
        for segment in torch.split(tokens, decoder.config.mixer.segment_length, 1):
            h, state = decoder.hidden(segment, state)
            hidden.append(h)
        return decoder.token_nll(torch.cat(hidden, dim=1)[:, :-1], tokens[:, 1:]).mean()

    return loss


def _measure(decoder: Decoder, tokens: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Seconds of a forward pass without gradients, and of forward + backward."""
    start = _now(tokens)
    with torch.no_grad():
        loss(tokens)
    middle = _now(tokens)
    loss(tokens).backward()  # type: ignore[no-untyped-call]
    end = _now(tokens)
    decoder.zero_grad(set_to_none=True)
    return middle - start, end - middle


def _now(tokens: Tensor) -> float:
    if tokens.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m model.bench", description="Tokens per second of every arm.")
    for name, default, text in (
        ("dim", 128, "model size"),
        ("layers", 4, "layers"),
        ("heads", 4, "heads"),
        ("vocab", 512, "vocabulary size"),
        ("batch", 8, "sequences a step"),
        ("length", 1024, "tokens a sequence"),
        ("segment", 64, "tokens a segment, N"),
        ("repeats", 5, "timed repeats (the median counts)"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    parser.add_argument("--device", default="cpu", help="torch device (default cpu)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
