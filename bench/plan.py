"""What ``infini-study plan`` costs where everything is made: ``python -m bench.plan [--root URL | --latency 20]``.

The steps of runs/single-gpu.yaml with fine-tuning, twelve arms, are committed with a small file each; then the command
runs a few times in processes of its own. Wall and CPU seconds of each, the fastest first. ``--latency``: in a bucket of
an S3 server on this machine, behind a proxy that answers so many milliseconds later.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.engine.plan import Plan, Step
from pipeline.engine.store import Store
from pipeline.study.graph import expand
from pipeline.study.load import load
from stages.stage import Summary
from tests import seaweed
from tests.faults.proxy import proxying

STUDY = Path(__file__).parents[1] / "runs" / "single-gpu.yaml"
FINETUNE = {
    "steps": 60,
    "batch_sequences": 4,
    "lr": 1e-3,
    "tasks": {"tasks": {"passkey": 1}, "phases": [{"until": 1.0, "length": 4096}], "text_share": 0.25},
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", help="store to make them in: an empty folder or fsspec URL (default: a temporary folder)")
    add("--latency", type=float, help="milliseconds that every answer of an S3 server takes besides")
    add("--seeds", type=int, default=5)
    add("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        proxy = None
        if args.latency is not None:
            proxy = stack.enter_context(proxying(stack.enter_context(seaweed.serving(folder / "s3"))))
            os.environ |= seaweed.environment(proxy.url)
        root = args.root or ("s3://plan/store" if proxy else str(folder / "store"))
        changes = [f"seeds={json.dumps(list(range(args.seeds)))}", f"finetune={json.dumps(FINETUNE)}"]
        plan = expand(load(STUDY, changes), None)
        make(plan, Store(root))
        stages = len({step.stage.name for step in plan.steps})
        print(
            f"{len(plan.steps)} steps of {stages} stages, all made, in {args.root or ('S3' if proxy else 'a folder')}"
        )
        command = [sys.executable, "-m", "infini_study", "plan", str(STUDY), "--root", root]
        command += [part for change in changes for part in ("--set", change)]
        if proxy is not None:
            proxy.weather.latency = args.latency / 1000
            proxy.requests.clear()
        for wall, cpu in sorted(timed(command) for _ in range(args.repeats)):
            print(f"{wall:6.2f} s, {cpu:.2f} s of CPU")
        if proxy is not None:
            print(f"{proxy.requests.total() // args.repeats} requests each, answered {args.latency:g} ms late")


def make(plan: Plan, store: Store) -> None:
    """Commit every step of the plan."""

    def commit(step: Step) -> None:
        attempt = store.attempt(step.stage.name, step.key)
        (attempt.directory / "made").write_text(step.id)
        meta = {**step.record(), "seconds": 1.0}
        store.commit(step.stage.name, step.key, store.seal(attempt), Summary("made"), meta)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(commit, plan.steps))


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.perf_counter() - began, cpu


if __name__ == "__main__":
    main()
