"""What can be read from latents: a label of a person, and which of two siblings is which."""

import numpy as np

PROBE_FOLDS = 5
# Inverse of the penalty, for latents whose spread is 1; a probe of few people is to learn little by
# heart.
PROBE_STRENGTH = 1.0


def readability(
    latents: np.ndarray, labels: np.ndarray, folds: np.ndarray, components: np.ndarray
) -> float:
    """Balanced accuracy of a logistic regression that reads a label from held-out latents.

    Parameters
    ----------
    latents : ndarray [n, d]
        Out of fold: each fold has a space of its own, and so a probe of its own, cross-validated
        within the fold by whole families.
    labels : ndarray [n] of str
    folds, components : ndarray [n] int

    Returns
    -------
    float
        Chance is 1 divided by the number of labels.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold

    found = np.empty(len(labels), dtype=labels.dtype)
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        values = latents[rows].astype(np.float64)
        values -= values.mean(axis=0)
        values /= np.sqrt((values**2).sum(axis=1).mean())
        parts = StratifiedGroupKFold(PROBE_FOLDS, shuffle=True, random_state=0)
        for train, test in parts.split(values, labels[rows], components[rows]):
            probe = LogisticRegression(C=PROBE_STRENGTH, class_weight="balanced", max_iter=2000)
            found[rows[test]] = probe.fit(values[train], labels[rows[train]]).predict(values[test])
    return float(balanced_accuracy_score(labels, found))


def told_apart(gene: np.ndarray, brain: np.ndarray, pairs: np.ndarray) -> float:
    """Share of pairs of relatives whose two genomes find their own of the two brains.

    Parameters
    ----------
    gene, brain : ndarray [n, d]
        Latents of unit length.
    pairs : ndarray [p, 2] int
        Rows of relatives who are no identical twins.

    Returns
    -------
    float
        Chance 0.5; ties count half.
    """
    one, other = pairs.T
    own = (gene[one] * brain[one] + gene[other] * brain[other]).sum(axis=1)
    crossed = (gene[one] * brain[other] + gene[other] * brain[one]).sum(axis=1)
    return float(np.mean((np.sign(own - crossed) + 1) / 2))


def likeness(values: np.ndarray, pairs: np.ndarray) -> float:
    """Mean cosine between the latents [n, d] of each pair of rows [p, 2]."""
    return float((values[pairs[:, 0]] * values[pairs[:, 1]]).sum(axis=1).mean())
