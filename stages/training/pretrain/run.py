"""From a job to a finished artifact: one worker trains in the step's own process, several on Ray Train.

One worker needs no placement group, no process group and no controller, which together take 15 to 30 s to start. The
step's Ray task asks for the worker's CPUs and GPUs itself; if its process dies, Ray runs the task again (up to
``execution.max_failures`` times), and it goes on from its newest resume point, as a worker of Ray Train does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.storage import filesystem, join, read_json, write_atomic
from cluster.train import ray_is_running, run_distributed
from model.arms import why_whole
from stages.data.tokens.load import token_meta
from stages.stage import Artifact, Context, StageError, Summary
from stages.training.pretrain import worker
from stages.training.pretrain.channel import PROGRESS, Relay, relay
from stages.training.pretrain.recipe import check_execution
from stages.training.pretrain.worker import TrainingJob


def run_job(job: TrainingJob, output: Path, context: Context) -> Summary:
    """Train ``job`` and put its artifact below ``output``. Raises StageError where a fault of the input stops it."""
    mixer = job.mixer if job.scratch is None else job.scratch.mixer
    if job.data is None and mixer is not None:  # else rows of any length, which nobody shares
        check_execution(job.recipe, mixer, job.execution)
        if job.execution.sequence_parallel > 1 and (reason := why_whole(mixer)):
            context.log(f"{reason}: each worker reads whole ones")
    fs, work = filesystem(job.work_url)
    fs.makedirs(work, exist_ok=True)
    for artifact in (job.tokens, job.tokenizer, job.base):
        if artifact is not None:
            artifact.path()  # a damaged input ends the step here, and is not tried again by worker after worker
    if not worker.exported(job.work_url):
        if job.execution.train_workers > 1:
            _by_ray(job, context)
        else:
            with worker.threads(job.execution):
                worker.run(job, 0, 1, on_row=lambda row: relay(context, row, job.recipe.steps), on_warning=context.warn)
        if not worker.exported(job.work_url):
            raise RuntimeError(f"training ended without an export below {job.work_url}")
    worker.take_export(job.work_url, output)
    return summary(output)


def _by_ray(job: TrainingJob, context: Context) -> None:
    execution = job.execution
    if not ray_is_running():
        raise StageError(
            "several workers run on Ray only",
            field="execution.train_workers",
            value=execution.train_workers,
            allowed="1 with --address inline",
            fix="set it to 1, or run with --address local",
        )
    for stale in (worker.FAILURE, worker.CANCEL):
        fs, path = filesystem(join(job.work_url, stale))
        if fs.exists(path):
            fs.rm_file(path)
    resources = {"CPU": execution.cpus_per_worker}
    if execution.gpus_per_worker:
        resources["GPU"] = execution.gpus_per_worker
    run_distributed(
        worker.ray_worker,
        {"job": job},
        workers=execution.train_workers,
        resources=resources,
        name=job.work_url,
        max_failures=execution.max_failures,
        poll=Relay(join(job.work_url, PROGRESS), context).poll,
        cancel=lambda: write_atomic(*filesystem(join(job.work_url, worker.CANCEL)), b""),
    )
    fault: dict[str, Any] | None = read_json(*filesystem(join(job.work_url, worker.FAILURE)))
    if fault is not None:
        raise StageError(fault.pop("message"), **fault)


def summary(output: Path) -> Summary:
    """Headline and metrics of a trained model's folder."""
    import pyarrow.parquet as pq

    log = pq.read_table(output / "train_log.parquet").to_pylist()
    cost = json.loads((output / "cost.json").read_text())
    metrics = {name: float(cost[name]) for name in ("parameters", "flops_per_token", "tokens_per_s", "wall_s")}
    tables = {"training log": "train_log.parquet", "samples": "samples.parquet"}
    if (output / "gates.parquet").is_file():
        tables["gates by head"] = "gates.parquet"
    losses = [row["loss"] for row in log if row["loss"] is not None]
    what, metric = "loss", "loss"
    if not losses:  # nothing but answers was trained on
        losses = [row["answer_loss"] for row in log if row["answer_loss"] is not None]
        what, metric = "loss of answers", "answer_loss"
    if not losses:
        return Summary(f"{cost['parameters']:,} parameters", metrics, tables)
    tail = losses[-max(1, len(losses) // 20) :]
    last = sum(tail) / len(tail)
    metrics |= {f"{metric}_first": losses[0], f"{metric}_last": last, "tokens": float(log[-1]["tokens"])}
    gates = [row["gate_mean"] for row in log if row["gate_mean"] is not None]
    if gates:
        metrics["gate_mean"] = gates[-1]
    headline = (
        f"{what} {losses[0]:.3f} -> {last:.3f} in {len(log)} steps, "
        f"{log[-1]['tokens']:,} tokens at {cost['tokens_per_s']:,.0f}/s"
    )
    return Summary(headline, metrics, tables)


def check_tokens(tokens: Artifact, sequence_length: int) -> dict[str, Any]:
    """``meta.json`` of the tokens. Raises StageError if their rows are of another length."""
    meta = token_meta(tokens)
    if meta["sequence_length"] != sequence_length:
        raise StageError(
            f"the tokens come in sequences of {meta['sequence_length']}",
            field="pretrain.sequence_length",
            value=sequence_length,
            allowed=str(meta["sequence_length"]),
            fix="make tokenize.sequence_length and pretrain.sequence_length equal",
        )
    return meta
