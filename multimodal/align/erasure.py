"""Linear maps that take away how the groups of a table's rows differ, and as little else as can be.

Whitened, the differences of group means span a few directions. Projecting these out, and undoing
the whitening, leaves every linear reader of the group at chance, and is the smallest change that
does (Belrose et al. 2023, LEACE: perfect linear concept erasure in closed form,
arXiv:2306.03819). Groups differ a little by chance as well, the more so the more of them there are;
only directions in which they differ by more than shuffled groups do are taken away.
"""

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

# A direction by chance then passes about one time in twenty.
_SHUFFLES = 19


def inverse_root(values: Array, ridge: float) -> Array:
    """Inverse square root of a centred table's regularised covariance.

    Parameters
    ----------
    values : ndarray [n, p]
    ridge : float
        Added to the covariance's diagonal, as a share of its mean variance; positive.

    Returns
    -------
    ndarray [p, p]
        Symmetric; zero for a table that never varies.
    """
    covariance = values.T @ values / len(values)
    mean_variance = np.trace(covariance) / len(covariance)
    if mean_variance <= 0:
        return np.zeros_like(covariance)
    eigen = torch.linalg.eigh(torch.from_numpy(covariance))
    variance, axes = eigen.eigenvalues.numpy(), eigen.eigenvectors.numpy()
    root: Array = (axes / np.sqrt(np.maximum(variance, 0) + ridge * mean_variance)) @ axes.T
    return root


def erasing_map(values: Array, groups: NDArray[np.int64], *, ridge: float, seed: int) -> Array:
    """Return the map after which the groups' means are one, as far as they differ beyond chance.

    Parameters
    ----------
    values : ndarray [n, p]
        Centred.
    groups : ndarray [n, c] of int
        Several groupings of the rows, a column each; negative where a row's group is not known.
    ridge : float
        See `inverse_root`.
    seed : int
        Of the shuffled groups.

    Returns
    -------
    ndarray [p, p]
        To multiply the table with, from the right.
    """
    erased = np.eye(values.shape[1])
    for column in groups.T:
        known = column >= 0
        # What one map takes away no later one brings back: zero differences stay zero.
        rest = values[known] @ erased
        if len(rest):
            erased = erased @ _erasing_map(rest - rest.mean(axis=0), column[known], ridge, seed)
    return erased


def within_groups(values: Array, groups: NDArray[np.int64]) -> Array:
    """Centre a table within each group of rows that agree in all columns of `groups`.

    Parameters
    ----------
    values : ndarray [n, p]
    groups : ndarray [n, c] of int
    """
    _, cell = np.unique(groups, axis=0, return_inverse=True)
    return values - _means(values, cell.reshape(-1))[cell.reshape(-1)]


def _erasing_map(values: Array, group: NDArray[np.int64], ridge: float, seed: int) -> Array:
    root = inverse_root(values, ridge)
    nothing = np.eye(len(root))
    if not root.any():
        return nothing
    _, cell = np.unique(group, return_inverse=True)
    white = values @ root
    strength, directions = _differences(white, cell)
    random = np.random.default_rng(seed)
    chance = max(
        _differences(white, random.permutation(cell))[0].max(initial=0.0) for _ in range(_SHUFFLES)
    )
    kept = directions[:, strength > chance]
    return nothing - root @ kept @ np.linalg.solve(root, kept).T


def _differences(white: Array, cell: NDArray[np.int64]) -> tuple[Array, Array]:
    """How much of the rows' spread lies between groups, and along which directions [p, k]."""
    share = np.bincount(cell) / len(cell)
    weighted = _means(white, cell) * np.sqrt(share)[:, None]
    _, strength, directions = torch.linalg.svd(torch.from_numpy(weighted), full_matrices=False)
    return strength.numpy(), directions.numpy().T


def _means(values: Array, cell: NDArray[np.int64]) -> Array:
    """Mean of each group of rows, [groups, p]."""
    total = np.zeros((int(cell.max(initial=-1)) + 1, values.shape[1]))
    np.add.at(total, cell, values)
    means: Array = total / np.bincount(cell)[:, None]
    return means
