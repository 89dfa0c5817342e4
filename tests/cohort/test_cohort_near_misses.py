"""Files that were meant are named with the way out; a side that is not there is said plainly."""

from pathlib import Path

import pytest

from multimodal.cohort.near_misses import find_missing_parts, find_near_misses
from multimodal.cohort.table import CohortPaths


def near_misses(folder: Path, *names: str) -> dict[str, str]:
    for name in names:
        (folder / name).touch()
    found = find_near_misses(folder, CohortPaths.from_dir(folder))
    return {field: str(problem) for field, problem in found.items()}


@pytest.mark.parametrize(
    ("name", "field", "fix"),
    [
        ("genotypes.vcf", "genotypes", "bgzip {0} && tabix -p vcf {0}.gz"),
        ("genotypes.vcf.bgz", "genotypes", "set cohort.genotypes={0}"),
        ("genotypes.pgen", "genotypes", "--export vcf bgz"),
        ("reference.fasta", "reference", "set cohort.reference={0}"),
        ("regions.bed.gz", "regions", "gunzip -c {0}"),
        ("participants.csv", "participants", "tab-separated as participants.tsv"),
        ("kinship.csv", "kinship", "tab-separated as kinship.tsv"),
        ("ukb.kin0", "kinship", "set cohort.kinship={0}"),
        ("fmriprep", "bold", "set cohort.bold={0}"),
        ("atlas_424.nii.gz", "atlas", "set cohort.atlas={0}"),
        ("atlas.dlabel.nii", "atlas", "as NIfTI"),
        ("atlas.csv", "atlas_table", "tab-separated as atlas.tsv"),
    ],
)
def test_a_near_miss_is_named_with_the_way_out(
    tmp_path: Path, name: str, field: str, fix: str
) -> None:
    found = near_misses(tmp_path, name)
    assert list(found) == [field]
    assert name in found[field]
    assert fix.format(tmp_path / name) in found[field]


def test_a_name_that_the_fix_does_not_make_standard_is_to_be_set(tmp_path: Path) -> None:
    found = near_misses(tmp_path, "genotype.vcf")["genotypes"]
    assert f"set cohort.genotypes={tmp_path / 'genotype.vcf.gz'}" in found


def test_the_standard_file_makes_others_beside_it_harmless(tmp_path: Path) -> None:
    assert (
        near_misses(tmp_path, "genotypes.vcf", "genotypes.vcf.gz", "atlas.nii", "notes.txt") == {}
    )


def test_a_file_given_by_itself_is_not_looked_for(tmp_path: Path) -> None:
    (tmp_path / "reference.fasta").touch()
    paths = CohortPaths(reference=tmp_path / "elsewhere.fa")
    assert find_near_misses(tmp_path, paths) == {}


def test_one_side_alone_is_a_warning_and_none_a_problem(tmp_path: Path) -> None:
    vcf, fasta = Path("a.vcf.gz"), Path("a.fa")
    problems, warnings = find_missing_parts(None, CohortPaths(bold=Path("derivatives")))
    assert problems == []
    assert ["no genotypes: align needs both sides" in str(w) for w in warnings] == [True]
    problems, warnings = find_missing_parts(None, CohortPaths(genotypes=vcf, reference=fasta))
    assert problems == []
    assert [w.where for w in warnings] == ["cohort.bold", "cohort.regions"]
    problems, _ = find_missing_parts(None, CohortPaths(genotypes=vcf))
    assert [p.where for p in problems] == ["cohort.reference"]
    problems, warnings = find_missing_parts(tmp_path, CohortPaths())
    assert [p.code for p in problems] == ["cohort-no-side"]
    assert warnings == []


def test_a_file_of_another_name_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "ukb.vcf.gz").touch()
    _, (warning,) = find_missing_parts(tmp_path, CohortPaths(bold=tmp_path))
    assert f"set cohort.genotypes={tmp_path / 'ukb.vcf.gz'}" in str(warning)
