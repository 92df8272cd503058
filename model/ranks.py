"""Sequence parallelism by state passing: ranks hold consecutive parts of the same sequences.

What a mixer needs of the tokens before its part is a state of fixed size: the sum of what earlier ranks wrote, the
affine maps M -> A M + B of a delta rule, or the keys and values of the last window. So a layer exchanges d x d numbers
a head, whatever the length of the sequence: an exclusive scan, as one gather whose R small results every rank composes
for itself. The same algebra within one rank is ``scan.py``.

Gradients pass through every exchange. Backward collectives must run on all ranks in the same order, also on a rank
whose output does not depend on what it was given (the first has nobody before it): ``tied`` sees to that.

R ranks; what is exchanged must have the same shape on each. ``torch.distributed`` with any backend; nothing here knows
where the group came from.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.autograd import apply


class Ranks:
    """The ranks that share sequences, in the order of their parts. ``group``: None for all of the default group's."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def part(self, length: int, segment: int) -> slice:
        """The tokens of this rank of ``length`` tokens. Raises ValueError if they are not as many whole segments on
        each rank."""
        if length % (self.size * segment):
            raise ValueError(
                f"sequences of {length} tokens: allowed on {self.size} ranks are multiples of {self.size} segments of "
                f"{segment} tokens"
            )
        share = length // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def gather(self, x: Tensor) -> Tensor:
        """x of every rank: [R, ...]."""
        out = x.new_empty(self.size, *x.shape)
        dist.all_gather(list(out.unbind(0)), x.contiguous(), group=self.group)
        return out

    def sum_of_own(self, x: Tensor) -> Tensor:
        """Of x [R, ...], the sum over ranks of what each has for this one."""
        out = torch.empty_like(x[0])
        dist.reduce_scatter(out, list(x.contiguous().unbind(0)), group=self.group)
        return out

    def shift(self, x: Tensor, by: int) -> Tensor:
        """x of the rank ``by`` (1 or -1) before this one; zeros where there is none."""
        to, source = self.rank + by, self.rank - by
        out, x, work = torch.zeros_like(x), x.contiguous(), []
        if 0 <= to < self.size:
            work.append(dist.P2POp(dist.isend, x, group=self.group, group_peer=to))
        if 0 <= source < self.size:
            work.append(dist.P2POp(dist.irecv, out, group=self.group, group_peer=source))
        for request in dist.batch_isend_irecv(work) if work else ():
            request.wait()
        return out


def gathered(ranks: Ranks, x: Tensor) -> Tensor:
    """x of every rank [R, ...], with gradients back to where each came from."""
    return cast(Tensor, apply(_Gather, x, ranks))


def shifted(ranks: Ranks, x: Tensor) -> Tensor:
    """x of the rank before (zeros on the first), with gradients back to it."""
    return cast(Tensor, apply(_Shift, x, ranks))


def tied(x: Tensor, *others: Tensor) -> Tensor:
    """x; in the backward pass ``others`` get a gradient of zeros, once what x went into is done: so the exchanges that
    made them run backward on this rank too, after those behind x."""
    return cast(Tensor, apply(_Tie, x, *others))


def sum_before(ranks: Ranks, x: Tensor) -> Tensor:
    """The sum of x over the ranks before this one; zeros on the first."""
    return gathered(ranks, x)[: ranks.rank].sum(0)


def affine_before(ranks: Ranks, A: Tensor, B: Tensor) -> Tensor:
    """The state [..., F, E] that the ranks before this one leave, each of which makes M into A M + B, from M = 0; zeros
    on the first. A [..., F, F] of the first rank is not looked at."""
    every = gathered(ranks, torch.cat([B, A], dim=-1))[: ranks.rank]
    b, a = torch.split(every, [B.shape[-1], A.shape[-1]], dim=-1)
    M = b[:1].sum(0)
    for step in range(1, ranks.rank):
        M = a[step] @ M + b[step]
    return M


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.gather(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sum_of_own(grads[0]), None


class _Shift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.shift(x, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.shift(grads[0], -1), None


class _Tie(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *others: Tensor) -> Tensor:
        ctx.others = [(other.shape, other.dtype, other.device) for other in others]
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.others)
        return grads[0], *zeros
