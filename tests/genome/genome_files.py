"""Small FASTA and VCF files, and a slow, plain reading of the genotype rules to check against."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import pysam
import pytest

CHROM = "7"
HEADER = (
    "##fileformat=VCFv4.2\n"
    f"##contig=<ID={CHROM}>\n"
    '##INFO=<ID=AC,Number=1,Type=Integer,Description="Declared with the wrong Number">\n'
    '##FILTER=<ID=q10,Description="Low quality">\n'
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
)


@dataclass(frozen=True)
class Line:
    """One VCF line: 1-based position, alleles, one genotype a sample."""

    position: int
    ref: str
    alts: tuple[str, ...]
    genotypes: tuple[str, ...]
    filters: str = "PASS"
    chrom: str = CHROM
    info: str = "."


def write_fasta(folder: Path, sequence: str, *, chrom: str = CHROM, index: bool = True) -> Path:
    path = folder / "reference.fa"
    rows = "\n".join(sequence[i : i + 50] for i in range(0, len(sequence), 50))
    path.write_text(f">{chrom}\n{rows}\n")
    Path(f"{path}.fai").unlink(missing_ok=True)
    if index:
        pysam.faidx(str(path))
    return path


def write_vcf(
    folder: Path,
    lines: list[Line],
    samples: list[str],
    *,
    header: str = HEADER,
    index: bool = True,
    name: str = "genotypes.vcf",
) -> Path:
    plain = folder / name
    columns = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples]
    text = header + "\t".join(columns) + "\n"
    for line in lines:
        fields = [line.chrom, line.position, ".", line.ref, ",".join(line.alts) or ".", "."]
        fields += [line.filters, line.info, "GT", *line.genotypes]
        text += "\t".join(map(str, fields)) + "\n"
    plain.write_text(text)
    path = folder / f"{name}.gz"
    pysam.tabix_compress(str(plain), str(path), force=True)
    Path(f"{path}.tbi").unlink(missing_ok=True)
    if index:
        pysam.tabix_index(str(path), preset="vcf", force=True)
    return path


@dataclass
class PlainHaplotype:
    """A haplotype base by base: what stands on each base, and what lies before it."""

    bases: list[str]
    excess: dict[int, str] = field(default_factory=dict)
    insertions: dict[int, str] = field(default_factory=dict)
    taken: set[tuple[str, int]] = field(default_factory=set)
    blocked: list[tuple[int, int, int]] = field(default_factory=list)

    def apply(self, position: int, ref: str, alt: str) -> None:
        start, old, new = position - 1, list(ref), list(alt)
        while len(old) > 1 and len(new) > 1 and old[-1] == new[-1]:
            old, new = old[:-1], new[:-1]
        while old and new and old[0] == new[0]:
            old, new, start = old[1:], new[1:], start + 1
        while old and new and old[-1] == new[-1]:
            old, new = old[:-1], new[:-1]
        end = start + len(old)
        claims = {("base", i) for i in range(start, end)}
        claims |= {("gap", i) for i in range(start + 1, end)}
        claims |= {("gap", start)} if start == end else set()
        if self.taken & claims:
            self.blocked.append((start, end, len(new)))
            return
        self.taken |= claims
        for i in range(start, end):
            self.bases[i] = new[i - start] if i - start < len(new) else ""
        rest = "".join(new[len(old) :])
        if rest:
            (self.insertions if start == end else self.excess)[end] = rest

    def sequence(self, start: int, end: int) -> str:
        gaps = [self.excess.get(i, "") + self.insertions.get(i, "") for i in range(end + 1)]
        inside = "".join(gaps[i] + self.bases[i] for i in range(start, end))
        return inside + (gaps[end] if end == len(self.bases) else "")


def plain_haplotype(reference: str, lines: list[Line], sample: int, side: int) -> PlainHaplotype:
    """Apply one sample's alleles on one side, line by line."""
    haplotype = PlainHaplotype(list(reference))
    for line in lines:
        called = line.genotypes[sample].replace("/", "|").split("|")
        allele = called[side] if len(called) > 1 else called[0]
        if allele in {".", "0"}:
            continue
        alt = line.alts[int(allele) - 1]
        if set(alt) <= set("ACGTN"):
            haplotype.apply(line.position, line.ref, alt)
    return haplotype


def real_folder() -> Path:
    """Return the folder with real genotypes, or skip the test."""
    folder = Path(os.environ.get("GENEBOLD_REAL", "nowhere"))
    if not list(folder.glob("*.vcf.gz")):
        pytest.skip("no real genotypes at hand; set GENEBOLD_REAL to a folder that has them")
    return folder
