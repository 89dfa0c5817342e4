"""Does the test keep its level? Null cohorts, evaluated as real ones are.

Features are drawn with everything that misleads a naive test, and no effect of genes on brains:
families share genes, and share brain likeness for other reasons (a household); ancestries differ
in gene features, sites in brain features, and ancestry goes with site.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from multimodal.evaluate.cca import cca_fit_and_embed
from multimodal.evaluate.crossfit import cross_fit
from multimodal.evaluate.galleries import matched_galleries
from multimodal.evaluate.permutation import permutation_test
from multimodal.evaluate.retrieval import doubled_credits, similarity
from multimodal.evaluate.summary import Evaluated, null_inflation


@dataclass(frozen=True)
class NullCohort:
    """Make-up of the simulated cohorts.

    Parameters
    ----------
    subjects : int
    gene_dim, brain_dim : int
        Features of each side.
    in_pairs : float
        Share of the subjects who come in pairs of relatives.
    gene_kinship : float
        Share of the gene features' variance that relatives have in common.
    brain_household : float
        Share of the brain features' variance that relatives have in common, for no genetic reason.
    ancestry_shift, site_shift : float
        Distance of the group means from zero, in standard deviations of a feature.
    off_diagonal : float
        Share of the families whose ancestry is not their site's usual one.
    folds : int
        Folds of the cross-fitting.
    """

    subjects: int = 240
    gene_dim: int = 24
    brain_dim: int = 30
    in_pairs: float = 0.22
    gene_kinship: float = 0.5
    brain_household: float = 0.4
    ancestry_shift: float = 0.5
    site_shift: float = 0.5
    off_diagonal: float = 0.2
    folds: int = 5


@dataclass(frozen=True)
class NullReplicates:
    """Outcome of `null_replicates`.

    Parameters
    ----------
    p_values : ndarray [r] float64
        Matched permutation p of each replicate.
    """

    p_values: Float64[np.ndarray, " replicate"]

    def rejection_rate(self, level: float = 0.05) -> float:
        """Share of the replicates with a p of at most `level`."""
        return float((self.p_values <= level).mean())


def null_replicates(
    replicates: int = 1_000,
    seed: int = 0,
    *,
    permutations: int = 999,
    cohort: NullCohort | None = None,
    inflate: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> NullReplicates:
    """Matched permutation p of cohorts without any effect, cross-fitted with ridge CCA.

    Parameters
    ----------
    replicates : int
        Number of simulated cohorts.
    seed : int
        Each replicate draws from a stream of its own.
    permutations : int
        Permutations of each test.
    cohort : NullCohort, optional
        Make-up of the cohorts.
    inflate : bool
        Whether the null is widened for cross-fitting; without it the test is too liberal, which
        is what the correction is judged by.
    progress : callable, optional
        Called with (replicates done, replicates in all) after each.

    Returns
    -------
    NullReplicates
    """
    cohort = cohort or NullCohort()
    p_values = np.empty(replicates)
    for number, stream in enumerate(np.random.SeedSequence(seed).spawn(replicates)):
        p_values[number] = _matched_p(np.random.default_rng(stream), cohort, permutations, inflate)
        if progress:
            progress(number + 1, replicates)
    return NullReplicates(p_values)


def _matched_p(
    rng: np.random.Generator, cohort: NullCohort, permutations: int, inflate: bool
) -> float:
    gene, brain, who = draw_null_cohort(rng, cohort)
    latents = cross_fit(
        cca_fit_and_embed(gene, brain), np.asarray(who.folds), components=who.components
    )
    galleries = matched_galleries(who.components, who.folds, who.strata, ids=who.ids)
    test = permutation_test(
        (
            doubled_credits(similarity(latents.gene[g.rows], latents.brain[g.rows]))
            for g in galleries.galleries
        ),
        permutations=permutations,
        seed=int(rng.integers(2**63)),
        inflation=null_inflation(who, galleries) if inflate else 1.0,
    )
    return test.p


def draw_null_cohort(
    rng: np.random.Generator, cohort: NullCohort
) -> tuple[Float64[np.ndarray, "subject gene"], Float64[np.ndarray, "subject brain"], Evaluated]:
    """Draw features without any effect of genes on brains, and who is tested how."""
    n = cohort.subjects
    paired = int(n * cohort.in_pairs) // 2 * 2
    family = np.concatenate([np.arange(paired) // 2, np.arange(paired, n) - paired // 2])
    families = int(family.max()) + 1
    site = rng.integers(2, size=families)
    ancestry = np.where(rng.random(families) < cohort.off_diagonal, 1 - site, site)
    sex = rng.integers(2, size=n)
    gene = _features(rng, family, ancestry, cohort.gene_dim, cohort.gene_kinship)
    gene += cohort.ancestry_shift * _group_means(rng, ancestry[family], cohort.gene_dim)
    brain = _features(rng, family, site, cohort.brain_dim, cohort.brain_household)
    brain += cohort.site_shift * _group_means(rng, site[family], cohort.brain_dim)
    folds = (rng.permutation(families) % cohort.folds)[family]
    strata = np.array(
        [f"{s}|{a}|{b}" for s, a, b in zip(sex, site[family], ancestry[family], strict=True)]
    )
    return gene, brain, Evaluated([f"{row}" for row in range(n)], folds, family, strata)


def _features(
    rng: np.random.Generator,
    family: Int64[np.ndarray, " subject"],
    group: np.ndarray,
    dim: int,
    shared: float,
) -> Float64[np.ndarray, "subject dim"]:
    own = rng.standard_normal((len(family), dim))
    of_family = rng.standard_normal((len(group), dim))[family]
    features: np.ndarray = np.sqrt(1 - shared) * own + np.sqrt(shared) * of_family
    return features


def _group_means(
    rng: np.random.Generator, group: Int64[np.ndarray, " subject"], dim: int
) -> Float64[np.ndarray, "subject dim"]:
    means: np.ndarray = rng.standard_normal((int(group.max()) + 1, dim))[group]
    return means
