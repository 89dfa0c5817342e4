"""Reference, variants and the genotypes of people with relatives and two or more ancestries."""

from dataclasses import dataclass

import numpy as np

from multimodal.simulate.inheritance import (
    draw_founders,
    draw_markers,
    haplotype_frequencies,
    inherit,
    pedigree,
)
from multimodal.simulate.options import SimulationOptions
from multimodal.simulate.people import People
from multimodal.simulate.sites import Site, draw_sites
from multimodal.simulate.streams import stream
from multimodal.simulate.variants import SimulatedRegion, Variant

CONTIGS = ("chr1", "chr2")
GC_CONTENT = 0.41
CPG_KEPT = 0.25
TELOMERE_BP = 200
GAP_BP = 2000


@dataclass(frozen=True)
class Genome:
    """A simulated genome: reference, regions, variants and everybody's alleles.

    Parameters
    ----------
    contigs : dict of str to str
        Reference sequence by name, repeats in lower case.
    regions : list of SimulatedRegion
    variants : list of Variant
        V records, sorted.
    alleles : ndarray [n, 2, V] int8
        Allele number of both haplotypes of each participant.
    markers : ndarray [n, M] int8
        Alternate-allele counts at background markers, outside the VCF.
    """

    contigs: dict[str, str]
    regions: list[SimulatedRegion]
    variants: list[Variant]
    alleles: np.ndarray
    markers: np.ndarray


def draw_genome(options: SimulationOptions, people: People) -> Genome:
    """Draw everybody's genome; relatives inherit from parents who are not in the cohort."""
    rng = stream(options.seed, "genome")
    bases, regions = _draw_reference(options, rng)
    sites: list[Site] = []
    frequencies: list[np.ndarray] = []
    block_of_site: list[int] = []
    for number, region in enumerate(regions):
        of_ancestry = haplotype_frequencies(options, rng)
        drawn = draw_sites(options, rng, bases[region.chrom], region, number, of_ancestry)
        sites += drawn
        frequencies.append(of_ancestry)
        block_of_site += [number] * len(drawn)
    founder_ancestry, parents = pedigree(people)
    founders = draw_founders(options, founder_ancestry, sites, frequencies, block_of_site)
    markers = draw_markers(options, founder_ancestry)
    blocks = np.concatenate(
        [np.array(block_of_site), len(regions) + np.arange(markers.shape[2], dtype=np.int64)]
    )
    both = np.concatenate([founders, markers], axis=2)
    alleles = inherit(options, people, parents, both, blocks)
    count = len(sites)
    chroms = list(CONTIGS)
    order = sorted(
        range(count), key=lambda v: (chroms.index(sites[v].variant.chrom), sites[v].variant.pos_bp)
    )
    return Genome(
        contigs={name: _soft_masked(sequence, rng) for name, sequence in bases.items()},
        regions=regions,
        variants=[sites[v].variant for v in order],
        alleles=alleles[:, :, :count][:, :, order],
        markers=alleles[:, :, count:].sum(axis=1).astype(np.int8),
    )


def _draw_reference(
    options: SimulationOptions, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], list[SimulatedRegion]]:
    """Draw contigs (arrays of single letters) and lay the regions on them, strands alternating."""
    regions: list[SimulatedRegion] = []
    contigs: dict[str, np.ndarray] = {}
    step = options.region_length_bp + 2 * options.flank_bp + GAP_BP
    for number, numbers in enumerate(np.array_split(np.arange(options.region_count), len(CONTIGS))):
        length = 2 * TELOMERE_BP + GAP_BP + step * max(len(numbers), 1)
        sequence = _random_bases(rng, length)
        sequence[:TELOMERE_BP] = "N"
        sequence[-TELOMERE_BP:] = "N"
        contigs[CONTIGS[number]] = sequence
        for place, region in enumerate(numbers):
            start = TELOMERE_BP + GAP_BP + options.flank_bp + place * step
            regions.append(
                SimulatedRegion(
                    name=f"region{region + 1}",
                    chrom=CONTIGS[number],
                    start_bp=start,
                    end_bp=start + options.region_length_bp,
                    strand="+" if region % 2 == 0 else "-",
                )
            )
    return contigs, regions


def _random_bases(rng: np.random.Generator, length_bp: int) -> np.ndarray:
    """Bases with a mammal's GC content, and most CG pairs turned into TG, as methylation does."""
    at, gc = (1.0 - GC_CONTENT) / 2.0, GC_CONTENT / 2.0
    bases = rng.choice(np.array(list("ACGT")), size=length_bp, p=[at, gc, gc, at])
    cpg = np.flatnonzero((bases[:-1] == "C") & (bases[1:] == "G"))
    bases[cpg[rng.random(len(cpg)) > CPG_KEPT]] = "T"
    return bases


def _soft_masked(bases: np.ndarray, rng: np.random.Generator) -> str:
    """Return the sequence with stretches in lower case, as repeats are in published references."""
    masked = bases.copy()
    for start in np.flatnonzero(rng.random(len(bases)) < 1.0 / 1500.0):
        stop = start + int(rng.integers(50, 300))
        masked[start:stop] = np.char.lower(masked[start:stop])
    return "".join(masked.tolist())
