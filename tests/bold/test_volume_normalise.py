"""Normalised volumes against what the published scripts of SwiFT and BrainMT write."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from bold_bench import RAW
from parity_sets import parity_cases
from safetensors.numpy import load_file

from encoders.errors import InputError
from multimodal.bold.bids import BoldRun
from multimodal.bold.inputs import prepare
from multimodal.bold.swift_frames import swift_frames
from multimodal.bold.volume_normalise import (
    find_volume_normalisation_problems,
    foreground_of,
    linear_scaling,
    normalise_volumes,
    scale_in_place,
    to_half,
)
from multimodal.bold.volume_plan import find_orientation_problems


def config_of(case: Path) -> dict[str, Any]:
    file = case / "config.json"
    return json.loads(file.read_text()) if file.is_file() else {}


SWIFT = [
    pytest.param(case, file, id=f"{case.name}-{file}")
    for case in parity_cases("swift")
    if config_of(case).get("kind") == "preprocessing"
    for file in config_of(case)["files"]
]
BRAINMT = [
    pytest.param(case, id=case.name)
    for case in parity_cases("brainmt")
    if "scaling_method" in config_of(case) and "stats_float64" in config_of(case)
]
BRAINMT_NAMES = {None: "brainmt_none", "minmax": "brainmt_minmax", "z-norm": "brainmt_znorm"}


def intensities(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float32)


def steps_apart(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference in steps of half precision; differences below 1e-6 count as none."""
    assert found.dtype == expected.dtype == np.float16
    assert found.shape == expected.shape
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
    finite = ~np.isinf(expected)
    apart = np.abs(found[finite].astype(np.float64) - expected[finite])
    size = np.maximum(np.abs(expected[finite]), np.float16(6e-8))
    step = size.astype(np.float64) - np.nextafter(size, np.float16(0))
    return float(np.where(apart <= 1e-6, 0.0, apart / step).max())


def swift_agrees(found: np.ndarray, expected: np.ndarray, tolerance: dict[str, float]) -> bool:
    apart = np.abs(found.astype(np.float64) - expected)
    room = tolerance["atol"] + tolerance["rtol"] * np.abs(expected.astype(np.float64))
    return found.dtype == np.float16 and bool((apart <= room).all())


@pytest.mark.parametrize(("case", "file"), SWIFT)
def test_swift_frames(case: Path, file: str) -> None:
    config, expected = config_of(case), load_file(case / "expected.safetensors")
    volumes = intensities(case / f"{file}.nii.gz")
    low, high = config["crop"]["y"]
    compared = 0
    for scaling in config["scaling"]:
        for zero in config["fill_zeroback"]:
            key = f"{file}.{scaling}" + (".zero_background" if zero else "")
            found = swift_frames(volumes, scaling, fill_zeroback=zero, y_crop=(-low, high))
            assert swift_agrees(found, expected[key], config["tolerance"]["f16"]), key
            compared += 1
    assert compared > 0


@pytest.mark.parametrize(("case", "file"), SWIFT)
def test_swift_statistics_and_unrounded_values(case: Path, file: str) -> None:
    config, expected = config_of(case), load_file(case / "expected.safetensors")
    low, high = config["crop"]["y"]
    cropped = intensities(case / f"{file}.nii.gz")[:, low:high]
    found = foreground_of(cropped)
    stats = [found.mean, found.std, found.minimum, found.maximum]
    np.testing.assert_allclose(stats, expected[f"{file}.stats_mean_std_min_max_f64"], rtol=1e-12)
    single = expected[f"{file}.stats_mean_std_min_max"]
    np.testing.assert_allclose(stats, single, rtol=1e-5)
    share = 1 - found.count / cropped.size
    assert share == pytest.approx(config["files"][file]["background_fraction"], abs=1e-12)
    key = f"{file}.z-norm_unrounded_f64"
    if key in expected:
        np.testing.assert_allclose(
            normalise_volumes(cropped, "swift_znorm"), expected[key], atol=1e-12
        )


@pytest.mark.parametrize(("case", "file"), SWIFT)
def test_mistakes_in_swift_frames_show(case: Path, file: str) -> None:
    config, expected = config_of(case), load_file(case / "expected.safetensors")
    low, high = config["crop"]["y"]
    volumes = intensities(case / f"{file}.nii.gz")
    cropped = volumes[:, low:high].astype(np.float64)
    always = (cropped == 0).all(axis=3, keepdims=True)
    brain = np.where(always, np.nan, cropped)
    mistakes = {
        "zeros at single time points are brain": np.nan_to_num(
            (brain - np.nanmean(brain)) / np.nanstd(brain, ddof=1), nan=0.0
        ),
        "background counts": (cropped - cropped.mean()) / cropped.std(ddof=1),
        "no crop before the statistics": swift_frames(volumes, "z-norm", y_crop=(0, 0))[
            :, low:high
        ],
        "one voxel at a time": np.nan_to_num(
            (brain - brain.mean(axis=3, keepdims=True)) / brain.std(axis=3, keepdims=True)
        ),
    }
    for name, wrong in mistakes.items():
        for end in ("", ".zero_background"):
            right = expected[f"{file}.z-norm{end}"]
            if name.startswith("no crop") and np.allclose(
                foreground_of(volumes).mean, foreground_of(volumes[:, low:high]).mean
            ):
                continue
            assert not swift_agrees(to_half(wrong), right, config["tolerance"]["f16"]), name


@pytest.mark.parametrize("case", BRAINMT)
def test_brainmt_volumes(case: Path) -> None:
    config, expected = config_of(case), load_file(case / "expected.safetensors")
    volumes = intensities(next(case.glob("*.nii.gz")))
    name = BRAINMT_NAMES[config["scaling_method"]]
    statistics = {"background": 0.0} if config["fill_zeroback"] else {}
    found = to_half(normalise_volumes(volumes, name, statistics))
    assert steps_apart(found, expected["func_data_MNI_fp16"]) <= 1
    assert int(np.isinf(found).sum()) == config["inf_count"]
    stats, wanted = foreground_of(volumes), config["stats_float64"]
    assert stats.count == wanted["foreground_values"]
    assert stats.mean == pytest.approx(wanted["mean"], rel=1e-12)
    assert stats.std == pytest.approx(wanted["std_unbiased"], rel=1e-12)
    assert (stats.minimum, stats.maximum) == (wanted["min"], wanted["max"])
    scaling = linear_scaling(name, statistics, stats)
    assert scaling.background == pytest.approx(wanted["fill_value"], rel=1e-12)
    if config["scaling_method"] is not None:
        for other in {"brainmt_znorm", "brainmt_minmax"} - {name}:
            wrong = to_half(normalise_volumes(volumes, other, statistics))
            assert steps_apart(wrong, expected["func_data_MNI_fp16"]) > 1


@pytest.mark.parametrize("case", BRAINMT)
def test_the_pipeline_gives_brainmt_its_volumes(case: Path) -> None:
    """Through `prepare`, in the file's own orientation, before the grid and half precision."""
    from types import SimpleNamespace

    config = config_of(case)
    image = next(case.glob("*.nii.gz"))
    stored = nib.load(image)
    spec = SimpleNamespace(
        shape=stored.shape[:3],
        frames=stored.shape[3],
        voxel_mm=None,
        tr_s=None,
        space=None,
        orientation="".join(nib.aff2axcodes(stored.affine)),
        normalisation=BRAINMT_NAMES[config["scaling_method"]],
        statistics={"background": 0.0} if config["fill_zeroback"] else {},
    )
    assert find_orientation_problems(spec) == []
    segments = prepare(BoldRun("sub-1", "", "", image, None, None, None), None, spec, RAW)
    found = to_half(segments.values[0][0])
    assert steps_apart(found, load_file(case / "expected.safetensors")["func_data_MNI_fp16"]) <= 1


def test_scaling_in_place_agrees_with_the_whole() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(1000, 200, (50, 70)).astype(np.float32)
    values[rng.uniform(size=values.shape) < 0.3] = 0
    wanted = normalise_volumes(values, "swift_znorm")
    scale_in_place(values, linear_scaling("swift_znorm", {}, foreground_of(values)))
    np.testing.assert_allclose(values, wanted, atol=1e-6)


def test_none_keeps_values_and_its_background_is_zero() -> None:
    values = np.array([[0.0, 3.0], [-2.0, 5.0]])
    np.testing.assert_array_equal(normalise_volumes(values, "none"), values)
    np.testing.assert_array_equal(
        normalise_volumes(values, "brainmt_none"), [[-2.0, 3.0], [-2.0, 5.0]]
    )
    np.testing.assert_array_equal(
        normalise_volumes(values, "brainmt_none", {"background": 7.0}), [[7.0, 3.0], [-2.0, 5.0]]
    )


def test_what_cannot_be_scaled_is_refused() -> None:
    with pytest.raises(InputError, match="every value is 0"):
        foreground_of(np.zeros((3, 2)))
    with pytest.raises(InputError, match="all values that are not 0 equal 4"):
        normalise_volumes(np.array([[0.0, 4.0], [4.0, 4.0]]), "swift_znorm")
    (problem,) = find_volume_normalisation_problems("zscore_parcel", {})
    assert problem.code == "normalisation-unknown"
    assert "swift_znorm" in problem.wanted
    (problem,) = find_volume_normalisation_problems("swift_znorm", {"background": float("nan")})
    assert problem.code == "normalisation-statistics"
