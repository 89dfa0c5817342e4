"""Bad genome input: each fault's message on its own, and all of them in one pass."""

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pysam
import pysam.bcftools
import pytest
from genome_files import HEADER, Line, write_fasta, write_vcf

from encoders.errors import InputError, Problem
from multimodal.genome import (
    Genotypes,
    Reference,
    Region,
    Window,
    find_genome_problems,
    find_missing_imbalance,
    survey_genome,
)

SEQUENCE = "ACGT" * 50
SAMPLES = ["s1", "s2"]
REGION = Region("gene", "7", 0, 200)
GOOD = Line(3, "G", ("T",), ("0|1", "1|1"))


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return write_fasta(tmp_path, SEQUENCE)


@pytest.fixture
def vcf(tmp_path: Path) -> Path:
    return write_vcf(tmp_path, [GOOD], SAMPLES)


def only(problems: list[Problem], code: str) -> Problem:
    assert [problem.code for problem in problems] == [code]
    return problems[0]


def both_ways(
    vcf: Path, fasta: Path, region: Region = REGION, samples=SAMPLES, **options
) -> Problem:
    """Return the one problem, the same from the check and from making haplotypes."""
    checked = find_genome_problems(vcf, fasta, [region], samples)
    window = Window("gene", 0, region.chrom, region.start_bp, region.end_bp, "+")
    with pytest.raises(InputError) as error:
        Genotypes(vcf, fasta).haplotypes(window, samples)
    assert error.value.problems[0].code == checked[0].code
    return only(checked, checked[0].code)


def test_good_input_has_no_problem(vcf, fasta) -> None:
    survey = survey_genome(vcf, fasta, [REGION], SAMPLES)
    assert (survey.problems, survey.warnings, survey.sites) == ([], [], 1)


def test_vcf_without_index(tmp_path, fasta) -> None:
    path = write_vcf(tmp_path, [GOOD], SAMPLES, index=False)
    problem = both_ways(path, fasta)
    assert problem.code == "vcf-no-index"
    assert problem.where == str(path)
    assert problem.found == "no genotypes.vcf.gz.tbi or .csi beside it"
    assert f"tabix -p vcf {path}" in problem.fix


def test_vcf_as_plain_text_and_as_plain_gzip(tmp_path, fasta, vcf) -> None:
    problem = both_ways(tmp_path / "genotypes.vcf", fasta)
    assert (problem.code, problem.found) == ("vcf-no-index", "not compressed")
    assert "bgzip" in problem.fix
    data = gzip.decompress(vcf.read_bytes())
    vcf.write_bytes(gzip.compress(data))
    problem = both_ways(vcf, fasta)
    assert (problem.code, problem.found) == ("vcf-unreadable", "compressed with gzip")


def test_missing_files(tmp_path, fasta, vcf) -> None:
    assert both_ways(tmp_path / "no.vcf.gz", fasta).code == "vcf-missing"
    assert only(find_genome_problems(vcf, "no.fa", [REGION], SAMPLES), "fasta-missing")
    assert only(find_genome_problems(vcf, fasta, tmp_path / "no.bed", SAMPLES), "bed-missing")


def test_sample_missing_from_the_vcf(vcf, fasta) -> None:
    problem = both_ways(vcf, fasta, samples=["s2", "nobody", "s1"])
    assert problem.code == "sample-not-in-vcf"
    assert problem.where == str(vcf)
    assert "1 of 3 samples" in problem.found
    assert "nobody" in problem.found
    assert "s1, s2" in problem.wanted


@pytest.mark.parametrize(("chrom", "other"), [("chr7", "7"), ("7", "chr7")])
def test_chromosome_naming(tmp_path, chrom, other) -> None:
    fasta = write_fasta(tmp_path, SEQUENCE, chrom=chrom)
    header = HEADER.replace("ID=7", f"ID={other}")
    line = Line(3, "G", ("T",), ("0|1", "1|1"), chrom=other)
    vcf = write_vcf(tmp_path, [line], SAMPLES, header=header)
    problem = both_ways(vcf, fasta, Region("gene", chrom, 0, 200))
    assert problem.code == "chromosome-naming"
    assert problem.where == str(vcf)
    assert problem.found == f"the VCF says {other!r} where the regions say {chrom!r}"
    problem = both_ways(vcf, fasta, Region("gene", other, 0, 200))
    assert problem.where == str(fasta)
    assert problem.found == f"the FASTA says {chrom!r} where the regions say {other!r}"


def test_chromosome_that_is_nowhere(vcf, fasta) -> None:
    problems = find_genome_problems(vcf, fasta, [Region("gene", "X", 0, 9)], SAMPLES)
    assert [problem.code for problem in problems] == ["chromosome-missing"] * 2
    assert "no chromosome 'X' (it has 7)" in problems[0].found


def test_reference_allele_that_differs(tmp_path, fasta) -> None:
    lines = [GOOD, Line(5, "G", ("T",), ("0|0", "0|0")), Line(9, "AG", ("T",), ("0|1", "0|0"))]
    path = write_vcf(tmp_path, lines, SAMPLES)
    problem = both_ways(path, fasta)
    assert problem.code == "ref-mismatch"
    assert problem.where == f"{path} 7:5"
    assert problem.found == (
        f"REF is G, {fasta} has A (2 records differ, then 7:9: REF is AG, {fasta} has AC)"
    )


def test_reference_allele_beyond_the_chromosome(tmp_path, fasta) -> None:
    path = write_vcf(tmp_path, [Line(199, "GTA", ("G",), ("0|1", "0|0"))], SAMPLES)
    assert both_ways(path, fasta).found == f"REF is GTA, {fasta} has GT"


def test_region_beyond_the_end(vcf, fasta) -> None:
    problem = both_ways(vcf, fasta, Region("gene", "7", 190, 201))
    assert problem.code == "region-out-of-range"
    assert problem.where == "region gene"
    assert problem.found == "it ends at base 201 of 7, which has 200 bases"


def test_unphased_genotypes(tmp_path, fasta) -> None:
    lines = [GOOD, Line(5, "A", ("T",), ("0/1", "1/1")), Line(6, "C", ("T",), ("0/1", "0/1"))]
    path = write_vcf(tmp_path, lines, SAMPLES)
    problem = both_ways(path, fasta)
    assert (problem.code, problem.where) == ("unphased", f"{path} 7:5")
    assert problem.found.startswith("3 heterozygous genotypes without phase")
    survey = survey_genome(path, fasta, [REGION], SAMPLES, unphased="as_written")
    assert survey.problems == []
    assert [warning.code for warning in survey.warnings] == ["unphased"]
    with pytest.raises(InputError, match=r"genome\.unphased: 'guess'"):
        Genotypes(path, fasta, unphased="guess")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (Line(50, "C", ("CTT",), ("0/1", "0|0")), "unphased"),
        (Line(49, "CCC", ("C",), ("0|1", "0|0")), "ref-mismatch"),
        (Line(49, "ACG", ("A",), ("0/1", "0|0")), "unphased"),
    ],
)
def test_records_that_begin_before_the_region_are_checked(tmp_path, fasta, line, code) -> None:
    far = Line(44, "T", ("A",), ("0/1", "0|1"))  # no bearing on the region
    inside = Line(60, "T", ("A",), ("0|1", "1|1"))
    vcf = write_vcf(tmp_path, [far, line, inside], SAMPLES)
    problem = both_ways(vcf, fasta, Region("gene", "7", 50, 100))
    assert problem.code == code
    assert problem.where == f"{vcf} 7:{line.position}"
    assert survey_genome(vcf, fasta, [Region("gene", "7", 50, 100)], SAMPLES).sites == 1


def test_a_chain_of_overlaps_is_checked_once(tmp_path, fasta) -> None:
    lines = [
        Line(41, "ACGTA", ("A",), ("0/1", "0|0")),
        Line(45, "ACGTAC", ("A",), ("0|1", "0|0")),
    ]
    vcf = write_vcf(tmp_path, lines, SAMPLES)
    regions = [Region("left", "7", 20, 43), Region("gene", "7", 48, 100)]
    for chosen in (regions, regions[1:]):
        (problem,) = find_genome_problems(vcf, fasta, chosen, SAMPLES)
        assert problem.code == "unphased"
        assert problem.found.startswith("1 heterozygous genotype ")


def test_fasta_without_index_is_refused_and_none_is_written(tmp_path, vcf) -> None:
    fasta = write_fasta(tmp_path, SEQUENCE, index=False)
    before = sorted(os.listdir(tmp_path))
    problem = both_ways(vcf, fasta)
    assert problem.code == "fasta-no-index"
    assert problem.found == "no reference.fa.fai beside it"
    assert f"samtools faidx {fasta}" in problem.fix
    assert sorted(os.listdir(tmp_path)) == before


def test_bgzipped_fasta_needs_both_indices_and_gzip_is_refused(tmp_path, fasta, vcf) -> None:
    packed = tmp_path / "packed.fa.gz"
    pysam.tabix_compress(str(fasta), str(packed))
    assert both_ways(vcf, packed).found == "no packed.fa.gz.fai and no packed.fa.gz.gzi beside it"
    pysam.faidx(str(packed))
    assert Reference(packed).fetch("7", 2, 6) == "GTAC"
    Path(f"{packed}.gzi").unlink()
    assert both_ways(vcf, packed).found == "no packed.fa.gz.gzi beside it"
    packed.write_bytes(gzip.compress(fasta.read_bytes()))
    assert both_ways(vcf, packed).code == "fasta-unreadable"


def test_fasta_shorter_than_its_index_says(fasta, vcf) -> None:
    fasta.write_text(">7\n" + "A" * 30 + "\n")
    with pytest.raises(InputError) as error:
        Reference(fasta).fetch("7", 100, 150)
    assert error.value.problems[0].code == "fasta-unreadable"


def many_lines() -> list[Line]:
    """Give enough lines for several compressed blocks."""
    bases = np.random.default_rng(0)
    return [
        Line(2 * i + 1, "A", ("T",), tuple(bases.choice(["0|0", "0|1", "1|0"], 300)))
        for i in range(2000)
    ]


@pytest.mark.parametrize("suffix", ["vcf.gz", "bcf"])
@pytest.mark.parametrize("damage", ["cut", "cut with end", "zeros"])
def test_damaged_vcf_is_an_error_and_not_an_early_end(tmp_path, capfd, suffix, damage) -> None:
    fasta = write_fasta(tmp_path, "A" * 4000)
    names = [f"s{i}" for i in range(300)]
    path = write_vcf(tmp_path, many_lines(), names)
    if suffix == "bcf":
        whole, path = path, tmp_path / "genotypes.bcf"
        pysam.bcftools.view("-Ob", "-o", str(path), str(whole), catch_stdout=False)
        pysam.bcftools.index(str(path))
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "cut": data[:middle],
            "cut with end": data[:middle] + data[-28:],
            "zeros": data[:middle] + bytes(64) + data[middle + 64 :],
        }[damage]
    )
    capfd.readouterr()
    problem = both_ways(path, fasta, Region("gene", "7", 0, 4000), names)
    assert problem.code == "vcf-unreadable"
    assert problem.where == str(path)
    assert "copy or write it again" in problem.fix
    assert capfd.readouterr().err == ""


def test_record_that_cannot_be_parsed(tmp_path, fasta) -> None:
    lines = [GOOD, Line(5, "A", ("T",), ("0|x", "0|0")), Line(9, "A", ("T",), ("0|1", "0|0"))]
    problem = both_ways(write_vcf(tmp_path, lines, SAMPLES), fasta)
    assert problem.code == "vcf-unreadable"
    assert "after 7:3" in problem.found


def test_alleles_out_of_number_and_polyploids(tmp_path, fasta) -> None:
    path = write_vcf(tmp_path, [Line(5, "A", ("T",), ("0|2", "0|0"))], SAMPLES)
    problem = both_ways(path, fasta)
    assert (problem.where, problem.found) == (f"{path} 7:5", "a genotype names allele 2")
    path = write_vcf(tmp_path, [Line(5, "A", ("T",), ("0|1|1", "0|0"))], SAMPLES)
    problem = both_ways(path, fasta)
    assert (problem.code, problem.found) == ("vcf-ploidy", "a genotype of 3 alleles")


def test_all_faults_in_one_pass(tmp_path) -> None:
    fasta = write_fasta(tmp_path, SEQUENCE)
    lines = [
        Line(3, "C", ("T",), ("0|1", "1|1")),
        Line(5, "A", ("T", "<DEL>"), ("0/1", "2|.")),
        Line(9, "A", ("T",), ("1|1", "1"), filters="q10"),
        Line(13, "A", ("T",), ("1|1", "1")),
    ]
    vcf = write_vcf(tmp_path, lines, SAMPLES)
    regions = [
        Region("good", "7", 0, 20),
        Region("again", "7", 10, 30),
        Region("empty", "7", 100, 120),
        Region("far", "7", 150, 500),
        Region("chr", "chr7", 0, 10),
        Region("chr2", "chr7", 20, 30),
    ]
    survey = survey_genome(vcf, fasta, regions, ["s1", "s9"])
    assert [problem.code for problem in survey.problems] == [
        "sample-not-in-vcf",
        "region-out-of-range",
        "chromosome-naming",
        "chromosome-naming",
        "ref-mismatch",
        "unphased",
    ]
    survey = survey_genome(vcf, fasta, regions[:3], SAMPLES)
    assert [warning.code for warning in survey.warnings] == [
        "symbolic-alleles",
        "haploid-calls",
        "filtered-records",
        "region-without-variants",
    ]
    assert survey.warnings[-1].where == "region empty"
    assert survey.missing.tolist() == [0, 1]
    assert survey.sites == 3


def test_what_one_fault_hides_does_not_hide_the_rest(tmp_path, fasta) -> None:
    vcf = write_vcf(tmp_path, [GOOD], SAMPLES, index=False)
    Path(f"{fasta}.fai").unlink()
    bed = tmp_path / "regions.bed"
    bed.write_text("7\t9\t5\tgene\n")
    found = find_genome_problems(vcf, fasta, bed, SAMPLES)
    assert {problem.code for problem in found} == {"vcf-no-index", "fasta-no-index", "bed-interval"}


def test_index_older_than_the_vcf_is_a_warning(vcf, fasta) -> None:
    os.utime(f"{vcf}.tbi", (1, 1))
    survey = survey_genome(vcf, fasta, [REGION], SAMPLES)
    assert survey.problems == []
    assert [warning.code for warning in survey.warnings] == ["vcf-index-older"]


def test_careless_headers_do_not_matter_and_print_nothing(tmp_path, fasta, capfd) -> None:
    header = "##fileformat=VCFv4.2\n" + HEADER.splitlines(keepends=True)[2]
    lines = [
        Line(3, "G", ("T", "C"), ("0|1", "1|2"), info="AC=1,2;NEW=3"),
        Line(5, "A", ("T",), ("0|1", "0|0"), info="AC=many", filters="."),
    ]
    vcf = write_vcf(tmp_path, lines, SAMPLES, header=header)
    capfd.readouterr()
    assert find_genome_problems(vcf, fasta, [REGION], SAMPLES) == []
    found = Genotypes(vcf, fasta).haplotypes(Window("gene", 0, "7", 0, 6, "+"), SAMPLES)
    assert found.sequences == ["ACGTAC", "ACCTAC", "ACTTAC", "ACTTTC"]
    assert capfd.readouterr().err == ""


def test_missing_imbalance_between_groups() -> None:
    random = np.random.default_rng(1)
    groups = ["A"] * 60 + ["B"] * 60
    even = random.binomial(1000, 0.02, 120)
    assert find_missing_imbalance(even, 1000, groups) == []
    uneven = np.r_[even[:60], random.binomial(1000, 0.06, 60)]
    (warning,) = find_missing_imbalance(uneven, 1000, groups, what="site")
    assert warning.code == "missing-imbalance"
    assert "genotypes by site" in warning.where
    assert "A 2." in warning.found
    assert find_missing_imbalance(uneven, 1000, ["A"] * 120) == []
    assert find_missing_imbalance(np.zeros(4), 0, list("AABB")) == []


def test_no_torch_is_imported() -> None:
    code = "import sys, multimodal.genome; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reading_after_a_fork_and_side_by_side(vcf, fasta, tmp_path) -> None:
    shutil.copy(vcf, tmp_path / "second.vcf.gz")
    genotypes = Genotypes(vcf, fasta)
    window = Window("gene", 0, "7", 0, 6, "+")
    expected = genotypes.haplotypes(window, SAMPLES).sequences
    child = os.fork()
    if child == 0:
        same = genotypes.haplotypes(window, SAMPLES).sequences == expected
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert genotypes.haplotypes(window, SAMPLES).sequences == expected
