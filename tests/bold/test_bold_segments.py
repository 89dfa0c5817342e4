"""Normalisations (with BrainLM's C1 to C3), cutting, ordering, and one-pass checking."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bold_bench import AFFINE, RAW, Bench, confounds_table, parcel_input, volumes
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_sets import parity_cases
from safetensors.numpy import load_file

from encoders.errors import InputError
from multimodal.bold.normalise import (
    NORMALISATIONS,
    brainlm_robust,
    brainlm_robust_statistics,
    minmax,
    normalise,
)
from multimodal.bold.options import BoldOptions
from multimodal.bold.parcels import parcel_means
from multimodal.bold.plan import segment_starts
from multimodal.bold.segments import find_bold_problems, parcel_order, prepare_run

CASES = {case.name[:2]: case for case in parity_cases("brainlm")}
needs = {
    name: pytest.mark.skipif(name not in CASES, reason=f"full fixture set has {name}, not at hand")
    for name in ("C1", "C2", "C3")
}
STD, PERCENTILE_99 = 41.44047, 111.13143061224855


@needs["C1"]
def test_brainlm_columns_of_the_ukb_script() -> None:
    raw = load_file(CASES["C1"] / "inputs.safetensors")
    columns = load_file(CASES["C1"] / "expected.safetensors")
    splits: dict[str, list[str]] = {}
    for key in columns:
        if key.endswith("Raw_Recording"):
            split, name, _ = key.split("/")
            splits.setdefault(split, []).append(name)
    assert sum(map(len, splits.values())) == 10
    for split, names in splits.items():
        together = np.concatenate([raw[f"raw/{name}"] for name in names])
        extremes = {"minimum": float(together.min()), "maximum": float(together.max())}
        for name in names:
            x = raw[f"raw/{name}"]
            for column, ours, tolerance in [
                ("All_Patient_All_Voxel", normalise(x, "minmax_fixed", extremes), 1e-6),
                ("Per_Patient_All_Voxel", normalise(x, "minmax_run"), 1e-6),
                ("Per_Patient_Per_Voxel", normalise(x, "minmax_parcel"), 1e-6),
                (
                    "Per_Voxel_All_Patient",
                    minmax(x, together.min(axis=0), together.max(axis=0)),
                    1e-6,
                ),
                ("Subtract_Mean", normalise(x, "subtract_mean_divide", {"divide_by": 1}), 2e-4),
                (
                    "Subtract_Mean_Divide_Global_STD",
                    normalise(x, "subtract_mean_divide", {"divide_by": STD}),
                    1e-5,
                ),
                (
                    "Subtract_Mean_Divide_Global_99thPercent",
                    normalise(x, "subtract_mean_divide", {"divide_by": PERCENTILE_99}),
                    1e-5,
                ),
            ]:
                wanted = columns[f"{split}/{name}/{column}_Normalized_Recording"]
                np.testing.assert_allclose(ours, wanted, rtol=1e-6, atol=tolerance, err_msg=column)


@needs["C2"]
def test_brainlm_columns_of_the_toolkit() -> None:
    inputs = load_file(CASES["C2"] / "inputs.safetensors")
    expected = load_file(CASES["C2"] / "expected.safetensors")
    raw = inputs["base"].astype(np.float64) + inputs["q"].astype(np.float64) / 4
    few, subset = inputs["parcel_subset_small"], inputs["parcel_subset"]
    extremes = {"minimum": 177.75, "maximum": 1214.25}
    for column, ours, tolerance in [
        ("All_Patient_All_Voxel", normalise(raw[0], "minmax_fixed", extremes), 1e-6),
        ("Per_Patient_All_Voxel", normalise(raw[0], "minmax_run"), 1e-6),
        ("Per_Patient_Per_Voxel", normalise(raw[0], "minmax_frame"), 1e-6),
        (
            "Per_Voxel_All_Patient",
            minmax(raw[0], raw.min(axis=(0, 2))[:, None], raw.max(axis=(0, 2))[:, None]),
            1e-6,
        ),
        (
            "Subtract_Mean",
            normalise(raw[0], "subtract_frame_mean_divide", {"divide_by": 1}),
            5e-4,
        ),
        (
            "Subtract_Mean_Divide_Global_STD",
            normalise(raw[0], "subtract_frame_mean_divide", {"divide_by": STD}),
            5e-4,
        ),
    ]:
        wanted = expected[f"sub_0.dat/{column}_Normalized_Recording[subset_small, :]"]
        np.testing.assert_allclose(ours[:, few].T, wanted, rtol=0, atol=tolerance, err_msg=column)
    median, iqr = brainlm_robust_statistics(list(raw))
    np.testing.assert_allclose(median, expected["stats/median_per_parcel"], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(iqr, expected["stats/iqr_per_parcel"], rtol=1e-6)
    for number in (0, 1):
        name = f"sub_{number}.dat/Voxelwise_RobustScaler_Normalized_Recording[:, subset]"
        with np.errstate(invalid="ignore"):
            ours = brainlm_robust(raw[number], median, iqr)
        np.testing.assert_allclose(ours[:, subset], expected[name], rtol=0, atol=1e-4)


@needs["C3"]
def test_brainlm_parcel_order_and_layout() -> None:
    inputs = load_file(CASES["C3"] / "inputs.safetensors")
    expected = load_file(CASES["C3"] / "expected.safetensors")
    order = parcel_order(inputs["xyz"], "y")
    np.testing.assert_array_equal(order, expected["vitmae/reorder_index_by_Y"])
    for number, start in enumerate(inputs["vitmae_start_idx"]):
        window = inputs["recordings_time_by_parcel"][number][int(start) :][:20]
        scaled = normalise(window, "none", {"divide_by": 5.6430855})[:, order].T
        for channel in expected["vitmae/pixel_values"][number]:
            np.testing.assert_allclose(scaled, channel, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(parcel_order(inputs["xyz"], "atlas"), np.arange(13))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 40), st.floats(0.01, 1e4), st.floats(-1e4, 1e4))
def test_scores_do_not_depend_on_unit_and_origin(
    seed: int, frames: int, scale: float, shift: float
) -> None:
    x = np.random.default_rng(seed).normal(size=(frames, 3))
    for name in ("zscore_parcel", "zscore_run", "robust_parcel", "minmax_run", "minmax_parcel"):
        moved = normalise(scale * x + shift, name)
        np.testing.assert_allclose(moved, normalise(x, name), rtol=1e-5, atol=1e-5, err_msg=name)


def test_formulas_of_the_normalisations() -> None:
    x = np.random.default_rng(0).normal(3, 2, size=(30, 5))
    np.testing.assert_array_equal(normalise(x, "none"), x)
    np.testing.assert_allclose(normalise(x, "zscore_parcel"), (x - x.mean(0)) / x.std(0))
    np.testing.assert_allclose(normalise(x, "zscore_run"), (x - x.mean()) / x.std())
    q25, q50, q75 = np.percentile(x, [25, 50, 75], axis=0)
    wanted = (x - q50) / (q75 - q25) / 5.6430855
    np.testing.assert_allclose(normalise(x, "robust_parcel", {"divide_by": 5.6430855}), wanted)
    wanted = (x - x.mean(0)) / 41
    np.testing.assert_allclose(normalise(x, "subtract_mean_divide", {"divide_by": 41}), wanted)


@pytest.mark.parametrize("name", sorted(NORMALISATIONS))
def test_constant_series_stay_finite(name: str) -> None:
    x = np.full((10, 3), 0.1)
    constants = {"divide_by": 2.0, "minimum": 0.0, "maximum": 1.0}
    assert np.isfinite(normalise(x, name, constants)).all()
    if "zscore" in name or "robust" in name:
        np.testing.assert_array_equal(normalise(x, name), 0)


@pytest.mark.parametrize(
    ("name", "statistics", "code"),
    [
        ("zscore", {}, "normalisation-unknown"),
        ("subtract_mean_divide", {}, "normalisation-statistics"),
        ("subtract_mean_divide", {"divide_by": 0}, "normalisation-statistics"),
        ("minmax_fixed", {"minimum": 1.0}, "normalisation-statistics"),
        ("minmax_fixed", {"minimum": 1.0, "maximum": 1.0}, "normalisation-statistics"),
    ],
)
def test_normalisations_that_cannot_be(
    tmp_path: Path, name: str, statistics: dict[str, float], code: str
) -> None:
    with pytest.raises(InputError) as caught:
        normalise(np.ones((3, 2)), name, statistics)
    assert caught.value.problems[0].code == code
    bench = Bench(tmp_path)
    spec = parcel_input(normalisation=name, statistics=statistics)
    found = find_bold_problems([bench.run(), bench.run()], bench.atlas, spec, RAW)
    assert [problem.code for problem in found] == [code]  # once, not once a run


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.integers(1, 30), st.integers(1, 30), st.integers(0, 1000))
def test_segments_tile_the_kept_frames(frames: int, length: int, stride: int, seed: int) -> None:
    keep = np.random.default_rng(seed).random(frames) > 0.1
    positions = np.flatnonzero(keep).astype(float)
    joined = segment_starts(positions, 1.0, length, stride, within_gaps=True)
    assert len(joined) == max(0, (len(positions) - length) // stride + 1)
    broken = segment_starts(positions, 1.0, length, stride, within_gaps=False)
    for start in broken:
        rows = positions[start : start + length]
        assert len(rows) == length
        np.testing.assert_array_equal(np.diff(rows), 1)
    assert len(broken) <= len(joined) or stride > 1


def test_values_are_cut_in_order_with_motion(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    table = confounds_table(50)
    table["framewise_displacement"] = np.r_[np.nan, np.arange(1, 50) / 100]
    data = volumes(50)
    run = bench.run(data, confounds=table)
    options = replace(RAW, stride_frames=15)
    segments = prepare_run(run, bench.atlas, parcel_input(frames=20), options)
    assert segments.values.shape == (3, 4, 20)
    assert segments.values.dtype == np.float32
    assert segments.values.flags.c_contiguous
    assert segments.start_frame.tolist() == [0, 15, 30]
    assert segments.start_frame.dtype == np.int64
    series = parcel_means(data, bench.atlas.labels, bench.atlas.ids)
    np.testing.assert_allclose(segments.values[1], series[15:35].T, rtol=1e-6)
    wanted = [np.arange(1, 20).mean() / 100, np.arange(15, 35).mean() / 100, 0.395]
    np.testing.assert_allclose(segments.mean_fd_mm, wanted, rtol=1e-6)


def test_gaps_may_break_segments(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    table = confounds_table(60)
    table["framewise_displacement"] = 0.1
    table.loc[[25], "framewise_displacement"] = 2.0
    run = bench.run(volumes(60), confounds=table)
    options = replace(RAW, fd_threshold_mm=0.5, gaps="break")
    segments = prepare_run(run, bench.atlas, parcel_input(frames=20), options)
    assert segments.start_frame.tolist() == [0, 26]
    joined = replace(options, gaps="join")
    starts = prepare_run(run, bench.atlas, parcel_input(frames=20), joined).start_frame
    assert starts.tolist() == [0, 20]
    (problem,) = find_bold_problems([run], bench.atlas, parcel_input(frames=40), options)
    assert problem.code == "run-too-short"
    assert "without a gap" in problem.wanted


def test_a_whole_run_is_one_segment(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for frames in (25, 33):
        segments = prepare_run(bench.run(volumes(frames)), bench.atlas, parcel_input(), RAW)
        assert segments.values.shape == (1, 4, frames)
        assert segments.mean_fd_mm.tolist() == [0.0]


def test_parcels_ascend_in_y_and_keep_their_coordinates(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    atlas = replace(bench.atlas, xyz_mm=np.float32([[0, 5, 0], [1, -5, 0], [2, 5, 0], [3, -9, 0]]))
    run = bench.run()
    plain = prepare_run(run, atlas, parcel_input(), RAW)
    sorted_by_y = prepare_run(run, atlas, parcel_input(order="y"), RAW)
    assert sorted_by_y.xyz_mm[:, 0].tolist() == [3, 1, 0, 2]
    np.testing.assert_array_equal(sorted_by_y.values[0], plain.values[0][[3, 1, 0, 2]])


def test_normalisation_is_over_the_whole_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    spec = parcel_input(frames=20, normalisation="zscore_parcel")
    segments = prepare_run(bench.run(volumes(40)), bench.atlas, spec, RAW)
    whole = np.concatenate(list(segments.values), axis=1)
    np.testing.assert_allclose(whole.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(whole.std(axis=1), 1, rtol=1e-6)
    assert np.abs(segments.values.mean(axis=2)).max() > 1e-3


def test_wrong_number_of_parcels_says_what_to_do(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    spec = parcel_input(parcels=424, atlas="A424")
    (problem,) = find_bold_problems([bench.run()], bench.atlas, spec, RAW)
    assert problem.code == "channel-count"
    assert str(problem).startswith(
        "channel count: the atlas has 4 labels; the encoder wants 424 (A424); "
        "set cohort.atlas to an A424 image"
    )
    assert find_bold_problems([], bench.atlas, spec, RAW) == [problem]


def test_too_short_says_what_censoring_took(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    table = confounds_table(40)
    table["framewise_displacement"] = np.where(np.arange(40) % 4 == 2, 0.9, 0.1)
    run = bench.run(confounds=table)
    options = replace(RAW, fd_threshold_mm=0.5)
    (problem,) = find_bold_problems([run], bench.atlas, parcel_input(frames=35), options)
    assert problem.code == "run-too-short"
    assert "40 frames, 30 of them kept (10 moved over 0.5 mm)" in problem.found
    assert "35 frames" in problem.wanted
    assert "fd_threshold_mm" in problem.fix
    with pytest.raises(InputError, match="run too short"):
        prepare_run(run, bench.atlas, parcel_input(frames=35), options)


def test_everything_wrong_is_found_in_one_pass(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    mask, table = np.ones(bench.atlas.labels.shape), confounds_table(40)
    nan = volumes(40)
    nan[..., 3] = np.nan
    good = {"mask": mask, "confounds": table}
    runs = [
        bench.run(name="01", **good),
        bench.run(name="02", **good),
        bench.run(nan, name="03", **good),
        bench.run(volumes(5), name="04", mask=mask, confounds=confounds_table(5)),
        bench.run(name="05", tr=0, tr_s=None, **good),
        bench.run(name="06", affine=AFFINE + 1, mask=None, confounds=table),
        bench.run(name="07", mask=mask, confounds=table.drop(columns="trans_y")),
        bench.run(volumes(40)[..., 0], name="08", **good),
        bench.run(name="09", **good),
        bench.run(volumes(5), name="10", tr_s=3.0, mask=None, confounds=confounds_table(40)),
    ]
    runs[1].bold.write_bytes(runs[1].bold.read_bytes()[:5000])
    spec = parcel_input(parcels=424, atlas="A424", frames=20, tr_s=2.0)
    options = BoldOptions(motion="basic")
    problems = find_bold_problems(runs, bench.atlas, spec, options)
    by_scan: dict[str, list[str]] = {}
    for problem in problems:
        by_scan.setdefault(Path(problem.where).name[:2], []).append(problem.code)
    assert by_scan == {
        "ch": ["channel-count"],
        "02": ["bold-truncated"],
        "03": ["bold-nan"],
        "04": ["run-too-short"],
        "05": ["tr-missing"],
        "06": ["atlas-grid", "mask-missing"],
        "07": ["confounds-missing-column"],
        "08": ["not-4d"],
        "10": ["tr-disagrees", "mask-missing", "confounds-length", "run-too-short"],
    }
    for run in runs:
        with pytest.raises(InputError):
            prepare_run(run, bench.atlas, spec, options)


def test_nothing_heavy_is_imported_on_the_way() -> None:
    script = "import sys, multimodal.bold.segments as s; "
    script += "sys.exit(bool({'torch', 'nilearn', 'sklearn', 'lightning'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_encoders_own_input_record_will_do(tmp_path: Path) -> None:
    from encoders.base import ParcelInput

    bench = Bench(tmp_path)
    spec = ParcelInput(parcels=4, frames=10, order="y", normalisation="zscore_run")
    segments = prepare_run(bench.run(), bench.atlas, spec, RAW)
    assert segments.values.shape == (4, 4, 10)
