"""Sums over all pairs of a batch that never hold the matrix of all pairs.

The similarities of a block of rows with all candidates are computed, summed up and forgotten; the
backward pass computes them again. Values and gradients are those of the whole matrix.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from multimodal.align.losses.relatives import PairMask


def two_sided_logsumexp(
    queries: Float[Tensor, "row latent"],
    keys: Float[Tensor, "row latent"],
    scale: Float[Tensor, ""] | float,
    mask: PairMask,
    chunk_rows: int | None = None,
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """Log-sum-exp of scaled similarities over each row's, and each column's, candidates.

    Parameters
    ----------
    queries, keys : Tensor [n, d]
    scale : Tensor or float
        Inverse temperature that multiplies the dot products.
    mask : PairMask
        Candidates that do not count.
    chunk_rows : int, optional
        Rows of the matrix that are held at a time; None for all.

    Returns
    -------
    rows, columns : Tensor [n]
        ``-inf`` (with zero gradient) where there is no candidate.
    """
    scale = torch.as_tensor(scale, dtype=queries.dtype, device=queries.device)
    found: tuple[Tensor, Tensor] = _TwoSidedLogSumExp.apply(queries, keys, scale, mask, chunk_rows)
    return found


def softplus_sum(
    queries: Float[Tensor, "row latent"],
    keys: Float[Tensor, "row latent"],
    scale: Float[Tensor, ""] | float,
    bias: Float[Tensor, ""] | float,
    mask: PairMask,
    chunk_rows: int | None = None,
) -> Float[Tensor, ""]:
    """Sum of log(1 + exp(scale * similarity + bias)) over all pairs that count.

    Parameters
    ----------
    queries, keys, scale, mask, chunk_rows
        As `two_sided_logsumexp` takes them.
    bias : Tensor or float
        Added to the scaled similarities.
    """
    scale, bias = (
        torch.as_tensor(number, dtype=queries.dtype, device=queries.device)
        for number in (scale, bias)
    )
    total: Tensor = _SoftplusSum.apply(queries, keys, scale, bias, mask, chunk_rows)
    return total


def _blocks(rows: int, chunk_rows: int | None) -> Iterator[tuple[int, int]]:
    step = chunk_rows or max(rows, 1)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


class _TwoSidedLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        scale: Tensor,
        mask: PairMask,
        chunk_rows: int | None,
    ) -> tuple[Tensor, Tensor]:
        rows = queries.new_empty(len(queries))
        columns = queries.new_full((len(keys),), -torch.inf)
        for start, stop in _blocks(len(queries), chunk_rows):
            logits = (queries[start:stop] @ keys.T).mul_(scale)
            logits.masked_fill_(mask.block(start, stop), -torch.inf)
            columns = torch.logaddexp(columns, _logsumexp_(logits.clone(), dim=0))
            rows[start:stop] = _logsumexp_(logits, dim=1)
        ctx.save_for_backward(queries, keys, scale, rows, columns)
        ctx.mask, ctx.chunk_rows = mask, chunk_rows
        return rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_rows: Tensor, to_columns: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, scale, rows, columns = ctx.saved_tensors
        to_queries, to_keys = torch.empty_like(queries), torch.zeros_like(keys)
        to_scale = torch.zeros_like(scale)
        rows, columns = _finite(rows), _finite(columns)
        for start, stop in _blocks(len(queries), ctx.chunk_rows):
            logits = (queries[start:stop] @ keys.T).mul_(scale)
            logits.masked_fill_(ctx.mask.block(start, stop), -torch.inf)
            # The share of each candidate in its row, and in its column, times what is asked of it.
            shares = (logits - rows[start:stop, None]).exp_().mul_(to_rows[start:stop, None])
            shares.add_(logits.sub_(columns).exp_().mul_(to_columns))
            drawn = shares @ keys
            to_scale += (drawn * queries[start:stop]).sum()
            to_queries[start:stop] = drawn.mul_(scale)
            to_keys.addmm_(shares.T, queries[start:stop])
        return to_queries, to_keys.mul_(scale), to_scale, None, None


class _SoftplusSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        scale: Tensor,
        bias: Tensor,
        mask: PairMask,
        chunk_rows: int | None,
    ) -> Tensor:
        total = queries.new_zeros(())
        for start, stop in _blocks(len(queries), chunk_rows):
            logits = (queries[start:stop] @ keys.T).mul_(scale).add_(bias)
            total += F.softplus(logits.masked_fill_(mask.block(start, stop), -torch.inf)).sum()
        ctx.save_for_backward(queries, keys, scale, bias)
        ctx.mask, ctx.chunk_rows = mask, chunk_rows
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_total: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, scale, bias = ctx.saved_tensors
        to_queries, to_keys = torch.empty_like(queries), torch.zeros_like(keys)
        to_scale, to_bias = torch.zeros_like(scale), torch.zeros_like(bias)
        for start, stop in _blocks(len(queries), ctx.chunk_rows):
            logits = (queries[start:stop] @ keys.T).mul_(scale).add_(bias)
            logits.masked_fill_(ctx.mask.block(start, stop), -torch.inf)
            slopes = logits.sigmoid_().mul_(to_total)
            drawn = slopes @ keys
            to_bias += slopes.sum()
            to_scale += (drawn * queries[start:stop]).sum()
            to_queries[start:stop] = drawn.mul_(scale)
            to_keys.addmm_(slopes.T, queries[start:stop])
        return to_queries, to_keys.mul_(scale), to_scale, to_bias, None, None


def _logsumexp_(logits: Tensor, dim: int) -> Tensor:
    """Log-sum-exp that works in place: `logits` are lost, and no second block is needed."""
    largest = _finite(logits.amax(dim=dim, keepdim=True))
    return logits.sub_(largest).exp_().sum(dim=dim).log_() + largest.squeeze(dim)


def _finite(values: Tensor) -> Tensor:
    """Zeros in place of ``-inf``, which would make NaN of what is subtracted from it."""
    return values.masked_fill(values == -torch.inf, 0.0)
