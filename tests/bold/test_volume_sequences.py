"""Which frames and voxels make an item, against SwiFT's and BrainMT's published data sets."""

import json
import random
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from parity_sets import parity_cases
from safetensors.numpy import load_file
from test_volume_normalise import config_of, intensities, swift_agrees

from encoders.errors import InputError
from multimodal.bold.swift_frames import PADS, SequencePlan, swift_frames, swift_item, swift_pads
from multimodal.bold.volume_grid import centred_pads, pad_or_crop

SWIFT = [case for case in parity_cases("swift") if config_of(case).get("kind") == "datasets"]
BRAINMT = [case for case in parity_cases("brainmt") if "num_frames_slice" in config_of(case)]
HALF_STEP = {"rtol": 2.0**-10, "atol": 1e-6}


def expected_json(case: Path) -> dict[str, Any]:
    return json.loads((case / "expected.json").read_text())


ITEMS = [
    pytest.param(case, name, id=f"{case.name}-{name}")
    for case in SWIFT
    for name in expected_json(case)["items"]
]
TABLE = [
    pytest.param(row, id=f"{case.name}-{number}")
    for case in SWIFT
    for number, row in enumerate(expected_json(case)["start_table"])
]


def frames_of(case: Path, name: str) -> np.ndarray:
    """Frames of an item, with the voxel mean and deviation, where upstream loads them, behind."""
    inputs = load_file(case / "inputs.safetensors")
    base = name if f"{name}.frames" in inputs else name.rsplit("_", 1)[0]
    parts = [inputs[f"{base}.frames"]]
    parts += [inputs[key] for key in (f"{name}.voxel_mean", f"{name}.voxel_std") if key in inputs]
    return np.concatenate(parts, axis=3)


def dataset_of(item: dict[str, Any]) -> str:
    if item["class"] != "ABCD":
        return str(item["class"])
    return "ABCD_task" if item["params"].get("input_type") == "task" else "ABCD_rest"


def plan_of(item: dict[str, Any]) -> SequencePlan:
    given = item["params"]
    return SequencePlan(
        item["n_frame_files"],
        given["sequence_length"],
        given.get("stride_between_seq", 1),
        given.get("stride_within_seq", 1),
        voxel_files=item["n_other_files"] == 2,
    )


@pytest.mark.parametrize(("case", "name"), ITEMS)
def test_swift_items(case: Path, name: str) -> None:
    item = expected_json(case)["items"][name]
    expected, frames, plan = (
        load_file(case / "expected.safetensors"),
        frames_of(case, name),
        plan_of(item),
    )
    assert len(plan.starts) == item["len"]
    for described in item["items"]:
        start = plan.starts[described["index"]]
        assert start == described["TR"]
        rows = plan.rows(start)
        if item["params"].get("with_voxel_norm"):
            rows += [plan.frames, plan.frames + 1]
        found = swift_item(frames, rows, swift_pads(dataset_of(item), frames.shape))
        assert list(found.shape) == described["shape"]
        assert found.dtype == np.float16
        assert float(frames[0, 0, 0, rows[0]]) == described["fill"]
        key = f"{name}.item{described['index']}"
        if key in expected:
            np.testing.assert_array_equal(found, expected[key])
            centred = pad_or_crop(frames[..., rows], swift_pads(dataset_of(item), frames.shape), 9)
            assert not np.array_equal(centred[None], expected[key])


@pytest.mark.parametrize("case", SWIFT)
def test_swift_items_from_images(case: Path) -> None:
    expected, items = load_file(case / "expected.safetensors"), expected_json(case)["items"]
    inputs = load_file(case / "inputs.safetensors")
    compared = 0
    for image in sorted(case.glob("*_raw.nii.gz")):
        name = image.name.removesuffix("_raw.nii.gz")
        for scaling, end in (("z-norm", ""), ("minmax", "_minmax")):
            if f"{name}{end}" not in items:
                continue
            frames = swift_frames(intensities(image), scaling)  # type: ignore[arg-type]
            assert swift_agrees(frames, inputs[f"{name}{end}.frames"], HALF_STEP)
            item = items[f"{name}{end}"]
            plan, pads = plan_of(item), swift_pads(dataset_of(item), frames.shape)
            for described in item["items"]:
                found = swift_item(frames, plan.rows(described["TR"]), pads)
                key = f"{name}{end}.item{described['index']}"
                if key in expected:
                    assert swift_agrees(found, expected[key], HALF_STEP)
            compared += 1
    assert compared > 0


@pytest.mark.parametrize("row", TABLE)
def test_swift_starts_and_rows(row: dict[str, Any]) -> None:
    plan = SequencePlan(
        row["n_frames"],
        row["sequence_length"],
        row["stride_between_seq"],
        row["stride_within_seq"],
        voxel_files=row["voxel_files_present"],
    )
    assert (plan.duration, plan.stride) == (row["sample_duration"], row["stride"])
    assert plan.starts == row["starts"]
    seed = row.get("numpy_and_random_seed", 0)
    drawn, shuffled = np.random.RandomState(seed), random.Random(seed)
    errors = {"FileNotFoundError": FileNotFoundError, "ValueError": ValueError}
    for start, loaded in zip(plan.starts, row["frames_loaded"], strict=True):

        def load(start: int = start) -> list[Any]:
            if row["shuffle_time_sequence"]:
                return plan.shuffled_rows(shuffled)
            rows = plan.rows(start)
            return [rows, plan.contrastive_rows(start, drawn)] if row["contrastive"] else rows

        if isinstance(loaded, dict):
            with pytest.raises(errors[loaded["raises"]]):
                load()
        else:
            assert load() == loaded


@pytest.mark.parametrize("case", SWIFT)
def test_swift_pads_are_the_classes_own(case: Path) -> None:
    for name, pads in config_of(case)["pads"].items():
        assert [list(pair) for pair in PADS[name]] == [pads[axis] for axis in "HWD"]
    assert swift_pads("ABCD_rest", (79, 97, 85)) == ((9, 8), (0, -1), (6, 5))


def test_our_centred_grid_is_that_of_the_published_paddings() -> None:
    for name, shape in (("S1200", (75, 93, 81)), ("UKB", (91, 109, 91))):
        assert tuple(centred_pads(shape, (96, 96, 96))) == PADS[name]
    # Of resting ABCD upstream cuts the last plane of y, where a centred grid cuts the first.
    assert centred_pads((79, 97, 85), (96, 96, 96)) == [(9, 8), (-1, 0), (6, 5)]


@pytest.mark.parametrize("case", BRAINMT)
def test_brainmt_items(case: Path) -> None:
    import torch

    from multimodal.features.brainmt_recordings import find_brainmt_recordings

    config, expected = config_of(case), load_file(case / "expected.safetensors")
    recordings = find_brainmt_recordings(
        case / "img",
        next(case.glob("*.csv")),
        id_column=config["id_col"],
        target_column=config["target_col"],
        frames=config["num_frames_slice"],
    )
    assert recordings.ids == config["subject_dirs"]
    for name in recordings.ids:
        assert recordings.targets[name] == config["target_dict"][name]
    assert not set(recordings.left_out) & set(recordings.ids)
    for item in config["items"]:
        generator = torch.Generator().manual_seed(item["seed"])
        before = generator.get_state()
        data, target = recordings.item(item["index"], generator)
        drew = not torch.equal(before, generator.get_state())
        assert drew == item["drew_random_number"]
        assert recordings.ids[item["index"]] == item["subject"]
        assert recordings.series(item["index"]).shape[3] == item["total_frames"]
        assert data.dtype == target.dtype == np.float16
        np.testing.assert_array_equal(data, expected[f"{item['key']}.data"])
        np.testing.assert_array_equal(target, expected[f"{item['key']}.target"][0])
    batch = np.stack([recordings.item(index)[0] for index in config["batch"]["indices"]])
    assert list(batch.shape) == config["batch"]["shape"]


@pytest.mark.parametrize("case", BRAINMT)
def test_brainmt_recordings_left_out_are_named(case: Path) -> None:
    from multimodal.features.brainmt_recordings import find_brainmt_recordings

    config = config_of(case)
    table = next(case.glob("*.csv"))
    recordings = find_brainmt_recordings(
        case / "img",
        table,
        id_column=config["id_col"],
        target_column=config["target_col"],
        frames=config["num_frames_slice"],
    )
    folders = {path.parent.name for path in (case / "img").glob("*/*.pt")}
    assert set(recordings.left_out) >= folders - set(recordings.ids)
    with pytest.raises(InputError, match="no column 'age'"):
        find_brainmt_recordings(case, table, id_column="age", target_column="age", frames=8)


def test_a_file_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    import torch

    from multimodal.features.brainmt_recordings import read_brainmt_series

    with pytest.raises(InputError, match="cannot be read"):
        read_brainmt_series(tmp_path / "none.pt")
    torch.save(torch.zeros(2, 3), tmp_path / "flat.pt")
    with pytest.raises(InputError, match=r"a tensor \[2, 3\]"):
        read_brainmt_series(tmp_path / "flat.pt")
    torch.save({"a": 1}, tmp_path / "dict.pt")
    with pytest.raises(InputError, match="a dict"):
        read_brainmt_series(tmp_path / "dict.pt")
    torch.save(nib.Nifti1Image, tmp_path / "class.pt")
    with pytest.raises(InputError, match="cannot be read"):
        read_brainmt_series(tmp_path / "class.pt")
