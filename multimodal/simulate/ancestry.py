"""Principal components of genotypes, and the clusters they fall into."""

import numpy as np

COMPONENTS = 10
PC_DECIMALS = 5
RESTARTS = 10
MAX_STEPS = 100


def principal_components(
    dosage: np.ndarray, count: int = COMPONENTS, *, new: np.ndarray | None = None
) -> np.ndarray:
    """Return the leading principal components of unlinked genotypes.

    Parameters
    ----------
    dosage : ndarray [n, M]
        Alternate-allele counts; NaN where missing (filled with the mean).
    count : int
        Number of components; columns of zeros where there are fewer.
    new : ndarray [m, M], optional
        Counts of other people; their scores on these people's components are returned instead.

    Returns
    -------
    ndarray [n or m, count] float64
        Unit-variance scores of genotypes scaled by sqrt(2 p (1 - p)) (Patterson, Price and Reich
        2006), rounded, with the sign that makes the largest score positive.
    """
    dosage = np.asarray(dosage, dtype=np.float64)
    mean = np.nanmean(dosage, axis=0)
    filled = np.where(np.isnan(dosage), mean, dosage) - mean
    variance = mean * (1.0 - mean / 2.0)
    used = variance > 1e-9
    scaled = filled[:, used] / np.sqrt(variance[used])
    left, size, axes = np.linalg.svd(scaled, full_matrices=False)
    left = left[:, :count]
    sign = np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
    if new is not None:
        centred = np.where(np.isnan(new), mean, new) - mean
        left = centred[:, used] / np.sqrt(variance[used]) @ axes[:count].T
        left = left / np.maximum(size[:count], 1e-9)
    left = left * sign
    scores = np.zeros((len(left), count))
    scores[:, : left.shape[1]] = left * np.sqrt(len(dosage))
    return np.round(scores, PC_DECIMALS)


def cluster(points: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Group points by k-means, the largest group first.

    Parameters
    ----------
    points : ndarray [n, D] float64
    k : int
        Number of groups.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray [n] int64
        Group of each point, the best of several starts (k-means++).
    """
    best: np.ndarray = np.zeros(len(points), dtype=np.int64)
    best_cost = np.inf
    for _ in range(RESTARTS):
        centres = _spread_centres(points, k, rng)
        for _ in range(MAX_STEPS):
            distance = ((points[:, None, :] - centres[None]) ** 2).sum(axis=2)
            group = distance.argmin(axis=1)
            moved = centres.copy()
            for g in np.unique(group):
                moved[g] = points[group == g].mean(axis=0)
            if np.allclose(moved, centres):
                break
            centres = moved
        cost = float(distance.min(axis=1).sum())
        if cost < best_cost - 1e-9:
            best, best_cost = group, cost
    by_size = np.argsort(-np.bincount(best, minlength=k), kind="stable")
    return np.argsort(by_size)[best]


def _spread_centres(points: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    centres = [points[rng.integers(len(points))]]
    for _ in range(k - 1):
        nearest = np.min([((points - c) ** 2).sum(axis=1) for c in centres], axis=0)
        total = nearest.sum()
        p = nearest / total if total > 0 else None
        centres.append(points[rng.choice(len(points), p=p)])
    return np.array(centres)
