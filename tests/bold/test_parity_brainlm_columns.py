"""BrainLM's preprocessing, every number that upstream's scripts left behind (C1 to C3, D1)."""

import json
import random
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from parity_sets import parity_cases
from safetensors.numpy import load_file

from multimodal.bold.normalise import (
    brainlm_robust,
    brainlm_robust_statistics,
    minmax,
    normalise,
)
from multimodal.bold.parcels import load_atlas, parcel_means
from multimodal.bold.segments import parcel_order

CASES = parity_cases("brainlm")
ATLAS = next(case.parent / "atlas" for case in CASES if (case.parent / "atlas").is_dir())
CONSTANTS = {"divide_by": 5.6430855}
WINDOW = 200


def over(prefix: str) -> pytest.MarkDecorator:
    chosen = [case for case in CASES if case.name.startswith(prefix)]
    return pytest.mark.parametrize("case", chosen, ids=[case.name for case in chosen])


def constants(case: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((case / "case.json").read_text())["constants"]
    return found


@over("C1")
def test_columns_of_the_ukb_script(case: Path) -> None:
    facts = json.loads((case / "case.json").read_text())
    inputs = load_file(case / "inputs.safetensors")
    expected = load_file(case / "expected.safetensors")
    raw = {key.removeprefix("raw/"): x for key, x in inputs.items() if key.startswith("raw/")}
    assert sorted(raw) == facts["sorted_files"]
    found = {"coordinates_xyz": (inputs["coordinates"][:, 1:], 0.0)}
    for split, names in facts["split"].items():
        stacked = np.concatenate([raw[name] for name in names])
        ends = {"minimum": float(stacked.min()), "maximum": float(stacked.max())}
        for name in names:
            x = raw[name]
            columns = {
                "Raw_Recording": (x, 0.0),
                "All_Patient_All_Voxel": (normalise(x, "minmax_fixed", ends), 1e-6),
                "Per_Patient_All_Voxel": (normalise(x, "minmax_run"), 1e-6),
                "Per_Patient_Per_Voxel": (normalise(x, "minmax_parcel"), 1e-6),
                "Per_Voxel_All_Patient": (minmax(x, stacked.min(0), stacked.max(0)), 1e-6),
            }
            columns |= divided_columns(x, "subtract_mean_divide", facts["constants"], 2e-4, 1e-5)
            for column, value in columns.items():
                ending = "" if column == "Raw_Recording" else "_Normalized_Recording"
                found[f"{split}/{name}/{column}{ending}"] = value
    assert_all(found, expected, rtol=1e-6)


def divided_columns(
    x: np.ndarray, name: str, divisors: dict[str, float], plain: float, divided: float
) -> dict[str, tuple[np.ndarray, float]]:
    divide_by = {"": 1.0, "_Divide_Global_STD": divisors["global_std"]}
    divide_by["_Divide_Global_99thPercent"] = divisors["percentile99"]
    return {
        f"Subtract_Mean{ending}": (
            normalise(x, name, {"divide_by": by}),
            divided if ending else plain,
        )
        for ending, by in divide_by.items()
    }


def assert_all(
    found: dict[str, tuple[np.ndarray, float]], expected: dict[str, np.ndarray], rtol: float
) -> None:
    assert set(found) == set(expected)
    for key, (value, atol) in found.items():
        np.testing.assert_allclose(value, expected[key], rtol=rtol, atol=atol, err_msg=key)


@over("C2")
def test_columns_of_the_toolkit(case: Path) -> None:
    facts = json.loads((case / "case.json").read_text())
    inputs = load_file(case / "inputs.safetensors")
    raw = inputs["base"].astype(np.float64) + inputs["q"].astype(np.float64) / 4
    few, subset = inputs["parcel_subset_small"], inputs["parcel_subset"]
    ends = {"minimum": facts["global_train_min"], "maximum": facts["global_train_max"]}
    frame_ends = raw.min(axis=(0, 2)), raw.max(axis=(0, 2))
    columns = {
        "All_Patient_All_Voxel": (normalise(raw[0], "minmax_fixed", ends), 1e-6),
        "Per_Patient_All_Voxel": (normalise(raw[0], "minmax_run"), 1e-6),
        "Per_Patient_Per_Voxel": (normalise(raw[0], "minmax_frame"), 1e-6),
        "Per_Voxel_All_Patient": (minmax(raw[0], *(end[:, None] for end in frame_ends)), 1e-6),
    }
    columns |= divided_columns(raw[0], "subtract_frame_mean_divide", facts["constants"], 5e-4, 5e-4)
    found = {
        f"sub_0.dat/{column}_Normalized_Recording[subset_small, :]": (value[:, few].T, atol)
        for column, (value, atol) in columns.items()
    }
    found |= statistics_of(raw, few, subset)
    found["stats/min_per_row_index"], found["stats/max_per_row_index"] = (
        (end, 0.0) for end in frame_ends
    )
    found |= tutorial_windows(raw, facts, ends)
    assert_all(found, load_file(case / "expected.safetensors"), rtol=1e-6)


def statistics_of(
    raw: np.ndarray, few: np.ndarray, subset: np.ndarray
) -> dict[str, tuple[np.ndarray, float]]:
    """Robust columns, and the statistics over all files that they are made with."""
    median, iqr = brainlm_robust_statistics(list(raw))
    centred = np.concatenate([(x - x.mean(axis=0))[:WINDOW] for x in raw])
    column = "Voxelwise_RobustScaler_Normalized_Recording"
    with np.errstate(invalid="ignore"):
        robust = [brainlm_robust(x, median, iqr) for x in raw]
        intended = (raw[0] - raw[0].mean(axis=0) - median) / iqr
    return {
        "stats/median_per_parcel": (median, 1e-12),
        "stats/iqr_per_parcel": (iqr, 0.0),
        # Upstream works these two out and uses neither.
        "stats/mean_per_parcel": (centred.mean(axis=0), 1e-4),
        "stats/std_per_parcel": (centred.std(axis=0), 1e-4),
        f"sub_0.dat/{column}[:, subset]": (robust[0][:, subset], 1e-4),
        f"sub_1.dat/{column}[:, subset]": (robust[1][:, subset], 1e-4),
        f"sub_0.dat/{column}[:, subset_small]_f64": (robust[0][:, few], 1e-4),
        "intended_not_upstream/sub_0.dat/(x - mean - median) / iqr[:, subset_small]": (
            intended[:, few],
            1e-4,
        ),
    }


def tutorial_windows(
    raw: np.ndarray, facts: dict[str, object], ends: dict[str, float]
) -> dict[str, tuple[np.ndarray, float]]:
    """What upstream's tutorial makes of a column: a window drawn by chance, parcels by Y."""
    dice = random.Random(42)
    starts = [dice.randint(0, raw.shape[1] - WINDOW) for _ in raw]
    atlas = load_atlas(ATLAS / "A424+2mm.nii.gz", ATLAS / "A424_Coordinates.dat")
    order = parcel_order(atlas.xyz_mm, "y")
    found = {
        "start_idx_seed42": (np.array(starts), 0.0),
        "reorder_index_by_Y": (order, 0.0),
    }
    for number, start in enumerate(starts):
        scaled = normalise(raw[number], "minmax_fixed", {**ends, **CONSTANTS})
        pixels = scaled[start : start + WINDOW, order].T
        key = f"sub_{number}.dat/pixel_values[0, ::9, ::3] from All_Patient_All_Voxel"
        found[key] = (pixels[::9, ::3], 1e-6)
    return found


@over("C3")
def test_model_inputs(case: Path) -> None:
    facts = json.loads((case / "case.json").read_text())
    inputs = load_file(case / "inputs.safetensors")
    recordings, xyz = inputs["recordings_time_by_parcel"], inputs["xyz"]
    last_start = facts["timepoints"] - facts["window"]
    for family, seed in facts["python_random_seed"].items():
        dice = random.Random(seed)
        starts = [dice.randint(0, last_start) for _ in recordings]
        assert starts == inputs[f"{family}_start_idx"].tolist()
    cut = {
        family: np.stack(
            [
                normalise(x[start : start + facts["window"]], "none", statistics)[:, order].T
                for x, start in zip(recordings, inputs[f"{family}_start_idx"], strict=True)
            ]
        )
        for family, statistics, order in (
            ("nystrom", {}, parcel_order(xyz, "atlas")),
            ("vitmae", {"divide_by": facts["max_val_to_scale"]}, parcel_order(xyz, "y")),
        )
    }
    found = {
        "nystrom/signal_vectors": (cut["nystrom"], 0.0),
        "nystrom/xyz_vectors": (np.stack([xyz] * len(recordings)), 0.0),
        "nystrom/labels": (np.ones(len(recordings)), 0.0),
        "vitmae/pixel_values": (np.stack([cut["vitmae"]] * 3, axis=1), 1e-7),
        "vitmae/reorder_index_by_Y": (parcel_order(xyz, "y"), 0.0),
    }
    assert_all(found, load_file(case / "expected.safetensors"), rtol=0)


@over("C3")
def test_an_unstable_order_of_parcels_is_missed(case: Path) -> None:
    xyz = load_file(case / "inputs.safetensors")["xyz"]
    wanted = load_file(case / "expected.safetensors")["vitmae/reorder_index_by_Y"]
    assert len(set(xyz[:, 1])) < len(xyz), "equal Y values are what the order is about"
    reversed_ties = np.lexsort((-np.arange(len(xyz)), xyz[:, 1]))
    assert not np.array_equal(reversed_ties, wanted)
    assert not np.array_equal(np.argsort(xyz[:, 0], kind="stable"), wanted)


@over("D1")
def test_parcel_means_of_the_stored_voxels(case: Path) -> None:
    """The arrays are the images' voxels, scaled; every scan that has numbers is compared."""
    inputs = load_file(case / "inputs.safetensors")
    expected = load_file(case / "expected.safetensors")
    labels = nib.load(case / "atlas.nii.gz").get_fdata()
    np.testing.assert_array_equal(labels, inputs["atlas_labels"])
    scans = {key.removesuffix("/voxels") for key in inputs if key.endswith("/voxels")}
    assert {f"{scan}/parcel_timeseries_f64" for scan in scans} == set(expected)
    for scan in scans:
        voxels = nib.load(case / f"{scan}.nii.gz").get_fdata()
        np.testing.assert_array_equal(voxels, inputs[f"{scan}/voxels"])
        means = parcel_means(voxels, labels, range(1, 425))
        wanted = expected[f"{scan}/parcel_timeseries_f64"]
        np.testing.assert_allclose(means, wanted, rtol=1e-12, atol=0)
