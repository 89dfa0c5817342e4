"""Founders who copy ancestral haplotypes, and the relatives who inherit from them."""

import numpy as np

from multimodal.simulate.options import SimulationOptions
from multimodal.simulate.people import People
from multimodal.simulate.sites import Site
from multimodal.simulate.streams import stream


def haplotype_frequencies(options: SimulationOptions, rng: np.random.Generator) -> np.ndarray:
    """Frequencies of the ancestral haplotypes by ancestry, [A, P] (Balding and Nichols 1995)."""
    base = rng.dirichlet(np.full(options.haplotypes_per_region, 6.0))
    concentration = (1.0 - options.fst) / options.fst
    return rng.dirichlet(np.maximum(base * concentration, 0.05), size=options.ancestries)


def draw_founders(
    options: SimulationOptions,
    founder_ancestry: np.ndarray,
    sites: list[Site],
    frequencies: list[np.ndarray],
    block_of_site: list[int],
) -> np.ndarray:
    """Alleles [F, 2, V] of founders, who copy ancestral haplotypes region by region."""
    rng = options.people_stream("founders")
    n = len(founder_ancestry)
    alleles = np.zeros((n, 2, len(sites)), dtype=np.int8)
    for block, of_ancestry in enumerate(frequencies):
        cumulative = np.cumsum(of_ancestry, axis=1)
        cumulative[:, -1] = 1.0
        draws = rng.random((n, 2))
        label = (draws[:, :, None] > cumulative[founder_ancestry][:, None, :]).sum(axis=2)
        for v in np.flatnonzero(np.array(block_of_site) == block):
            copied = sites[v].carriers[label]
            kept = rng.random((n, 2)) < sites[v].thinned
            alleles[:, :, v] = np.where(kept, copied, 0)
    return alleles


def draw_markers(options: SimulationOptions, founder_ancestry: np.ndarray) -> np.ndarray:
    """Alleles [F, 2, M] at unlinked markers whose frequency differs between ancestries."""
    rng = stream(options.seed, "markers")
    base = rng.uniform(0.1, 0.9, options.background_markers)
    spread = (1.0 - options.fst) / options.fst
    size = (options.ancestries, options.background_markers)
    frequency = rng.beta(base * spread, (1.0 - base) * spread, size=size)
    if options.people_seed is not None:
        rng = options.people_stream("markers")
    draws = rng.random((len(founder_ancestry), 2, options.background_markers))
    return (draws < frequency[founder_ancestry][:, None, :]).astype(np.int8)


def pedigree(people: People) -> tuple[np.ndarray, np.ndarray]:
    """Find the founders of a cohort: parents of relatives (outside the cohort), and all others.

    Returns
    -------
    ancestry : ndarray [F] int64
        Ancestry of each founder.
    parents : ndarray [n, 2] int64
        The founders whose haplotypes each participant has; twice the same one, the participant,
        for people without relatives.
    """
    ancestry: list[int] = []
    parents = np.zeros((len(people), 2), dtype=np.int64)
    for rows in people.members():
        first = len(ancestry)
        founders = 1 if len(rows) == 1 else 2
        parents[rows] = (first, first + founders - 1)
        ancestry += [int(people.ancestry[rows[0]])] * founders
    return np.array(ancestry), parents


def inherit(
    options: SimulationOptions,
    people: People,
    parents: np.ndarray,
    founders: np.ndarray,
    blocks: np.ndarray,
) -> np.ndarray:
    """Pass founders' haplotypes on; blocks segregate independently, without recombination inside.

    Parameters
    ----------
    options : SimulationOptions
    people : People
    parents : ndarray [n, 2] int64
        As `pedigree` gives them.
    founders : ndarray [F, 2, V] int8
        Alleles of the founders.
    blocks : ndarray [V] int64
        Block of each variant: a region with its flanks, or a single background marker.

    Returns
    -------
    ndarray [n, 2, V] int8
        Alleles of the participants. Identical twins have the same ones.
    """
    rng = options.people_stream("inheritance")
    choice = rng.integers(0, 2, size=(len(people), 2, int(blocks.max()) + 1))
    for family, rows in enumerate(people.members()):
        if people.kind[family] == "single":
            choice[rows] = np.array([0, 1])[None, :, None]
        elif people.kind[family] == "monozygotic":
            choice[rows] = choice[rows[0]]
    passed = choice[:, :, blocks]
    columns = np.arange(len(blocks))
    return founders[parents[:, :, None], passed, columns]
