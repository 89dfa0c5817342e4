"""Haplotypes against a base-by-base oracle, against bcftools consensus, and rule by rule."""

import itertools
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pysam
import pysam.bcftools
import pytest
from genome_files import CHROM, Line, plain_haplotype, write_fasta, write_vcf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoders.errors import InputError
from multimodal.genome import Genotypes, Region, Window, make_windows

MODEST = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SAMPLES = ["b", "a", "c"]


@st.composite
def references(draw) -> str:
    return draw(st.text("ACGT", min_size=12, max_size=60))


@st.composite
def calls(draw, alternates: int) -> str:
    allele = st.sampled_from([".", *map(str, range(alternates + 1))])
    if draw(st.integers(0, 9)) == 0:
        return draw(allele)
    return f"{draw(allele)}|{draw(allele)}"


@st.composite
def crowded(draw) -> tuple[str, list[Line]]:
    """Any alleles anywhere: overlapping, badly anchored, symbolic, missing, haploid."""
    reference = draw(references())
    lines = []
    for position in sorted(draw(st.lists(st.integers(1, len(reference)), max_size=12))):
        length = draw(st.integers(1, min(5, len(reference) - position + 1)))
        ref = reference[position - 1 : position - 1 + length]
        spelled = st.text("ACGT", min_size=1, max_size=5).filter(lambda alt, ref=ref: alt != ref)
        alts = draw(st.lists(spelled | st.sampled_from(["*", "<DEL>"]), max_size=3, unique=True))
        genotypes = tuple(draw(calls(len(alts))) for _ in SAMPLES)
        lines.append(Line(position, ref, tuple(alts), genotypes))
    return reference, lines


@st.composite
def spaced(draw) -> tuple[str, list[Line]]:
    """Variants as callers write them: anchored, apart from each other, phased, diploid."""
    reference = draw(references())
    lines, position = [], draw(st.integers(1, 3))
    while position + 6 <= len(reference):
        length = draw(st.integers(1, 4))
        ref = reference[position - 1 : position - 1 + length]
        other = {"A": "C", "C": "G", "G": "T", "T": "A"}
        alts = {
            "substitution": "".join(other[base] for base in ref),
            "deletion": ref[0],
            "insertion": ref + other[ref[-1]] + draw(st.text("ACGT", max_size=3)),
        }
        picked = draw(st.lists(st.sampled_from(sorted(alts)), min_size=1, max_size=3, unique=True))
        texts = tuple(alts[kind] for kind in picked if alts[kind] != ref)
        if texts:
            genotype = st.sampled_from(["0", ".", *map(str, range(1, len(texts) + 1))])
            genotypes = tuple(f"{draw(genotype)}|{draw(genotype)}" for _ in SAMPLES)
            lines.append(Line(position, ref, texts, genotypes))
        position += 6 + draw(st.integers(0, 5))
    return reference, lines


def opened(folder: Path, reference: str, lines: list[Line], **options) -> Genotypes:
    fasta = write_fasta(folder, reference)
    return Genotypes(write_vcf(folder, lines, SAMPLES), fasta, **options)


def window(start: int, end: int, index: int = 0) -> Window:
    return Window("gene", index, CHROM, start, end, "+")


def carried(genotypes: Genotypes, start: int, end: int) -> list[list[str]]:
    found = genotypes.haplotypes(window(start, end), SAMPLES)
    return [[found.sequences[row] for row in rows] for rows in found.index]


@given(case=crowded(), data=st.data())
@MODEST
def test_haplotypes_equal_the_base_by_base_oracle(case, data) -> None:
    reference, lines = case
    start = data.draw(st.integers(0, len(reference) - 1))
    end = data.draw(st.integers(start + 1, len(reference)))
    expected = [
        [plain_haplotype(reference, lines, sample, side) for side in (0, 1)]
        for sample in range(len(SAMPLES))
    ]
    sequences = [[h.sequence(start, end) for h in pair] for pair in expected]
    with tempfile.TemporaryDirectory() as folder:
        genotypes = opened(Path(folder), reference, lines)
        if not all(itertools.chain(*sequences)):
            with pytest.raises(InputError, match="a haplotype of 0 bases"):
                genotypes.haplotypes(window(start, end), SAMPLES)
            return
        found = genotypes.haplotypes(window(start, end), SAMPLES)
    assert [[found.sequences[row] for row in rows] for rows in found.index] == sequences
    assert found.reference == found.sequences[0] == reference[start:end]
    others = set(itertools.chain(*sequences)) - {found.reference}
    assert found.sequences[1:] == sorted(others)
    assert found.index.dtype == np.int64
    assert found.index.shape == (len(SAMPLES), 2)


@given(case=crowded(), tiles=st.integers(1, 6))
@MODEST
def test_windows_end_to_end_share_out_every_variant(case, tiles) -> None:
    reference, lines = case
    region = Region("gene", CHROM, 0, len(reference), "+")
    cut = make_windows([region], length_bp=-(-len(reference) // tiles))
    with tempfile.TemporaryDirectory() as folder:
        genotypes = opened(Path(folder), reference, lines)
        try:
            parts = [carried(genotypes, w.start_bp, w.end_bp) for w in cut]
        except InputError as error:
            if error.problems[0].code != "haplotype-empty":
                raise
            return
        whole = carried(genotypes, 0, len(reference))
        values, names = genotypes.dosages(region, SAMPLES)
        by_tile = [genotypes.dosages(w, SAMPLES) for w in cut]
    for sample, side in itertools.product(range(len(SAMPLES)), (0, 1)):
        assert "".join(part[sample][side] for part in parts) == whole[sample][side]
    assert sum(part.shape[1] for part, _ in by_tile) == values.shape[1] == len(names)
    joined = np.concatenate([part for part, _ in by_tile], axis=1)
    np.testing.assert_array_equal(np.sort(joined.sum(axis=0)), np.sort(values.sum(axis=0)))


@given(case=crowded())
@MODEST
def test_overlaps_are_counted_by_subject(case) -> None:
    reference, lines = case
    with tempfile.TemporaryDirectory() as folder:
        genotypes = opened(Path(folder), reference, lines)
        try:
            counts = genotypes.haplotypes(window(0, len(reference)), SAMPLES).counts
        except InputError as error:
            if error.problems[0].code != "haplotype-empty":
                raise
            return
    blocked = [
        sum(len(plain_haplotype(reference, lines, sample, side).blocked) for side in (0, 1))
        for sample in range(len(SAMPLES))
    ]
    assert counts.overlapping.tolist() == blocked


@given(case=spaced())
@MODEST
def test_haplotypes_equal_bcftools_consensus(case) -> None:
    reference, lines = case
    with tempfile.TemporaryDirectory() as folder:
        genotypes = opened(Path(folder), reference, lines)
        found = carried(genotypes, 0, len(reference))
        files = ["-f", f"{folder}/reference.fa", f"{folder}/genotypes.vcf.gz"]
        for row, sample in enumerate(SAMPLES):
            for side in (0, 1):
                text = pysam.bcftools.consensus("-H", str(side + 1), "-s", sample, *files)
                assert found[row][side] == "".join(text.splitlines()[1:])


REFERENCE = "ACGTACGTACGTACGTACGT"


def one(tmp_path: Path, *lines: tuple[int, str, str, str], span=(0, 20), **options):
    """Open one-sample lines (position, ref, alts, genotype) and return window and haplotypes."""
    rows = [Line(p, ref, tuple(alts.split(",")), (call,) * 3) for p, ref, alts, call in lines]
    found = opened(tmp_path, REFERENCE, rows, **options).haplotypes(window(*span), ["a"])
    return [found.sequences[row] for row in found.index[0]], found.counts


def test_snp_on_the_anchor_of_a_deletion_goes_with_it(tmp_path) -> None:
    sequences, counts = one(tmp_path, (5, "A", "G", "1|0"), (5, "AC", "A", "1|0"))
    assert sequences == ["ACGTGGTACGTACGTACGT", REFERENCE]
    assert counts.overlapping.tolist() == [0]


def test_first_of_overlapping_records_stays_on_each_haplotype(tmp_path) -> None:
    lines = ((5, "ACGT", "A", "1|0"), (6, "C", "T", "1|1"))
    sequences, counts = one(tmp_path, *lines)
    assert sequences == ["ACGTAACGTACGTACGT", "ACGTATGTACGTACGTACGT"]
    assert counts.overlapping.tolist() == [1]


def test_a_chain_of_overlaps_left_of_the_window_decides_inside_it(tmp_path) -> None:
    lines = ((3, "GTAC", "G", "1|1"), (5, "ACGTA", "A", "1|1"), (8, "TAC", "T", "1|1"))
    whole, _ = one(tmp_path, *lines)
    part, counts = one(tmp_path, *lines, span=(8, 20))
    assert whole == ["ACGGTGTACGTACGT"] * 2
    assert part == ["GTACGTACGT"] * 2
    assert counts.overlapping.tolist() == [2]


def test_deletion_that_begins_before_the_window(tmp_path) -> None:
    sequences, counts = one(tmp_path, (5, "ACGTA", "A", "1|0"), span=(6, 20))
    assert sequences == [REFERENCE[9:], REFERENCE[6:]]
    assert counts.sites == ["7:5:ACGTA:A"]


@pytest.mark.parametrize(
    ("span", "expected"), [((0, 8), "ACGTACGT"), ((8, 20), "GGACGTACGTACGT"), ((8, 9), "GGA")]
)
def test_insertion_belongs_to_the_base_after_it(tmp_path, span, expected) -> None:
    sequences, _ = one(tmp_path, (8, "T", "TGG", "1|1"), span=span)
    assert sequences == [expected, expected]


def test_insertion_behind_the_last_base_belongs_to_it(tmp_path) -> None:
    sequences, _ = one(tmp_path, (20, "T", "TCC", "1|0"), span=(15, 20))
    assert sequences == ["TACGTCC", "TACGT"]


def test_insertion_before_the_first_base(tmp_path) -> None:
    sequences, _ = one(tmp_path, (1, "A", "GA", "0|1"), span=(0, 3))
    assert sequences == ["ACG", "GACG"]


def test_substitution_of_several_bases_across_the_edge(tmp_path) -> None:
    for span, expected in (((0, 6), "ACGTGG"), ((6, 8), "GT")):
        assert one(tmp_path, (5, "ACG", "GGG", "1|1"), span=span)[0] == [expected] * 2


def test_missing_alleles_are_the_reference_and_counted(tmp_path) -> None:
    lines = [
        Line(3, "G", ("T",), (".|1", "0|0", ".")),
        Line(5, "A", ("C",), ("./.", "1|.", "1|1")),
        Line(7, "G", (), ("./.", "./.", "./.")),
    ]
    genotypes = opened(tmp_path, REFERENCE, lines)
    found = genotypes.haplotypes(window(0, 8), SAMPLES)
    assert [[found.sequences[row] for row in rows] for rows in found.index] == [
        ["ACGTACGT", "ACTTACGT"],
        ["ACGTCCGT", "ACGTACGT"],
        ["ACGTCCGT", "ACGTCCGT"],
    ]
    assert found.counts.sites == ["7:3:G:T", "7:5:A:C"]
    assert found.counts.missing_by_subject.tolist() == [2, 1, 1]
    assert found.counts.missing_by_site.tolist() == [2, 2]
    assert found.counts.haploid.tolist() == [0, 0, 0]
    values, names = genotypes.dosages(window(0, 8), SAMPLES)
    assert names == ["7:3:G:T", "7:5:A:C"]
    assert values.dtype == np.float32
    assert values.tolist() == [[1, 0], [0, 1], [0, 2]]
    counts = genotypes.counts(window(0, 8), SAMPLES)
    assert counts.missing_by_subject.tolist() == [2, 1, 1]


def test_haploid_calls_stand_on_both_haplotypes_and_are_counted(tmp_path) -> None:
    for call in (("1", "0", "1"), ("1", "0|1", "1")):
        genotypes = opened(tmp_path, REFERENCE, [Line(3, "G", ("T",), call)])
        found = genotypes.haplotypes(window(0, 4), ["b", "c"])
        assert found.sequences == ["ACGT", "ACTT"]
        assert found.index.tolist() == [[1, 1], [1, 1]]
        assert found.counts.haploid.tolist() == [1, 1]
        assert genotypes.dosages(window(0, 4), ["b"])[0].tolist() == [[2]]


def test_star_is_silent_and_symbolic_alleles_are_counted(tmp_path) -> None:
    lines = (
        (3, "GTA", "G", "1|0"),
        (4, "T", "C,*", "2|1"),
        (9, "A", "<DEL>", "1|1"),
        (11, "G", "]7:5]G,GT", "1|2"),
    )
    sequences, counts = one(tmp_path, *lines)
    assert sequences == ["ACGCGTACGTACGTACGT", "ACGCACGTACGTTACGTACGT"]
    assert counts.symbolic.tolist() == [3]
    assert counts.overlapping.tolist() == [0]
    values, names = Genotypes(tmp_path / "genotypes.vcf.gz", tmp_path / "reference.fa").dosages(
        window(0, 20), ["a"]
    )
    assert names == ["7:3:GTA:G", "7:4:T:C", "7:11:G:GT"]
    assert values.tolist() == [[1, 1, 1]]


def test_multi_allelic_dosages_and_repeated_records(tmp_path) -> None:
    lines = [
        Line(3, "G", ("T", "GA"), ("1|2", "2|2", "0|1")),
        Line(3, "G", ("T",), ("0|0", "0|0", "1|1")),
    ]
    values, names = opened(tmp_path, REFERENCE, lines).dosages(window(0, 20), ["a", "b", "a"])
    assert names == ["7:3:G:T", "7:3:G:GA", "7:3:G:T#2"]
    assert values.tolist() == [[0, 2, 0], [1, 1, 0], [0, 2, 0]]


def test_filtered_records_are_left_out_unless_asked_for(tmp_path) -> None:
    lines = [
        Line(3, "G", ("T",), ("1|1",) * 3, filters="q10"),
        Line(4, "T", ("C",), ("1|1",) * 3, filters="."),
    ]
    for options, expected, filtered in (
        ({}, "ACGCA", 1),
        ({"filters": ("PASS", ".", "q10")}, "ACTCA", 0),
        ({"filters": None}, "ACTCA", 0),
        ({"filters": ("q10",)}, "ACTTA", 1),
    ):
        found = opened(tmp_path, REFERENCE, lines, **options).haplotypes(window(0, 5), ["a"])
        assert found.sequences == ["ACGTA", expected]
        assert found.counts.filtered_sites == filtered


def test_unphased_heterozygotes_are_refused_or_taken_as_written(tmp_path) -> None:
    lines = [Line(3, "G", ("T", "C"), ("1/1", "0/1", "2/1")), Line(5, "A", ("C",), ("./1",) * 3)]
    with pytest.raises(InputError) as error:
        opened(tmp_path, REFERENCE, lines).haplotypes(window(0, 6), SAMPLES)
    (problem,) = error.value.problems
    assert problem.code == "unphased"
    assert problem.where == f"{tmp_path / 'genotypes.vcf.gz'} 7:3"
    assert problem.found.startswith("5 heterozygous genotypes without phase (0/1)")
    assert "genome.unphased=as_written" in problem.fix
    genotypes = opened(tmp_path, REFERENCE, lines, unphased="as_written")
    found = genotypes.haplotypes(window(0, 6), SAMPLES)
    assert [[found.sequences[row] for row in rows] for rows in found.index] == [
        ["ACTTAC", "ACTTCC"],
        ["ACGTAC", "ACTTCC"],
        ["ACCTAC", "ACTTCC"],
    ]
    assert found.counts.unphased.tolist() == [1, 2, 2]
    assert opened(tmp_path, REFERENCE, lines).dosages(window(0, 6), ["b"])[0].tolist() == [
        [2, 0, 1]
    ]


def test_unphased_homozygotes_and_dosages_need_no_phase(tmp_path) -> None:
    sequences, counts = one(tmp_path, (3, "G", "T", "1/1"), (4, "T", "C", "./."), span=(0, 5))
    assert sequences == ["ACTTA", "ACTTA"]
    assert counts.unphased.tolist() == [0]


def test_haplotype_longer_than_the_encoder_takes(tmp_path) -> None:
    genotypes = opened(tmp_path, REFERENCE, [Line(8, "T", ("TGG",), ("0|0", "0|1", "0|0"))])
    assert len(genotypes.haplotypes(window(2, 12), SAMPLES, max_length_bp=12).sequences) == 2
    with pytest.raises(InputError) as error:
        genotypes.haplotypes(window(2, 12), SAMPLES, max_length_bp=11)
    (problem,) = error.value.problems
    assert problem.code == "haplotype-too-long"
    assert "window gene:0" in problem.where
    assert problem.found == "a haplotype of 12 bases (sample a)"
    assert problem.wanted == "the encoder takes at most 11"
    assert "at least 1 base" in problem.fix


def test_ambiguous_bases_and_case_of_the_fasta(tmp_path) -> None:
    fasta = write_fasta(tmp_path, "acRTnACGT")
    vcf = write_vcf(
        tmp_path, [Line(3, "a", ("g",), ("0|1",)), Line(5, "N", ("C",), ("1|1",))], ["s"]
    )
    found = Genotypes(vcf, fasta).haplotypes(window(0, 9), ["s"])
    assert found.reference == "ACRTNACGT"
    assert found.sequences == ["ACRTNACGT", "ACGTCACGT", "ACRTCACGT"]


def test_no_variant_no_sample_and_repeated_samples(tmp_path) -> None:
    genotypes = opened(tmp_path, REFERENCE, [Line(3, "G", ("T",), ("0|1", "1|0", "0|0"))])
    empty = genotypes.haplotypes(window(10, 15), SAMPLES)
    assert (empty.sequences, empty.index.tolist()) == ([REFERENCE[10:15]], [[0, 0]] * 3)
    values, names = genotypes.dosages(window(10, 15), SAMPLES)
    assert (values.shape, names) == ((3, 0), [])
    assert genotypes.haplotypes(window(0, 5), []).index.shape == (0, 2)
    assert genotypes.haplotypes(window(0, 5), ["a", "b", "a"]).index.tolist() == [
        [1, 0],
        [0, 1],
        [1, 0],
    ]


def test_bcf_and_pickled_copies_give_the_same(tmp_path) -> None:
    lines = [Line(3, "G", ("T",), ("0|1", "1|0", "0|0")), Line(8, "T", ("TGG",), ("1|1",) * 3)]
    genotypes = opened(tmp_path, REFERENCE, lines)
    expected = genotypes.haplotypes(window(0, 20), SAMPLES)
    copy = pickle.loads(pickle.dumps(genotypes))
    bcf = str(tmp_path / "genotypes.bcf")
    pysam.bcftools.view("-Ob", "-o", bcf, str(tmp_path / "genotypes.vcf.gz"), catch_stdout=False)
    pysam.bcftools.index(bcf)
    for other in (copy, Genotypes(bcf, tmp_path / "reference.fa")):
        found = other.haplotypes(window(0, 20), SAMPLES)
        assert found.sequences == expected.sequences
        np.testing.assert_array_equal(found.index, expected.index)
