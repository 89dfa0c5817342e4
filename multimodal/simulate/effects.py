"""Causal variants and the scores through which they reach the brain."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from encoders.errors import InputError, Problem
from multimodal.simulate.options import SimulationOptions
from multimodal.simulate.streams import stream
from multimodal.simulate.variants import Variant

CAUSAL_FREQUENCY = (0.2, 0.5)
MAX_CAUSAL_R2 = 0.5


@dataclass(frozen=True)
class CausalModel:
    """Which variants are causal, and what they add up to.

    Parameters
    ----------
    variants : list of Variant
        The C causal variants.
    frequency : ndarray [C] float64
        Alternate-allele frequency in the cohort, the first one of a world.
    weights : ndarray [C, K] float64
        Effect of one alternate allele on each score.
    scores : ndarray [n, K] float64
        ``dosage @ weights``, of mean 0; within ancestry of variance 1 and uncorrelated. New
        people's are centred and scaled as the first cohort's.
    """

    variants: list[Variant]
    frequency: np.ndarray
    weights: np.ndarray
    scores: np.ndarray


def draw_causal_model(
    options: SimulationOptions,
    variants: Sequence[Variant],
    dosage: np.ndarray,
    ancestry: np.ndarray,
) -> CausalModel:
    """Choose causal variants among those that qualify, and draw their effects.

    Parameters
    ----------
    options : SimulationOptions
    variants : sequence of Variant
        V candidates; those that are biallelic single-base variants inside a region and of
        frequency 0.2 to 0.5 in the cohort qualify.
    dosage : ndarray [n, V] float64
        Their alternate-allele counts.
    ancestry : ndarray [n] int64
        Scores are scaled within ancestry, so that heritability is that within ancestry.

    Raises
    ------
    InputError
        Too few variants qualify for the causal dimensions asked for.
    """
    rng = stream(options.seed, "effects")
    frequency = dosage.mean(axis=0) / 2.0
    chosen = _choose(options, rng, variants, dosage, frequency)
    if len(chosen) < options.causal_dimensions:
        raise InputError(
            Problem(
                "simulation-causal-variants",
                "regions",
                f"{len(chosen)} single-base variants of frequency 0.2 to 0.5 found in them",
                f"at least {options.causal_dimensions} wanted, one a causal dimension",
                "give more or longer regions, or ask for fewer causal dimensions",
            )
        )
    counts = dosage[:, chosen]
    within = counts.copy()
    for group in np.unique(ancestry):
        within[ancestry == group] -= within[ancestry == group].mean(axis=0)
    covariance = within.T @ within / len(within)
    standardised = rng.standard_normal((len(chosen), options.causal_dimensions))
    weights: np.ndarray = standardised / np.sqrt(np.diag(covariance))[:, None]
    # Gram-Schmidt in the metric of the covariance: scores of variance 1 and without correlation.
    weights = np.linalg.solve(np.linalg.cholesky(weights.T @ covariance @ weights), weights.T).T
    return CausalModel(
        variants=[variants[v] for v in chosen],
        frequency=frequency[chosen],
        weights=weights,
        scores=(counts - counts.mean(axis=0)) @ weights,
    )


def scores_of_new_people(
    causal: CausalModel, variants: Sequence[Variant], dosage: np.ndarray
) -> CausalModel:
    """Return the first cohort's effects with the scores that they give new people.

    Parameters
    ----------
    causal : CausalModel
        The first cohort's.
    variants, dosage : see `draw_causal_model`
        The new people's, at the same variants.
    """
    place = {variant: column for column, variant in enumerate(variants)}
    counts = dosage[:, [place[variant] for variant in causal.variants]]
    return replace(causal, scores=(counts - 2.0 * causal.frequency) @ causal.weights)


def _choose(
    options: SimulationOptions,
    rng: np.random.Generator,
    variants: Sequence[Variant],
    dosage: np.ndarray,
    frequency: np.ndarray,
) -> list[int]:
    """Choose causal variants region by region in turn, none in strong linkage with another."""
    low, high = CAUSAL_FREQUENCY
    open_by_region: dict[int, list[int]] = {}
    for v in rng.permutation(len(variants)):
        variant = variants[v]
        if variant.region >= 0 and variant.is_biallelic_snp and low <= frequency[v] <= high:
            open_by_region.setdefault(variant.region, []).append(int(v))
    chosen: list[int] = []
    queues = [open_by_region[region] for region in sorted(open_by_region)]
    while len(chosen) < options.causal_variants and any(queues):
        for queue in queues:
            while queue and len(chosen) < options.causal_variants:
                candidate = queue.pop()
                if all(_r2(dosage[:, candidate], dosage[:, v]) <= MAX_CAUSAL_R2 for v in chosen):
                    chosen.append(candidate)
                    break
    return sorted(chosen)


def _r2(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) ** 2 / max((a @ a) * (b @ b), 1e-12))
