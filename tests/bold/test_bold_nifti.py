"""Headers and voxels of 4D images: repetition time, damage, NaN, and a real scan."""

import gzip
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bold_bench import AFFINE, RAW, SHAPE, Bench, parcel_input, save, volumes
from nibabel.testing import data_path

from encoders.errors import InputError
from multimodal.bold.bids import BoldRun
from multimodal.bold.nifti import open_scan, repetition_time_s
from multimodal.bold.options import BoldOptions
from multimodal.bold.parcels import load_atlas, parcel_means
from multimodal.bold.segments import find_bold_problems, prepare_run

REAL = Path(str(data_path)) / "example4d.nii.gz"


def codes(run: BoldRun, bench: Bench, options: BoldOptions = RAW) -> list[str]:
    found = find_bold_problems([run], bench.atlas, parcel_input(), options)
    if found:
        with pytest.raises(InputError):
            prepare_run(run, bench.atlas, parcel_input(), options)
    return [problem.code for problem in found]


@pytest.mark.parametrize(
    ("stored", "unit", "seconds"),
    [
        (0.72, "sec", 0.72),
        (720, "msec", 0.72),
        (720_000, "usec", 0.72),
        (2000, "sec", 2.0),
        (2000, "unknown", 2.0),
        (2.5, "unknown", 2.5),
        (1, "sec", 1.0),
    ],
)
def test_repetition_time_honours_the_unit(
    tmp_path: Path, stored: float, unit: str, seconds: float
) -> None:
    scan = open_scan(save(volumes(3), tmp_path / "a.nii", tr=stored, unit=unit))
    assert repetition_time_s(scan, None) == pytest.approx(seconds, rel=1e-6)
    assert repetition_time_s(scan, seconds * 1.005) == seconds * 1.005


@pytest.mark.parametrize(
    ("stored", "unit", "sidecar_s", "code"),
    [
        (0, "sec", None, "tr-missing"),
        (1, "unknown", None, "tr-missing"),
        (50, "unknown", None, "tr-implausible"),
        (50, "sec", None, "tr-implausible"),
        (50_000, "msec", 2.0, "tr-implausible"),
        (2, "msec", None, "tr-implausible"),
        (2, "sec", 2000.0, "tr-implausible"),
        (2, "sec", 0.0, "tr-implausible"),
        (2, "sec", float("nan"), "tr-implausible"),
        (2, "sec", 2.03, "tr-disagrees"),
        (2, "sec", 1.0, "tr-disagrees"),
    ],
)
def test_repetition_times_that_cannot_be_believed(
    tmp_path: Path, stored: float, unit: str, sidecar_s: float | None, code: str
) -> None:
    bench = Bench(tmp_path)
    run = bench.run(tr=stored, unit=unit, tr_s=sidecar_s)
    assert codes(run, bench) == [code]
    (problem,) = find_bold_problems([run], bench.atlas, parcel_input(), RAW)
    assert "RepetitionTime" in problem.fix


@pytest.mark.parametrize(("stored", "unit"), [(0, "sec"), (1, "unknown"), (50, "unknown")])
def test_a_sidecar_settles_what_the_header_leaves_open(
    tmp_path: Path, stored: float, unit: str
) -> None:
    scan = open_scan(save(volumes(3), tmp_path / "a.nii", tr=stored, unit=unit))
    assert repetition_time_s(scan, 0.8) == 0.8


def test_three_dimensions_are_no_series(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (code,) = codes(bench.run(volumes(1)[..., 0]), bench)
    assert code == "not-4d"


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run = bench.run()
    assert codes(replace(run, bold=tmp_path / "absent.nii.gz"), bench) == ["bold-missing"]
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"no image" * 100))
    assert codes(replace(run, bold=tmp_path / "text.nii.gz"), bench) == ["bold-unreadable"]
    (tmp_path / "plain.nii.gz").write_text("not even compressed")
    assert codes(replace(run, bold=tmp_path / "plain.nii.gz"), bench) == ["bold-unreadable"]
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    assert codes(replace(run, bold=tmp_path / "empty.nii.gz"), bench) == ["bold-unreadable"]


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_files_are_found_by_reading(tmp_path: Path, kept: float, suffix: str) -> None:
    bench = Bench(tmp_path)
    run = bench.run(suffix=suffix)
    whole = run.bold.read_bytes()
    run.bold.write_bytes(whole[: int(len(whole) * kept)])
    (problem,) = find_bold_problems([run], bench.atlas, parcel_input(), RAW)
    assert problem.code == "bold-truncated"
    assert "truncated" in problem.found
    assert problem.where == str(run.bold)


def test_a_cut_checksum_is_a_truncated_file(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run = bench.run()
    run.bold.write_bytes(run.bold.read_bytes()[:-3])
    assert codes(run, bench) == ["bold-truncated"]


def test_damage_shows_in_the_checksum(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run = bench.run()
    content = bytearray(run.bold.read_bytes())
    content[-8] ^= 0xFF
    run.bold.write_bytes(bytes(content))
    assert codes(run, bench) == ["bold-corrupt"]


def test_truncation_is_found_even_where_the_atlas_does_not_fit(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run = bench.run(affine=AFFINE * 2)
    run.bold.write_bytes(run.bold.read_bytes()[:3000])
    assert codes(run, bench) == ["atlas-grid", "bold-truncated"]


def test_nan_volumes_are_named(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    data = volumes(40)
    data[..., [7, 12]] = np.nan
    run = bench.run(data)
    assert codes(run, bench) == ["bold-nan"]
    (problem,) = find_bold_problems([run], bench.atlas, parcel_input(), RAW)
    assert "7, 12" in problem.found
    assert "2 of 40" in problem.found


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_voxel_in_the_mask_is_one_too_many(tmp_path: Path, value: float) -> None:
    bench = Bench(tmp_path)
    data = volumes(40)
    data[2, 2, 2, 30] = value
    masked = replace(RAW, use_mask=True)
    mask = np.ones(SHAPE)
    assert codes(bench.run(data, mask=mask), bench, masked) == ["bold-nan"]
    mask[2, 2, 2] = 0
    assert codes(bench.run(data, mask=mask), bench, masked) == []


def test_without_a_mask_nan_throughout_is_outside_the_field_of_view(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    data = volumes(40)
    data[2, 2] = np.nan
    run = bench.run(data)
    segments = prepare_run(run, bench.atlas, parcel_input(), RAW)
    means = parcel_means(data, bench.atlas.labels, bench.atlas.ids)
    np.testing.assert_allclose(segments.values[0].T, means, rtol=1e-6)
    data[3] = np.nan
    assert codes(bench.run(data), bench) == ["parcel-empty"]
    data[:] = np.nan
    assert codes(bench.run(data), bench) == ["bold-nan"]
    data = volumes(40)
    data[2, 2] = np.inf
    assert codes(bench.run(data), bench) == ["bold-nan"]


def test_voxels_that_are_no_real_numbers(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run = bench.run(volumes(3).astype(np.complex64), dtype=np.complex64)
    assert codes(run, bench) == ["bold-unreadable"]


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    masked = replace(RAW, use_mask=True)
    run = bench.run(mask=np.ones((3, 3, 3)))
    assert codes(run, bench, masked) == ["mask-grid"]
    assert codes(replace(run, mask=None), bench, masked) == ["mask-missing"]
    assert codes(replace(run, mask=tmp_path / "absent.nii"), bench, masked) == ["mask-missing"]
    assert run.mask is not None
    run.mask.write_bytes(run.mask.read_bytes()[:100])
    assert codes(run, bench, masked)[0].startswith("mask-")


def real_atlas(folder: Path, *, axes: str = "RAS") -> Path:
    """Write two labels on the real scan's grid, stored with axes of our choice."""
    affine = nib.load(REAL).affine
    labels = np.zeros((128, 96, 24), dtype=np.int16)
    labels[20:60, 30:60, 5:20], labels[70:110, 30:60, 5:20] = 1, 2
    image = nib.Nifti1Image(labels, affine)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes)
    )
    nib.save(image.as_reoriented(turn), folder / f"atlas_{axes}.nii.gz")
    return folder / f"atlas_{axes}.nii.gz"


def real_run() -> BoldRun:
    return BoldRun("sub-01", "", "", REAL, None, None, None)


@pytest.mark.parametrize("frames", [None, 200])
def test_a_real_scan_of_two_frames_is_refused_in_words(tmp_path: Path, frames: int | None) -> None:
    atlas = load_atlas(real_atlas(tmp_path))
    options = BoldOptions(use_mask=False, motion="none", wm_csf="none", fd_threshold_mm=None)
    spec = parcel_input(frames=frames, tr_s=2.0)
    (problem,) = find_bold_problems([real_run()], atlas, spec, options)
    assert problem.code == "run-too-short"
    assert "2 frames" in problem.found
    assert f"{frames or options.min_frames} frames" in problem.wanted
    with pytest.raises(InputError, match="run too short: 2 frames"):
        prepare_run(real_run(), atlas, spec, options)


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PIR"])
def test_a_real_scan_has_its_orientation_and_unit_handled(tmp_path: Path, axes: str) -> None:
    atlas = load_atlas(real_atlas(tmp_path, axes=axes))
    segments = prepare_run(real_run(), atlas, parcel_input(tr_s=2.0), RAW)
    assert segments.tr_s == 2.0
    data = nib.load(REAL).get_fdata()
    wanted = [data[20:60, 30:60, 5:20].mean(axis=(0, 1, 2))]
    wanted += [data[70:110, 30:60, 5:20].mean(axis=(0, 1, 2))]
    np.testing.assert_allclose(segments.values[0], wanted, rtol=1e-6)
    assert segments.xyz_mm[0, 0] > segments.xyz_mm[1, 0]  # stored right to left
