"""VICReg and Barlow Twins: no negatives; dimensions are kept apart instead of people."""

import torch
from jaxtyping import Float
from torch import Tensor

_EPSILON = 1e-4
_NORM_EPSILON = 1e-5


def vicreg(
    first: Float[Tensor, "row dim"],
    second: Float[Tensor, "row dim"],
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Variance-invariance-covariance regularisation (Bardes et al. 2022, arXiv:2105.04906).

    Invariance: mean over rows and dimensions of the squared difference of the two sides. Variance:
    mean over dimensions and sides of ``max(0, 1 - sqrt(var + 1e-4))``. Covariance: squared
    covariances of different dimensions, summed and divided by d, added over both sides. Nobody is
    anybody's negative, so relatives need no care; the moments are those of all rows given.

    Parameters
    ----------
    first, second : Tensor [n, d]
        Row i of one belongs to row i of the other. Dimensions should be of about unit variance.
    invariance_weight, variance_weight, covariance_weight : float

    Returns
    -------
    Tensor
        0 (with zero gradient) for fewer than two rows, which have no variance.
    """
    if len(first) < 2:
        return 0.0 * (first.sum() + second.sum())
    invariance = (first - second).square().mean()
    variance, covariance = first.new_zeros(()), first.new_zeros(())
    for side in (first, second):
        centred = side - side.mean(dim=0)
        products = centred.T @ centred / (len(side) - 1)
        own = products.diagonal()
        variance = variance + (1 - (own + _EPSILON).sqrt()).relu().mean() / 2
        covariance = covariance + (products.square().sum() - own.square().sum()) / side.shape[1]
    return (
        invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance
    )


def barlow_twins(
    first: Float[Tensor, "row dim"],
    second: Float[Tensor, "row dim"],
    *,
    redundancy_weight: float = 0.005,
) -> Float[Tensor, ""]:
    """Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230).

    ``sum_k (1 - C_kk)^2 + redundancy_weight * sum_(k != l) C_kl^2`` with C the correlations [d, d]
    of the dimensions of one side with those of the other, over all rows given. Nobody is anybody's
    negative, so relatives need no care.

    Parameters
    ----------
    first, second : Tensor [n, d]
        Row i of one belongs to row i of the other. Dimensions should be of about unit variance.
    redundancy_weight : float
        The paper's lambda.

    Returns
    -------
    Tensor
        0 (with zero gradient) for fewer than two rows, which do not correlate.
    """
    if len(first) < 2:
        return 0.0 * (first.sum() + second.sum())
    correlation = _standardised(first).T @ _standardised(second) / len(first)
    own = correlation.diagonal()
    others = correlation.square().sum() - own.square().sum()
    return (1 - own).square().sum() + redundancy_weight * others


def _standardised(side: Tensor) -> Tensor:
    # As batch normalisation does it, so that a dimension that never varies stays finite.
    variance = side.var(dim=0, correction=0)
    return (side - side.mean(dim=0)) * torch.rsqrt(variance + _NORM_EPSILON)
