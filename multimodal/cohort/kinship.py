"""Who belongs together: connected components over families and kinship."""

import numpy as np
import pandas as pd

from multimodal.cohort.table import Cohort

THIRD_DEGREE = 0.0442
"""Kinship above which KING calls two people relatives of third degree or nearer (2^-4.5)."""


def kinship_pairs(cohort: Cohort, threshold: float = THIRD_DEGREE) -> np.ndarray:
    """Return the pairs related at `threshold` or more.

    Parameters
    ----------
    cohort : Cohort
    threshold : float
        Smallest kinship coefficient that counts as related.

    Returns
    -------
    ndarray [pairs, 2] int64
        Rows of ``cohort.participants``.
    """
    related = _related(cohort, threshold)
    people = cohort.participants.index
    pairs = [people.get_indexer(pd.Index(related[name])) for name in ("id1", "id2")]
    return np.stack(pairs, axis=1).astype(np.int64)


def kinship_table(cohort: Cohort, threshold: float = THIRD_DEGREE) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs related at `threshold` or more, and how nearly.

    Parameters
    ----------
    cohort : Cohort
    threshold : float
        Smallest kinship coefficient that counts as related.

    Returns
    -------
    pairs : ndarray [pairs, 2] int64
        Rows of ``cohort.participants``, the smaller first; each pair once.
    coefficient : ndarray [pairs] float64
        The largest that the table has of a pair.
    """
    related = _related(cohort, threshold)
    pairs = np.sort(kinship_pairs(cohort, threshold), axis=1)
    distinct, place = np.unique(pairs, axis=0, return_inverse=True)
    coefficient = np.full(len(distinct), -np.inf)
    np.maximum.at(coefficient, place.reshape(-1), related["kinship"].to_numpy(dtype=np.float64))
    return distinct.reshape(-1, 2), coefficient


def _related(cohort: Cohort, threshold: float) -> pd.DataFrame:
    return cohort.kinship[cohort.kinship["kinship"] >= threshold]


def components(cohort: Cohort, threshold: float = THIRD_DEGREE) -> np.ndarray:
    """Label groups of people that are related, directly or through others.

    Two people belong together who share ``family_id`` or are related at `threshold` or more.

    Parameters
    ----------
    cohort : Cohort
    threshold : float
        Smallest kinship coefficient that counts as related.

    Returns
    -------
    ndarray [n] int64
        Label of each participant, numbered from 0 in the order in which they first appear.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    people = len(cohort.participants)
    family = cohort.participants["family_id"].factorize()[0] + people
    pairs = kinship_pairs(cohort, threshold)
    start = np.concatenate([np.arange(people), pairs[:, 0]])
    end = np.concatenate([family, pairs[:, 1]])
    nodes = people + (int(family.max()) - people + 1 if people else 0)
    graph = coo_array((np.ones(len(start), dtype=np.int8), (start, end)), shape=(nodes, nodes))
    labels = connected_components(graph, directed=False)[1][:people]
    return _by_first_appearance(labels)


def _by_first_appearance(labels: np.ndarray) -> np.ndarray:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[np.argsort(first, kind="stable")] = np.arange(len(first))
    return order[inverse]
