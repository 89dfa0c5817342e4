"""Genotypes of an indexed VCF or BCF, record by record, for chosen samples."""

import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cyvcf2
import numpy as np
import pysam
from cyvcf2.cyvcf2 import set_htslib_log_level

from encoders.errors import InputError, Problem
from multimodal.genome.bgzf import is_bgzf, is_gzip, is_whole_bgzf

MISSING = -1
_NOT_THERE = -2


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a VCF for n samples.

    Parameters
    ----------
    chrom : str
    start_bp : int
        First base of `ref`, counted from 0.
    ref : str
        Upper case.
    alts : tuple of str
        Upper case; explicit, symbolic or ``*``.
    filters : tuple of str
        Names of the FILTER column; empty for ``.``.
    alleles : ndarray [n, 2] int16
        0 for `ref`, k for ``alts[k - 1]``, -1 for a missing one; a haploid call stands twice.
    phased : ndarray [n] bool
        Whether the order of the two alleles means anything (``|``).
    haploid : ndarray [n] bool
        Whether one allele was called (chromosome X in males).
    """

    chrom: str
    start_bp: int
    ref: str
    alts: tuple[str, ...]
    filters: tuple[str, ...]
    alleles: np.ndarray
    phased: np.ndarray
    haploid: np.ndarray

    @property
    def name(self) -> str:
        """``chrom:position:ref:alt,alt`` with VCF's position, counted from 1."""
        return f"{self.chrom}:{self.start_bp + 1}:{self.ref}:{','.join(self.alts) or '.'}"


class VariantFile:
    """An indexed VCF (bgzipped) or BCF. Copies in other processes open the file anew.

    Nothing of the header but sample and chromosome names is relied on: contig lines without length
    and wrongly declared INFO fields do not matter.

    Parameters
    ----------
    path : path
        With its ``.tbi`` or ``.csi`` beside it.

    Attributes
    ----------
    path : Path
    samples : list of str
        In file order.
    chromosomes : list of str
        Names in header or index.

    Raises
    ------
    InputError
        ``vcf-missing``, ``vcf-no-index`` or ``vcf-unreadable``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        problems = find_file_problems(self.path)
        if problems:
            raise InputError(problems)
        self._file: Any = None
        self._key: tuple[int, tuple[str, ...] | None] = (0, None)
        self._second: Any = None
        self._second_owner = 0
        handle = self._open(None)
        self.samples: list[str] = list(handle.samples)
        self.chromosomes: list[str] = list(handle.seqnames)

    def records(
        self, chrom: str, start_bp: int, end_bp: int, samples: Sequence[str]
    ) -> Iterator[Record]:
        """Yield the records whose reference bases touch the interval, in file order.

        Parameters
        ----------
        chrom : str
        start_bp, end_bp : int
            0-based, half-open.
        samples : sequence of str
            Rows of the records' arrays, in this order; repeats are fine.

        Raises
        ------
        InputError
            ``sample-not-in-vcf``; ``vcf-unreadable`` for a record that cannot be read, one cut off
            or damaged in the middle of the interval included; ``vcf-ploidy`` for more than two
            alleles.
        """
        problem = sample_problem(self.path, self.samples, samples)
        if problem is not None:
            raise InputError(problem)
        chosen = set(samples)
        in_file = [sample for sample in self.samples if sample in chosen]
        column = {sample: row for row, sample in enumerate(in_file)}
        columns = np.array([column[sample] for sample in samples], dtype=np.int64)
        last_bp, at_last = -1, 0
        for variant in self._variants(chrom, start_bp, end_bp, tuple(in_file)):
            at_last = at_last + 1 if variant.start == last_bp else 1
            last_bp = variant.start
            yield self._record(variant, columns)
        self._check_end(chrom, start_bp, end_bp, last_bp, at_last)

    def _variants(
        self, chrom: str, start_bp: int, end_bp: int, samples: tuple[str, ...]
    ) -> Iterator[Any]:
        handle = self._open(samples)
        last = "the interval's start"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="no intervals found")
            found = handle(f"{chrom}:{start_bp + 1}-{end_bp}")
            while True:
                try:
                    variant = next(found)
                except StopIteration:
                    return
                except Exception as error:  # cyvcf2 raises bare Exception for what htslib refuses
                    raise InputError(self._unreadable(f"after {last}: {error}")) from error
                last = f"{variant.CHROM}:{variant.POS}"
                yield variant

    def _record(self, variant: Any, columns: np.ndarray) -> Record:
        ref = variant.REF.upper()
        alts = tuple(alt.upper() for alt in variant.ALT if alt != ".")
        where = f"{self.path} {variant.CHROM}:{variant.POS}"
        if "GT" in (variant.FORMAT or ()):
            calls = variant.genotype.array(fill=_NOT_THERE)[columns]
        else:
            calls = np.full((len(columns), 2), MISSING, dtype=np.int16)
        if calls.shape[1] > 3 and bool((calls[:, 2:-1] != _NOT_THERE).any()):
            found = f"a genotype of {calls.shape[1] - 1} alleles"
            raise InputError(Problem("vcf-ploidy", where, found, "one or two alleles a subject"))
        phased = calls[:, -1] == 1
        alleles = calls[:, [0, 0]] if calls.shape[1] == 2 else calls[:, :2]
        haploid = np.full(len(columns), True) if calls.shape[1] == 2 else calls[:, 1] == _NOT_THERE
        alleles = np.where(haploid[:, None], alleles[:, :1], alleles)
        if alleles.size and int(alleles.max()) > len(alts):
            raise InputError(
                Problem(
                    "vcf-unreadable",
                    where,
                    f"a genotype names allele {int(alleles.max())}",
                    f"the record has {len(alts)} alternate alleles",
                )
            )
        haploid &= alleles[:, 0] != MISSING
        names = tuple(name for name in variant.FILTERS if name != ".")
        return Record(variant.CHROM, variant.start, ref, alts, names, alleles, phased, haploid)

    def _check_end(
        self, chrom: str, start_bp: int, end_bp: int, last_bp: int, at_last: int
    ) -> None:
        """Make sure that the file ends where cyvcf2 stopped: it takes damage for the end."""
        first = max(start_bp, last_bp)
        level = pysam.set_verbosity(0)
        try:
            handle = self._second_reader()
            if chrom not in handle.header.contigs and last_bp < 0:
                return
            behind = sum(record.start >= last_bp for record in handle.fetch(chrom, first, end_bp))
            error = "" if behind == at_last else "records are missing"
        except (OSError, ValueError) as failure:
            error = str(failure)
            _close(self._second)
            self._second = None
        finally:
            pysam.set_verbosity(level)
        if error:
            found = f"at or after {chrom}:{first + 1}: {error}"
            raise InputError(self._unreadable(found))

    def _second_reader(self) -> Any:
        if self._second is None or self._second_owner != os.getpid():
            self._second = pysam.VariantFile(str(self.path), drop_samples=True)
            self._second_owner = os.getpid()
        return self._second

    def _unreadable(self, found: str) -> Problem:
        return unreadable(self.path, found)

    def _open(self, samples: tuple[str, ...] | None) -> Any:
        # A file offset shared between forked processes gives records from the wrong place.
        if self._file is not None and self._key == (os.getpid(), samples):
            return self._file
        set_htslib_log_level(0)
        chosen = None if samples is None or list(samples) == self.samples else list(samples)
        try:
            self._file = cyvcf2.VCF(str(self.path), samples=chosen)
        except Exception as error:  # cyvcf2 raises bare Exception for what htslib refuses
            raise InputError(self._unreadable(str(error))) from error
        self._key = (os.getpid(), samples)
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_second": None}


def unreadable(path: Path, found: str) -> Problem:
    """Return the problem of a VCF that ends early or is damaged."""
    return Problem(
        "vcf-unreadable",
        str(path),
        f"it cannot be read ({found})",
        "a whole bgzipped VCF or BCF",
        "it may have been cut short or damaged in copying: copy or write it again, and index it",
    )


def find_file_problems(path: Path) -> list[Problem]:
    """Return what is wrong with a VCF as a file: missing, not bgzipped, cut short, no index."""
    if not path.is_file():
        return [Problem("vcf-missing", str(path), "no such file", "a VCF or BCF is needed")]
    if not is_gzip(path):
        fix = f"bgzip {path} && tabix -p vcf {path}.gz"
        return [Problem("vcf-no-index", str(path), "not compressed", "a bgzipped VCF", fix)]
    if not is_bgzf(path):
        fix = f"gunzip -c {path} | bgzip > NEW.vcf.gz && tabix -p vcf NEW.vcf.gz"
        wanted = "compressed with bgzip (gzip allows no access by position)"
        return [Problem("vcf-unreadable", str(path), "compressed with gzip", wanted, fix)]
    problems: list[Problem] = []
    if not is_whole_bgzf(path):
        problems.append(unreadable(path, "its end is missing"))
    if index_of(path) is None:
        binary = path.suffix == ".bcf"
        fix = f"make the index: {'bcftools index' if binary else 'tabix -p vcf'} {path}"
        found = f"no {path.name}{'.csi' if binary else '.tbi or .csi'} beside it"
        problems.append(Problem("vcf-no-index", str(path), found, "an indexed VCF or BCF", fix))
    return problems


def index_of(path: Path) -> Path | None:
    """Return the index beside a VCF or BCF, or None."""
    candidates = [Path(f"{path}.csi"), Path(f"{path}.tbi")]
    return next((index for index in candidates if index.is_file()), None)


def sample_problem(path: Path, have: Collection[str], wanted: Sequence[str]) -> Problem | None:
    """Return the problem of samples that a VCF does not have, or None."""
    known = set(have)
    lacking = [sample for sample in dict.fromkeys(wanted) if sample not in known]
    if not lacking:
        return None
    shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
    examples = ", ".join(list(have)[:3])
    return Problem(
        "sample-not-in-vcf",
        str(path),
        f"{len(lacking)} of {len(set(wanted))} samples are not among its {len(known)}: {shown}",
        f"sample names as in its header ({examples or 'none'}{', ...' if len(known) > 3 else ''})",
        "set genotype_id in participants.tsv; n/a for a participant without genotypes",
    )


def _close(handle: Any) -> None:
    """Close a pysam file; one that met damaged data complains a second time here."""
    if handle is not None:
        try:
            handle.close()
        except OSError:
            return
