"""Evaluation of prompts: ``python -m bench.evaluate [generate|share|workers]``; without, all of it in a few minutes.

generate  passkey prompts answered by an evaluation (prefill, the answer's likelihood, greedy answer) against
          transformers' ``generate`` on the same prompts, which gives the answer alone: a Llama of the same shape with
          the weights of the arm full, whose answers must be the same
share     prompts that begin alike, read as one tree against each read by itself: a passkey at every depth of one
          haystack, and every needle of one haystack asked
workers   the evaluation's parts on one and on several workers of Ray

One process; rows take turns, round after round; medians over rounds, ratios are medians of the ratios within rounds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.evaluate_workers import seconds_by_workers
from bench.speed.__main__ import SIZES, machine
from bench.speed.rows import arms
from model.allocator import keep_freed_memory
from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.decoder import Decoder
from stages.data.tasks.config import RetrievalConfig
from stages.data.tasks.prompts import Item, evaluation_items
from stages.data.tokens.load import StudyTokenizer
from stages.data.tokens.tokenizer import byte_level
from stages.evidence.evaluate import retrieval
from stages.evidence.evaluate.forward import PASS_TOKENS, batches, nothing

LENGTHS = (1024, 4096, 16_384, 65_536)
LONG = 16_384  # from which a turn may take minutes
ARMS = ("infini-linear", "infini-delta", "local", "full")
LLAMA = "transformers generate"
WORDS = ("river", "wall", "bridge", "town", "asked", "went", "along", "where", "nobody", "after", "last", "old", "it")


def say(text: str) -> None:
    print(text, flush=True)


def tokenizer() -> StudyTokenizer:
    """Bytes."""
    backend = byte_level()
    return StudyTokenizer(backend, backend.get_vocab_size(), 1, 0)


def prompts(config: RetrievalConfig, seed: int = 0) -> list[Item]:
    """Over made-up prose."""
    rng, codec = random.Random(seed), tokenizer()
    text = " ".join(rng.choices(WORDS, k=max(config.lengths) // 2))
    return list(evaluation_items(config, codec, np.array(codec.encode(text), np.int32), seed))


def passkeys(length: int, count: int) -> list[Item]:
    return prompts(RetrievalConfig(lengths=(length,), trials=count, binding_trials=0, control_trials=0))


def decoder(arm: str, trunk: TrunkConfig, segment: int) -> Decoder:
    fields: Mapping[str, Any] = arms()[arm]
    mixer = MixerConfig(**fields, segment_length=segment)
    return Decoder(ModelConfig(trunk=trunk, mixer=mixer, vocab_size=tokenizer().vocab_size), seed=0).eval()


def llama(full: Decoder) -> Any | None:
    """``full`` as transformers' own model; None where transformers is not installed."""
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        return None
    from model.export import export

    with tempfile.TemporaryDirectory() as folder:
        export(full, folder)
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def generate(model: Any, items: Sequence[Item]) -> list[list[int]]:
    """Greedy answers, as many prompts at once as the evaluation reads."""
    device = next(model.parameters()).device
    said: dict[int, list[int]] = {}
    for batch in batches([len(item.prompt) for item in items], PASS_TOKENS[device.type]):
        ids = torch.tensor([items[i].prompt for i in batch], device=device)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=items[batch[0]].budget,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        said.update(zip(batch, out[:, ids.shape[1] :].tolist(), strict=True))
    return [said[i] for i in range(len(items))]


def turns(
    rows: Mapping[str, Callable[[], object]], repeats: int, clock: str, *, length: int, warm: bool = False
) -> dict[str, list[float]]:
    """Seconds of each row, round after round. ``warm``: nothing like it ran before, so a first round does not count.
    Of long prompts each turn is announced."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for round_ in range(-warm, repeats):
        for name, work in rows.items():
            if length >= LONG:
                print(f"T = {length:,}, round {round_ + 1} of {repeats}: {name}", file=sys.stderr, flush=True)
            began = now()
            work()
            if round_ >= 0:
                seconds[name].append(now() - began)
    return seconds


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """How many times as fast as ``to``."""
    return statistics.median(b / a for a, b in zip(of, to, strict=True))


def run_generate(args: argparse.Namespace, trunk: TrunkConfig) -> list[dict[str, Any]]:
    models = {arm: decoder(arm, trunk, args.segment).to(args.device) for arm in args.arms}
    codec, found = tokenizer(), []
    few = passkeys(args.lengths[0] if args.lengths[0] < LONG else LENGTHS[0], 2)
    full = decoder("full", trunk, args.segment)
    peer = llama(full)
    if peer is None:
        say(f"{LLAMA}: not measured, transformers is not installed (pip install transformers)")
    else:  # the same answers, or the comparison means nothing
        assert [said for said, _ in retrieval.answers(full, codec, few, nothing)] == [
            codec.decode(ids) for ids in generate(peer, few)
        ]
        peer = peer.to(args.device)
    for model in models.values():  # nothing like it ran before
        retrieval.answers(model, codec, few, nothing)
    if peer is not None:
        generate(peer, few)
    say(f"\n{'T':>7} {'row':24} {'prompts/s':>10} {'tokens/s':>10} {'x generate':>10}")
    for length in args.lengths:
        items = passkeys(length, max(1, min(args.prompts, args.tokens // length)))
        rows: dict[str, Callable[[], object]] = {
            arm: partial(retrieval.answers, model, codec, items, nothing) for arm, model in models.items()
        }
        if peer is not None:
            rows[LLAMA] = partial(generate, peer, items)
        seconds = turns(rows, args.repeats, args.clock, length=length)
        tokens = sum(len(item.prompt) for item in items)
        for name in rows:
            each = statistics.median(seconds[name])
            record = {"T": length, "row": name, "prompts": len(items), "prompts_per_s": len(items) / each}
            record |= {"tokens_per_s": tokens / each}
            if peer is not None:
                record["x_generate"] = ratio(seconds[name], seconds[LLAMA])
            found.append(record)
            say(
                f"{length:7,} {name:24} {record['prompts_per_s']:10.2f} {record['tokens_per_s']:10,.0f} "
                f"{record.get('x_generate', float('nan')):10.2f}"
            )
    return found


def run_share(args: argparse.Namespace, trunk: TrunkConfig) -> list[dict[str, Any]]:
    codec, found = tokenizer(), []
    depths = tuple(round(i / (args.depths - 1), 4) for i in range(args.depths))
    say(f"\n{'T':>7} {'prompts':34} {'row':14} {'prompts/s':>10} {'x each by itself':>16}")
    for length in (n for n in args.lengths if args.depths * n <= 4 * args.tokens):
        common: dict[str, Any] = {"lengths": (length,), "control_trials": 0, "haystacks": "shared"}
        sets = {
            f"a passkey at {args.depths} depths": prompts(
                RetrievalConfig(**common, trials=1, depths=depths, binding_trials=0)
            ),
            f"{args.depths} needles, each asked": prompts(
                RetrievalConfig(**common, trials=1, rivals=(args.depths,), binding_trials=args.depths)
            )[1:],
        }
        for title, items in sets.items():
            for arm in (one for one in args.arms if one != "full"):
                model = decoder(arm, trunk, args.segment).to(args.device)
                rows: dict[str, Callable[[], object]] = {
                    way: partial(retrieval.answers, model, codec, items, nothing, share=share)
                    for way, share in (("tree", True), ("each", False))
                }
                seconds = turns(rows, args.repeats, args.clock, length=length, warm=length == args.lengths[0])
                record = {"T": length, "prompts": title, "row": arm, "x_each": ratio(seconds["tree"], seconds["each"])}
                record["prompts_per_s"] = len(items) / statistics.median(seconds["tree"])
                found.append(record)
                say(f"{length:7,} {title:34} {arm:14} {record['prompts_per_s']:10.2f} {record['x_each']:16.2f}")
    return found


def run_workers(args: argparse.Namespace, trunk: TrunkConfig) -> list[dict[str, Any]]:
    """Parts of one evaluation by the stage's own spreading; workers are warm (a first pass is not counted)."""
    model, items = decoder("infini-delta", trunk, args.segment), passkeys(4096, 3 * args.prompts)
    found = seconds_by_workers(model, tokenizer(), items, args.workers, args.repeats)
    say(f"\n{'workers':>7} {'seconds':>9} {'x one':>6}")
    for record in found:
        say(f"{record['workers']:7} {record['seconds']:9.2f} {record['x_one']:6.2f}")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {"generate": run_generate, "share": run_share, "workers": run_workers}
    add = parser.add_argument
    add("what", nargs="?", choices=("all", *parts), default="all")
    add("--size", choices=SIZES, default="small", help="model size (small)")
    add("--lengths", type=lambda text: tuple(int(n) for n in text.split(",")), default=LENGTHS, help="T, by commas")
    add("--arms", type=lambda text: tuple(text.split(",")), default=ARMS, help="by commas")
    add("--segment", type=int, default=512, help="N (512)")
    add("--prompts", type=int, default=16, help="prompts a length at most (16)")
    add("--tokens", type=int, default=2**16, help="tokens of a length's prompts, one prompt at least (65536)")
    add("--depths", type=int, default=11, help="depths, and needles, of a haystack (11)")
    add("--workers", type=int, default=2, help="workers at most (2)")
    add("--repeats", type=int, default=3, help="timed rounds after the first (3)")
    add("--threads", type=int, help="CPU threads (torch's default)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: of this process, for a busy machine, 1 thread")
    add("--device", default="cpu", help="torch device")
    add("--json", type=Path, help="also write all numbers to this file")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    result: dict[str, Any] = {"machine": machine(args.device), "size": args.size, "torch": torch.__version__}
    say(f"{result['machine']}; torch {torch.__version__}; {args.size}: {SIZES[args.size]}; N = {args.segment}")
    for name in parts if args.what == "all" else (args.what,):
        result[name] = parts[name](args, TrunkConfig(**SIZES[args.size]))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
