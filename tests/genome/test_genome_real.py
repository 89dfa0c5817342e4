"""Real genotypes (1000 Genomes, chromosome 20): against bcftools, and their careless header."""

from pathlib import Path

import numpy as np
import pysam
import pysam.bcftools
import pytest
from genome_files import Line, plain_haplotype, real_folder

from multimodal.genome import Genotypes, Reference, Region, Window, find_genome_problems


@pytest.fixture(scope="module")
def real() -> tuple[Path, Path]:
    folder = real_folder()
    return next(folder.glob("*.vcf.gz")), next(folder.glob("*.fa.gz"))


@pytest.mark.parametrize("start", [1_100_000, 1_700_000, 2_400_000])
def test_real_haplotypes_equal_bcftools_consensus(real, tmp_path, start) -> None:
    vcf, fasta = real
    genotypes = Genotypes(vcf, fasta)
    end = start + 20_000
    found = genotypes.haplotypes(Window("real", 0, "20", start, end, "+"), genotypes.samples)
    assert found.counts.overlapping.sum() == 0
    part = tmp_path / "part.fa"
    part.write_text(f">20:{start + 1}-{end}\n{Reference(fasta).fetch('20', start, end)}\n")
    for row in (0, 77, 199):
        for side in (0, 1):
            options = ["-H", str(side + 1), "-s", genotypes.samples[row], "-f", str(part)]
            text = pysam.bcftools.consensus(*options, str(vcf))
            assert "".join(text.splitlines()[1:]) == found.sequences[found.index[row, side]]


def test_real_haplotypes_with_an_overlap_equal_the_oracle(real) -> None:
    vcf, fasta = real
    genotypes = Genotypes(vcf, fasta)
    start, end = 2_000_000, 2_050_000
    found = genotypes.haplotypes(Window("real", 0, "20", start, end, "+"), genotypes.samples)
    assert found.counts.overlapping.sum() == 1
    reference = Reference(fasta).fetch("20", start, end)
    rows = [row.split("\t") for row in pysam.TabixFile(str(vcf)).fetch("20", start, end)]
    lines = [
        Line(int(r[1]) - start, r[3], tuple(r[4].split(",")), tuple(r[9:]))
        for r in rows
        if int(r[1]) > start and int(r[1]) + len(r[3]) <= end
    ]
    carrier = int(found.counts.overlapping.argmax())
    for sample in {0, 50, carrier}:
        for side in (0, 1):
            plain = plain_haplotype(reference, lines, sample, side)
            assert found.sequences[found.index[sample, side]] == plain.sequence(0, end - start)


def test_real_dosages_equal_the_text(real) -> None:
    vcf, fasta = real
    genotypes = Genotypes(vcf, fasta)
    values, names = genotypes.dosages(Region("real", "20", 1_200_000, 1_210_000), genotypes.samples)
    rows = [r.split("\t") for r in pysam.TabixFile(str(vcf)).fetch("20", 1_200_000, 1_210_000)]
    by_name = {
        f"20:{r[1]}:{r[3]}:{r[4]}": [call.count("1") for call in r[9:]]
        for r in rows
        if "," not in r[4]
    }
    assert len(names) > 50
    assert all(values[:, column].tolist() == by_name[name] for column, name in enumerate(names))


def test_real_files_pass_the_check_without_a_word(real, capfd) -> None:
    vcf, fasta = real
    genotypes = Genotypes(vcf, fasta)
    region = Region("all", "20", 1_000_000, 2_500_000)
    capfd.readouterr()
    assert find_genome_problems(vcf, fasta, [region], genotypes.samples) == []
    assert capfd.readouterr().err == ""


def test_real_vcf_says_20_where_regions_say_chr20(real) -> None:
    vcf, fasta = real
    found = find_genome_problems(vcf, fasta, [Region("all", "chr20", 1_000_000, 1_001_000)], [])
    assert [p.code for p in found] == ["chromosome-naming"] * 2
    assert all("'20'" in p.found and "'chr20'" in p.found for p in found)


def test_few_haplotypes_are_distinct(real) -> None:
    vcf, fasta = real
    genotypes = Genotypes(vcf, fasta)
    window = Window("real", 0, "20", 1_500_000, 1_550_000, "+")
    found = genotypes.haplotypes(window, genotypes.samples)
    assert len(set(found.sequences)) == len(found.sequences) < 200
    assert np.unique(found.index).size >= len(found.sequences) - 1
