"""One batch of all processes: every process sees all rows, and gradients find their way home.

Every process computes the same loss of all rows. In the backward pass each row's gradients, one
from every process, are added up where the row came from: as many times the gradient as there are
processes. Distributed data parallel and FSDP average parameters' gradients over processes, which
takes that factor out again, and leaves what one process with the whole batch would have. The
gradient of a parameter of the loss itself (temperature, bias) is the same in every process.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

Rows = Shaped[Tensor, "row *shape"]  # a shape


def process_count() -> int:
    """Return the number of processes that train together; 1 where none are set up."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rows_by_process(rows: int, device: torch.device) -> list[int]:
    """Return how many rows each process has in this step, in order of rank.

    Parameters
    ----------
    rows : int
        Those of this process; may be 0.
    device : torch.device
        Where the rows are.
    """
    if process_count() == 1:
        return [rows]
    own = torch.tensor([rows], device=device)
    found = [torch.empty_like(own) for _ in range(process_count())]
    dist.all_gather(found, own)
    return [int(count) for count in found]


def gather_rows(rows: Rows, counts: list[int]) -> Rows:
    """Return the rows of all processes, in order of rank, as one differentiable table.

    Every process must call it, one without rows as well.

    Parameters
    ----------
    rows : Tensor [b, ...]
        Of this process.
    counts : list of int
        From `rows_by_process`.
    """
    if len(counts) == 1:
        return rows
    if rows.is_floating_point():
        gathered: Tensor = _GatherRows.apply(rows, counts)
        return gathered
    return _gather(rows, counts)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return _gather(rows, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.split(ctx.counts)[dist.get_rank()], None


def _gather(rows: Tensor, counts: list[int]) -> Tensor:
    # Collectives want equal shapes, so shorter tables are padded, and cut again.
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
