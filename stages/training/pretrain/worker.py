"""What one training worker does: build the model, train to the end or go on where an earlier attempt stopped, export.

Imports stay few (torch, numpy, pyarrow): every worker of every run pays for them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cluster.storage import (
    filesystem,
    fingerprints,
    is_local,
    join,
    put_tree,
    read_checked,
    remove_tree,
    write_atomic,
    write_checked,
)
from model.config import MixerConfig, ModelConfig, RopeScaling
from stages.stage import Artifact, Execution, StageError
from stages.training.pretrain.channel import PROGRESS, Writer
from stages.training.pretrain.config import ranks_of_a_sequence
from stages.training.pretrain.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from model.decoder import Decoder
    from stages.data.tokens.load import StudyTokenizer
    from stages.training.pretrain.checkpoint import RunState
    from stages.training.pretrain.config import PromptPhase
    from stages.training.pretrain.data import TokenRows
    from stages.training.pretrain.mixture import Batches, BatchSource
    from stages.training.pretrain.objective import Objective

EXPORT, EXPORTED, FAILURE, CANCEL = "export", "export.json", "failure.json", "cancel"
HAYSTACK_TOKENS = 2_000_000  # training text that prompts are hidden in
# Recomputing layers in the backward pass costs a third more time; long rows do not fit without.
RECOMPUTE_FROM_TOKENS = 16_384


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A training run, picklable. Of ``scratch`` (a new model) and ``base`` exactly one is set: the base's trunk is
    grafted onto ``mixer``, or the base goes on as the arm it is (mixer None). ``rope_theta``, ``rope_scaling``: of a
    graft, in place of the base's; None: the base's. ``data``: rows and objective of its own, in place of the text and
    prompts of ``recipe.mixture``."""

    recipe: Recipe
    tokens: Artifact
    tokenizer: Artifact
    work_url: str
    execution: Execution
    scratch: ModelConfig | None = None
    base: Artifact | None = None
    mixer: MixerConfig | None = None
    rope_theta: float | None = None
    rope_scaling: RopeScaling | None = None
    data: TrainingData | None = None


class TrainingData(Protocol):
    """What a run trains on, where that is not the mixture of its recipe; picklable."""

    def open(self, job: TrainingJob, decoder: Decoder, device: torch.device) -> tuple[BatchSource, Objective]:
        """Batches and objective; ``decoder``: the model as it is before training, on ``device``."""


def ray_worker(config: dict[str, Any]) -> None:
    """Entry point of a Ray Train worker."""
    import ray.train

    from stages.training.pretrain.loop import TrainingCancelled

    job: TrainingJob = config["job"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    local = context.get_local_rank()
    try:
        with threads(job.execution):
            run(job, rank, world_size, local)
    except TrainingCancelled:
        return
    except StageError as error:
        # A fault of the input is the same on every attempt and every rank: told, not retried.
        if rank == 0:
            fault = {"message": error.message, "field": error.field, "value": error.value}
            fs, path = filesystem(join(job.work_url, FAILURE))
            fault |= {"allowed": error.allowed, "fix": error.fix}
            write_atomic(fs, path, json.dumps(fault, default=repr).encode())


@contextlib.contextmanager
def threads(execution: Execution) -> Iterator[None]:
    """As many torch threads as the worker has cores, while it trains: its process may serve other steps afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(execution.cpus_per_worker)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def process_group(execution: Execution, world_size: int) -> Iterator[None]:
    """The default group of processes that torchrun started; none for a single one. Under Ray Train it is there.

    All leave it together, also at a notice that stopped them all: gloo's threads give up the tensors of the last
    collective a little after it, and a process that ends before that aborts."""
    if world_size == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    from stages.training.pretrain.notice import Preempted

    cuda = execution.device != "cpu" and torch.cuda.is_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        try:
            yield
        except Preempted:
            dist.barrier()
            raise
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run(
    job: TrainingJob,
    rank: int,
    world_size: int,
    local_rank: int = 0,
    *,
    on_row: Callable[[dict[str, Any]], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> None:
    """Train and, on rank 0, export to ``<work_url>/export``.

    ``on_row`` and ``on_warning``: told as well as the progress file, where the step runs in this very process.
    """
    import torch

    from model.allocator import keep_freed_memory
    from stages.training.pretrain.checkpoint import Checkpoints
    from stages.training.pretrain.loop import Runtime, full_state_dict, train
    from stages.training.pretrain.notice import awaited
    from stages.training.pretrain.objective import LIKELIHOOD

    device = choose_device(job.execution, local_rank)
    torch.manual_seed(job.recipe.seed)  # as in a new process, whatever ran in this one before
    if device.type == "cpu":
        keep_freed_memory()
    channel = Writer(join(job.work_url, PROGRESS))
    cancel_fs, cancel_path = filesystem(join(job.work_url, CANCEL))

    cancelled = rank == 0 and on_row is None and cancel_fs.exists(cancel_path)

    def tell(row: dict[str, Any]) -> None:
        nonlocal cancelled
        if on_row is not None:
            on_row(row)
        if rank == 0 and channel.row(row, job.recipe.steps) and on_row is None:
            cancelled = cancelled or cancel_fs.exists(cancel_path)

    decoder, execution = build(job), job.execution
    sharing = ranks_of_a_sequence(execution, decoder.config.mixer) if job.data is None else 1
    recompute = execution.recompute_activations
    runtime = Runtime(
        device=device,
        rank=rank,
        world_size=world_size,
        sequence_ranks=sharing,
        recompute=job.recipe.sequence_length >= RECOMPUTE_FROM_TOKENS * sharing if recompute is None else recompute,
        compiled=execution.compile,
        micro_batch=execution.micro_batch,
        any_world_size=execution.allow_world_size_change,
        checkpoints=Checkpoints(
            job.work_url,
            rank,
            world_size,
            on_warning or channel.warn,
            keep=execution.keep_checkpoints,
            background=execution.async_checkpoints,
        ),
        on_row=tell,
        cancelled=lambda: cancelled,
    )
    batches: BatchSource
    objective: Objective
    if job.data is None:
        batches, objective = open_batches(job), LIKELIHOOD
    else:
        batches, objective = job.data.open(job, decoder.to(device), device)
    with awaited() as runtime.preempted:
        state = train(job.recipe, decoder, batches, runtime, objective)
    weights = full_state_dict(decoder, world_size)
    if rank == 0:
        export(job, decoder.config, weights, state)


def choose_device(execution: Execution, local_rank: int) -> Any:
    """The torch device of this worker. Raises StageError if CUDA is asked for and absent."""
    import torch

    from stages.training.device import torch_device

    device = torch_device(execution)
    if device.type == "cpu":
        return device
    torch.cuda.set_device(local_rank % torch.cuda.device_count())
    return torch.device("cuda", torch.cuda.current_device())


def build(job: TrainingJob) -> Decoder:
    """A new model, the base's trunk under the arm's mixer, or the base itself; the same on every rank."""
    if job.scratch is not None:
        from model.decoder import Decoder

        return Decoder(job.scratch, seed=job.recipe.seed)
    from model.checkpoint import graft, load

    assert job.base is not None
    if job.mixer is None:
        return load(job.base.path("model"))
    return graft(
        job.base.path("model"),
        job.mixer,
        seed=job.recipe.seed,
        rope_theta=job.rope_theta,
        rope_scaling=job.rope_scaling,
    )


def open_batches(job: TrainingJob) -> Batches:
    """The run's global batches, by step."""
    from stages.training.pretrain.data import TokenRows, Windows
    from stages.training.pretrain.mixture import Batches, PromptRows

    recipe = job.recipe
    rows = TokenRows(job.tokens.path("train"))
    prompts: PromptRows | None = None
    if any(phase.share for phase in recipe.mixture.prompts):
        from stages.data.tasks.drill import Drill
        from stages.data.tasks.training import training_rows
        from stages.data.tokens.load import load_tokenizer

        codec = load_tokenizer(job.tokenizer)
        haystack, drill = training_haystack(rows, codec), Drill(codec, recipe.seed)

        def prompts(phase: PromptPhase, count: int, first: int) -> Any:
            if phase.drill is not None:
                words, ks = phase.drill.words, phase.drill.k
                return drill.rows(phase.length, count, first, words=words, ks=ks, field="mixture.prompts drill.words")
            return training_rows(
                codec,
                haystack,
                phase.length,
                count,
                recipe.seed,
                format=recipe.mixture.retrieval_format,
                tasks=recipe.mixture.retrieval_tasks,
                rivals=phase.rivals or recipe.mixture.retrieval_rivals,
                first=first,
                field="mixture.prompts length",
            )

    return Batches(recipe, Windows(rows, recipe.sequence_length), prompts)


def training_haystack(rows: TokenRows, codec: StudyTokenizer) -> NDArray[np.int32]:
    """The first ``HAYSTACK_TOKENS`` tokens of training text, whole rows, without the marks of documents' begins."""
    import numpy as np

    pieces, found = [], 0
    for index in range(len(rows)):
        tokens, mask = rows.row(index)
        pieces.append(tokens[mask.astype(bool)])
        found += len(pieces[-1])
        if found >= HAYSTACK_TOKENS:
            break
    haystack: NDArray[np.int32] = np.concatenate(pieces)
    return haystack if codec.bos_id is None else haystack[haystack != codec.bos_id]


def export(job: TrainingJob, config: ModelConfig, weights: dict[str, Any], state: RunState) -> None:
    """The artifact's files below ``<work_url>/export``, and last the marker that they are whole."""
    from model.checkpoint import save
    from model.decoder import Decoder

    decoder = Decoder(config)
    decoder.load_state_dict(weights)
    fs, target = filesystem(join(job.work_url, EXPORT))
    if fs.exists(target):
        remove_tree(fs, target)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(target) if is_local(fs) else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        save(decoder, folder / "model", like=None if job.base is None else job.base.path("model"))
        write_tables(folder, config, job.recipe.sequence_length, state)
        if not is_local(fs):
            put_tree(fs, target, folder)
    said = {"step": state.step, "files": fingerprints(fs, target)}
    write_checked(*filesystem(join(job.work_url, EXPORTED)), said)


def write_tables(folder: Path, config: ModelConfig, sequence_length: int, state: RunState) -> None:
    """train_log.parquet, samples.parquet, gates.parquet (arms with gates) and cost.json of ``docs/formats.md``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from model.cost import cost
    from stages.training.pretrain.monitor import COLUMNS

    numbers = ("loss", "answer_loss", "lr", "grad_norm", "tokens_per_s", *COLUMNS)
    schema = pa.schema([("step", pa.int64()), ("tokens", pa.int64()), *((name, pa.float64()) for name in numbers)])
    pq.write_table(pa.Table.from_pylist(state.rows, schema), folder / "train_log.parquet")
    samples = {"step": range(1, len(state.samples) + 1), "sample_ids_digest": state.samples}
    pq.write_table(
        pa.table(samples, pa.schema([("step", pa.int64()), ("sample_ids_digest", pa.string())])),
        folder / "samples.parquet",
    )
    if state.gates:
        heads = [
            {"step": row["step"], "layer": layer, "head": head, "gate": gate}
            for row in state.gates
            for layer, of_layer in enumerate(row["gates"])
            for head, gate in enumerate(of_layer)
        ]
        columns = [("step", pa.int64()), ("layer", pa.int64()), ("head", pa.int64()), ("gate", pa.float64())]
        pq.write_table(pa.Table.from_pylist(heads, pa.schema(columns)), folder / "gates.parquet")
    known = dataclasses.asdict(cost(config, sequence_length))
    rates = [float(row["tokens_per_s"] or 0) for row in state.rows[1:] or state.rows]
    known |= {
        "flops_per_token": known["flops_per_token_training"],
        "tokens_per_s": statistics.median(rates) if rates else 0.0,
        "wall_s": state.wall_s,
    }
    if state.resized:
        known["resized"] = state.resized
    (folder / "cost.json").write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def exported(work_url: str) -> bool:
    """Is there a whole export, of this attempt or of one that was killed before its commit? What a failing disk left
    of one is none."""
    said = read_checked(*filesystem(join(work_url, EXPORTED)))
    if said is None:
        return False
    try:
        found = fingerprints(*filesystem(join(work_url, EXPORT)))
    except OSError:
        return False
    return bool(found == said["files"])


def take_export(work_url: str, output: Path) -> None:
    """Copy the export into the step's output folder."""
    fs, source = filesystem(join(work_url, EXPORT))
    if is_local(fs):
        shutil.copytree(source, output, dirs_exist_ok=True)
    else:
        from cluster.storage import get_tree

        get_tree(fs, source, output)
