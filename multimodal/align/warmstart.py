"""Heads that start from a closed-form alignment of the training subjects.

A cohort of hundreds cannot teach two networks of half a million weights from noise: by the time
they agree on the training pairs they have learned them by heart. A regularised canonical
correlation analysis (Hotelling 1936; ridge: Vinod 1976, doi:10.1016/0304-4076(76)90010-5) needs
no such search. The heads start as that linear solution, and contrastive training refines it for
as long as the validation loss falls.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from multimodal.align.aligner import Aligner
from multimodal.align.erasure import erasing_map, inverse_root, within_groups

Array = NDArray[np.float64]

_CORRELATION_POWER = 2.0


def ridge_cca(x: Array, y: Array, ridge: float) -> tuple[Array, Array, Array]:
    """Regularised canonical correlation analysis of two centred tables with paired rows.

    Parameters
    ----------
    x : ndarray [n, p]
    y : ndarray [n, q]
    ridge : float
        Added to each covariance's diagonal, as a share of its mean variance; positive.

    Returns
    -------
    x_weights : ndarray [p, k]
    y_weights : ndarray [q, k]
        Columns in descending order of correlation, k = min(p, q); the sign of each pair of columns
        makes the largest weight of `x_weights` positive.
    correlations : ndarray [k]
        Regularised canonical correlations, from 0 to 1.
    """
    x_root, y_root = inverse_root(x, ridge), inverse_root(y, ridge)
    left, correlations, right = (
        part.numpy()
        for part in torch.linalg.svd(
            torch.from_numpy(x_root @ (x.T @ y / len(x)) @ y_root), full_matrices=False
        )
    )
    x_weights, y_weights = x_root @ left, y_root @ right.T
    columns = np.arange(len(correlations))
    signs = np.where(x_weights[np.abs(x_weights).argmax(axis=0), columns] < 0, -1.0, 1.0)
    return x_weights * signs, y_weights * signs, np.clip(correlations, 0.0, 1.0)


@torch.no_grad()
def start_from_cca(
    aligner: Aligner,
    gene: torch.Tensor,
    brain: torch.Tensor,
    *,
    ridge: float,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> None:
    """Start both heads from the canonical coordinates of the training subjects.

    Each coordinate counts by its squared correlation, on either side, so that the many weak ones,
    which a small cohort finds by chance, do not drown the few strong ones.

    With `groups`, the analysis is of what goes together within groups, and the heads start blind to
    the directions in which groups differ: it would find these first where they are a confound, and
    training of some epochs does not forget them.

    Parameters
    ----------
    aligner : Aligner
    gene, brain : Tensor [n, k] or [n, W, k]
        Standardised features of the training subjects.
    ridge : float
        See `ridge_cca`.
    seed : int
        Of the random isometry from canonical coordinates to the latent space.
    groups : ndarray [n, c] of int, optional
        Strata or confounds of the training subjects, a column each; negative where not known.
    """
    dtype = next(aligner.gene.head.parameters()).dtype
    x = aligner.gene.pool(gene.to(dtype)).double().numpy()
    y = aligner.brain.pool(brain.to(dtype)).double().numpy()
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    if groups is None:
        x_weights, y_weights, correlations = ridge_cca(x, y, ridge)
    else:
        x_weights, y_weights, correlations = _cca_within(x, y, groups, ridge, seed)
    room = min(aligner.gene.head.room, aligner.brain.head.room)
    strength = (correlations**_CORRELATION_POWER)[:room]
    for tower, values, weights in ((aligner.gene, x, x_weights), (aligner.brain, y, y_weights)):
        linear_map = weights[:, :room] * strength
        # Hidden units see unit variance, whatever the number and strength of coordinates.
        size = np.sqrt(((values @ linear_map) ** 2).sum(axis=1).mean() / tower.head.width)
        linear_map = linear_map / size if size > 0 else linear_map
        tower.head.start_from_linear_map(
            torch.from_numpy(linear_map), torch.Generator().manual_seed(seed)
        )


def _cca_within(
    x: Array, y: Array, groups: NDArray[np.int64], ridge: float, seed: int
) -> tuple[Array, Array, Array]:
    """As `ridge_cca`, of what goes together within groups, by weights that do not see groups."""
    blind = [erasing_map(side, groups, ridge=ridge, seed=seed) for side in (x, y)]
    within = [
        within_groups(side @ erased, groups) for side, erased in zip((x, y), blind, strict=True)
    ]
    x_weights, y_weights, correlations = ridge_cca(within[0], within[1], ridge)
    return blind[0] @ x_weights, blind[1] @ y_weights, correlations
