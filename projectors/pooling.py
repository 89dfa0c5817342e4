"""Pooling whole features: haplotypes and regions of a genome, segments and runs of a brain.

Pooling over the bases of a window belongs to the encoders; here whole windows, haplotypes, segments
and runs are brought together.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoders.errors import InputError, Problem

RegionPooling = Literal["concat", "mean", "attention"]
MotionWeighting = Literal["motion", "mean"]

REGION_POOLINGS: tuple[RegionPooling, ...] = get_args(RegionPooling)
MOTION_WEIGHTINGS: tuple[MotionWeighting, ...] = get_args(MotionWeighting)

HALF_WEIGHT_FD_MM = 0.2
"""Framewise displacement, in mm, at which a segment counts half as much as a still one."""


def pool_haplotypes(
    merged: Float[Tensor, "distinct dim"], index: Int[Tensor, "subject window haplotype"]
) -> Float[Tensor, "subject window dim"]:
    """Average each subject's haplotypes; phase does not matter.

    Parameters
    ----------
    merged : Tensor [U, D]
        Strand-merged features of the distinct sequences.
    index : Tensor [n, W, H] int64
        Row of `merged` of each subject, window and haplotype; H is 1 or 2.

    Returns
    -------
    Tensor [n, W, D]
        Bit-equal when a subject's haplotypes are swapped.
    """
    haplotypes = index.shape[-1]
    total = merged[index[..., 0]]
    for haplotype in range(1, haplotypes):
        total = total + merged[index[..., haplotype]]
    return total / haplotypes


def motion_weights(
    mean_fd_mm: Float[Tensor, " segment"], weighting: MotionWeighting = "motion"
) -> Float[Tensor, " segment"]:
    """Weight of each segment: falling with head motion, or one for all.

    Parameters
    ----------
    mean_fd_mm : Tensor [M]
        Mean framewise displacement of each segment in mm; not finite where unknown, which counts
        as 0.
    weighting : {"motion", "mean"}
        ``motion`` is 1 / (1 + (fd / 0.2 mm)^2): inverse to a variance that grows with the square
        of motion, half at 0.2 mm, the cut that is usual in resting-state work (Power et al. 2014,
        doi:10.1016/j.neuroimage.2013.08.048). It never reaches zero, so that no subject is lost.

    Raises
    ------
    InputError
        `weighting` is unknown.
    """
    if weighting == "mean":
        return torch.ones_like(mean_fd_mm)
    if weighting != "motion":
        raise InputError(
            Problem(
                "unknown-motion-weighting",
                "segment weighting",
                repr(weighting),
                " or ".join(MOTION_WEIGHTINGS),
            )
        )
    fd_mm = torch.nan_to_num(mean_fd_mm, nan=0.0, posinf=0.0, neginf=0.0)
    return 1 / (1 + (fd_mm / HALF_WEIGHT_FD_MM) ** 2)


def pool_segments(
    values: Float[Tensor, "segment dim"],
    subject: Int[Tensor, " segment"],
    run: Int[Tensor, " segment"],
    weights: Float[Tensor, " segment"],
    subjects: int,
) -> Float[Tensor, "subject dim"]:
    """Pool segments into runs, and runs into subjects, by weighted means.

    A run weighs as much as the sum of its segments' weights over their number, that is, as its
    mean quality: a long run does not drown a short one.

    Parameters
    ----------
    values : Tensor [M, D]
        One feature a segment.
    subject, run : Tensor [M] int64
        Row of the subject, and number of the run within the subject.
    weights : Tensor [M]
        Positive weight of each segment, as `motion_weights` gives it.
    subjects : int
        Number n of subjects.

    Returns
    -------
    Tensor [n, D]

    Raises
    ------
    InputError
        A subject has no segment.
    """
    runs_each = int(run.max()) + 1 if len(run) else 1
    keys, run_of_segment = torch.unique(subject * runs_each + run, return_inverse=True)
    subject_of_run = keys // runs_each
    run_values = _weighted_mean(values, weights, run_of_segment, len(keys))
    run_weights = _weighted_mean(
        weights[:, None], torch.ones_like(weights), run_of_segment, len(keys)
    )
    present = torch.bincount(subject_of_run, minlength=subjects)
    if bool((present == 0).any()):
        rows = torch.nonzero(present == 0).flatten().tolist()
        raise InputError(
            Problem(
                "subject-without-segments",
                f"brain features, subject rows {rows[:10]}",
                f"{len(rows)} of {subjects} subjects have no segment",
                "at least one segment a subject",
                "leave these subjects out, or encode their scans",
            )
        )
    return _weighted_mean(run_values, run_weights[:, 0], subject_of_run, subjects)


def _weighted_mean(values: Tensor, weights: Tensor, group: Tensor, groups: int) -> Tensor:
    """Weighted means of the rows of each group."""
    total = values.new_zeros(groups, values.shape[1]).index_add_(
        0, group, values * weights[:, None]
    )
    return total / weights.new_zeros(groups).index_add_(0, group, weights)[:, None]


class AttentionPool(nn.Module):
    """Attention over regions: learned queries look at windows that know which window they are.

    Each head has a query of its own; the keys and values see the window's feature plus a learned
    embedding of its identity, so that a head can pick a region whatever its content.

    Parameters
    ----------
    dim : int
        Size of a window's feature.
    windows : int
        Number W of windows.
    heads : int
        Number of queries; the output has ``heads * dim`` numbers.
    """

    def __init__(self, dim: int, windows: int, heads: int = 4) -> None:
        super().__init__()
        self.identity = nn.Parameter(torch.randn(windows, dim) * 0.02)
        self.query = nn.Parameter(torch.randn(heads, dim) * dim**-0.5)
        self.key = nn.Linear(dim, dim, bias=False)
        self.region_bias = nn.Parameter(torch.randn(heads, windows) * 0.5)
        self.out_dim = heads * dim

    def forward(
        self, features: Float[Tensor, "batch window dim"]
    ) -> Float[Tensor, "batch heads_dim"]:
        """Pool windows [B, W, D] into [B, heads * D]."""
        tokens = features + self.identity
        scores = (
            torch.einsum("hd,bwd->bhw", self.query, self.key(tokens)) * tokens.shape[-1] ** -0.5
        )
        attention = (scores + self.region_bias).softmax(dim=-1)
        return torch.einsum("bhw,bwd->bhd", attention, tokens).flatten(1)
