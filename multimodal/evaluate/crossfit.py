"""Cross-fitting: everybody is tested once, by a model that saw neither them nor their relatives."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int64

from encoders.errors import InputError, Problem

FitAndEmbed = Callable[
    [Int64[np.ndarray, " train"], Int64[np.ndarray, " test"], int],
    tuple[Float[np.ndarray, "test dim"], Float[np.ndarray, "test dim"]],
]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CrossFitLatents:
    """Held-out latents of a cohort.

    Parameters
    ----------
    gene, brain : ndarray [n, d] float32 or float64
        Latents in cohort order; NaN in rows whose fold is negative.
    folds : ndarray [n] int64
        Fold whose model gave each latent. Latents of different folds lie in different spaces and
        are never compared.
    """

    gene: Float[np.ndarray, "subject dim"]
    brain: Float[np.ndarray, "subject dim"]
    folds: Int64[np.ndarray, " subject"]


def cross_fit(
    fit_and_embed: FitAndEmbed,
    folds: Int[np.ndarray, " subject"],
    *,
    components: Int[np.ndarray, " subject"] | None = None,
    progress: Progress | None = None,
) -> CrossFitLatents:
    """Train once a fold on the other folds, and embed the fold.

    Parameters
    ----------
    fit_and_embed : callable
        ``(train_rows, test_rows, fold) -> (gene [t, d], brain [t, d])``: trains a fresh model on
        the training rows and returns the test rows' latents, in the order of ``test_rows``.
    folds : ndarray [n] int
        Fold of each subject; a negative number leaves the subject out altogether.
    components : ndarray [n] int, optional
        Kinship components; when given, relatives on both sides of a split are refused.
    progress : callable, optional
        Called with (folds done, folds in all) at the start and after each fold.

    Returns
    -------
    CrossFitLatents

    Raises
    ------
    InputError
        Fewer than two folds, or a kinship component with members in two folds.
    ValueError
        `fit_and_embed` returns latents of another shape than asked for.
    """
    folds = np.asarray(folds, dtype=np.int64)
    numbers = [int(fold) for fold in np.unique(folds[folds >= 0])]
    if len(numbers) < 2:
        raise InputError(
            Problem(
                "too-few-folds",
                "folds",
                f"{len(numbers)} fold(s) with subjects",
                "cross-fitting needs at least two",
                "use five folds, or evaluate a held-out split",
            )
        )
    if components is not None:
        refuse_relatives_across(folds, components)
    gene: np.ndarray | None = None
    brain: np.ndarray | None = None
    if progress:
        progress(0, len(numbers))
    for done, fold in enumerate(numbers, start=1):
        test_rows = np.flatnonzero(folds == fold)
        train_rows = np.flatnonzero((folds >= 0) & (folds != fold))
        of_gene, of_brain = fit_and_embed(train_rows, test_rows, fold)
        gene = _filled(gene, np.asarray(of_gene), test_rows, len(folds), "gene")
        brain = _filled(brain, np.asarray(of_brain), test_rows, len(folds), "brain")
        if progress:
            progress(done, len(numbers))
    assert gene is not None
    assert brain is not None
    return CrossFitLatents(gene, brain, folds)


def refuse_relatives_across(
    folds: Int[np.ndarray, " subject"], components: Int[np.ndarray, " subject"]
) -> None:
    """Raise InputError when a kinship component has members in two folds.

    Relatives on both sides of a border would carry their likeness from training into the test.
    Subjects with a negative fold do not count.
    """
    used = np.flatnonzero(folds >= 0)
    pairs = np.unique(np.stack([components[used], folds[used]]), axis=1)
    labels, counts = np.unique(pairs[0], return_counts=True)
    split = labels[counts > 1]
    if len(split):
        raise InputError(
            Problem(
                "relatives-across-folds",
                "folds",
                f"{len(split)} kinship component(s) have members in more than one fold",
                "relatives belong to one fold",
                "make the folds from the same kinship components",
            )
        )


def _filled(
    latents: np.ndarray | None, part: np.ndarray, rows: np.ndarray, subjects: int, side: str
) -> np.ndarray:
    if latents is None:
        latents = np.full(
            (subjects, *part.shape[1:]), np.nan, dtype=np.result_type(part.dtype, np.float32)
        )
    if part.shape != (len(rows), latents.shape[1]):
        wanted = (len(rows), latents.shape[1])
        raise ValueError(f"{side} latents of a fold have shape {part.shape}, wanted {wanted}")
    latents[rows] = part
    return latents
