"""What training is told of its subjects beside features: kinship, strata of batches, confounds."""

from typing import Any

import numpy as np

from multimodal.align.options import AlignOptions
from multimodal.cohort.strata import strata_labels
from multimodal.verbs.pipeline import Joint


def training_labels(joint: Joint, choices: AlignOptions, train_rows: np.ndarray) -> dict[str, Any]:
    """Return the arguments of `multimodal.align.fit.fit` that the options ask for.

    Parameters
    ----------
    joint : Joint
    choices : AlignOptions
    train_rows : ndarray of int
        Ancestry clusters, where there is no such column, are fitted on these.

    Raises
    ------
    InputError
        A column that the options name does not exist.
    """
    people = joint.cohort.participants
    strata = confounds = None
    if choices.batch_strata:
        strata = strata_labels(people, choices.batch_strata, train_rows)
    if choices.adversary:
        columns = [strata_labels(people, [key], train_rows) for key in choices.adversary]
        coded = zip(choices.adversary, columns, strict=True)
        confounds = np.stack([_codes(labels, f"{key}=n/a") for key, labels in coded], axis=1)
    return {"kinship": joint.kinship, "strata": strata, "confounds": confounds}


def _codes(labels: np.ndarray, unknown: str) -> np.ndarray:
    """Number the labels from 0 in their order; -1 for the unknown."""
    known = sorted(set(labels) - {unknown})
    place = {label: code for code, label in enumerate(known)}
    return np.array([place.get(label, -1) for label in labels], dtype=np.int64)
