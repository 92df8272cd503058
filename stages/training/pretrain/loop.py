"""The training loop: plain torch, one process or many, with or without Ray.

Every rank computes its slice of the global batch, or with ``sequence_ranks`` its part of the sequences that they have
together; losses are normalised by the *global* batch's target tokens, so the gradient does not depend on the number of
ranks or of micro-batches (beyond rounding).
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.distributed.tensor import DTensor

from model.decoder import Decoder
from model.ranks import Ranks
from stages.stage import StageError
from stages.training.pretrain import monitor, optim
from stages.training.pretrain.carry import Carried, RowNumbers, of_rows
from stages.training.pretrain.checkpoint import Checkpoints, RunState
from stages.training.pretrain.data import digest
from stages.training.pretrain.mixture import Batch, BatchSource
from stages.training.pretrain.notice import Preempted
from stages.training.pretrain.objective import LIKELIHOOD, Objective
from stages.training.pretrain.recipe import Recipe

LogRow = dict[str, Any]


@dataclass
class Runtime:
    """Where this rank runs. micro_batch: sequences per forward pass (None: the rank's whole slice). sequence_ranks:
    consecutive ranks that share each sequence. recompute: activations are made again in the backward pass.
    compiled: every layer by torch.compile. preempted, cancelled: is this rank told to stop, with a resume point or
    without? All ranks stop after the same step."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    sequence_ranks: int = 1
    recompute: bool = False
    compiled: bool = False
    micro_batch: int | None = None
    any_world_size: bool = False
    checkpoints: Checkpoints | None = None
    on_row: Callable[[LogRow], None] = field(default=lambda row: None)
    preempted: Callable[[], bool] = field(default=lambda: False)
    cancelled: Callable[[], bool] = field(default=lambda: False)


class TrainingCancelled(Exception):
    """The step was cancelled; its resume points stay."""


def train(
    recipe: Recipe, decoder: Decoder, batches: BatchSource, runtime: Runtime, objective: Objective = LIKELIHOOD
) -> RunState:
    """Train ``decoder`` in place to ``recipe.steps``; resumes from ``runtime.checkpoints``. Returns log and samples.
    The global batch divides by the world size.

    Raises StageError, with a diagnosis of the layers, if loss or gradient stop being finite, before they reach the
    weights, or if the loss rises by more than ``recipe.spike_nats``; Preempted and TrainingCancelled where a rank was
    told to stop. The resume points before stay.
    """
    decoder.to(runtime.device).train()
    decoder.chunk_tokens = recipe.chunk_tokens
    decoder.activation_checkpointing = runtime.recompute or recipe.chunk_tokens is not None
    sharers = sequence_group(runtime) if runtime.sequence_ranks > 1 else None
    if sharers is not None:
        decoder.split_sequences(Ranks(sharers))
    if runtime.compiled:
        torch.compiler.reset()  # an earlier run's graphs in this process count against the limit of recompilations
        for layer in decoder.layers:
            layer.compile(dynamic=True)
    if runtime.world_size > 1:
        shard(decoder)
    optimizers = optim.build_all(
        decoder, recipe.optimizer, lr=recipe.lr, gate_lr=recipe.gate_lr, weight_decay=recipe.weight_decay
    )
    state = RunState(world_size=runtime.world_size, sequence_ranks=runtime.sequence_ranks)
    carried = Carried(decoder) if recipe.carry_memory else None
    if runtime.checkpoints is not None:
        kept: dict[str, torch.Tensor] = {}
        share = recipe.batch_sequences // runtime.world_size
        mine = of_rows(range(runtime.rank * share, (runtime.rank + 1) * share))
        state = runtime.checkpoints.load(
            decoder,
            optimizers,
            any_world_size=runtime.any_world_size,
            sequence_ranks=runtime.sequence_ranks,
            kept=None if carried is None else (kept, mine),
        )
        if carried is not None:
            carried.restore(kept)
    if state.step == 0:
        state.gates += monitor.gates(decoder, 0)
    for done in state.rows:  # what an earlier attempt already did
        runtime.on_row(done)
    began = time.perf_counter() - state.wall_s
    speed = monitor.Speed(decoder, recipe.sequence_length, runtime.device, runtime.world_size)
    for step in range(state.step, recipe.steps):
        batch = batches[step]
        factor = optim.schedule(
            step,
            steps=recipe.decay_steps,
            warmup_steps=recipe.warmup_steps,
            kind=recipe.schedule,
            least=recipe.min_lr_share,
            decay_share=recipe.decay_share,
        )
        for optimizer in optimizers:
            optim.set_lr(optimizer, factor)
        started = time.perf_counter()
        width = batch.tokens.shape[1]  # of rows that are shorter than the recipe's, nothing is cut
        lengths = Lengths(min(recipe.length_at(step), width), min(recipe.prompt_length_at(step), width))
        whole = lengths.text == width
        if carried is not None and whole:
            batch = replace(batch, before=np.minimum(batch.before, recipe.whole_before(step)))
        losses, grad_norm, stop = _gradients(
            recipe, decoder, batch, runtime, lengths, recipe.share_at(step), objective, carried if whole else None
        )
        watched = _watched(batch, lengths, runtime)
        if wrong := what_ends_it(recipe, state, losses, grad_norm):
            if runtime.checkpoints is not None:
                runtime.checkpoints.finish()
            found = monitor.diagnosis(decoder, watched)
            raise StageError(
                f"{wrong} at step {step + 1}: loss {losses[0]}, gradient norm {grad_norm:.3g}, learning rate "
                f"{recipe.lr * factor:.3g}; {found}",
                fix="lower lr or gate_lr, lengthen warmup_steps, or tighten clip",
            )
        for optimizer in optimizers:
            optimizer.step()
        seconds = time.perf_counter() - started
        row: LogRow = {
            "step": step + 1,
            "tokens": int(state.rows[-1]["tokens"] or 0 if state.rows else 0) + batch.tokens.size,
            "loss": losses[0],
            "answer_loss": losses[1],
            "lr": recipe.lr * factor,
            "grad_norm": grad_norm,
            "tokens_per_s": batch.tokens.size / seconds,
            **dict.fromkeys(monitor.COLUMNS),
        }
        if (step + 1) % recipe.monitor_every == 0 or step + 1 == recipe.steps:
            row |= monitor.read(decoder, watched)
            state.gates += monitor.gates(decoder, step + 1)
        state.rows.append(row)
        state.samples.append(digest(batch.ids))
        state.step, state.wall_s = step + 1, time.perf_counter() - began
        runtime.on_row(row | speed(row["tokens_per_s"]))
        if runtime.checkpoints is not None:
            runtime.checkpoints.advance()
        if stop.cancelled:
            raise TrainingCancelled
        # no resume point after the last step: what follows is the export, which is then as quick to redo
        due = (stop.preempted or state.step % recipe.checkpoint_every == 0) and state.step < recipe.steps
        if runtime.checkpoints is not None and due:
            runtime.checkpoints.save(state, decoder, optimizers, carried.to_tensors() if carried else None)
            if stop.preempted:
                runtime.checkpoints.finish()
                stopped = Preempted(state.step)
                if runtime.rank == 0:
                    runtime.checkpoints.warn(str(stopped))
                raise stopped
    if runtime.checkpoints is not None:
        runtime.checkpoints.close()
    decoder.split_sequences(None)
    if sharers is not None:
        dist.destroy_process_group(sharers)
    return state


class Stop(NamedTuple):
    """Whether some rank was told to stop."""

    preempted: bool
    cancelled: bool


SPIKE_STEPS = 50
"""Steps whose median loss a spike is measured from; there is none before so many."""


def what_ends_it(
    recipe: Recipe, state: RunState, losses: tuple[float | None, float | None], grad_norm: float
) -> str | None:
    """What ends the training before this step changes a weight."""
    if not all(math.isfinite(value) for value in losses if value is not None) or not math.isfinite(grad_norm):
        return "training diverged"
    if recipe.spike_nats is None or losses[0] is None:
        return None
    before = [loss for row in state.rows[-SPIKE_STEPS:] if (loss := row["loss"]) is not None]
    if len(before) == SPIKE_STEPS and losses[0] > statistics.median(before) + recipe.spike_nats:
        return f"the loss rose by more than spike_nats = {recipe.spike_nats:g}"
    return None


def _watched(batch: Batch, lengths: Lengths, runtime: Runtime) -> torch.Tensor:
    """What monitors read, the same on every rank: the first row or prompt of the global batch; where ranks share
    sequences, as much of it as a rank has."""
    length = lengths.prompt if batch.answers[0] else batch.tokens.shape[1]
    first = batch.tokens[:1, : length // runtime.sequence_ranks]
    return torch.from_numpy(first).to(runtime.device)


class Lengths(NamedTuple):
    """Tokens of the pieces that rows of text and rows of prompts are cut into; each divides a row's length."""

    text: int
    prompt: int


def _gradients(
    recipe: Recipe,
    decoder: Decoder,
    batch: Batch,
    runtime: Runtime,
    lengths: Lengths,
    prompts: float,
    objective: Objective,
    carried: Carried | None,
) -> tuple[tuple[float | None, float | None], float, Stop]:
    """Clipped gradients of one step; ``prompts``: their share of the loss. Returns ((text loss, answer loss), gradient
    norm before clipping, whether to stop); None: no such tokens."""
    sharers = runtime.world_size // runtime.sequence_ranks
    share = len(batch.tokens) // sharers
    text, answer = objective.weights(batch, lengths.text)
    has_text, has_answer = bool(text.any()), bool(answer.any())
    r = prompts if has_text and has_answer else float(has_answer)
    slices = [slice(sharer * share, (sharer + 1) * share) for sharer in range(sharers)]
    rows = (batch.tokens, text, answer)
    together, apart = objective.together(runtime.micro_batch), None if carried is None else carried.groups(batch)
    parts = [micro_batches(rows, batch.answers, its, lengths, together, apart) for its in slices]
    mine = parts[runtime.rank // runtime.sequence_ranks]
    real = len(mine)
    # every rank passes through the model equally often: its collectives wait for all
    first, *weights = mine[0].arrays
    nothing = MicroBatch(mine[0].rows[:0], (first, *map(np.zeros_like, weights)))
    mine += [nothing] * (max(map(len, parts)) - real)
    cast: contextlib.AbstractContextManager[object] = (
        torch.autocast(runtime.device.type, torch.bfloat16) if recipe.dtype == "bf16" else contextlib.nullcontext()
    )
    sums = torch.zeros(2, dtype=torch.float64, device=runtime.device)
    decoder.zero_grad(set_to_none=True)
    for number, part in enumerate(mine):
        tokens, text_w, answer_w = (torch.from_numpy(a).to(runtime.device) for a in part.arrays)
        wanted = _wanted(text_w + answer_w)
        with cast:
            if carried is None:
                nll, auxiliary = decoder.training_nll(tokens, wanted, z_loss=recipe.z_loss)
            else:
                nll, auxiliary = carried.nll(batch, part.rows, tokens, wanted, z_loss=recipe.z_loss)
        text_loss, answer_loss = objective.losses(nll, text_w[:, 1:], answer_w[:, 1:])
        # FSDP averages gradients over ranks; the weights already normalise over the global batch
        loss = ((1 - r) * text_loss + r * answer_loss) * runtime.world_size
        if auxiliary is not None:  # a mean over its tokens: weighted by their share of the rank's slice
            counted = tokens.numel() if number < real else 0
            loss = loss + auxiliary * (counted * runtime.world_size / batch.tokens.size)
        loss.backward()
        sums += torch.stack([text_loss.detach(), answer_loss.detach()]).double()
    told = torch.tensor([runtime.preempted(), runtime.cancelled()], dtype=sums.dtype, device=sums.device)
    sums = torch.cat([sums, told])
    if runtime.world_size > 1:
        dist.all_reduce(sums)
    gradients = [p.grad for p in decoder.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if whole.isfinite():  # else the clipping would spread what is wrong over all of them
        nn.utils.clip_grads_with_norm_(decoder.parameters(), recipe.clip, norm)
    text_sum, answer_sum, *told_any = sums.tolist()
    losses = text_sum if has_text else None, answer_sum if has_answer else None
    return losses, float(whole), Stop(*map(bool, told_any))


def _wanted(weights: torch.Tensor) -> torch.Tensor | None:
    """Which targets of ``weights`` [B, T] count, where picking them out pays; None: all."""
    marked = weights > 0
    return marked if 0 < marked.sum() < 0.75 * marked.numel() else None


class MicroBatch(NamedTuple):
    """Rows of the batch by number, and arrays of theirs, cut into pieces."""

    rows: RowNumbers
    arrays: tuple[NDArray[Any], ...]


def micro_batches(
    arrays: tuple[NDArray[Any], ...],
    prompts: NDArray[np.bool_],
    mine: slice,
    lengths: Lengths,
    micro: int | None,
    apart: RowNumbers | None = None,
) -> list[MicroBatch]:
    """Micro-batches of the rows ``mine`` of arrays [B, T], of the tokens of ``micro`` sequences each (None: all), cut
    into ``lengths``. Rows of prompts [B] go by themselves where they are cut otherwise than text, and so do rows of
    each number in ``apart`` [B], where that is given."""
    if apart is None:
        apart = (prompts & (lengths.text != lengths.prompt)).astype(np.int64)
    numbers, made = np.arange(len(prompts))[mine], []
    for group in np.unique(apart[mine]):
        rows = numbers[apart[mine] == group]
        length = lengths.prompt if prompts[rows[0]] else lengths.text
        for some in np.split(rows, range(micro or len(rows), len(rows), micro or len(rows))):
            made.append(MicroBatch(some, tuple(a[some].reshape(-1, length) for a in arrays)))
    return made


def sequence_group(runtime: Runtime) -> dist.ProcessGroup | None:
    """The ranks that have the same sequences as this one; every rank calls it."""
    size, mine = runtime.sequence_ranks, None
    for first in range(0, runtime.world_size, size):
        group = dist.new_group(list(range(first, first + size)))
        if first <= runtime.rank < first + size:
            mine = group
    return mine


def shard(decoder: Decoder) -> None:
    """FSDP2: every block's and the rest's parameters sharded over all ranks of the default process group."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in decoder.layers:
        fully_shard(block)
    fully_shard(decoder)
    for method in ("training_nll", "carried_nll"):  # run the same all-gathers as ``forward``
        register_fsdp_forward_method(decoder, method)


def full_state_dict(decoder: Decoder, world_size: int) -> dict[str, torch.Tensor]:
    """All parameters on the CPU of rank 0 (an empty dict on the others)."""
    if world_size == 1:
        return {name: tensor.detach().cpu() for name, tensor in decoder.state_dict().items()}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast("dict[str, torch.Tensor]", get_model_state_dict(decoder, options=options))
