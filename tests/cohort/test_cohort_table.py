"""Reading participants and kinship: everything wrong is found at once, with its line."""

from pathlib import Path

import pytest

from encoders.errors import InputError
from multimodal.cohort.table import CohortPaths, find_table_problems, read_cohort

GOOD = """participant_id\tfamily_id\tgenotype_id\tsex\tage\tsite\tPC1
sub-01\tF1\tS1\tF\t31.5\t1\t0.1
sub-02\tF1\tS2\tM\tn/a\t1\t0.2
sub-03\tn/a\tn/a\tn/a\t40\t2\tn/a
"""


def cohort_dir(folder: Path, participants: str = GOOD, kinship: str | None = None) -> CohortPaths:
    (folder / "participants.tsv").write_text(participants)
    if kinship is not None:
        (folder / "kinship.tsv").write_text(kinship)
    return CohortPaths.from_dir(folder)


def codes_and_lines(paths: CohortPaths, **options: object) -> list[tuple[str, str]]:
    found = find_table_problems(paths, **options)  # type: ignore[arg-type]
    return [(problem.code, problem.where.rpartition(".tsv ")[2]) for problem in found]


def test_reads_types_and_fills_in(tmp_path: Path) -> None:
    cohort = read_cohort(cohort_dir(tmp_path, kinship="id1\tid2\tkinship\nsub-01\tsub-03\t0.25\n"))
    people = cohort.participants
    assert cohort.participant_ids == ["sub-01", "sub-02", "sub-03"]
    assert people["family_id"].tolist() == ["F1", "F1", "sub-03"]
    assert people["genotype_id"].tolist() == ["S1", "S2", None]
    assert people["site"].tolist() == ["1", "1", "2"]
    assert people["sex"].tolist() == ["F", "M", None]
    assert people["age"].isna().tolist() == [False, True, False]
    assert people["PC1"].dtype == float
    assert cohort.kinship.values.tolist() == [["sub-01", "sub-03", 0.25]]


def test_those_without_a_family_have_one_each(tmp_path: Path) -> None:
    text = "participant_id\tfamily_id\na\t0\nb\t0\nc\tn/a\nd\tc\ne\tF\nf\tF\n"
    families = read_cohort(cohort_dir(tmp_path, text)).participants["family_id"]
    assert families.nunique() == 5
    assert families["a"] == "a"
    assert families["c"] != families["d"]
    assert families["e"] == families["f"] == "F"


@pytest.mark.parametrize("word", ["NA", "nan", "#N/A", "."])
def test_other_programs_words_for_missing_are_named(tmp_path: Path, word: str) -> None:
    text = f"participant_id\tfamily_id\tiq\tgroup\nx\tF\t99\tA\ny\tG\t{word}\tNA\n"
    (problem,) = find_table_problems(cohort_dir(tmp_path, text))
    assert problem.code == "participants-missing-word"
    assert problem.where.endswith("line 3")
    assert f"iq is '{word}'" in problem.found
    assert "n/a" in problem.fix
    text = text.replace(f"\t{word}\tNA", "\tn/a\tNA")
    people = read_cohort(cohort_dir(tmp_path, text)).participants
    assert people["iq"].dtype == float
    assert people["group"].tolist() == ["A", "NA"]
    families = text.replace("\tG\t", f"\t{word}\t")
    assert codes_and_lines(cohort_dir(tmp_path, families)) == [
        ("participants-missing-word", "line 3")
    ]


def test_quotes_and_surplus_fields(tmp_path: Path) -> None:
    text = '"participant_id"\t"age"\n"x"\t31\n"y ""z"""\t32\n'
    assert read_cohort(cohort_dir(tmp_path, text)).participant_ids == ["x", 'y "z"']
    rows = "".join(f"p{i}\t30\t\n" for i in range(9))
    problems = find_table_problems(cohort_dir(tmp_path, f"participant_id\tage\n{rows}"))
    found = [problem for problem in problems if problem.code == "participants-row-width"]
    assert [problem.where.rpartition(" ")[2] for problem in found[:5]] == list("23456")
    assert found[5].found.startswith("4 more rows")
    assert len(found) == 6


@pytest.mark.parametrize(
    ("header", "meant"), [("scanner_site", "scanner_site"), ("Site", "Site"), ("wing", None)]
)
def test_a_column_of_another_name_is_guessed(
    tmp_path: Path, header: str, meant: str | None
) -> None:
    paths = cohort_dir(tmp_path, f"participant_id\tsex\t{header}\nsub-01\tf\tleeds\n")
    (problem,) = find_table_problems(paths, required=["sex", "site"])
    assert problem.fix.startswith(f"is it {meant}? Else add it" if meant else "add it, or take")


def test_genotype_id_defaults_to_participant_id(tmp_path: Path) -> None:
    cohort = read_cohort(cohort_dir(tmp_path, "participant_id\nsub-01\nsub-02\n"))
    assert cohort.participants["genotype_id"].tolist() == ["sub-01", "sub-02"]
    assert cohort.participants["family_id"].tolist() == ["sub-01", "sub-02"]


def test_byte_order_mark_windows_ends_and_blank_lines(tmp_path: Path) -> None:
    text = "\ufeffparticipant_id\tage\r\n\r\nsub-01\t3\r\nsub-02\tx\r\n"
    assert codes_and_lines(cohort_dir(tmp_path, text)) == [("participants-not-a-number", "line 4")]


def test_take_keeps_order_and_inner_pairs(tmp_path: Path) -> None:
    kinship = "id1\tid2\tkinship\nsub-01\tsub-03\t0.25\nsub-01\tsub-02\t0.25\n"
    taken = read_cohort(cohort_dir(tmp_path, kinship=kinship)).take(["sub-03", "sub-01"])
    assert taken.participant_ids == ["sub-03", "sub-01"]
    assert len(taken.kinship) == 1


def test_everything_wrong_in_one_pass(tmp_path: Path) -> None:
    participants = (
        "participant_id\tgenotype_id\tage\n"
        "sub-01\tS1\t30\n"
        "sub-02\tS1\told\n"
        "\tS3\t30\n"
        "sub-01\tS4\t30\n"
        "sub-05\t\t30\n"
        "sub-06\tS6\n"
    )
    kinship = "id1\tid2\tkinship\nsub-01\tnobody\t0.25\nsub-01\tsub-02\t0.9\nsub-01\tsub-01\t0.5\n"
    paths = cohort_dir(tmp_path, participants, kinship)
    assert codes_and_lines(paths, required=["site"]) == [
        ("participants-row-width", "line 7"),
        ("participants-column", "line 1"),
        ("participants-empty-id", "line 4"),
        ("participants-duplicate", "lines 2 and 5"),
        ("participants-empty-id", "line 6"),
        ("participants-duplicate-genotype", "lines 2 and 3"),
        ("participants-not-a-number", "line 3"),
        ("kinship-unknown-id", "line 2"),
        ("kinship-range", "line 3"),
        ("kinship-self", "line 4"),
    ]
    with pytest.raises(InputError, match="appears 2 times"):
        read_cohort(paths)


def test_no_modality_needs_both_absent(tmp_path: Path) -> None:
    paths = cohort_dir(tmp_path)
    assert find_table_problems(paths, with_bold={"sub-03"}) == []
    found = codes_and_lines(paths, with_bold={"sub-01"})
    assert found == [("participants-no-modality", "line 4")]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "participants-empty"),
        ("id\tage\nsub-01\t3\n", "participants-column"),
        ("participant_id\tage\tage\n", "participants-column"),
        ("participant_id\n", "participants-empty"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, code: str) -> None:
    assert [found for found, _ in codes_and_lines(cohort_dir(tmp_path, text))] == [code]


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert [p.code for p in find_table_problems(CohortPaths())] == ["participants-missing"]
    gone = CohortPaths(participants=tmp_path / "gone.tsv")
    assert [p.code for p in find_table_problems(gone)] == ["participants-unreadable"]
    with pytest.raises(InputError, match="no such folder"):
        CohortPaths.from_dir(tmp_path / "nowhere")


def test_paths_can_be_overridden(tmp_path: Path) -> None:
    (tmp_path / "genotypes.bcf").touch()
    paths = CohortPaths.from_dir(tmp_path, reference="other.fa", atlas=None)
    assert (paths.genotypes, paths.reference, paths.atlas) == (
        tmp_path / "genotypes.bcf",
        Path("other.fa"),
        None,
    )
    with pytest.raises(TypeError, match="genome"):
        CohortPaths.from_dir(tmp_path, genome="x")


KING = "#FID1\tID1\tFID2\tID2\tN_SNP\tHetHet\tIBS0\tKinship\n"


def test_king_table_names_genotypes_and_may_hold_strangers(tmp_path: Path) -> None:
    paths = cohort_dir(tmp_path)
    king = tmp_path / "relatives.kin0"
    king.write_text(KING + "0\tS1\t0\tS2\t99\t.1\t.01\t0.25\n0\tS1\t0\tS9\t99\t.1\t.2\t-1.4\n")
    cohort = read_cohort(paths.with_paths(kinship=king))
    assert cohort.kinship.values.tolist() == [["sub-01", "sub-02", 0.25]]


def test_king_table_of_another_cohort(tmp_path: Path) -> None:
    paths = cohort_dir(tmp_path)
    king = tmp_path / "relatives.kin0"
    king.write_text(KING + "0\tX1\t0\tX2\t99\t.1\t.01\t0.25\n")
    found = find_table_problems(paths.with_paths(kinship=king))
    assert [problem.code for problem in found] == ["kinship-unknown-id"]


def test_plink2_header(tmp_path: Path) -> None:
    king = tmp_path / "plink2.kin0"
    king.write_text("#IID1 IID2 NSNP HETHET IBS0 KINSHIP\nS1 S2 9 0.1 0 0.354\n")
    cohort = read_cohort(cohort_dir(tmp_path).with_paths(kinship=king))
    assert cohort.kinship["kinship"].tolist() == [0.354]


def test_kinship_without_its_columns(tmp_path: Path) -> None:
    found = codes_and_lines(cohort_dir(tmp_path, kinship="a\tb\nsub-01\tsub-02\n"))
    assert found == [("kinship-column", "line 1")]
