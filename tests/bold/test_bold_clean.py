"""Confounds, censoring, filters and resampling, against nilearn and plain formulas."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bold_bench import (
    MOTION,
    RAW,
    Bench,
    confounds_table,
    parcel_input,
    save,
    volumes,
    write_recording,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dct

from encoders.errors import InputError
from multimodal.bold.clean import (
    clean_series,
    cosine_drifts,
    resample_series,
    resampled_positions,
)
from multimodal.bold.confounds import Confounds, framewise_displacement, read_confounds
from multimodal.bold.options import BoldOptions
from multimodal.bold.parcels import parcel_means
from multimodal.bold.segments import find_bold_problems, prepare_run

MNI = "space-MNI152NLin2009cAsym"


def written(table: pd.DataFrame, folder: Path) -> Path:
    path = folder / "confounds.tsv"
    table.to_csv(path, sep="\t", na_rep="n/a", index=False)
    return path


def problem_codes(table: pd.DataFrame, folder: Path, options: BoldOptions) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_confounds(written(table, folder), 40, options, "scan")
    return [problem.code for problem in caught.value.problems]


def plain(keep: np.ndarray, regressors: np.ndarray | None = None) -> Confounds:
    frames = len(keep)
    regressors = np.zeros((frames, 0)) if regressors is None else regressors
    names = [f"c{i}" for i in range(regressors.shape[1])]
    return Confounds(regressors, names, keep, np.full(frames, np.nan), {})


def residual(series: np.ndarray, regressors: np.ndarray) -> np.ndarray:
    design = np.hstack([np.ones((len(series), 1)), regressors])
    return series - design @ np.linalg.lstsq(design, series, rcond=None)[0]


@pytest.mark.parametrize("motion", ["basic", "power2", "derivatives", "full"])
@pytest.mark.parametrize("computed", [False, True])
def test_regressors_are_those_of_nilearn(tmp_path: Path, motion: str, computed: bool) -> None:
    from nilearn.interfaces.fmriprep import load_confounds

    bold = write_recording(tmp_path, f"sub-01_task-rest_{MNI}")
    table_path = bold.with_name("sub-01_task-rest_desc-confounds_timeseries.tsv")
    wanted, _ = load_confounds(
        str(bold),
        strategy=("motion", "wm_csf", "high_pass", "global_signal"),
        motion=motion,
        wm_csf="basic",
        global_signal="basic",
        demean=False,
    )
    if computed:  # the expansions are left to us
        table = pd.read_csv(table_path, sep="\t")
        table = table[[name for name in table if "power2" not in name and "deriv" not in name]]
        table.to_csv(table_path, sep="\t", index=False)
    options = BoldOptions(motion=motion, global_signal="basic", filter="confound_cosines")
    ours = read_confounds(table_path, 40, options, "scan")
    assert set(ours.names) == set(wanted.columns)
    np.testing.assert_allclose(ours.regressors, wanted[ours.names].to_numpy(), atol=1e-12)


def test_framewise_displacement_is_powers() -> None:
    motion = np.zeros((4, 6))
    motion[1] = [0.1, -0.2, 0, 0, 0, 0]
    motion[2] = [0.1, -0.2, 0.3, 0.01, 0, -0.002]
    fd_mm = framewise_displacement(motion)
    assert np.isnan(fd_mm[0])
    np.testing.assert_allclose(fd_mm[1:], [0.3, 0.3 + 0.5 + 0.1, 0.6 + 0.5 + 0.1])


def test_displacement_is_computed_where_the_column_is_missing(tmp_path: Path) -> None:
    table = confounds_table(40)
    with_column = read_confounds(written(table, tmp_path), 40, BoldOptions(), "scan")
    bare = table.drop(columns="framewise_displacement")
    without = read_confounds(written(bare, tmp_path), 40, BoldOptions(), "scan")
    np.testing.assert_allclose(with_column.fd_mm, without.fd_mm, rtol=1e-9)


def test_what_is_censored_and_why(tmp_path: Path) -> None:
    table = confounds_table(40)
    table["framewise_displacement"] = 0.1
    table.loc[[3, 10, 12], "framewise_displacement"] = 0.9
    table.loc[20, "std_dvars"] = 2.0
    table["non_steady_state_outlier00"] = (np.arange(40) == 0).astype(int)
    table["non_steady_state_outlier01"] = (np.arange(40) == 1).astype(int)
    options = BoldOptions(std_dvars_threshold=1.5, skip_frames=1)
    confounds = read_confounds(written(table, tmp_path), 40, options, "scan")
    assert np.flatnonzero(~confounds.keep).tolist() == [0, 1, 3, 10, 12, 20]
    assert confounds.dropped == {
        "skipped at the start": 1,
        "not in steady state": 1,
        "moved over 0.5 mm": 3,
        "over the DVARS threshold": 1,
    }
    kept_steady = replace(options, drop_non_steady=False, skip_frames=0, min_stretch_frames=5)
    confounds = read_confounds(written(table, tmp_path), 40, kept_steady, "scan")
    assert np.flatnonzero(~confounds.keep).tolist() == [0, 1, 2, 3, 10, 11, 12, 20]
    assert confounds.dropped["between censored frames"] == 4


def test_problems_of_confounds(tmp_path: Path) -> None:
    table = confounds_table(40)
    options = BoldOptions()
    assert problem_codes(table.drop(columns=["csf"]), tmp_path, options) == [
        "confounds-missing-column"
    ]
    bare = table[["csf", "white_matter"]]
    codes = problem_codes(bare, tmp_path, options)
    assert codes == ["confounds-missing-column"] * 7  # six of motion, and the displacement
    assert problem_codes(table.iloc[:39], tmp_path, options) == ["confounds-length"]
    assert (
        problem_codes(table, tmp_path, replace(options, compcor=2))
        == ["confounds-missing-column"] * 2
    )
    no_dvars = table.drop(columns="std_dvars")
    asked = replace(options, std_dvars_threshold=1.5)
    assert problem_codes(no_dvars, tmp_path, asked) == ["confounds-missing-column"]
    no_cosines = table.drop(columns="cosine00")
    asked = replace(options, filter="confound_cosines")
    assert problem_codes(no_cosines, tmp_path, asked) == ["confounds-missing-column"]
    table.loc[7, "csf"] = np.nan
    with pytest.raises(InputError) as caught:
        read_confounds(written(table, tmp_path), 40, options, "scan")
    (problem,) = caught.value.problems
    assert problem.code == "confounds-not-finite"
    assert problem.where.endswith("line 9")


def test_confounds_are_needed_only_when_used(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run = bench.run()
    unmasked = BoldOptions(use_mask=False)
    (problem,) = find_bold_problems([run], bench.atlas, parcel_input(), unmasked)
    assert problem.code == "confounds-missing"
    assert find_bold_problems([run], bench.atlas, parcel_input(), RAW) == []
    gone = replace(run, confounds=tmp_path / "absent.tsv")
    (problem,) = find_bold_problems([gone], bench.atlas, parcel_input(), RAW)
    assert problem.code == "confounds-missing"


def test_compcor_takes_the_combined_mask(tmp_path: Path) -> None:
    table = confounds_table(40)
    rng = np.random.default_rng(0)
    for i in range(4):
        table[f"a_comp_cor_{i:02d}"] = rng.normal(size=40)
    path = written(table, tmp_path)
    asked = BoldOptions(compcor=2)
    assert read_confounds(path, 40, asked, "scan").names[-2:] == ["a_comp_cor_00", "a_comp_cor_01"]
    masks = ("CSF", "combined", "WM", "combined")
    fields = [f'"a_comp_cor_{i:02d}": {{"Mask": "{mask}"}}' for i, mask in enumerate(masks)]
    path.with_suffix(".json").write_text("{" + ", ".join(fields) + "}")
    assert read_confounds(path, 40, asked, "scan").names[-2:] == ["a_comp_cor_01", "a_comp_cor_03"]


def test_regression_is_least_squares_on_the_kept_frames() -> None:
    rng = np.random.default_rng(3)
    series, regressors = rng.normal(size=(50, 4)) + 100, rng.normal(size=(50, 6))
    keep = rng.random(50) > 0.2
    options = replace(RAW, detrend=True, filter="cosine", high_pass_hz=0.02)
    cleaned = clean_series(series, plain(keep, regressors), 2.0, options)
    drifts = cosine_drifts(50, 2.0, 0.02)
    assert drifts.shape[1] == 4
    # nilearn detrends both sides over the kept frames, then regresses: one regression in all,
    # on a straight line through kept frames counted without gaps.
    line = np.arange(keep.sum())[:, None]
    wanted = residual(series[keep], np.hstack([np.hstack([regressors, drifts])[keep], line]))
    np.testing.assert_allclose(cleaned, wanted, atol=1e-9)


def test_cosines_are_the_slowest_of_the_discrete_cosine_transform() -> None:
    drifts = cosine_drifts(120, 2.0, 0.01)
    assert drifts.shape == (120, 4)  # half-cycles of 480 s down to 120 s: 0.0021 to 0.0083 Hz
    spectrum = np.abs(dct(drifts, axis=0, norm="ortho"))
    np.testing.assert_allclose(spectrum, np.sqrt(60) * np.eye(120)[:, 1:5], atol=1e-10)
    assert cosine_drifts(20, 2.0, 0.008).shape == (20, 0)


def test_a_confound_like_a_cosine_does_not_switch_the_filter_off() -> None:
    frames = 200
    drift = cosine_drifts(frames, 2.0, 0.01)
    rng = np.random.default_rng(0)
    regressors = drift[:, :1] + 0.05 * rng.normal(size=(frames, 1))
    series = 1000 + drift @ rng.normal(size=(drift.shape[1], 3)) * 50
    options = replace(RAW, detrend=True, filter="cosine", high_pass_hz=0.01)
    keep = np.ones(frames, dtype=bool)
    cleaned = clean_series(series, plain(keep, regressors), 2.0, options)
    assert cleaned.std() < 5  # 35 without the filter


@pytest.mark.parametrize("censored", [[], [0, 1], [30, 31, 70], [99]])
def test_butterworth_passes_its_band_only(censored: list[int]) -> None:
    time_s = np.arange(300) * 2.0
    slow, within = np.sin(2 * np.pi * 0.003 * time_s), np.sin(2 * np.pi * 0.04 * time_s)
    fast = np.sin(2 * np.pi * 0.2 * time_s)
    keep = np.ones(300, dtype=bool)
    keep[censored] = False
    options = replace(RAW, filter="butterworth", high_pass_hz=0.01, low_pass_hz=0.1, detrend=True)
    cleaned = clean_series((slow + within + fast)[:, None], plain(keep), 2.0, options)
    assert cleaned.shape == (keep.sum(), 1)
    assert np.corrcoef(cleaned[:, 0], within[keep])[0, 1] > 0.95


@pytest.mark.parametrize(
    ("high_pass_hz", "low_pass_hz", "wrong"),
    [(0.3, None, ["high_pass_hz"]), (0.01, 0.25, ["low_pass_hz"]), (0.01, 0.24, [])],
)
def test_cut_offs_stay_below_nyquist(
    tmp_path: Path, high_pass_hz: float, low_pass_hz: float | None, wrong: list[str]
) -> None:
    bench = Bench(tmp_path)
    cuts = {"high_pass_hz": high_pass_hz, "low_pass_hz": low_pass_hz}
    options = replace(RAW, filter="butterworth", **cuts)
    problems = find_bold_problems([bench.run()], bench.atlas, parcel_input(), options)
    assert [problem.code for problem in problems] == ["filter-cut-off"] * len(wrong)
    for problem, name in zip(problems, wrong, strict=True):
        assert f"bold.{name}" in problem.found
        assert "below 0.25 Hz" in problem.wanted


def test_butterworth_takes_short_runs() -> None:
    options = replace(RAW, filter="butterworth", high_pass_hz=0.01, low_pass_hz=0.1, detrend=True)
    series = np.random.default_rng(0).normal(size=(12, 2))
    cleaned = clean_series(series, plain(np.arange(12) != 5), 2.0, options)
    assert cleaned.shape == (11, 2)
    assert np.isfinite(cleaned).all()


@pytest.mark.parametrize("kind", ["none", "cosine", "butterworth"])
@pytest.mark.parametrize("detrend", [False, True])
def test_a_constant_parcel_is_not_blown_up(kind: str, detrend: bool) -> None:
    rng = np.random.default_rng(0)
    series = rng.normal(size=(80, 3)) + 1000
    series[:, 1] = 1234.56789
    high_pass_hz = None if kind == "none" else 0.02
    options = replace(RAW, filter=kind, high_pass_hz=high_pass_hz, detrend=detrend)
    keep = np.arange(80) % 9 != 4
    cleaned = clean_series(series, plain(keep, rng.normal(size=(80, 5))), 2.0, options)
    assert np.ptp(cleaned[:, 1]) == 0
    assert cleaned[:, 0].std() > 0.3


def test_censored_frames_leave_no_trace(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    table = confounds_table(60)
    table["framewise_displacement"] = 0.1
    table.loc[[15, 40], "framewise_displacement"] = 3.0
    data = volumes(60)
    spec = parcel_input(frames=14, normalisation="zscore_parcel")
    options = BoldOptions(use_mask=False, motion="basic", filter="confound_cosines")
    calm = prepare_run(bench.run(data, confounds=table), bench.atlas, spec, options)
    data[..., [15, 40]] += 1e5
    spiked = prepare_run(bench.run(data, confounds=table), bench.atlas, spec, options)
    np.testing.assert_array_equal(calm.values, spiked.values)
    assert calm.start_frame.tolist() == [0, 14, 29, 44]
    assert calm.frames_kept == 58
    np.testing.assert_allclose(calm.mean_fd_mm, 0.1, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.floats(0.3, 3), st.floats(0.3, 3), st.integers(0, 1000))
def test_resampled_positions_stay_within_kept_frames(
    frames: int, tr_s: float, wanted_tr_s: float, seed: int
) -> None:
    keep = np.random.default_rng(seed).random(frames) > 0.2
    positions = resampled_positions(keep, tr_s, wanted_tr_s)
    assert (positions >= 0).all()
    assert (positions <= frames - 1).all()
    assert keep[np.floor(positions + 1e-6).astype(int)].all()
    steps = positions * tr_s / wanted_tr_s
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-5)


@pytest.mark.parametrize(("tr_s", "wanted_tr_s"), [(2.0, 0.72), (0.72, 2.0), (2.0, 2.0)])
def test_resampling_keeps_slow_waves_and_drops_what_would_alias(
    tr_s: float, wanted_tr_s: float
) -> None:
    frames = int(600 / tr_s)
    time_s = np.arange(frames) * tr_s
    keep = np.ones(frames, dtype=bool)
    slow = np.sin(2 * np.pi * 0.03 * time_s)
    fast = np.sin(2 * np.pi * 0.55 * time_s) if tr_s == 0.72 else 0 * time_s
    positions = resampled_positions(keep, tr_s, wanted_tr_s)
    out = resample_series((slow + fast)[:, None], np.arange(frames), positions, tr_s, wanted_tr_s)
    wanted = np.sin(2 * np.pi * 0.03 * positions * tr_s)
    inner = slice(20, -20)
    np.testing.assert_allclose(out[inner, 0], wanted[inner], atol=0.02)


def test_repetition_time_unlike_the_encoders(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run = bench.run(volumes(100))
    spec = parcel_input(frames=50, tr_s=0.8)
    (problem,) = find_bold_problems([run], bench.atlas, spec, RAW)
    assert problem.code == "tr-mismatch"
    assert "2 s" in problem.found
    assert "0.8 s" in problem.wanted
    ignored = prepare_run(run, bench.atlas, spec, replace(RAW, tr_mismatch="ignore"))
    assert ignored.values.shape == (2, 4, 50)
    assert ignored.tr_s == 2.0
    resampled = prepare_run(run, bench.atlas, spec, replace(RAW, tr_mismatch="resample"))
    assert resampled.values.shape == (4, 4, 50)  # 99 x 2 s / 0.8 s: 248 frames
    assert resampled.tr_s == pytest.approx(0.8)
    assert resampled.start_frame.tolist() == [0, 20, 40, 60]
    series = parcel_means(volumes(100), bench.atlas.labels, bench.atlas.ids)
    np.testing.assert_allclose(resampled.values[0, :, ::5].T, series[:20:2], rtol=1e-5)
    near = parcel_input(frames=50, tr_s=2.015)
    assert find_bold_problems([run], bench.atlas, near, RAW) == []


def test_too_many_confounds_for_a_short_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run = bench.run(volumes(25), confounds=confounds_table(25))
    options = BoldOptions(use_mask=False)
    (problem,) = find_bold_problems([run], bench.atlas, parcel_input(), options)
    assert problem.code == "confounds-too-many"
    assert "26 confounds" in problem.found
    less = replace(options, motion="basic")
    assert find_bold_problems([run], bench.atlas, parcel_input(), less) == []


def test_cleaning_lowers_what_motion_explains(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    table = confounds_table(120)
    data = volumes(120) + 3000 * table["trans_x"].to_numpy() - 2000 * table["csf"].to_numpy() / 50
    run = bench.run(data, confounds=table)
    options = BoldOptions(use_mask=False)
    segments = prepare_run(run, bench.atlas, parcel_input(), options)
    for name in (*MOTION, "csf"):
        for parcel in segments.values[0]:
            assert abs(np.corrcoef(parcel, table[name])[0, 1]) < 0.15
    dirty = prepare_run(run, bench.atlas, parcel_input(), RAW).values[0, 0]
    assert abs(np.corrcoef(dirty, table["trans_x"])[0, 1]) > 0.5


def test_options_that_contradict_themselves() -> None:
    for values in (
        {"motion": "some"},
        {"filter": "fft"},
        {"low_pass_hz": 0.1},
        {"high_pass_hz": None},
        {"filter": "butterworth", "high_pass_hz": None},
        {"filter": "butterworth", "high_pass_hz": 0.2, "low_pass_hz": 0.1},
        {"fd_threshold_mm": 0},
        {"compcor": -1},
        {"stride_frames": 0},
        {"min_frames": 1},
        {"min_frames": 20.5},
        {"stride_frames": 0.5},
        {"stride_frames": True},
        {"skip_frames": 2.5},
        {"compcor": 1.5},
        {"compcor": "2"},
        {"min_stretch_frames": None},
        {"use_mask": "false"},
        {"detrend": 1},
        {"task": 1},
        {"fd_threshold_mm": "0.5"},
        {"high_pass_hz": float("inf")},
        {"filter": "butterworth", "high_pass_hz": "0.1", "low_pass_hz": 0.2},
    ):
        with pytest.raises(InputError) as caught:
            BoldOptions(**values)
        assert {problem.code for problem in caught.value.problems} == {"bold-option"}
        assert all(problem.where.startswith("bold.") for problem in caught.value.problems)


def test_confounds_file_that_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "confounds.tsv"
    path.write_text("")
    with pytest.raises(InputError, match="the file is empty"):
        read_confounds(path, 40, BoldOptions(), "scan")
    path.write_bytes("trans_x\té\n".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        read_confounds(path, 40, BoldOptions(), "scan")
    save(volumes(2), tmp_path / "scan.nii")
    with pytest.raises(InputError):
        read_confounds(tmp_path / "scan.nii", 40, BoldOptions(), "scan")


def test_a_tab_behind_every_row_does_not_shift_columns(tmp_path: Path) -> None:
    path = written(confounds_table(40), tmp_path)
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *(f"{row}\t" for row in rows)]) + "\n")
    with pytest.raises(InputError) as caught:
        read_confounds(path, 40, BoldOptions(), "scan")
    problems = caught.value.problems
    assert {problem.code for problem in problems} == {"confounds-row-width"}
    assert problems[0].where == f"{path} line 2"
    assert "35 more rows" in problems[-1].found
    path.write_text("\n".join(f"{row}\t" for row in [header, *rows]) + "\n")
    assert len(read_confounds(path, 40, BoldOptions(), "scan").keep) == 40


def test_lines_of_confounds_are_the_files(tmp_path: Path) -> None:
    table = confounds_table(40)
    table["csf"] = table["csf"].astype(object)
    table.loc[7, "csf"] = "abc"
    path = written(table, tmp_path)
    path.write_text("\n" + path.read_text().replace("\n", "\n\n"))
    with pytest.raises(InputError) as caught:
        read_confounds(path, 40, BoldOptions(), "scan")
    (problem,) = caught.value.problems
    assert problem.where == f"{path} line {2 + 2 * 8}"
    assert "csf is abc" in problem.found


@pytest.mark.parametrize("name", ["std_dvars", "framewise_displacement"])
@pytest.mark.parametrize("rows", [range(1, 40), range(1)])
def test_words_where_censoring_wants_numbers(tmp_path: Path, name: str, rows: range) -> None:
    table = confounds_table(40)
    table[name] = table[name].astype(object)
    table.loc[list(rows), name] = "abc"
    options = BoldOptions(std_dvars_threshold=1.5)
    assert problem_codes(table, tmp_path, options) == ["confounds-not-finite"]
