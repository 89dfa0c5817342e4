"""Controls that stand in for the gene side: what would covariates alone retrieve?"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from encoders.errors import InputError, Problem
from multimodal.align.options import AlignOptions
from multimodal.features.tables import GeneFeatures


def covariate_features(participant_ids: Sequence[str], matrix: np.ndarray) -> GeneFeatures:
    """Make gene-side features of a covariate matrix, for the covariates-only control.

    A tower trained on them finds each subject's brain by sex, age, site or ancestry alone; what
    the genome adds is what it retrieves beyond that. Train with `covariate_options`.

    Parameters
    ----------
    participant_ids : sequence of str
        The n subjects.
    matrix : ndarray [n, C]
        Coded covariates, finite.

    Returns
    -------
    GeneFeatures
        One window named ``"covariates"``, one strand, one haplotype.

    Raises
    ------
    InputError
        The matrix has other than n rows, no column, or a value that is not finite.
    """
    values = np.asarray(matrix, dtype=np.float32)
    if values.ndim != 2 or len(values) != len(participant_ids) or not values.shape[1]:
        raise InputError(
            Problem(
                "covariate-shape",
                "covariates",
                f"a table of shape {values.shape}",
                f"{len(participant_ids)} rows and at least one column",
                "name at least one covariate",
            )
        )
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise InputError(
            Problem(
                "covariate-not-finite",
                f"covariates of {', '.join(participant_ids[row] for row in bad[:10])}",
                f"{len(bad)} subjects with missing values",
                "a number for every subject",
                "fill them in or leave these subjects out",
            )
        )
    index = np.arange(len(values), dtype=np.int64)[:, None, None]
    return GeneFeatures(list(participant_ids), ["covariates"], values[:, None, :], index)


def covariate_options(options: AlignOptions) -> AlignOptions:
    """Return the options for training on `covariate_features`.

    Covariates have units of their own, so each is scaled by itself; nothing is regressed out, for
    that would remove the very thing tested. The brain side stays as it is otherwise.
    """
    gene = replace(options.gene, scale="dimension")
    return replace(options, gene=gene, residualise=False, region_pooling="concat")
