"""What training is told of its subjects beside features: kinship, strata of batches, confounds."""

from typing import Any

import numpy as np
import pandas as pd

from encoders.errors import InputError, Problem
from multimodal.align.options import AlignOptions
from multimodal.cohort.strata import strata_labels
from multimodal.verbs.pipeline import Joint


def refuse_missing_columns(people: pd.DataFrame, choices: AlignOptions) -> None:
    """Look for the columns that training will ask for, before anything costly is done.

    Parameters
    ----------
    people : DataFrame
        The cohort's participants.
    choices : AlignOptions

    Raises
    ------
    InputError
        Each column of ``align.batch_strata`` and ``align.adversary`` that there is not.
    """
    if problems := find_missing_columns(people, choices):
        raise InputError(problems)


def find_missing_columns(people: pd.DataFrame, choices: AlignOptions) -> list[Problem]:
    """Return what `refuse_missing_columns` refuses."""
    problems: list[Problem] = []
    for name in ("batch_strata", "adversary"):
        for key in getattr(choices, name):
            try:
                strata_labels(people, [key], np.arange(len(people)))
            except InputError as error:
                known = ", ".join(map(str, people.columns))
                found = "; ".join(problem.found for problem in error.problems)
                fix = f"add it to the table, or take it out of align.{name}"
                where = f"align.{name}={key}"
                problems.append(Problem("strata-column", where, found, f"one of {known}", fix))
    return problems


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
