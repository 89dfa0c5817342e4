"""BED and GTF reading, windows, sequence functions."""

import gzip
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import InputError
from multimodal.genome import (
    Region,
    Window,
    make_windows,
    oriented,
    read_regions,
    regions_from_gtf,
    reverse_complement,
    sequence_hash,
    write_regions,
)

IUPAC = st.text("ACGTRYSWKMBDHVNacgtn")


def bed(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "regions.bed"
    path.write_text(text)
    return path


def failures(path: Path) -> list[tuple[str, str, str]]:
    with pytest.raises(InputError) as error:
        read_regions(path)
    return [(p.code, p.where, p.found) for p in error.value.problems]


def test_bed_with_everything_that_is_allowed(tmp_path) -> None:
    text = (
        "\ufeff# genes\r\nbrowser position 7\r\ntrack name=genes\r\nchrom\tstart\tend\tname\r\n"
        "7\t0\t10\tA\t0\t-\r\n\r\n7\t5\t9\tB\t.\t+\textra\r\nchrX\t1\t2\r\n"
        "8\t3\t4\tC\n9\t3\t4\t.\t0\t.\n10 5 6 D\n"
    )
    expected = [
        Region("A", "7", 0, 10, "-"),
        Region("B", "7", 5, 9, "+"),
        Region("chrX_1_2", "chrX", 1, 2, "+"),
        Region("C", "8", 3, 4, "+"),
        Region("9_3_4", "9", 3, 4, "+"),
        Region("D", "10", 5, 6, "+"),
    ]
    path = bed(tmp_path, text)
    assert read_regions(path) == expected
    packed = tmp_path / "regions.bed.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_regions(packed) == expected
    write_regions(expected, tmp_path / "out.bed")
    assert read_regions(tmp_path / "out.bed") == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "out.bed",
        "regions.bed",
        "regions.bed.gz",
    ]


def test_bed_faults_all_at_once_with_their_lines(tmp_path) -> None:
    path = bed(
        tmp_path,
        "#comment\n7\t41200\t41200\tA\n7\t1\n\n7\tx\t5\tB\n7\t-1\t5\tB\n7\t1\t5\tC\t0\tforward\n"
        "7\t1\t5\tD\n7\t1\t6\tD\n7\t1\t6.5\tE\n7\t1\t6\ta/b\n",
    )
    assert failures(path) == [
        ("bed-interval", f"{path} line 2", "end 41,200 is not after start 41,200"),
        ("bed-columns", f"{path} line 3", "2 columns"),
        ("bed-position", f"{path} line 5", "start is 'x'"),
        ("bed-position", f"{path} line 6", "start is '-1'"),
        ("bed-strand", f"{path} line 7", "strand is 'forward'"),
        ("bed-duplicate", f"{path} line 9", "the name 'D' was used on line 8"),
        ("bed-position", f"{path} line 10", "end is '6.5'"),
        ("bed-name", f"{path} line 11", "the name is 'a/b'"),
    ]
    with pytest.raises(InputError, match="a region needs at least one base"):
        read_regions(path)


def test_bed_empty_missing_and_binary(tmp_path) -> None:
    assert failures(bed(tmp_path, "# nothing\n"))[0][0] == "bed-empty"
    assert failures(tmp_path / "absent.bed")[0][0] == "bed-missing"
    path = tmp_path / "cut.bed.gz"
    path.write_bytes(gzip.compress(b"7\t1\t5\n" * 1000)[:20])
    assert failures(path)[0][0] == "bed-unreadable"
    path.write_bytes(b"\xff\xfe\x00")
    assert failures(path)[0][0] == "bed-unreadable"


def gtf(tmp_path: Path) -> Path:
    path = tmp_path / "genes.gtf"
    attributes = 'gene_id "{}"; gene_name "{}"; level 2;'
    rows = [
        ("gene", 11, 20, "+", attributes.format("ENSG01.3", "BDNF")),
        ("exon", 11, 15, "+", attributes.format("ENSG01.3", "BDNF")),
        ("gene", 31, 50, "-", attributes.format("ENSG02.1", "TWIN")),
        ("gene", 61, 70, "-", attributes.format("ENSG03.1", "TWIN")),
    ]
    lines = [f"chr11\tHAVANA\t{kind}\t{a}\t{b}\t.\t{s}\t.\t{rest}" for kind, a, b, s, rest in rows]
    path.write_text("#!genome-build GRCh38\n" + "\n".join(lines) + "\n")
    return path


def test_gtf_genes_become_regions(tmp_path) -> None:
    assert regions_from_gtf(gtf(tmp_path), ["ENSG02", "BDNF", "ENSG03.1"]) == [
        Region("ENSG02", "chr11", 30, 50, "-"),
        Region("BDNF", "chr11", 10, 20, "+"),
        Region("ENSG03.1", "chr11", 60, 70, "-"),
    ]


def test_gtf_faults(tmp_path) -> None:
    with pytest.raises(InputError) as error:
        regions_from_gtf(gtf(tmp_path), ["BDNF", "TWIN", "NONE", "BDNF"])
    assert [(p.code, p.found) for p in error.value.problems] == [
        ("gene-duplicate", "gene 'BDNF' is asked for twice"),
        ("gene-ambiguous", "2 genes are called 'TWIN' (lines 4, 5)"),
        ("gene-missing", "no gene 'NONE'"),
    ]
    with pytest.raises(InputError, match="line 1: 3 columns"):
        regions_from_gtf(bed(tmp_path, "7\t1\t5\n"), ["BDNF"])


@given(
    st.integers(0, 500),
    st.integers(1, 400),
    st.integers(1, 120),
    st.integers(0, 60),
    st.sampled_from("+-"),
)
@settings(deadline=None, max_examples=100)
def test_windows_lie_end_to_end(start, length, length_bp, flank_bp, strand) -> None:
    region = Region("gene", "7", start, start + length, strand)
    limit = start + length + 30
    windows = make_windows([region], length_bp=length_bp, flank_bp=flank_bp, lengths={"7": limit})
    low, high = max(0, start - flank_bp), min(limit, start + length + flank_bp)
    assert [w.index for w in windows] == list(range(len(windows)))
    assert (windows[0].start_bp, windows[-1].end_bp) == (low, high)
    assert all(a.end_bp == b.start_bp for a, b in itertools.pairwise(windows))
    sizes = [w.end_bp - w.start_bp for w in windows]
    assert max(sizes) <= length_bp
    assert max(sizes) - min(sizes) <= 1
    assert len(windows) == -(-(high - low) // length_bp)
    assert {(w.region, w.chrom, w.strand) for w in windows} == {("gene", "7", strand)}


def test_windows_one_a_region_and_their_names() -> None:
    regions = [Region("A:1", "7", 5, 25, "-"), Region("B", "8", 0, 3)]
    windows = make_windows(regions, length_bp=None, flank_bp=10)
    assert windows == [Window("A:1", 0, "7", 0, 35, "-"), Window("B", 0, "8", 0, 13, "+")]
    assert [w.name for w in windows] == ["A:1:0", "B:0"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"length_bp": 0}, "length_bp: 0; at least 1 base a window"),
        ({"length_bp": 5, "flank_bp": -1}, "flank_bp: -1"),
        (
            {"length_bp": 20, "max_length_bp": 10},
            "length_bp: 20 bases; the encoder takes at most",
        ),
        (
            {"length_bp": None, "max_length_bp": 99},
            "window A:0: 100 bases; the encoder takes at",
        ),
        (
            {"length_bp": 5, "lengths": {"7": 99}},
            "region A: it ends at base 100 of 7, which has",
        ),
    ],
)
def test_window_faults(options, text) -> None:
    with pytest.raises(InputError, match=text):
        make_windows([Region("A", "7", 0, 100)], **options)


@given(IUPAC)
@settings(deadline=None)
def test_reverse_complement_is_its_own_inverse(sequence) -> None:
    assert reverse_complement(reverse_complement(sequence)) == sequence
    assert oriented(sequence, "+") == oriented(sequence, ".") == sequence
    assert oriented(sequence, "-") == reverse_complement(sequence)


def test_reverse_complement_and_hash_by_hand() -> None:
    assert reverse_complement("ACGTRYSWKMBDHVNacgt") == "acgtNBDHVKMWSRYACGT"
    assert reverse_complement("AUG") == "CAT"
    assert len(sequence_hash("")) == 32
    assert sequence_hash("") == "e3b0c44298fc1c149afbf4c8996fb924"
    assert sequence_hash("ACGT") != sequence_hash("ACGA")
    with pytest.raises(ValueError, match="strand is 'x'"):
        oriented("A", "x")
