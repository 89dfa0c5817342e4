"""Merging the two strands of a DNA feature, so that a window and its reverse complement agree.

A DNA encoder gives one vector for each strand. Reading a window as its reverse complement swaps the
two, so a merge that treats them alike (mean, sum, max, sum and absolute difference) cannot tell
the two readings apart: the swap gives bit-equal vectors, addition and maximum being commutative
in floating point.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from encoders.errors import InputError, Problem

MergeMode = Literal["mean", "sum", "max", "sum_absdiff", "concat"]

MERGE_MODES: tuple[MergeMode, ...] = get_args(MergeMode)


def merge(
    features: Float[Tensor, "*batch strand dim"], mode: MergeMode = "mean"
) -> Float[Tensor, "*batch merged"]:
    """Merge the strands of DNA features.

    Parameters
    ----------
    features : Tensor [..., S, D]
        One vector a strand; S = 2, or S = 1 for a source without strands, which passes through.
    mode : {"mean", "sum", "max", "sum_absdiff", "concat"}
        ``sum_absdiff`` is [sum, |difference|] of 2D numbers: of the invariant modes, the only one
        that keeps all that does not depend on the order of strands. ``concat`` [2D] keeps the
        order and is not RC-invariant.

    Returns
    -------
    Tensor [..., D] or [..., 2D]

    Raises
    ------
    InputError
        `mode` is not one of the above.
    ValueError
        The strand axis has neither one nor two entries.
    """
    check_merge_mode(mode)
    strands = features.shape[-2]
    if strands == 1:
        return features.squeeze(-2)
    if strands != 2:
        raise ValueError(f"features have {strands} strands on axis -2; one or two were wanted")
    forward, reverse = features.unbind(-2)
    if mode == "mean":
        return (forward + reverse) / 2
    if mode == "sum":
        return forward + reverse
    if mode == "max":
        return torch.maximum(forward, reverse)
    if mode == "sum_absdiff":
        return torch.cat([forward + reverse, (forward - reverse).abs()], dim=-1)
    return torch.cat([forward, reverse], dim=-1)


def check_merge_mode(mode: str) -> MergeMode:
    """Return `mode`, or raise InputError naming the modes there are."""
    for known in MERGE_MODES:
        if mode == known:
            return known
    raise InputError(
        Problem("unknown-merge-mode", "strand merge mode", repr(mode), " or ".join(MERGE_MODES))
    )
