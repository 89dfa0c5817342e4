"""Everything wrong with the genome side of a cohort, found in one pass."""

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from encoders.errors import InputError, Problem
from multimodal.genome.counts import count_records, unphased_rows
from multimodal.genome.edits import is_explicit
from multimodal.genome.haplotypes import Genotypes, Unphased, unphased_problem
from multimodal.genome.naming import chromosome_problem
from multimodal.genome.reference import Reference
from multimodal.genome.regions import Region, read_regions
from multimodal.genome.variants import (
    Record,
    VariantFile,
    find_file_problems,
    index_of,
    sample_problem,
)
from multimodal.genome.windows import out_of_range

PathLike = str | os.PathLike[str]


@dataclass
class GenomeSurvey:
    """What a pass over genotypes, reference and regions found.

    Parameters
    ----------
    problems : list of Problem
        What keeps the genotypes from being used.
    warnings : list of Problem
        What a reader should know: regions without a variant, an index older than its file,
        unphased genotypes taken as written, alleles and records left out, haploid calls.
    samples : list of str
        The n samples looked at.
    missing : ndarray [n] int64
        Sites with a missing allele, by subject.
    sites : int
        Sites looked at.
    """

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    missing: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    sites: int = 0


def find_genome_problems(
    genotypes: PathLike | None,
    reference: PathLike | None,
    regions: PathLike | Sequence[Region] | None,
    samples: Sequence[str],
    *,
    unphased: Unphased = "refuse",
    flank_bp: int = 0,
    filters: Collection[str] | None = ("PASS", "."),
) -> list[Problem]:
    """Return all problems of genotypes, reference and regions; see `survey_genome`."""
    return survey_genome(
        genotypes,
        reference,
        regions,
        samples,
        unphased=unphased,
        flank_bp=flank_bp,
        filters=filters,
    ).problems


def survey_genome(
    genotypes: PathLike | None,
    reference: PathLike | None,
    regions: PathLike | Sequence[Region] | None,
    samples: Sequence[str],
    *,
    unphased: Unphased = "refuse",
    flank_bp: int = 0,
    filters: Collection[str] | None = ("PASS", "."),
) -> GenomeSurvey:
    """Look at every file and at every genotype in the regions, and report without raising.

    What one file's fault keeps from being looked at is left out; all else is still checked.

    Parameters
    ----------
    genotypes, reference : path or None
        VCF or BCF, and FASTA; None where the cohort has none.
    regions : path, sequence of Region, or None
        A BED file, or regions read already.
    samples : sequence of str
        The VCF samples that the cohort names.
    unphased, filters
        As `Genotypes` takes them.
    flank_bp : int
        Bases looked at on both sides of a region.
    """
    survey = GenomeSurvey()
    bed = _regions(regions, survey)
    fasta = _reference(reference, survey)
    vcf = _variants(genotypes, survey)
    if vcf is not None:
        known = set(vcf.samples)
        problem = sample_problem(vcf.path, vcf.samples, samples)
        survey.problems += [problem] if problem is not None else []
        survey.samples = [sample for sample in dict.fromkeys(samples) if sample in known]
    survey.missing = np.zeros(len(survey.samples), dtype=np.int64)
    bed = _usable(bed, fasta, vcf, survey)
    if vcf is not None and fasta is not None and bed:
        _Scan(Genotypes(vcf.path, fasta, unphased=unphased, filters=filters), survey).run(
            bed, flank_bp
        )
    return survey


def find_missing_imbalance(
    missing: np.ndarray, sites: int, groups: Sequence[str], *, what: str = "group"
) -> list[Problem]:
    """Warn where missing calls, taken as the reference's, differ between groups of subjects.

    Such a difference makes a group's genomes look more like the reference, and so lets a site or
    an ancestry be read off the genotypes.

    Parameters
    ----------
    missing : ndarray [n] int
        Sites with a missing allele, by subject (`GenomeSurvey.missing`, or the windows'
        ``counts.missing_by_subject`` added up).
    sites : int
        Sites in all.
    groups : sequence of str
        The n subjects' group (site, ancestry, sex).
    what : str
        What the groups are, for the message.

    Returns
    -------
    list of Problem
        One (``missing-imbalance``) where the groups' rates differ by more than half a percentage
        point and the Kruskal-Wallis test gives p < 0.001; none otherwise.
    """
    labels = np.asarray(groups)
    rates = np.asarray(missing, dtype=np.float64) / max(sites, 1)
    names = np.unique(labels)
    means = {str(name): float(rates[labels == name].mean()) for name in names}
    if len(means) < 2 or np.ptp(rates) == 0 or max(means.values()) - min(means.values()) <= 0.005:
        return []
    from scipy.stats import kruskal  # slow to import, and seldom needed

    p = float(kruskal(*[rates[labels == name] for name in names]).pvalue)
    if p >= 1e-3:
        return []
    shown = ", ".join(f"{name} {100 * mean:.2f}%" for name, mean in means.items())
    return [
        Problem(
            "missing-imbalance",
            f"genotypes by {what}",
            f"missing calls differ between groups ({shown}; p = {p:.1g})",
            "the same rate in all: a missing call is taken as the reference allele",
            "impute the missing calls, leave out the sites, or match by group when evaluating",
        )
    ]


class _Scan:
    """One pass over the genotypes of all regions; overlapping regions are read once."""

    def __init__(self, genotypes: Genotypes, survey: GenomeSurvey) -> None:
        self.genotypes = genotypes
        self.survey = survey
        self.mismatches: list[Problem] = []
        self.unphased = 0
        self.first_unphased = ""
        self.positions: dict[str, list[int]] = {}
        self.totals = dict.fromkeys(("symbolic", "haploid", "filtered"), 0)

    def run(self, regions: Sequence[Region], flank_bp: int) -> None:
        """Read what the regions cover, and report."""
        lengths = self.genotypes.reference.lengths
        before: Region | None = None
        for interval in _merged(regions, flank_bp, lengths):
            follows = before is not None and before.chrom == interval.chrom
            self._read(interval, before.end_bp if before is not None and follows else 0)
            before = interval
        self._report()
        for region in regions:
            low, high = np.searchsorted(
                self.positions.get(region.chrom, []),
                [region.start_bp - flank_bp, region.end_bp + flank_bp],
            )
            if low == high:
                self.survey.warnings.append(
                    Problem(
                        "region-without-variants",
                        f"region {region.name}",
                        f"no variant in {region.chrom}:{region.start_bp + 1:,}-{region.end_bp:,}",
                        "every subject has the reference's sequence here",
                    )
                )

    def _read(self, interval: Region, done_bp: int) -> None:
        """Look at an interval; what begins before `done_bp` was looked at with the one before."""
        file, samples = self.genotypes.variants, self.survey.samples
        chrom, end = interval.chrom, interval.end_bp
        try:
            # What begins before the interval is used with it, though it is counted elsewhere.
            first = self.genotypes.first_bp(interval, samples)
            bases = self.genotypes.reference.fetch(chrom, first, end)
            for record in file.records(chrom, first, end, samples):
                if record.start_bp < first:
                    continue
                if record.start_bp >= done_bp and self.genotypes.passes(record):
                    self._check(record, bases, first, end)
                if record.start_bp >= interval.start_bp:
                    self._count(record, interval)
        except InputError as error:
            self.survey.problems += error.problems

    def _check(self, record: Record, bases: str, first_bp: int, end_bp: int) -> None:
        """Note a REF unlike the reference, and genotypes without phase, each record once."""
        stop = record.start_bp + len(record.ref)
        if stop > end_bp:
            fasta, first_bp = self.genotypes.reference, record.start_bp
            bases = fasta.fetch(record.chrom, first_bp, min(stop, fasta.lengths[record.chrom]))
        problem = self.genotypes.ref_problem(record, bases, first_bp)
        if problem is not None:
            self.mismatches.append(problem)
        rows = int(unphased_rows(record).sum())
        if rows and not self.unphased:
            self.first_unphased = f"{record.chrom}:{record.start_bp + 1}"
        self.unphased += rows

    def _count(self, record: Record, interval: Region) -> None:
        if not self.genotypes.passes(record):
            self.totals["filtered"] += 1
            return
        counts = count_records(
            [record],
            lambda edit: True,
            interval,
            self.survey.samples,
            np.zeros(len(self.survey.samples), dtype=np.int64),
            0,
        )
        self.survey.missing += counts.missing_by_subject
        self.survey.sites += len(counts.sites)
        self.totals["symbolic"] += int(counts.symbolic.sum())
        self.totals["haploid"] += int(counts.haploid.sum())
        if any(map(is_explicit, record.alts)):
            self.positions.setdefault(record.chrom, []).append(record.start_bp)

    def _report(self) -> None:
        survey, path = self.survey, self.genotypes.path
        if self.mismatches:
            survey.problems.append(_mismatch_problem(path, self.mismatches))
        if self.unphased:
            problem = unphased_problem(path, self.first_unphased, self.unphased)
            refused = self.genotypes.unphased == "refuse"
            (survey.problems if refused else survey.warnings).append(problem)
        for key, (code, what, wanted) in _COUNTED.items():
            if self.totals[key]:
                found = f"{self.totals[key]:,} {what}"
                survey.warnings.append(Problem(code, str(path), found, wanted))


_COUNTED = {
    "symbolic": (
        "symbolic-alleles",
        "symbolic alleles or breakends carried",
        "they are left out: their bases are not spelled out",
    ),
    "haploid": ("haploid-calls", "haploid calls", "each stands on both haplotypes"),
    "filtered": (
        "filtered-records",
        "records did not pass FILTER",
        "they are left out; the option `filters` takes more",
    ),
}


def _mismatch_problem(path: Path, mismatches: Sequence[Problem]) -> Problem:
    first = mismatches[0]
    others = "; ".join(
        f"{problem.where.removeprefix(f'{path} ')}: {problem.found}" for problem in mismatches[1:3]
    )
    found = first.found
    if others:
        more = ", ..." if len(mismatches) > 3 else ""
        found += f" ({len(mismatches):,} records differ, then {others}{more})"
    return Problem(first.code, first.where, found, first.wanted, first.fix)


def _regions(regions: PathLike | Sequence[Region] | None, survey: GenomeSurvey) -> list[Region]:
    if regions is None:
        return []
    if not isinstance(regions, (str, os.PathLike)):
        return list(regions)
    try:
        return read_regions(regions)
    except InputError as error:
        survey.problems += error.problems
        return []


def _reference(path: PathLike | None, survey: GenomeSurvey) -> Reference | None:
    if path is None:
        return None
    try:
        return Reference(path)
    except InputError as error:
        survey.problems += error.problems
        return None


def _variants(path: PathLike | None, survey: GenomeSurvey) -> VariantFile | None:
    if path is None:
        return None
    vcf = Path(path)
    index = index_of(vcf)
    if index is not None and vcf.is_file() and index.stat().st_mtime < vcf.stat().st_mtime:
        survey.warnings.append(
            Problem(
                "vcf-index-older",
                str(index),
                "older than its VCF",
                "an index made from the file as it is",
                f"if the file changed, index it again: tabix -f -p vcf {vcf}",
            )
        )
    problems = find_file_problems(vcf)
    survey.problems += problems
    try:
        return VariantFile(vcf) if not problems else None
    except InputError as error:
        survey.problems += error.problems
        return None


def _usable(
    regions: Iterable[Region],
    fasta: Reference | None,
    vcf: VariantFile | None,
    survey: GenomeSurvey,
) -> list[Region]:
    """Return the regions whose place both files have; report the others, a chromosome once."""
    usable: list[Region] = []
    seen: set[Problem] = set()
    for region in regions:
        found: list[Problem | None] = []
        if fasta is not None:
            found.append(chromosome_problem(region.chrom, fasta.lengths, str(fasta.path), "FASTA"))
        if vcf is not None:
            found.append(chromosome_problem(region.chrom, vcf.chromosomes, str(vcf.path), "VCF"))
        limit = fasta.lengths.get(region.chrom) if fasta is not None else None
        if limit is not None and region.end_bp > limit:
            found.append(out_of_range(region.name, region.chrom, region.end_bp, limit))
        problems = [problem for problem in found if problem is not None]
        survey.problems += [problem for problem in problems if problem not in seen]
        seen.update(problems)
        if not problems:
            usable.append(region)
    return usable


def _merged(regions: Sequence[Region], flank_bp: int, lengths: dict[str, int]) -> list[Region]:
    """Return the intervals that regions and flanks cover, each base once."""
    merged: list[Region] = []
    for region in sorted(regions, key=lambda r: (r.chrom, r.start_bp)):
        start = max(0, region.start_bp - flank_bp)
        end = min(region.end_bp + flank_bp, lengths[region.chrom])
        last = merged[-1] if merged else None
        if last is not None and last.chrom == region.chrom and start <= last.end_bp:
            end = max(end, last.end_bp)
            merged[-1] = Region(last.name, last.chrom, last.start_bp, end)
        else:
            merged.append(Region(region.name, region.chrom, start, end))
    return merged
