"""Who is looked for among whom: galleries of unrelated subjects, raw or matched within strata."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int, Int64

from encoders.errors import InputError, Problem
from multimodal.evaluate.crossfit import refuse_relatives_across

SMALLEST_STRATUM = 5
SMALLEST_GALLERY = 2
LARGEST_GALLERY = 5_000


@dataclass(frozen=True)
class Gallery:
    """The candidates among which each of their own pairs is looked for.

    Parameters
    ----------
    fold : int
        Fold the members belong to: their latents come from the same trained model.
    rows : ndarray [m] int64
        Rows of the members in the cohort's arrays, at most one a kinship component.
    """

    fold: int
    rows: Int64[np.ndarray, " member"]


@dataclass(frozen=True)
class GallerySet:
    """All galleries of one kind, and who is in none.

    Parameters
    ----------
    kind : {"raw", "matched"}
        Whole folds, or strata within folds.
    galleries : tuple of Gallery
        In order of fold and stratum; no row and no kinship component occurs twice.
    relatives_left_out : int
        Tested subjects left out because a relative represents their kinship component.
    strata_dropped : int
        Strata, counted within folds, with fewer members than wanted.
    subjects_dropped : int
        Members of the dropped strata.
    reason : str
        Why there are no galleries; empty when there are.
    """

    kind: Literal["raw", "matched"]
    galleries: tuple[Gallery, ...]
    relatives_left_out: int
    strata_dropped: int = 0
    subjects_dropped: int = 0
    reason: str = ""

    @property
    def sizes(self) -> list[int]:
        """Number of members of each gallery."""
        return [len(gallery.rows) for gallery in self.galleries]

    @property
    def subjects(self) -> int:
        """Number of members of all galleries together."""
        return sum(self.sizes)


def draw_order(ids: Sequence[str], seed: int) -> Int64[np.ndarray, " subject"]:
    """Rows in a random order that depends on the identifiers and the seed, not on the row order.

    Adding or removing subjects leaves the order of the others as it is.

    Parameters
    ----------
    ids : sequence of str
        The n participant identifiers, all different.
    seed : int

    Returns
    -------
    ndarray [n] int64
    """
    keys = [hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest() for name in ids]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def one_per_component(
    components: Int[np.ndarray, " subject"],
    folds: Int[np.ndarray, " subject"],
    *,
    ids: Sequence[str],
    seed: int = 0,
) -> Int64[np.ndarray, " member"]:
    """Choose one tested subject of each kinship component.

    Parameters
    ----------
    components : ndarray [n] int
        Kinship component of each subject.
    folds : ndarray [n] int
        Fold in which each subject is tested; negative for subjects who are not.
    ids : sequence of str
        The n participant identifiers.
    seed : int

    Returns
    -------
    ndarray [m] int64
        The chosen rows, in `draw_order`.

    Raises
    ------
    InputError
        Two members of a component are tested in different folds.
    """
    refuse_relatives_across(folds, components)
    order = draw_order(ids, seed)
    tested = order[folds[order] >= 0]
    _, first = np.unique(components[tested], return_index=True)
    return tested[np.sort(first)]


def raw_galleries(
    components: Int[np.ndarray, " subject"],
    folds: Int[np.ndarray, " subject"],
    *,
    ids: Sequence[str],
    seed: int = 0,
    largest: int = LARGEST_GALLERY,
) -> GallerySet:
    """One gallery a fold: everybody tested in it, one member a kinship component.

    Parameters
    ----------
    components, folds, ids, seed
        As in `one_per_component`.
    largest : int
        Folds with more members are divided at random into equal galleries of at most this many, so
        that memory (some 30 bytes a pair) stays bounded.

    Raises
    ------
    InputError
        A fold has fewer than two unrelated subjects: there is nobody to confuse them with.
    """
    members = one_per_component(components, folds, ids=ids, seed=seed)
    galleries: list[Gallery] = []
    problems: list[Problem] = []
    for fold in _fold_numbers(folds):
        rows = members[folds[members] == fold]
        if len(rows) < SMALLEST_GALLERY:
            problems.append(
                Problem(
                    "gallery-too-small",
                    f"test fold {fold + 1}",
                    f"{len(rows)} unrelated subject",
                    f"retrieval needs at least {SMALLEST_GALLERY} kinship components to test",
                    "use fewer folds, a larger test fraction, or more subjects",
                )
            )
        galleries += [Gallery(fold, part) for part in _parts(rows, largest)]
    if not galleries and not problems:
        problems.append(
            Problem(
                "gallery-too-small",
                "test split",
                "no subject is to be tested",
                f"retrieval needs at least {SMALLEST_GALLERY} kinship components to test",
                "give the split a test fraction, or use cross-fitting",
            )
        )
    if problems:
        raise InputError(problems)
    left_out = int((folds >= 0).sum()) - len(members)
    return GallerySet("raw", tuple(galleries), left_out)


def matched_galleries(
    components: Int[np.ndarray, " subject"],
    folds: Int[np.ndarray, " subject"],
    strata: np.ndarray,
    *,
    ids: Sequence[str],
    seed: int = 0,
    smallest: int = SMALLEST_STRATUM,
    largest: int = LARGEST_GALLERY,
) -> GallerySet:
    """One gallery a stratum within a fold, so that no candidate differs in the matched covariates.

    The members are those of `raw_galleries`, so that relatives never meet the same test twice
    through different strata.

    Parameters
    ----------
    components, folds, ids, seed, largest
        As in `raw_galleries`.
    strata : ndarray [n] of str
        Stratum of each subject, such as ``"F|site-1|cluster-0"``.
    smallest : int
        Strata with fewer unrelated members in a fold are dropped and counted.
    """
    members = one_per_component(components, folds, ids=ids, seed=seed)
    galleries: list[Gallery] = []
    dropped: list[int] = []
    for fold in _fold_numbers(folds):
        in_fold = members[folds[members] == fold]
        for stratum in np.unique(strata[in_fold]):
            rows = in_fold[strata[in_fold] == stratum]
            if len(rows) < max(smallest, SMALLEST_GALLERY):
                dropped.append(len(rows))
            else:
                galleries += [Gallery(fold, part) for part in _parts(rows, largest)]
    reason = "" if galleries else _no_galleries(dropped, smallest)
    left_out = int((folds >= 0).sum()) - len(members)
    return GallerySet("matched", tuple(galleries), left_out, len(dropped), sum(dropped), reason)


def _fold_numbers(folds: Int[np.ndarray, " subject"]) -> list[int]:
    return [int(fold) for fold in np.unique(folds[folds >= 0])]


def _parts(rows: Int64[np.ndarray, " member"], largest: int) -> Iterator[np.ndarray]:
    yield from np.array_split(rows, max(1, -(-len(rows) // largest)))


def _no_galleries(dropped: list[int], smallest: int) -> str:
    if not dropped:
        return "no subject is to be tested"
    return (
        f"all {len(dropped)} strata have fewer than {smallest} unrelated members tested together "
        f"(the largest has {max(dropped)}); match on fewer covariates or test more subjects"
    )
