"""Large contrastive batches in little memory: gradient caching.

A contrastive loss wants all latents of a batch at once, but not all that was computed on the way to
them. Rows are encoded part by part and only their latents kept; one loss sees all latents; then
each part is encoded once more, its dropout drawn as before, and the gradients of its latents go
back through it (Gao et al. 2021, arXiv:2101.06983). The update is that of the whole batch. To
average gradients of a loss of each part, as plain accumulation does, is something else: a row then
has only its own part's rows as negatives.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Encode = Callable[..., tuple[Tensor, ...]]
Rows = Shaped[Tensor, "row *shape"]  # a shape


def split_rows(inputs: Sequence[Rows], parts: int) -> list[tuple[Tensor, ...]]:
    """Cut tables with paired rows into parts, which differ by one row at most.

    Parameters
    ----------
    inputs : sequence of Tensor [b, ...]
    parts : int
        Parts without rows, where there are fewer rows than parts, are part of the result.
    """
    return list(zip(*(torch.tensor_split(table, parts) for table in inputs), strict=True))


def encode_cached(
    encode: Encode, inputs: Sequence[Rows], parts: int, *, sharded: bool = False
) -> tuple[Tensor, ...]:
    """Encode a batch part by part, keeping latents only; part by part again in the backward pass.

    The backward pass through what is returned re-encodes the last part first. It runs inside the
    loss's own backward pass, so that distributed wrappers see one backward pass a step, and each
    parameter's gradient once. Memory of activations is that of the largest part.

    Parameters
    ----------
    encode : callable
        Paired inputs to tensors with a row for each input row. Rows must not depend on other rows
        (no batch normalisation), and `encode` must compute the same when called again.
    inputs : sequence of Tensor [b, ...]
    parts : int
        At least 1.
    sharded : bool
        Whether `encode` is split between processes (`multimodal.align.sharding`): all of them then
        encode as many parts, with rows or without.

    Returns
    -------
    tuple of Tensor [b, ...]
        What `encode` gives for the whole batch, up to the draws of dropout.
    """
    pieces = split_rows(inputs, parts)
    if not sharded:
        # Where there are no rows at all, one empty part still ties the parameters to the loss.
        pieces = [piece for piece in pieces if len(piece[0])] or pieces[:1]
    encoded = [encode_part(encode, piece, sharded=sharded) for piece in pieces]
    return tuple(torch.cat(tables) for tables in zip(*encoded, strict=True))


def encode_part(
    encode: Encode, inputs: Sequence[Tensor], *, sharded: bool = False
) -> tuple[Tensor, ...]:
    """Encode rows, keeping nothing but the result; the backward pass encodes them once more.

    Parameters
    ----------
    encode, inputs, sharded
        As for `encode_cached`.
    """
    found: tuple[Tensor, ...]
    if sharded:
        # A backward pass of its own for each part: units are put together, reduce their gradients
        # and are taken apart within it, so that no process holds all gradients of all parts. It
        # wants an input with gradients, which rows do not have.
        anchor = torch.zeros((), requires_grad=True)
        found = checkpoint(
            lambda _, *rows: encode(*rows),
            anchor, *inputs, use_reentrant=True, preserve_rng_state=True,
        )  # fmt: skip
    else:
        found = checkpoint(encode, *inputs, use_reentrant=False, preserve_rng_state=True)
    return found
