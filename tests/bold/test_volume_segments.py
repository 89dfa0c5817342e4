"""Volumes prepared as an encoder's record says: orientation, grid, mask, time, normalisation."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bold_bench import AFFINE, RAW, SHAPE, Bench, confounds_table, parcel_input, save, volumes

from encoders.errors import InputError
from multimodal.bold.bids import BoldRun
from multimodal.bold.clean import clean_series, resample_series
from multimodal.bold.confounds import read_confounds
from multimodal.bold.inputs import find_problems, input_kind, prepare
from multimodal.bold.options import BoldOptions
from multimodal.bold.segments import prepare_run
from multimodal.bold.volume_grid import centred_pads, pad_or_crop
from multimodal.bold.volume_normalise import normalise_volumes
from multimodal.bold.volumes import find_volume_problems, prepare_volumes

MASKED = replace(RAW, use_mask=True)
CLEANED = replace(
    BoldOptions(), use_mask=False, fd_threshold_mm=None, volume_clean=True, high_pass_hz=0.02
)


def volume_input(**fields: object) -> SimpleNamespace:
    """Stand in for `encoders.base.VolumeInput`, so that these tests need no torch."""
    defaults = {
        "shape": SHAPE,
        "frames": 8,
        "voxel_mm": None,
        "tr_s": None,
        "space": None,
        "normalisation": "none",
        "statistics": {},
        "orientation": "RAS",
    }
    return SimpleNamespace(**{**defaults, **fields})


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def values_of(run: BoldRun, options: BoldOptions = RAW, **fields: object) -> np.ndarray:
    return np.asarray(prepare_volumes(run, volume_input(**fields), options).values)


def codes(run: BoldRun, options: BoldOptions = RAW, **fields: object) -> list[str]:
    """Codes of what `find_volume_problems` finds and, if anything, `prepare_volumes` refuses."""
    spec = volume_input(**fields)
    found = [problem.code for problem in find_volume_problems([run], spec, options)]
    if found:
        with pytest.raises(InputError) as caught:
            prepare_volumes(run, spec, options)
        assert {problem.code for problem in caught.value.problems} <= set(found)
    return found


def test_segments_hold_the_recordings_own_numbers(bench: Bench) -> None:
    data = volumes(20).astype(np.float32)
    segments = prepare_volumes(bench.run(data, dtype=np.float32), volume_input(), RAW)
    assert segments.values.shape == (2, 1, *SHAPE, 8)
    assert segments.values.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(segments.values)[0, 0], data[..., :8])
    np.testing.assert_array_equal(segments.values[1][0], data[..., 8:16])
    np.testing.assert_array_equal(segments.start_frame, [0, 8])
    assert segments.xyz_mm.shape == (0, 3)
    assert (segments.frames_found, segments.frames_kept, segments.tr_s) == (20, 20, 2.0)


def test_a_stack_reads_like_an_array_and_travels_between_processes(bench: Bench) -> None:
    stack = prepare_volumes(bench.run(volumes(20)), volume_input(shape=(8, 8, 8)), RAW).values
    whole = np.asarray(stack)
    assert len(stack) == 2
    assert whole.shape == stack.shape
    assert stack.ndim == whole.ndim
    np.testing.assert_array_equal(np.stack(list(stack)), whole)
    np.testing.assert_array_equal(stack[-1], whole[-1])
    np.testing.assert_array_equal(stack[:, 0, 2], whole[:, 0, 2])
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(stack))), whole)
    assert np.asarray(stack, dtype=np.float64).dtype == np.float64


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_however_a_scan_is_stored_it_comes_out_alike(
    bench: Bench, axes: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    data = volumes(10)
    wanted = values_of(bench.run(data))
    affine = AFFINE.copy()
    stored = data
    for axis in flips:
        stored = np.flip(stored, axis)
        affine[:3, 3] += affine[:3, axis] * (SHAPE[axis] - 1)
        affine[:3, axis] *= -1
    stored = stored.transpose(*axes, 3)
    affine = affine[:, [*axes, 3]]
    run = bench.run(stored, name="02", affine=affine)
    np.testing.assert_array_equal(values_of(run), wanted)


def test_an_encoder_may_want_other_axes(bench: Bench) -> None:
    data = volumes(10)
    run = bench.run(data)
    right = values_of(run)
    np.testing.assert_array_equal(values_of(run, orientation="LAS"), right[:, :, ::-1])
    turned = values_of(run, orientation="SRA", shape=(4, 6, 5))
    np.testing.assert_array_equal(turned, right.transpose(0, 1, 4, 2, 3, 5))
    assert codes(run, orientation="RAX") == ["orientation"]
    assert codes(run, orientation="RLS") == ["orientation"]


def test_padding_and_cropping_are_centred_and_padding_is_background(bench: Bench) -> None:
    data = volumes(10).astype(np.float32)
    data[0] = 0
    fields = {"shape": (9, 4, 8), "normalisation": "swift_znorm"}
    found = values_of(bench.run(data), **fields)
    normal = normalise_volumes(data, "swift_znorm")[..., :8]
    wanted = pad_or_crop(normal, ((2, 1), (-1, 0), (2, 2)), normal.min())
    np.testing.assert_allclose(found[0, 0], wanted, atol=1e-5)
    zero = values_of(bench.run(data), statistics={"background": 0.0}, **fields)
    assert (zero[0, 0, 0] == 0).all()
    assert (zero[0, 0, 2] == 0).all()  # the scan's own plane of zeros
    assert centred_pads((14, 16, 12), (16, 16, 16)) == [(1, 1), (0, 0), (2, 2)]


def test_outside_the_mask_is_background_and_counts_for_nothing(bench: Bench) -> None:
    data = volumes(10)
    mask = np.zeros(SHAPE)
    mask[1:5, 1:4, 1:3] = 1
    wild = np.where(mask[..., None] > 0, data, 1e6)
    wild[0, 0, 0, 0] = np.nan
    run = bench.run(wild, mask=mask)
    found = values_of(run, MASKED, normalisation="swift_minmax")
    wanted = normalise_volumes(data * mask[..., None], "swift_minmax")[..., :8]
    np.testing.assert_allclose(found[0, 0], wanted, atol=1e-6)
    assert found.min() == 0
    # A mask stored with other axes lies where it belongs all the same.
    affine = AFFINE @ np.diag([-1.0, 1, 1, 1])
    affine[0, 3] += AFFINE[0, 0] * (SHAPE[0] - 1)
    flipped = save(mask[::-1], bench.folder / "flipped.nii.gz", affine=affine, dtype=np.uint8)
    other = values_of(replace(run, mask=flipped), MASKED, normalisation="swift_minmax")
    np.testing.assert_array_equal(other, found)


def test_values_that_are_zero_in_a_frame_are_background_there(bench: Bench) -> None:
    data = volumes(10)
    data[2, 2, 2, 3] = 0
    found = values_of(bench.run(data), normalisation="swift_znorm")
    assert found[0, 0, 2, 2, 2, 3] == found.min()


def test_other_voxels_are_refused_unless_resampling_is_asked_for(bench: Bench) -> None:
    run = bench.run()
    assert codes(run, voxel_mm=3.0) == []
    assert codes(run, voxel_mm=3.02) == []
    (problem,) = find_volume_problems([run], volume_input(voxel_mm=2.0), RAW)
    assert problem.code == "voxel-size"
    assert "3 x 3 x 3 mm" in problem.found
    assert "bold.volume_resample=true" in problem.fix
    assert codes(run, replace(RAW, volume_resample=True), voxel_mm=2.0, shape=(9, 8, 6)) == []


def test_resampling_keeps_straight_lines_straight(bench: Bench) -> None:
    index = np.indices(SHAPE).astype(float)
    points_mm = np.einsum("ij,jxyz->ixyz", AFFINE[:3, :3], index) + AFFINE[:3, 3, None, None, None]
    line = 100 + np.array([2.0, -1.0, 0.5]) @ points_mm.reshape(3, -1)
    data = np.repeat(line.reshape(*SHAPE, 1), 10, axis=3)
    resample = replace(RAW, volume_resample=True)
    found = values_of(bench.run(data), resample, voxel_mm=2.0, shape=(9, 8, 6))[0, 0, ..., 0]
    centre_mm = AFFINE[:3, :3] @ ((np.array(SHAPE) - 1) / 2) + AFFINE[:3, 3]
    new_mm = (np.indices((9, 8, 6)) - np.array([4, 3.5, 2.5])[:, None, None, None]) * 2.0
    new_mm += centre_mm[:, None, None, None]
    wanted = 100 + np.einsum("i,ixyz->xyz", [2.0, -1.0, 0.5], new_mm)
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(found[inner], wanted[inner], rtol=1e-6)
    coarse = values_of(bench.run(data), resample, voxel_mm=4.5, shape=(4, 4, 3))
    assert np.isfinite(coarse).all()


def test_resampling_lets_nothing_in_from_outside_the_brain(bench: Bench) -> None:
    mask = np.zeros(SHAPE)
    mask[1:5, 1:4, 1:3] = 1
    data = np.where(mask[..., None] > 0, 500.0, 9000.0) * np.ones(10)
    options = replace(MASKED, volume_resample=True)
    found = values_of(bench.run(data, mask=mask), options, voxel_mm=2.0, shape=(9, 8, 6))
    np.testing.assert_allclose(np.unique(found), [0, 500], rtol=1e-6)
    volume_mm3 = (found[0, 0, ..., 0] > 0).sum() * 8
    assert volume_mm3 == pytest.approx(mask.sum() * 27, rel=0.35)


def test_a_grid_that_cuts_the_brain_is_refused(bench: Bench) -> None:
    run = bench.run(mask=np.ones(SHAPE))
    (problem,) = find_volume_problems([run], volume_input(shape=(3, 3, 3)), MASKED)
    assert problem.code == "volume-cut"
    assert "78% of the brain mask" in problem.found
    # Without a mask nobody knows where the brain is.
    assert codes(run, RAW, shape=(3, 3, 3)) == []


def test_censoring_and_motion_are_those_of_parcels(bench: Bench) -> None:
    table = confounds_table(40)
    table.loc[[5, 6, 20], "framewise_displacement"] = 2.0
    run = bench.run(volumes(40), confounds=table)
    for gaps in ("join", "break"):
        options = replace(RAW, fd_threshold_mm=0.5, gaps=gaps, skip_frames=1, stride_frames=3)
        found = prepare_volumes(run, volume_input(normalisation="none"), options)
        parcels = prepare_run(run, bench.atlas, parcel_input(frames=8), options)
        np.testing.assert_array_equal(found.start_frame, parcels.start_frame)
        np.testing.assert_array_equal(found.mean_fd_mm, parcels.mean_fd_mm)
        assert found.frames_kept == parcels.frames_kept == 36
        label = np.asarray(bench.atlas.labels) == 5
        means = np.asarray(found.values)[:, 0][:, label].mean(axis=1)
        np.testing.assert_allclose(means, parcels.values[:, 2], rtol=1e-6)


def test_only_kept_frames_count_for_the_normalisation(bench: Bench) -> None:
    data, table = volumes(40), confounds_table(40)
    table.loc[30, "framewise_displacement"] = 2.0
    data[..., 30] += 4000
    options = replace(RAW, fd_threshold_mm=0.5)
    run = bench.run(data, confounds=table)
    found = values_of(run, options, normalisation="swift_znorm", frames=13)
    wanted = normalise_volumes(np.delete(data, 30, axis=3), "swift_znorm")
    np.testing.assert_allclose(
        np.concatenate(list(found[:, 0]), axis=-1), wanted[..., :39], atol=1e-5
    )


def test_another_repetition_time_is_refused_or_interpolated(bench: Bench) -> None:
    data = volumes(40)
    run = bench.run(data)
    assert codes(run, tr_s=1.0) == ["tr-mismatch"]
    found = prepare_volumes(
        run, volume_input(tr_s=1.5, frames=50), replace(RAW, tr_mismatch="resample")
    )
    assert found.tr_s == pytest.approx(1.5)
    series = data.reshape(-1, 40).T
    wanted = resample_series(series, np.arange(40), np.arange(50) * 0.75, 2.0, 1.5)
    voxels = found.values[0][0].reshape(-1, 50).T
    np.testing.assert_allclose(voxels, wanted, rtol=1e-5)


def test_voxels_are_cleaned_only_when_asked_and_keep_their_mean(bench: Bench) -> None:
    data, table = volumes(40), confounds_table(40)
    data += np.indices(SHAPE)[0][..., None] * 100
    data[..., :] += 30 * table["csf"].to_numpy()
    data[0] = 0
    run = bench.run(data, confounds=table)
    untouched = replace(CLEANED, volume_clean=False)
    np.testing.assert_allclose(values_of(run, untouched, frames=40)[0, 0], data, rtol=1e-6)
    cleaned = values_of(run, CLEANED, frames=40)[0, 0]
    np.testing.assert_allclose(cleaned.mean(axis=3), data.mean(axis=3), rtol=1e-5)
    confounds = read_confounds(run.confounds, 40, CLEANED, "scan")
    series = data.reshape(-1, 40).T
    wanted = clean_series(series, confounds, 2.0, CLEANED) + series.mean(axis=0)
    np.testing.assert_allclose(cleaned.reshape(-1, 40).T, wanted, rtol=1e-5, atol=1e-3)
    assert (cleaned[0] == 0).all()


def test_uncleaned_volumes_need_no_confounds(bench: Bench) -> None:
    options = replace(BoldOptions(), use_mask=False, fd_threshold_mm=None)
    assert codes(bench.run(), options) == []
    assert codes(bench.run(), replace(options, volume_clean=True)) == ["confounds-missing"]
    assert codes(bench.run(), replace(options, fd_threshold_mm=0.5)) == ["confounds-missing"]


def test_voxels_outside_the_field_of_view_are_background(bench: Bench) -> None:
    data = volumes(10)
    data[0] = np.nan
    run = bench.run(data)
    found = values_of(run, normalisation="swift_minmax")
    wanted = normalise_volumes(np.nan_to_num(data), "swift_minmax")[..., :8]
    np.testing.assert_allclose(found[0, 0], wanted, atol=1e-6)
    data[3, 3, 3, 4] = np.nan
    assert codes(bench.run(data)) == ["bold-nan"]


def test_everything_wrong_is_found_in_one_pass(bench: Bench) -> None:
    run = bench.run(volumes(5), mask=np.zeros(SHAPE), confounds=confounds_table(6))
    spec = {"tr_s": 0.8, "normalisation": "zscore_parcel", "voxel_mm": 2.0}
    found = codes(run, MASKED, **spec)
    assert found == [
        "normalisation-unknown",
        "mask-empty",
        "confounds-length",
        "tr-mismatch",
        "run-too-short",
    ]


def test_scans_without_a_brain_are_refused(bench: Bench) -> None:
    znorm = {"normalisation": "swift_znorm"}
    assert codes(bench.run(np.zeros((*SHAPE, 10))), **znorm) == ["volume-empty"]
    assert codes(bench.run(np.full((*SHAPE, 10), 7.0)), **znorm) == ["volume-constant"]
    assert codes(bench.run(np.full((*SHAPE, 10), 7.0)), normalisation="brainmt_none") == []
    flat = AFFINE.copy()
    flat[:3, 2] = 0
    image = save(volumes(10), bench.folder / "flat.nii.gz")
    import nibabel as nib

    loaded = nib.load(image)
    loaded = nib.Nifti1Image(np.asarray(loaded.dataobj), None, loaded.header)
    loaded.header.set_sform(flat, code=1)
    nib.save(loaded, bench.folder / "flat2.nii.gz")
    run = BoldRun("sub-1", "", "", bench.folder / "flat2.nii.gz", None, None, 2.0)
    assert codes(run) == ["affine"]


def test_a_damaged_scan_is_found_even_behind_another_problem(bench: Bench) -> None:
    run = bench.run(volumes(40))
    content = run.bold.read_bytes()
    run.bold.write_bytes(content[: len(content) // 2])
    assert codes(run) == ["bold-truncated"]
    assert codes(run, voxel_mm=2.0) == ["voxel-size", "bold-truncated"]


def test_an_input_of_neither_kind_is_refused(bench: Bench) -> None:
    assert input_kind(volume_input()) == "volumes"
    assert input_kind(parcel_input()) == "parcels"
    with pytest.raises(InputError, match="ParcelInput"):
        prepare(bench.run(), bench.atlas, SimpleNamespace(frames=3), RAW)
    with pytest.raises(InputError, match="label image"):
        prepare(bench.run(), None, parcel_input(), RAW)
    assert find_problems([bench.run()], bench.atlas, parcel_input(), RAW) == []
    assert find_problems([bench.run()], None, volume_input(), RAW) == []


def test_preparing_volumes_needs_no_torch() -> None:
    code = "import sys, multimodal.bold.inputs, multimodal.bold.swift_frames\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
