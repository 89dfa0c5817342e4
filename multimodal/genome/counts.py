"""What one interval's genotypes hold: counts of what was filled in or passed over."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from multimodal.genome.edits import Edit, is_explicit, normalised
from multimodal.genome.regions import Region
from multimodal.genome.variants import MISSING, Record
from multimodal.genome.windows import Window


@dataclass(frozen=True)
class GenotypeCounts:
    """What was taken, filled in or passed over in one interval, for n subjects and V sites.

    Parameters
    ----------
    sites : list of str
        ``chrom:position:ref:alt,alt`` of the records that change bases in the interval.
    missing_by_subject : ndarray [n] int64
        Sites with a missing allele, which was taken as the reference's.
    missing_by_site : ndarray [V] int64
        Subjects with a missing allele.
    haploid : ndarray [n] int64
        Sites called haploid (chromosome X in males); the allele stands on both haplotypes.
    unphased : ndarray [n] int64
        Heterozygous sites without phase, taken in the order written.
    overlapping : ndarray [n] int64
        Alleles left out because an earlier record changes the same bases of the haplotype.
    symbolic : ndarray [n] int64
        Symbolic alleles and breakends left out (``<DEL>``, ``]1:5]A``, ``A.``).
    filtered_sites : int
        Records left out by their FILTER.
    """

    sites: list[str]
    missing_by_subject: np.ndarray
    missing_by_site: np.ndarray
    haploid: np.ndarray
    unphased: np.ndarray
    overlapping: np.ndarray
    symbolic: np.ndarray
    filtered_sites: int


def edits_of(record: Record) -> Mapping[int, Edit]:
    """Return the edit of each explicit alternate allele, by allele number."""
    return _edits(record.start_bp, record.ref, record.alts)


@lru_cache(maxsize=1 << 16)
def _edits(start_bp: int, ref: str, alts: tuple[str, ...]) -> Mapping[int, Edit]:
    edits = {
        number: normalised(start_bp, ref, alt)
        for number, alt in enumerate(alts, start=1)
        if is_explicit(alt)
    }
    return MappingProxyType({k: edit for k, edit in edits.items() if edit is not None})


def unphased_rows(record: Record) -> np.ndarray:
    """Tell which subjects [n] have two different haplotypes at a record, and no phase."""
    if bool((record.phased | record.haploid).all()):
        return np.zeros(len(record.phased), dtype=bool)
    changes = np.zeros(len(record.alts) + 2, dtype=np.int16)
    for allele in edits_of(record):
        changes[allele] = allele
    taken = changes[record.alleles]
    unphased: np.ndarray = (taken[:, 0] != taken[:, 1]) & ~record.phased & ~record.haploid
    return unphased


def count_records(
    records: Sequence[Record],
    belongs: Callable[[Edit], bool],
    interval: Region | Window,
    samples: Sequence[str],
    overlapping: np.ndarray,
    filtered: int,
) -> GenotypeCounts:
    """Count over the records of which an edit belongs to the interval.

    Parameters
    ----------
    records : sequence of Record
    belongs : callable
        Tells whether an edit belongs to the interval.
    interval : Region or Window
        Symbolic alleles are counted where their record begins in it.
    samples : sequence of str
    overlapping : ndarray [n] int64
    filtered : int
        Passed on.
    """
    totals = {
        name: np.zeros(len(samples), dtype=np.int64)
        for name in ("missing", "haploid", "unphased", "symbolic")
    }
    sites: list[str] = []
    by_site: list[int] = []
    for record in records:
        skipped = [
            number
            for number, alt in enumerate(record.alts, start=1)
            if alt != "*" and not is_explicit(alt)
        ]
        if skipped and interval.start_bp <= record.start_bp < interval.end_bp:
            totals["symbolic"] += np.isin(record.alleles, skipped).sum(axis=1)
        if not any(belongs(edit) for edit in edits_of(record).values()):
            continue
        missing = (record.alleles == MISSING).any(axis=1)
        sites.append(record.name)
        by_site.append(int(missing.sum()))
        totals["missing"] += missing
        totals["haploid"] += record.haploid
        totals["unphased"] += unphased_rows(record)
    return GenotypeCounts(
        sites,
        totals["missing"],
        np.array(by_site, dtype=np.int64),
        totals["haploid"],
        totals["unphased"],
        overlapping,
        totals["symbolic"],
        filtered,
    )
