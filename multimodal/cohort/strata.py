"""Strata for matched galleries and balanced splits: sex, site, ancestry cluster."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from encoders.errors import InputError, Problem
from multimodal.cohort.tsv import MISSING

_ANCESTRY_COMPONENTS = ("PC1", "PC2", "PC3", "PC4")
_MOST_CLUSTERS = 5
_SILHOUETTE_ROWS = 2000


def strata_labels(
    participants: pd.DataFrame,
    keys: Sequence[str],
    train_rows: np.ndarray,
    *,
    clusters: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Label each participant's stratum, e.g. ``"sex=F site=leeds ancestry=EUR"``.

    Parameters
    ----------
    participants : DataFrame
        As in `Cohort`.
    keys : sequence of str
        Columns to cross; none gives one stratum, ``"all"``. ``ancestry`` is the column of that
        name or, where there is none, the clusters of `ancestry_clusters`. A missing value is a
        level of its own, ``n/a``.
    train_rows : ndarray of int or bool
        Rows that the ancestry clusters are fitted on.
    clusters, seed : see `ancestry_clusters`

    Returns
    -------
    ndarray [n] str

    Raises
    ------
    InputError
        A key is no column.
    """
    labels = pd.Series("all", index=participants.index, dtype=object)
    for position, key in enumerate(keys):
        has_values = key in participants and bool(participants[key].notna().any())
        if key == "ancestry" and not has_values:
            level = pd.Series(
                ancestry_clusters(participants, train_rows, clusters=clusters, seed=seed),
                index=participants.index,
            )
        elif key in participants:
            level = participants[key].astype(object)
            level = level.where(level.notna(), MISSING).map(str)
        else:
            raise InputError(
                Problem(
                    "strata-column",
                    "participants.tsv",
                    f"no column {key}; columns are {', '.join(map(str, participants.columns))}",
                    f"a column {key}, which the strata {', '.join(keys)} want",
                    "add it, or take it out of evaluation.strata",
                )
            )
        part = f"{key}=" + level.astype(object)
        labels = part if position == 0 else labels + " " + part
    return labels.to_numpy().astype(str)


def ancestry_clusters(
    participants: pd.DataFrame,
    train_rows: np.ndarray,
    *,
    clusters: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Cluster the first four genetic principal components by k-means.

    Fitted on training rows only, then applied to all, so that held-out people do not shape it.

    Parameters
    ----------
    participants : DataFrame
        With columns PC1 and, where there, PC2 to PC4.
    train_rows : ndarray of int or bool
        Rows to fit on.
    clusters : int, optional
        Number of clusters; by default that of 2 to 5 with the best mean silhouette.
    seed : int
        Seed of the k-means starts.

    Returns
    -------
    ndarray [n] str
        ``"cluster0"`` and so on by ascending PC1 of the centre; ``"n/a"`` where a component is
        missing.

    Raises
    ------
    InputError
        There is no PC1, or too few training participants have components.
    """
    names = [name for name in _ANCESTRY_COMPONENTS if name in participants]
    if "PC1" not in names:
        raise InputError(
            Problem(
                "strata-ancestry",
                "participants.tsv",
                "neither a column ancestry nor PC1 to PC4",
                "one of them, for strata by ancestry",
                "add genetic principal components, or leave ancestry out of the strata",
            )
        )
    values = participants[names].to_numpy(dtype=np.float64)
    complete = np.isfinite(values).all(axis=1)
    in_train = np.zeros(len(values), dtype=bool)
    in_train[train_rows] = True
    # Sorted, so that the order of rows in the file does not change the clusters.
    fitted_on = values[complete & in_train]
    fitted_on = fitted_on[np.lexsort(fitted_on.T[::-1])]
    distinct = len(np.unique(fitted_on, axis=0)) if len(fitted_on) else 0
    if distinct < (clusters or 2):
        raise InputError(
            Problem(
                "strata-ancestry",
                "participants.tsv",
                f"{distinct} distinct training participants with {', '.join(names)}",
                f"at least {clusters or 2} to cluster",
                "leave ancestry out of the strata",
            )
        )
    centres = _centres(fitted_on, clusters, distinct, seed)
    centres = centres[np.lexsort(centres.T[::-1])]
    labels = np.full(len(values), MISSING, dtype=object)
    distance = ((values[complete, None, :] - centres) ** 2).sum(axis=2)
    labels[complete] = [f"cluster{nearest}" for nearest in distance.argmin(axis=1)]
    return labels.astype(str)


def _centres(points: np.ndarray, clusters: int | None, distinct: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    def fit(count: int) -> KMeans:
        return KMeans(count, n_init=10, random_state=seed).fit(points)

    if clusters is not None:
        return fit(clusters).cluster_centers_
    most = min(_MOST_CLUSTERS, distinct - 1)
    fits = [fit(count) for count in range(2, most + 1)] or [fit(2)]
    if len(fits) == 1:
        return fits[0].cluster_centers_
    size = min(len(points), _SILHOUETTE_ROWS)
    scores = [
        silhouette_score(points, fitted.labels_, sample_size=size, random_state=seed)
        for fitted in fits
    ]
    return fits[int(np.argmax(scores))].cluster_centers_
