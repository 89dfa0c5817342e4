"""From held-out latents to the numbers of metrics.json."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float64, Int

from encoders.errors import InputError, Problem
from multimodal.evaluate import bootstrap, permutation
from multimodal.evaluate.galleries import (
    LARGEST_GALLERY,
    SMALLEST_STRATUM,
    GallerySet,
    matched_galleries,
    raw_galleries,
)
from multimodal.evaluate.permutation import fold_coupling, histogram, permutation_test
from multimodal.evaluate.retrieval import (
    DIRECTIONS,
    QueryRanks,
    chance_metrics,
    doubled_credits,
    pool_ranks,
    query_ranks,
    retrieval_metrics,
    similarity,
)

Method = Literal["crossfit", "heldout"]


@dataclass(frozen=True)
class EvaluateOptions:
    """What can be set about an evaluation.

    Parameters
    ----------
    permutations : int
        Permutations of each test.
    bootstrap_replicates : int
        Bootstrap samples of the intervals.
    interval_level : float
        Coverage of the intervals.
    smallest_stratum : int
        Strata with fewer unrelated members in a fold are dropped.
    largest_gallery : int
        Larger galleries are divided at random.
    seed : int
        Choice of family members, permutations and bootstrap.
    """

    permutations: int = permutation.PERMUTATIONS
    bootstrap_replicates: int = bootstrap.REPLICATES
    interval_level: float = 0.95
    smallest_stratum: int = SMALLEST_STRATUM
    largest_gallery: int = LARGEST_GALLERY
    seed: int = 0

    def __post_init__(self) -> None:
        least = {
            "permutations": 1,
            "bootstrap_replicates": 1,
            "smallest_stratum": 2,
            "largest_gallery": 2,
            "seed": 0,
        }
        problems = [
            Problem("bad-option", f"evaluation.{name}", f"{getattr(self, name)}", f"at least {low}")
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        if not 0 < self.interval_level < 1:
            wanted = "more than 0, less than 1, e.g. 0.95"
            found = f"{self.interval_level:g}"
            problems.append(Problem("bad-option", "evaluation.interval_level", found, wanted))
        if problems:
            raise InputError(problems)


@dataclass(frozen=True)
class Evaluated:
    """Who is tested, and how: what the aligned latents and every control share.

    Parameters
    ----------
    ids : sequence of str
        The n participant identifiers.
    folds : ndarray [n] int
        Fold in which each subject is tested; negative for subjects who are not. A held-out split
        is the single fold 0.
    components : ndarray [n] int
        Kinship component of each subject.
    strata : ndarray [n] of str
        Stratum of each subject for the matched galleries.
    method : {"crossfit", "heldout"}
        With "crossfit" each fold's model was trained on the other folds, and the null is widened
        accordingly (see `multimodal.evaluate.permutation`).
    """

    ids: Sequence[str]
    folds: Int[np.ndarray, " subject"]
    components: Int[np.ndarray, " subject"]
    strata: np.ndarray
    method: Method = field(default="crossfit")

    def __post_init__(self) -> None:
        lengths = {len(self.ids), len(self.folds), len(self.components), len(self.strata)}
        if len(lengths) > 1:
            raise ValueError("ids, folds, components and strata must have one entry a subject")
        if len(set(self.ids)) < len(self.ids):
            raise InputError(
                Problem(
                    "duplicate-participant",
                    "participants",
                    f"{len(self.ids) - len(set(self.ids))} identifier(s) occur more than once",
                    "every participant_id once",
                )
            )


Latents = tuple[Float[np.ndarray, "subject dim"], Float[np.ndarray, "subject dim"]]


def evaluate_latents(
    gene: Float[np.ndarray, "subject dim"],
    brain: Float[np.ndarray, "subject dim"],
    who: Evaluated,
    *,
    controls: Mapping[str, Latents] | None = None,
    options: EvaluateOptions | None = None,
) -> dict[str, Any]:
    """Retrieval, its chance and its null, in raw and in matched galleries.

    Parameters
    ----------
    gene, brain : ndarray [n, d]
        Latents; rows of subjects who are not tested are not looked at.
    who : Evaluated
    controls : mapping of str to (gene, brain), optional
        Latents to put through the same galleries and the same permutations, such as
        ``"covariates_only"`` with covariates in place of the genome.
    options : EvaluateOptions, optional

    Returns
    -------
    dict
        Plain JSON-ready values: ``gallery_size`` (subjects tested in raw galleries), ``method``,
        ``folds``, ``galleries.{raw,matched}``, ``retrieval.{raw,matched}.{gene_to_brain,
        brain_to_gene}``, ``permutation.{raw,matched}``, ``null.{raw,matched}`` (histograms) and
        ``controls.NAME.{retrieval,permutation,null}``. Without any matched gallery the matched
        blocks have ``n`` 0, ``p`` None and a ``reason``.

    Raises
    ------
    InputError
        A fold with fewer than two unrelated subjects, relatives in different folds, or latents
        that are not finite.
    """
    options = options or EvaluateOptions()
    sets = _gallery_sets(who, options)
    report: dict[str, Any] = {
        "method": who.method,
        "folds": len({gallery.fold for gallery in sets["raw"].galleries}),
        "gallery_size": sets["raw"].subjects,
        "galleries": {kind: _describe(galleries) for kind, galleries in sets.items()},
    }
    report |= _blocks(gene, brain, who, sets, options)
    report["controls"] = {
        name: _blocks(*latents, who, sets, options) for name, latents in (controls or {}).items()
    }
    return report


def _gallery_sets(who: Evaluated, options: EvaluateOptions) -> dict[str, GallerySet]:
    common: dict[str, Any] = {
        "ids": who.ids,
        "seed": options.seed,
        "largest": options.largest_gallery,
    }
    return {
        "raw": raw_galleries(who.components, who.folds, **common),
        "matched": matched_galleries(
            who.components,
            who.folds,
            np.asarray(who.strata),
            smallest=options.smallest_stratum,
            **common,
        ),
    }


def _describe(galleries: GallerySet) -> dict[str, Any]:
    sizes = sorted(galleries.sizes)
    return {
        "subjects": galleries.subjects,
        "count": len(sizes),
        "smallest": sizes[0] if sizes else 0,
        "median": float(np.median(sizes)) if sizes else 0.0,
        "largest": sizes[-1] if sizes else 0,
        "relatives_left_out": galleries.relatives_left_out,
        "strata_dropped": galleries.strata_dropped,
        "subjects_dropped": galleries.subjects_dropped,
        "reason": galleries.reason,
    }


def _blocks(
    gene: Float[np.ndarray, "subject dim"],
    brain: Float[np.ndarray, "subject dim"],
    who: Evaluated,
    sets: Mapping[str, GallerySet],
    options: EvaluateOptions,
) -> dict[str, Any]:
    if len(gene) != len(who.ids) or len(brain) != len(who.ids):
        raise ValueError("latents must have one row a subject")
    retrieval: dict[str, Any] = {}
    tests: dict[str, Any] = {}
    nulls: dict[str, Any] = {}
    for kind, galleries in sets.items():
        if galleries.galleries:
            retrieval[kind] = _retrieval_block(gene, brain, who, galleries, options)
            tests[kind], nulls[kind] = _permutation_block(gene, brain, who, galleries, options)
        else:
            retrieval[kind] = {
                direction: {"n": 0, "reason": galleries.reason} for direction in DIRECTIONS
            }
            tests[kind] = _no_test(galleries.reason, options)
            nulls[kind] = None
    return {"retrieval": retrieval, "permutation": tests, "null": nulls}


def _scores(
    gene: Float[np.ndarray, "subject dim"],
    brain: Float[np.ndarray, "subject dim"],
    galleries: GallerySet,
) -> Iterator[tuple[np.ndarray, Float64[np.ndarray, "gene brain"]]]:
    for gallery in galleries.galleries:
        yield gallery.rows, similarity(gene[gallery.rows], brain[gallery.rows])


def _retrieval_block(
    gene: Float[np.ndarray, "subject dim"],
    brain: Float[np.ndarray, "subject dim"],
    who: Evaluated,
    galleries: GallerySet,
    options: EvaluateOptions,
) -> dict[str, Any]:
    parts: dict[str, list[QueryRanks]] = {direction: [] for direction in DIRECTIONS}
    for rows, scores in _scores(gene, brain, galleries):
        for direction in DIRECTIONS:
            parts[direction].append(query_ranks(scores, direction, rows))
    chance = chance_metrics(galleries.sizes)
    block: dict[str, Any] = {}
    for direction in DIRECTIONS:
        ranks = pool_ranks(parts[direction])
        block[direction] = {
            **retrieval_metrics(ranks),
            "n": galleries.subjects,
            "galleries": len(galleries.sizes),
            "chance": chance,
            "interval": bootstrap.bootstrap_intervals(
                ranks,
                np.asarray(who.components)[ranks.rows],
                replicates=options.bootstrap_replicates,
                level=options.interval_level,
                seed=options.seed,
            ),
            "interval_level": options.interval_level,
        }
    return block


def _permutation_block(
    gene: Float[np.ndarray, "subject dim"],
    brain: Float[np.ndarray, "subject dim"],
    who: Evaluated,
    galleries: GallerySet,
    options: EvaluateOptions,
) -> tuple[dict[str, Any], dict[str, Any]]:
    test = permutation_test(
        (doubled_credits(scores) for _, scores in _scores(gene, brain, galleries)),
        permutations=options.permutations,
        seed=options.seed,
        inflation=null_inflation(who, galleries),
    )
    block = {
        "statistic": test.statistic,
        "p": test.p,
        "permutations": options.permutations,
        "null_mean": float(test.null.mean()),
        "null_sd": float(test.null.std()),
        "null_inflation": test.inflation,
        "n": galleries.subjects,
        "reason": "",
    }
    return block, {**histogram(test.null), "statistic": test.statistic}


def null_inflation(who: Evaluated, galleries: GallerySet) -> float:
    """Factor on the null's spread: 1 for a held-out split, more for cross-fitting."""
    if who.method == "heldout":
        return 1.0
    components = np.asarray(who.components)
    labels, sizes = np.unique(components[np.asarray(who.folds) >= 0], return_counts=True)
    members = np.concatenate([gallery.rows for gallery in galleries.galleries])
    tested = np.isin(labels, components[members])
    return float(np.sqrt(1.0 + fold_coupling(sizes, tested, galleries.sizes)))


def _no_test(reason: str, options: EvaluateOptions) -> dict[str, Any]:
    return {
        "statistic": None,
        "p": None,
        "permutations": options.permutations,
        "null_mean": None,
        "null_sd": None,
        "null_inflation": None,
        "n": 0,
        "reason": reason,
    }
