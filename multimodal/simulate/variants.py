"""What a simulated genome consists of, and the files it is written to."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pysam

SYNC_THREADS = 16


@dataclass(frozen=True)
class SimulatedRegion:
    """A region of interest, 0-based and half-open, as a line of a BED6 file."""

    name: str
    chrom: str
    start_bp: int
    end_bp: int
    strand: str


@dataclass(frozen=True)
class Variant:
    """One VCF record without its genotypes.

    Parameters
    ----------
    chrom : str
    pos_bp : int
        0-based position of the first base of `ref`.
    ref : str
    alts : tuple of str
        One or more alternate alleles; ``*`` where an earlier record deletes the base.
    region : int
        Region it lies in, -1 for the flanks.
    name : str
        Identifier, the VCF's ID column.
    """

    chrom: str
    pos_bp: int
    ref: str
    alts: tuple[str, ...]
    region: int
    name: str = "."

    @property
    def is_biallelic_snp(self) -> bool:
        """Whether one base becomes one other base."""
        return len(self.alts) == 1 and {self.ref, self.alts[0]} <= set("ACGT")


def write_reference(path: Path, contigs: dict[str, str], *, width_bp: int = 60) -> None:
    """Write an indexed FASTA file (`path` and ``.fai``)."""
    with path.open("w", encoding="ascii") as file:
        for name, sequence in contigs.items():
            file.write(f">{name}\n")
            for start in range(0, len(sequence), width_bp):
                file.write(sequence[start : start + width_bp] + "\n")
    pysam.faidx(str(path))


def write_regions(path: Path, regions: Sequence[SimulatedRegion]) -> None:
    """Write regions as BED6."""
    lines = [f"{r.chrom}\t{r.start_bp}\t{r.end_bp}\t{r.name}\t0\t{r.strand}\n" for r in regions]
    path.write_text("".join(lines), encoding="utf-8")


def write_vcf(
    path: Path,
    variants: Sequence[Variant],
    alleles: np.ndarray,
    missing: np.ndarray,
    samples: Sequence[str],
    contig_lengths_bp: dict[str, int],
) -> None:
    """Write phased genotypes as a bgzipped, tabix-indexed VCF 4.2 file.

    Parameters
    ----------
    path : Path
        Ends in ``.vcf.gz``; the index lies beside it.
    variants : sequence of Variant
        The V records, sorted by contig (in the order of `contig_lengths_bp`) and position.
    alleles : ndarray [n, 2, V] integer
        Allele number of each sample's haplotypes.
    missing : ndarray [n, V] integer
        0 where the call is there, 1 where it is missing and written ``.|.``, 2 for ``./.``.
    samples : sequence of str
        The n sample names, in the order wanted in the file.
    contig_lengths_bp : dict
        Length of each contig.
    """
    header = [
        "##fileformat=VCFv4.2",
        '##FILTER=<ID=PASS,Description="All filters passed">',
        "##source=genebold-simulate",
        *(f"##contig=<ID={name},length={length}>" for name, length in contig_lengths_bp.items()),
        '##INFO=<ID=AC,Number=A,Type=Integer,Description="Alternate allele count among calls">',
        '##INFO=<ID=AN,Number=1,Type=Integer,Description="Number of alleles in called genotypes">',
        '##INFO=<ID=AF,Number=A,Type=Float,Description="Alternate allele frequency">',
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="Phased genotype">',
        "\t".join(
            ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples]
        ),
    ]
    records = [
        _record(variant, alleles[:, :, v], missing[:, v]) for v, variant in enumerate(variants)
    ]
    with pysam.BGZFile(str(path), "wb", None) as file:
        file.write(("\n".join([*header, *records]) + "\n").encode("ascii"))
    pysam.tabix_index(str(path), preset="vcf", force=True)


def _record(variant: Variant, alleles: np.ndarray, missing: np.ndarray) -> str:
    called = alleles[missing == 0]
    counts = [int((called == number + 1).sum()) for number in range(len(variant.alts))]
    total = int(called.size)
    frequencies = ",".join(f"{count / max(total, 1):.5g}" for count in counts)
    info = f"AC={','.join(map(str, counts))};AN={total};AF={frequencies}"
    calls = [
        (f"{first}|{second}", ".|.", "./.")[int(gap)]
        for (first, second), gap in zip(alleles.tolist(), missing, strict=True)
    ]
    fixed = [
        variant.chrom,
        str(variant.pos_bp + 1),
        variant.name,
        variant.ref,
        ",".join(variant.alts),
        "100",
        "PASS",
        info,
        "GT",
    ]
    return "\t".join([*fixed, *calls])


def sync_folder(folder: Path) -> None:
    """Flush every file below `folder` to the disk."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    # A journal commits waiting requests together, so asking for many at once is much faster.
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        list(pool.map(_sync, files))


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
