"""Finding runs in a derivatives folder and in a table of paths."""

from pathlib import Path

import numpy as np
import pytest
from bold_bench import RAW, Bench, parcel_input, write_recording

from encoders.errors import InputError
from multimodal.bold.bids import find_runs, find_subjects, natural_key
from multimodal.bold.options import BoldOptions
from multimodal.bold.segments import find_bold_problems, prepare_run

MNI = "space-MNI152NLin2009cAsym"


def problem_codes(source: Path, ids: list[str], **choice: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        find_runs(source, ids, **choice)
    return [problem.code for problem in caught.value.problems]


def test_runs_come_in_a_natural_order_with_all_their_files(tmp_path: Path) -> None:
    for stem in [
        f"sub-02_ses-10_task-rest_run-1_{MNI}",
        f"sub-02_ses-2_task-rest_run-10_{MNI}",
        f"sub-02_ses-2_task-rest_run-9_{MNI}",
        f"sub-01_task-rest_{MNI}",
        f"sub-03_task-rest_{MNI}",
    ]:
        write_recording(tmp_path, stem, tr_s=0.8)
    runs = find_runs(tmp_path, ["sub-02", "01", "sub-99"])
    found = [(run.participant_id, run.session, run.run) for run in runs]
    assert found == [
        ("sub-02", "2", "9"),
        ("sub-02", "2", "10"),
        ("sub-02", "10", "1"),
        ("01", "", ""),
    ]
    for run in runs:
        assert run.tr_s == 0.8
        assert run.mask is not None
        assert run.confounds is not None
        assert run.confounds.name.endswith("_desc-confounds_timeseries.tsv")
        assert "space" not in run.confounds.name


def test_a_folder_found_is_a_folder_prepared(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    write_recording(tmp_path, f"sub-01_task-rest_run-1_{MNI}", frames=60)
    runs = find_runs(tmp_path, ["sub-01"])
    spec = parcel_input(frames=20, normalisation="zscore_parcel")
    assert find_bold_problems(runs, bench.atlas, spec, BoldOptions()) == []
    segments = prepare_run(runs[0], bench.atlas, spec)
    assert segments.values.shape == (3, 4, 20)
    assert np.isfinite(segments.values).all()


def test_several_spaces_need_a_choice(tmp_path: Path) -> None:
    for space in (MNI, "space-MNI152NLin6Asym_res-2", "space-MNI152NLin6Asym_res-1"):
        write_recording(tmp_path, f"sub-01_task-rest_{space}")
    write_recording(tmp_path, "sub-01_task-rest")
    assert problem_codes(tmp_path, ["sub-01"]) == ["bold-ambiguous"]
    assert problem_codes(tmp_path, ["sub-01"], space="MNI152NLin6Asym") == ["bold-ambiguous"]
    assert problem_codes(tmp_path, ["sub-01"], space="T1w") == ["bold-space"]
    for choice, part in [
        ("MNI152NLin2009cAsym", MNI),
        ("MNI152NLin6Asym:res-2", "res-2"),
        ("func", "task-rest_desc"),
    ]:
        (run,) = find_runs(tmp_path, ["sub-01"], space=choice)
        assert part in run.bold.name
        assert run.mask is not None
        assert part in run.mask.name


def test_several_tasks_need_a_choice(tmp_path: Path) -> None:
    write_recording(tmp_path, f"sub-01_task-rest_{MNI}")
    write_recording(tmp_path, f"sub-01_task-nback_{MNI}")
    assert problem_codes(tmp_path, ["sub-01"]) == ["bold-ambiguous"]
    (run,) = find_runs(tmp_path, ["sub-01"], task="rest")
    assert "rest" in run.bold.name


def test_echoes_are_no_runs(tmp_path: Path) -> None:
    for echo in (1, 2):
        write_recording(tmp_path, f"sub-01_task-rest_echo-{echo}_{MNI}")
    assert problem_codes(tmp_path, ["sub-01"]) == ["bold-ambiguous"]
    write_recording(tmp_path, f"sub-01_task-rest_{MNI}")
    (run,) = find_runs(tmp_path, ["sub-01"])
    assert "echo" not in run.bold.name


def test_phase_encoding_directions_are_runs_of_their_own(tmp_path: Path) -> None:
    for direction in ("PA", "AP"):
        write_recording(tmp_path, f"sub-01_task-rest_dir-{direction}_run-1_{MNI}")
    assert [run.run for run in find_runs(tmp_path, ["sub-01"])] == ["dir-AP_run-1", "dir-PA_run-1"]


def test_repetition_time_is_inherited_from_folders_above(tmp_path: Path) -> None:
    write_recording(tmp_path, f"sub-01_task-rest_{MNI}", tr_s=None)
    (tmp_path / "task-rest_bold.json").write_text('{"RepetitionTime": 1.5}')
    (tmp_path / "task-nback_bold.json").write_text('{"RepetitionTime": 9}')
    (run,) = find_runs(tmp_path, ["sub-01"])
    assert run.tr_s == 1.5
    (tmp_path / "sub-01" / "func" / "sub-01_task-rest_bold.json").write_text(
        '{"RepetitionTime": 0.9}'
    )
    assert find_runs(tmp_path, ["sub-01"])[0].tr_s == 0.9


def test_a_broken_sidecar_is_reported_for_every_participant(tmp_path: Path) -> None:
    for sub in ("01", "02"):
        bold = write_recording(tmp_path, f"sub-{sub}_task-rest_{MNI}")
        sidecar = bold.with_name(bold.name.replace(".nii.gz", ".json"))
        sidecar.write_text('{"RepetitionTime": "two"}')
    assert problem_codes(tmp_path, ["sub-01", "sub-02"]) == ["sidecar-unreadable"] * 2


def test_a_missing_mask_is_reported(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    write_recording(tmp_path, f"sub-01_task-rest_{MNI}", mask=False)
    runs = find_runs(tmp_path, ["sub-01"])
    assert runs[0].mask is None
    problems = find_bold_problems(runs, bench.atlas, parcel_input(), BoldOptions())
    assert [problem.code for problem in problems] == ["mask-missing"]


def test_the_pipelines_folder_may_lie_one_deeper(tmp_path: Path) -> None:
    write_recording(tmp_path / "fmriprep", f"sub-01_task-rest_{MNI}")
    assert len(find_runs(tmp_path, ["sub-01"])) == 1
    write_recording(tmp_path / "xcp_d", f"sub-01_task-rest_{MNI}")
    assert problem_codes(tmp_path, ["sub-01"]) == ["bold-ambiguous"]


def test_nothing_there(tmp_path: Path) -> None:
    assert problem_codes(tmp_path / "absent", ["sub-01"]) == ["bold-missing"]
    assert find_runs(tmp_path, ["sub-01"]) == []


TABLE = """participant_id\tsession\trun\tbold\tmask\tconfounds\ttr_s
sub-02\t\t10\tb10.nii.gz\tn/a\tn/a\t2.0
sub-02\t\t9\tb9.nii.gz\tm.nii.gz\tc.tsv\tn/a
sub-01\ta\t\t{absolute}\t\t\t0.735
sub-03\ta\t\tx.nii.gz\t\t\t0.735
"""


def test_a_table_of_paths(tmp_path: Path) -> None:
    absolute = tmp_path / "elsewhere" / "scan.nii.gz"
    table = tmp_path / "paths" / "bold.tsv"
    table.parent.mkdir()
    table.write_text(TABLE.format(absolute=absolute))
    runs = find_runs(table, ["sub-01", "sub-02"])
    assert [(run.participant_id, run.run) for run in runs] == [
        ("sub-01", ""),
        ("sub-02", "9"),
        ("sub-02", "10"),
    ]
    assert runs[0].bold == absolute
    assert runs[0].tr_s == 0.735
    assert runs[1].mask == table.parent / "m.nii.gz"
    assert runs[1].confounds == table.parent / "c.tsv"
    assert runs[1].tr_s is None
    assert runs[2].mask is None
    assert runs[2].confounds is None


def test_a_table_needs_no_more_than_ids_and_paths(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run(name="01")
    table = tmp_path / "bold.tsv"
    table.write_text("participant_id\tbold\nsub-01\t01_bold.nii.gz\n")
    (run,) = find_runs(table, ["sub-01"])
    assert prepare_run(run, bench.atlas, parcel_input(), RAW).values.shape == (1, 4, 40)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("participant\tfile\na\tb\n", "line 1"),
        ("participant_id\tbold\nsub-01\ta.nii\nsub-01\tb.nii\n", "line 3"),
        ("participant_id\tbold\ttr_s\nsub-01\ta.nii\ttwo\n", "tr_s 'two'"),
        ("participant_id\tbold\nsub-01\tn/a\n", "line 2"),
        ("participant_id\tbold\nn/a\ta.nii\n", "no participant_id"),
        ("\nparticipant_id\tbold\n\nsub-01\tn/a\n", "line 4"),
    ],
)
def test_a_table_with_mistakes(tmp_path: Path, text: str, found: str) -> None:
    table = tmp_path / "bold.tsv"
    table.write_text(text)
    with pytest.raises(InputError) as caught:
        find_runs(table, ["sub-01"])
    assert found in str(caught.value)
    assert {problem.code for problem in caught.value.problems} == {"bold-table"}


def test_numbers_sort_as_numbers() -> None:
    names = ["run-10", "run-2", "run-1b", "run-1", "a", ""]
    assert sorted(names, key=natural_key) == ["", "a", "run-1", "run-1b", "run-2", "run-10"]


def test_a_tab_behind_a_row_loses_no_subject(tmp_path: Path) -> None:
    table = tmp_path / "bold.tsv"
    table.write_text("participant_id\tbold\tmask\nsub-01\ta.nii\tm.nii\t\n")
    with pytest.raises(InputError) as caught:
        find_runs(table, ["sub-01"])
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == ("bold-table-row-width", f"{table} line 2")
    table.write_text('"participant_id"\t"bold"\t\n"sub-01"\t"a, b.nii"\t\n')
    (run,) = find_runs(table, ["sub-01"])
    assert run.bold == tmp_path / "a, b.nii"


@pytest.mark.parametrize("content", [b"", "participant_id\tbold\nJosé\ta".encode("latin-1")])
def test_a_table_that_is_none(tmp_path: Path, content: bytes) -> None:
    table = tmp_path / "bold.tsv"
    table.write_bytes(content)
    with pytest.raises(InputError):
        find_runs(table, ["sub-01"])


def test_subjects_are_folders_one_deeper_too_or_rows_of_a_table(tmp_path: Path) -> None:
    for name in ("sub-02", "sub-01"):
        (tmp_path / "fmriprep" / name).mkdir(parents=True)
    (tmp_path / "fmriprep" / "sub-01.html").touch()
    assert find_subjects(tmp_path) == ["sub-01", "sub-02"]
    table = tmp_path / "bold.tsv"
    table.write_text("participant_id\tbold\tsession\nB\tb.nii\t1\nB\tc.nii\t2\nA\ta.nii\t1\n")
    assert find_subjects(table) == ["B", "A"]
    with pytest.raises(InputError, match="no such file or folder"):
        find_subjects(tmp_path / "gone")
