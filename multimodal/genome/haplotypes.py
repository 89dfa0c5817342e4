"""Personal sequences: phased genotypes applied to the reference, each distinct haplotype once."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from encoders.errors import InputError, Problem
from multimodal.genome.build import HaplotypeEdits, build_sequences
from multimodal.genome.counts import GenotypeCounts, count_records, edits_of, unphased_rows
from multimodal.genome.edits import Edit, begins_in, clipped, is_explicit
from multimodal.genome.naming import chromosome_problem
from multimodal.genome.reference import Reference
from multimodal.genome.regions import Region
from multimodal.genome.variants import Record, VariantFile
from multimodal.genome.windows import Window

Unphased = Literal["refuse", "as_written"]

# A FASTA may keep an ambiguity code where VCF must name one of its bases (VCF 4.3, section 1.6.1).
_AMBIGUOUS = {
    "R": "AG",
    "Y": "CT",
    "S": "CG",
    "W": "AT",
    "K": "GT",
    "M": "AC",
    "B": "CGT",
    "D": "AGT",
    "H": "ACT",
    "V": "ACG",
}


@dataclass(frozen=True)
class WindowHaplotypes:
    """The haplotypes of n subjects over one window.

    Parameters
    ----------
    sequences : list of str
        The distinct genomic-forward sequences: the reference's first, carried or not, then the
        others in alphabetical order.
    index : ndarray [n, 2] int64
        Row of `sequences` for each subject's two haplotypes.
    reference : str
        The reference's sequence over the window.
    counts : GenotypeCounts
    """

    sequences: list[str]
    index: np.ndarray
    reference: str
    counts: GenotypeCounts


class Genotypes:
    """Phased genotypes together with the reference they were called against.

    Rules: a missing allele is the reference's; of overlapping records on one haplotype the first
    stays; ``*`` is passed over, since the deletion it stands for has a record of its own; symbolic
    alleles and breakends are left out; a haploid call stands on both haplotypes, as males are
    coded 0/2 under full X inactivation. All but ``*`` are counted. REF must agree with the FASTA.

    Parameters
    ----------
    vcf : path
        bgzipped VCF or BCF, indexed.
    reference : Reference or path
    unphased : {"refuse", "as_written"}
        What to do with a heterozygous genotype without phase (``0/1``): refuse it, or put the
        first allele on the first haplotype. Homozygous ones need no phase. Phase sets (PS) are
        not looked at.
    filters : collection of str or None
        Values of FILTER to take; ``"."`` for records not filtered. None takes every record.

    Attributes
    ----------
    samples : list of str
        The VCF's samples, in file order.

    Raises
    ------
    InputError
        See `VariantFile` and `Reference`.
    """

    def __init__(
        self,
        vcf: str | os.PathLike[str],
        reference: Reference | str | os.PathLike[str],
        *,
        unphased: Unphased = "refuse",
        filters: Collection[str] | None = ("PASS", "."),
    ) -> None:
        if unphased not in {"refuse", "as_written"}:
            wanted = "'refuse' or 'as_written'"
            raise InputError(Problem("config-value", "genome.unphased", f"{unphased!r}", wanted))
        self.path = Path(vcf)
        self.reference = reference if isinstance(reference, Reference) else Reference(reference)
        self.unphased = unphased
        self.filters = None if filters is None else frozenset(filters)
        self.variants = VariantFile(vcf)
        self.samples = self.variants.samples

    def haplotypes(
        self, window: Window, samples: Sequence[str], *, max_length_bp: int | None = None
    ) -> WindowHaplotypes:
        """Return the distinct haplotypes over a window, and who carries which.

        A haplotype's sequence is never trimmed or padded. Windows that lie end to end share out
        every variant: a replaced base lies where it stood, an insertion belongs to the window of
        the base after it.

        Parameters
        ----------
        window : Window or Region
        samples : sequence of str
            The n VCF samples, one a row of `index`.
        max_length_bp : int, optional
            Longest sequence the encoder takes.

        Raises
        ------
        InputError
            ``sample-not-in-vcf``, ``chromosome-naming``, ``chromosome-missing``,
            ``region-out-of-range``, ``ref-mismatch``, ``unphased``, ``vcf-unreadable``,
            ``vcf-ploidy``; ``haplotype-too-long`` and ``haplotype-empty`` (all deleted).
        """
        name = f"window {window.name}"
        records, filtered = self.records(window, samples)
        self._check_phase(records)
        length = self.reference.lengths[window.chrom]
        applied = HaplotypeEdits.of(
            [(record.start_bp, record.alleles, edits_of(record)) for record in records],
            window.start_bp,
            window.end_bp,
            length,
            len(samples),
        )
        reference = self.reference.fetch(window.chrom, window.start_bp, window.end_bp)
        sequences, index = build_sequences(reference, applied)
        _check_sequence_lengths(name, self.path, sequences, index, samples, max_length_bp)
        counts = count_records(
            records, _changes_bases(window, length), window, samples, applied.overlapping, filtered
        )
        return WindowHaplotypes(sequences, index, reference, counts)

    def dosages(
        self, region: Region | Window, samples: Sequence[str]
    ) -> tuple[np.ndarray, list[str]]:
        """Return how often each subject carries each alternate allele of a region.

        An allele belongs to the region where its first changed base lies. Phase does not matter;
        overlapping records each count; symbolic alleles and ``*`` have no column.

        Parameters
        ----------
        region : Region or Window
        samples : sequence of str
            The n VCF samples.

        Returns
        -------
        values : ndarray [n, V] float32
            0, 1 or 2; missing alleles count as the reference's, haploid ones twice.
        names : list of str
            ``chrom:position:ref:alt``; an allele that the file lists again has ``#2`` behind it.

        Raises
        ------
        InputError
            As `haplotypes`, phase and lengths apart.
        """
        records, _ = self.records(region, samples)
        length = self.reference.lengths[region.chrom]
        columns: list[np.ndarray] = []
        names: list[str] = []
        for record in records:
            for allele, edit in edits_of(record).items():
                if not begins_in(edit, region.start_bp, region.end_bp, length):
                    continue
                columns.append((record.alleles == allele).sum(axis=1))
                where = f"{record.chrom}:{record.start_bp + 1}"
                names.append(f"{where}:{record.ref}:{record.alts[allele - 1]}")
        values = np.zeros((len(samples), len(columns)), dtype=np.float32)
        for row, column in enumerate(columns):
            values[:, row] = column
        return values, _numbered(names)

    def counts(self, region: Region | Window, samples: Sequence[str]) -> GenotypeCounts:
        """Return what `dosages` fills in or passes over, per subject and site.

        Parameters
        ----------
        region : Region or Window
        samples : sequence of str
            The n VCF samples.
        """
        records, filtered = self.records(region, samples)
        length = self.reference.lengths[region.chrom]

        def belongs(edit: Edit) -> bool:
            return begins_in(edit, region.start_bp, region.end_bp, length)

        nothing = np.zeros(len(samples), dtype=np.int64)
        return count_records(records, belongs, region, samples, nothing, filtered)

    def records(
        self, interval: Region | Window, samples: Sequence[str]
    ) -> tuple[list[Record], int]:
        """Return the records that bear on an interval, checked against the FASTA.

        They reach to the left as far as records overlap each other, since an earlier record may
        rule out one that reaches into the interval.

        Parameters
        ----------
        interval : Region or Window
        samples : sequence of str

        Returns
        -------
        records : list of Record
            In file order, those that pass `filters`.
        filtered : int
            How many others begin in the interval.
        """
        chrom = interval.chrom
        problems = [
            chromosome_problem(chrom, self.reference.lengths, str(self.reference.path), "FASTA"),
            chromosome_problem(chrom, self.variants.chromosomes, str(self.path), "VCF"),
        ]
        if any(problems):
            raise InputError([problem for problem in problems if problem is not None])
        self.reference.require(chrom, interval.start_bp, interval.end_bp)
        found, start = self._with_overlapped(interval, samples)
        kept = [r for r in found if r.start_bp >= start and self.passes(r)]
        end = max([interval.end_bp, *(r.start_bp + len(r.ref) for r in kept)])
        bases = self.reference.fetch(chrom, start, min(end, self.reference.lengths[chrom]))
        mismatches = [p for r in kept if (p := self.ref_problem(r, bases, start)) is not None]
        if mismatches:
            raise InputError(mismatches[:5])
        dropped = sum(not self.passes(r) and r.start_bp >= interval.start_bp for r in found)
        return kept, dropped

    def first_bp(self, interval: Region | Window, samples: Sequence[str]) -> int:
        """Return how far to the left the `records` of an interval may begin.

        Parameters
        ----------
        interval : Region or Window
        samples : sequence of str

        Returns
        -------
        int
            0-based; records that begin further left have no bearing on the interval.
        """
        start = interval.start_bp
        edge = Region("", interval.chrom, start, min(start + 1, interval.end_bp))
        return self._with_overlapped(edge, samples)[1]

    def _with_overlapped(
        self, interval: Region | Window, samples: Sequence[str]
    ) -> tuple[list[Record], int]:
        """Read on to the left as long as a record reaches in; return where that ended, too."""
        start = max(0, interval.start_bp - 1)
        while True:
            found = list(self.variants.records(interval.chrom, start, interval.end_bp, samples))
            passing = (record for record in found if self.passes(record))
            spelled = [r.start_bp for r in passing if any(map(is_explicit, r.alts))]
            first = min(spelled, default=start)
            if first >= start:
                return found, start
            start = max(0, first - 1)

    def passes(self, record: Record) -> bool:
        """Tell whether the record's FILTER is among those taken."""
        return self.filters is None or self.filters.issuperset(record.filters or (".",))

    def ref_problem(self, record: Record, bases: str, start_bp: int) -> Problem | None:
        """Return the problem of a record whose REF is not what the FASTA holds, or None.

        Parameters
        ----------
        record : Record
        bases : str
            The reference from `start_bp`, upper case, as far as REF reaches or to the
            chromosome's end.
        start_bp : int
        """
        first = record.start_bp - start_bp
        bases = bases[first : first + len(record.ref)]
        if bases == record.ref or _agree(bases, record.ref):
            return None
        return Problem(
            "ref-mismatch",
            f"{self.path} {record.chrom}:{record.start_bp + 1}",
            f"REF is {_short(record.ref)}, {self.reference.path} has {_short(bases) or 'no base'}",
            "the reference allele as in the FASTA",
            "use the FASTA that the variants were called against (same genome build)",
        )

    def _check_phase(self, records: Sequence[Record]) -> None:
        if self.unphased == "as_written":
            return
        first, count = "", 0
        for record in records:
            rows = np.flatnonzero(unphased_rows(record))
            count += len(rows)
            if len(rows) and not first:
                first = f"{record.chrom}:{record.start_bp + 1}"
        if count:
            raise InputError(unphased_problem(self.path, first, count))


def _numbered(names: Sequence[str]) -> list[str]:
    """Put ``#2``, ``#3`` behind the second, third use of a name."""
    used: Counter[str] = Counter()
    numbered: list[str] = []
    for name in names:
        used[name] += 1
        numbered.append(name if used[name] == 1 else f"{name}#{used[name]}")
    return numbered


def unphased_problem(path: Path, first: str, count: int) -> Problem:
    """Return the problem of heterozygous genotypes without phase."""
    return Problem(
        "unphased",
        f"{path} {first}",
        f"{count:,} heterozygous genotype{'s' if count > 1 else ''} without phase (0/1), the first "
        "one here",
        "phased genotypes (0|1)",
        "phase the variants first (SHAPEIT, Eagle, Beagle), or take the alleles in the order "
        "written: genome.unphased=as_written",
    )


def _changes_bases(window: Window | Region, length: int) -> Callable[[Edit], bool]:
    return lambda edit: clipped(edit, window.start_bp, window.end_bp, length) is not None


def _agree(bases: str, ref: str) -> bool:
    return len(bases) == len(ref) and all(
        one == other or other in _AMBIGUOUS.get(one, "")
        for one, other in zip(bases, ref, strict=True)
    )


def _short(allele: str) -> str:
    return allele if len(allele) <= 20 else f"{allele[:17]}... ({len(allele):,} bases)"


def _check_sequence_lengths(
    name: str,
    path: Path,
    sequences: Sequence[str],
    index: np.ndarray,
    samples: Sequence[str],
    max_length_bp: int | None,
) -> None:
    """Refuse haplotypes that no encoder, or not this one, can read."""
    lengths = np.array([len(sequence) for sequence in sequences])
    limit = int(lengths.max()) if max_length_bp is None else max_length_bp
    if lengths.min() == 0:
        row, code, wanted = int(lengths.argmin()), "haplotype-empty", "at least one base"
        fix = "choose longer windows"
    elif lengths.max() > limit:
        row, code = int(lengths.argmax()), "haplotype-too-long"
        wanted = f"the encoder takes at most {limit:,}"
        fix = f"choose windows shorter by at least {int(lengths.max()) - limit:,} bases"
    else:
        return
    carriers = np.flatnonzero((index == row).any(axis=1))
    who = f"sample {samples[carriers[0]]}" if len(carriers) else "the reference"
    found = f"a haplotype of {int(lengths[row]):,} bases ({who})"
    raise InputError(Problem(code, f"{path} {name}", found, wanted, fix))
