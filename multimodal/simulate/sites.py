"""The variants of a simulated region: common, rare, indels, multi-allelic and spanned ones."""

from dataclasses import dataclass

import numpy as np

from multimodal.simulate.options import REGION_EDGE_BP, SimulationOptions
from multimodal.simulate.variants import SimulatedRegion, Variant

COMMON_FREQUENCY = (0.22, 0.48)
RARE_FREQUENCY = (0.01, 0.05)
MAX_LINKAGE_R = 0.7


@dataclass(frozen=True)
class Site:
    """A variant-to-be: its record, and which ancestral haplotypes carry which allele.

    Parameters
    ----------
    variant : Variant
    carriers : ndarray [P] int8
        Allele number on each ancestral haplotype of the region.
    thinned : float
        Fraction of the copies of a carrying haplotype that have the allele: below 1 for young,
        rare variants.
    """

    variant: Variant
    carriers: np.ndarray
    thinned: float = 1.0


def draw_sites(
    options: SimulationOptions,
    rng: np.random.Generator,
    bases: np.ndarray,
    region: SimulatedRegion,
    number: int,
    of_ancestry: np.ndarray,
) -> list[Site]:
    """Draw the variants of one region and of its flanks.

    Parameters
    ----------
    options : SimulationOptions
    rng : numpy.random.Generator
    bases : ndarray [contig length] of single letters
        The reference; a base may be changed so that an indel is left-aligned.
    region : SimulatedRegion
    number : int
        Number of the region, from 0.
    of_ancestry : ndarray [A, P]
        Frequencies of the ancestral haplotypes in each ancestry.
    """
    overall = np.asarray(options.shares()) @ of_ancestry
    common = _common_carriers(options, rng, overall)
    kinds = ["common"] * options.common_variants_per_region
    kinds += ["rare"] * options.rare_variants_per_region
    positions = _positions(rng, region, len(kinds))
    sites: list[Site] = []
    order = rng.permutation(len(kinds))
    for rank, pos in zip(order, positions, strict=True):
        if kinds[rank] == "common":
            sites.append(
                _common_site(rng, bases, region, number, int(pos), int(rank), common[rank])
            )
        else:
            rare = int(rank) - options.common_variants_per_region
            sites.append(_rare_site(rng, bases, region, number, int(pos), rare, overall))
    sites += _spanned_site(rng, bases, region, number, sites)
    for flank in _flank_positions(rng, region, options.flank_bp):
        ref = str(bases[flank])
        record = Variant(
            region.chrom, flank, ref, (_other_base(rng, ref),), -1, _name(region, flank)
        )
        sites.append(Site(record, common[int(rng.integers(len(common)))].copy()))
    return sites


def _common_carriers(
    options: SimulationOptions, rng: np.random.Generator, overall: np.ndarray
) -> list[np.ndarray]:
    """Draw which ancestral haplotypes carry each common variant: common, and not too linked."""
    low, high = COMMON_FREQUENCY
    chosen: list[np.ndarray] = []
    max_r = MAX_LINKAGE_R
    tries = 0
    while len(chosen) < options.common_variants_per_region:
        tries += 1
        if tries % 200 == 0:
            max_r = min(1.0, max_r + 0.05)
        carriers = (rng.random(len(overall)) < rng.uniform(0.2, 0.5)).astype(np.int8)
        frequency = float(overall @ carriers)
        inside = low <= frequency <= high or tries > 20_000
        if inside and all(_linkage(overall, carriers, other) <= max_r for other in chosen):
            chosen.append(carriers)
    return chosen


def _linkage(weights: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """Absolute correlation of two variants over weighted haplotypes."""
    mean_a, mean_b = weights @ a, weights @ b
    spread = mean_a * (1 - mean_a) * mean_b * (1 - mean_b)
    return float(abs(weights @ (a * b) - mean_a * mean_b) / np.sqrt(max(spread, 1e-12)))


def _positions(rng: np.random.Generator, region: SimulatedRegion, count: int) -> np.ndarray:
    """Positions in a region, far enough apart that no two records overlap."""
    room = region.end_bp - region.start_bp - 2 * REGION_EDGE_BP
    slot = room // count
    jitter = rng.integers(0, max(1, slot - 25), size=count)
    return region.start_bp + REGION_EDGE_BP + slot * np.arange(count) + jitter


def _flank_positions(rng: np.random.Generator, region: SimulatedRegion, flank_bp: int) -> list[int]:
    if flank_bp < 20:
        return []
    left = region.start_bp - int(rng.integers(5, flank_bp))
    return [left, region.end_bp + int(rng.integers(5, flank_bp))]


def _name(region: SimulatedRegion, pos_bp: int) -> str:
    return f"sim_{region.chrom}_{pos_bp + 1}"


def _other_base(rng: np.random.Generator, *taken: str) -> str:
    return str(rng.choice([base for base in "ACGT" if base not in taken]))


def _common_site(
    rng: np.random.Generator,
    bases: np.ndarray,
    region: SimulatedRegion,
    number: int,
    pos: int,
    rank: int,
    carriers: np.ndarray,
) -> Site:
    """One common variant; of every six the second is multi-allelic and the sixth an indel."""
    ref, name = str(bases[pos]), _name(region, pos)
    if rank % 6 == 5:
        if number % 2 == 0:
            ref = _deletable(rng, bases, pos, int(rng.integers(1, 9)))
            return Site(Variant(region.chrom, pos, ref, (ref[0],), number, name), carriers)
        alt = ref + _insertion(rng, ref, int(rng.integers(1, 9)))
        return Site(Variant(region.chrom, pos, ref, (alt,), number, name), carriers)
    first = _other_base(rng, ref)
    if rank % 6 != 1:
        return Site(Variant(region.chrom, pos, ref, (first,), number, name), carriers)
    second = _other_base(rng, ref, first) if number % 2 == 0 else ref + _insertion(rng, ref, 2)
    split = carriers.copy()
    split[np.flatnonzero(carriers == 0)[:1]] = 2
    return Site(Variant(region.chrom, pos, ref, (first, second), number, name), split)


def _rare_site(
    rng: np.random.Generator,
    bases: np.ndarray,
    region: SimulatedRegion,
    number: int,
    pos: int,
    rank: int,
    overall: np.ndarray,
) -> Site:
    """One rare variant, young enough to sit on some copies of a single ancestral haplotype."""
    carrier = int(rng.choice(len(overall), p=overall / overall.sum()))
    carriers = np.zeros(len(overall), dtype=np.int8)
    carriers[carrier] = 1
    thinned = min(1.0, rng.uniform(*RARE_FREQUENCY) / max(float(overall[carrier]), 1e-9))
    ref = str(bases[pos])
    if rank % 3 == 0:
        ref = _deletable(rng, bases, pos, int(rng.integers(4, 13)))
        alt = ref[0]
    else:
        alt = _other_base(rng, ref)
    record = Variant(region.chrom, pos, ref, (alt,), number, _name(region, pos))
    return Site(record, carriers, thinned)


def _spanned_site(
    rng: np.random.Generator,
    bases: np.ndarray,
    region: SimulatedRegion,
    number: int,
    sites: list[Site],
) -> list[Site]:
    """In the first region, a variant inside a common deletion, whose carriers show ``*``."""
    deletions = [s for s in sites if s.thinned == 1.0 and len(s.variant.ref) > 1]
    if number != 0 or not deletions:
        return []
    deletion = deletions[0]
    pos = deletion.variant.pos_bp + 1
    ref = str(bases[pos])
    carriers = np.where(deletion.carriers == 1, 2, 0).astype(np.int8)
    carriers[np.flatnonzero(carriers == 0)[:1]] = 1
    alts = (_other_base(rng, ref), "*")
    return [Site(Variant(region.chrom, pos, ref, alts, number, _name(region, pos)), carriers)]


def _deletable(rng: np.random.Generator, bases: np.ndarray, pos: int, length_bp: int) -> str:
    """Anchor base and the bases deleted, left-aligned: the last must differ from the anchor."""
    if bases[pos + length_bp] == bases[pos]:
        bases[pos + length_bp] = _other_base(rng, str(bases[pos]))
    return "".join(bases[pos : pos + length_bp + 1].tolist())


def _insertion(rng: np.random.Generator, anchor: str, length_bp: int) -> str:
    """Bases to insert after `anchor`, left-aligned: the last must differ from it."""
    inside = rng.choice(list("ACGT"), size=length_bp - 1).tolist()
    return "".join([*inside, _other_base(rng, anchor)])
