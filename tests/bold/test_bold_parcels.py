"""Parcel means, atlases, and BrainLM's published parcellation numbers (D1, D2)."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from bold_bench import AFFINE, RAW, SHAPE, Bench, atlas_labels, parcel_input, save, volumes
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_sets import parity_cases
from safetensors.numpy import load_file

from encoders.errors import InputError
from multimodal.bold.nifti import open_scan
from multimodal.bold.parcels import label_columns, load_atlas, parcel_means, read_parcels
from multimodal.bold.segments import find_bold_problems, prepare_run

CASES = {case.name[:2]: case for case in parity_cases("brainlm")}
TINY, FORMULA = CASES["D1"], CASES["D2"]
A424 = TINY.parent / "atlas"


@pytest.mark.parametrize("scan", ["scan.a", "scan_nan"])
def test_upstream_parcel_means_of_a_tiny_atlas(scan: str) -> None:
    expected = load_file(TINY / "expected.safetensors")[f"{scan}/parcel_timeseries_f64"]
    labels = nib.load(TINY / "atlas.nii.gz").get_fdata()
    image = nib.load(TINY / f"{scan}.nii.gz")
    means = parcel_means(image.get_fdata(), labels, range(1, 425))
    np.testing.assert_allclose(means, expected, rtol=1e-12, atol=0)


def test_upstream_parcel_means_streamed_from_int16_with_scaling() -> None:
    expected = load_file(TINY / "expected.safetensors")["scan.a/parcel_timeseries_f64"]
    labels = nib.load(TINY / "atlas.nii.gz").get_fdata()
    series = read_parcels(open_scan(TINY / "scan.a.nii.gz"), labels, range(1, 425), None)
    np.testing.assert_allclose(series.values, expected, rtol=1e-12, atol=0)
    assert len(series.emptied) == 424 - 7


def test_upstream_parcel_means_of_a424() -> None:
    c = load_file(FORMULA / "inputs.safetensors")["coefficients"]
    expected = load_file(FORMULA / "expected.safetensors")
    atlas = load_atlas(A424 / "A424+2mm.nii.gz", A424 / "A424_Coordinates.dat")
    i, j, k, t = np.ogrid[:91, :109, :91, :3]
    volume = ((c[0] * i + c[1] * j + c[2] * k + c[3] * t * i + c[4] * t) % c[5]) - c[6]
    means = parcel_means(volume, atlas.labels, atlas.ids)
    np.testing.assert_allclose(means, expected["parcel_timeseries_f64"], rtol=0, atol=1e-10)
    voxels = np.bincount(label_columns(atlas.labels, atlas.ids)[atlas.labels > 0])
    np.testing.assert_array_equal(voxels, expected["voxels_per_parcel"])


def test_a424_coordinates_come_from_the_published_table() -> None:
    atlas = load_atlas(A424 / "A424+2mm.nii.gz", A424 / "A424_Coordinates.dat")
    assert atlas.ids == list(range(1, 425))
    np.testing.assert_array_equal(atlas.xyz_mm[0], [14, -78, 4])
    centroids = load_atlas(A424 / "A424+2mm.nii.gz").xyz_mm
    apart_mm = np.linalg.norm(centroids - atlas.xyz_mm, axis=1)
    assert np.median(apart_mm) < 4
    assert apart_mm.max() < 14


def test_a_scan_on_another_grid_is_no_match_for_the_atlas() -> None:
    labels = nib.load(TINY / "atlas.nii.gz").get_fdata()
    with pytest.raises(ValueError, match="differ in shape"):
        parcel_means(nib.load(TINY / "wrong_grid.nii.gz").get_fdata(), labels, range(1, 425))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.permutations([3, 1, 7, 400]))
def test_means_equal_a_plain_loop_in_any_order_of_ids(seed: int, ids: list[int]) -> None:
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(4, 3, 2, 5)).astype(np.float32)
    data[rng.random(data.shape) < 0.1] = np.nan
    labels = rng.choice([0, 1, 3, 7, 8], size=data.shape[:3])
    means = parcel_means(data, labels, ids)
    for column, label in enumerate(ids):
        for frame in range(data.shape[3]):
            voxels = data[..., frame][labels == label].astype(np.float64)
            voxels = voxels[~np.isnan(voxels)]
            wanted = voxels.mean() if len(voxels) else 0.0
            assert means[frame, column] == pytest.approx(wanted, rel=1e-12, abs=1e-13)


def test_streaming_in_small_chunks_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    run = bench.run(volumes(17), dtype=np.float32)
    whole = read_parcels(open_scan(run.bold), bench.atlas.labels, bench.atlas.ids, None)
    monkeypatch.setattr("multimodal.bold.nifti.CHUNK_BYTES", 1)
    pieces = read_parcels(open_scan(run.bold), bench.atlas.labels, bench.atlas.ids, None)
    np.testing.assert_array_equal(whole.values, pieces.values)
    data = nib.load(run.bold).get_fdata()
    means = parcel_means(data, bench.atlas.labels, bench.atlas.ids)
    np.testing.assert_allclose(whole.values, means, rtol=1e-13)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_int16_scaling_is_applied(tmp_path: Path, suffix: str) -> None:
    bench = Bench(tmp_path)
    data = volumes(12)
    run = bench.run(data, dtype=np.int16, suffix=suffix)
    image = nib.load(run.bold)
    assert image.dataobj.slope != 1
    series = read_parcels(open_scan(run.bold), bench.atlas.labels, bench.atlas.ids, None)
    means = parcel_means(image.get_fdata(), bench.atlas.labels, bench.atlas.ids)
    np.testing.assert_allclose(series.values, means, rtol=1e-13)
    exact = parcel_means(data, bench.atlas.labels, bench.atlas.ids)
    np.testing.assert_allclose(series.values, exact, rtol=1e-4)


@pytest.mark.parametrize("axes", ["LAS", "RPS", "LPI", "SAL", "ASR", "IRP"])
def test_orientation_of_the_scan_does_not_matter(tmp_path: Path, axes: str) -> None:
    bench = Bench(tmp_path)
    plain = bench.run(volumes(12))
    image = nib.load(plain.bold)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
    )
    turned = bench.folder / f"{axes}.nii.gz"
    oriented = image.as_reoriented(turn)
    oriented.header.set_xyzt_units("mm", "sec")
    nib.save(oriented, turned)
    assert "".join(nib.aff2axcodes(nib.load(turned).affine)) == axes
    other = type(plain)("sub-01", "", "", turned, None, None, 2.0)
    first = prepare_run(plain, bench.atlas, parcel_input(), RAW)
    second = prepare_run(other, bench.atlas, parcel_input(), RAW)
    np.testing.assert_allclose(first.values, second.values, rtol=1e-6)
    np.testing.assert_array_equal(first.xyz_mm, second.xyz_mm)


def test_centroids_are_in_mm(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    np.testing.assert_allclose(bench.atlas.xyz_mm[0], [-8 + 3, -6 + 3 * 2, -4 + 3 * 1.5])


def test_atlas_on_another_grid_is_refused_with_both_grids(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    shifted = AFFINE.copy()
    shifted[0, 3] += 1.5
    run = bench.run(volumes(12), affine=shifted)
    (problem,) = find_bold_problems([run], bench.atlas, parcel_input(), RAW)
    assert problem.code == "atlas-grid"
    assert "-6.5" in problem.found
    assert "-8" in problem.wanted
    assert "atlas_resample" in problem.fix


def test_atlas_on_another_grid_is_resampled_when_asked(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    # Alike across y and z: nearest neighbours beyond the outermost voxel centres are background.
    data = np.broadcast_to(volumes(12)[:, :1, :1], (*SHAPE, 12))
    fine = np.kron(data, np.ones((2, 2, 2, 1)))
    affine = AFFINE.copy()
    affine[:3, :3] /= 2
    affine[:3, 3] -= 0.75
    options = replace(RAW, atlas_resample=True)
    finer = prepare_run(
        bench.run(fine, name="02", affine=affine), bench.atlas, parcel_input(), options
    )
    plain = prepare_run(bench.run(data), bench.atlas, parcel_input(), RAW)
    np.testing.assert_allclose(finer.values, plain.values, rtol=1e-5)


def test_rounding_of_an_affine_is_no_other_grid(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run = bench.run(volumes(12), affine=AFFINE + 1e-4)
    assert find_bold_problems([run], bench.atlas, parcel_input(), RAW) == []


def test_table_gives_order_names_and_coordinates(tmp_path: Path) -> None:
    image = save(atlas_labels(), tmp_path / "atlas.nii.gz", dtype=np.int16)
    rows = {"index": [9, 1, 5, 2], "name": ["d", "a", "c", "b"]}
    table = pd.DataFrame({**rows, "x": [9.5, 1, 5, 2], "y": 0.0, "z": -1})
    table.to_csv(tmp_path / "atlas.tsv", sep="\t", index=False)
    atlas = load_atlas(image, tmp_path / "atlas.tsv")
    assert atlas.ids == [9, 1, 5, 2]
    assert atlas.names == ["d", "a", "c", "b"]
    np.testing.assert_array_equal(atlas.xyz_mm[0], np.float32([9.5, 0, -1]))
    data = np.arange(SHAPE[0])[:, None, None, None] * np.ones((*SHAPE, 2))
    np.testing.assert_array_equal(parcel_means(data, atlas.labels, atlas.ids)[0], [4, 1, 3, 2])


def test_table_without_coordinates_keeps_centroids_in_its_order(tmp_path: Path) -> None:
    image = save(atlas_labels(), tmp_path / "atlas.nii.gz", dtype=np.int16)
    (tmp_path / "atlas.tsv").write_text("index\tname\n9\td\n1\ta\n5\tc\n2\tb\n")
    atlas = load_atlas(image, tmp_path / "atlas.tsv")
    np.testing.assert_array_equal(atlas.xyz_mm, load_atlas(image).xyz_mm[[3, 0, 2, 1]])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("index\tname\n1\ta\n2\tb\n5\tc\n9\td\n77\te\n", "77"),
        ("index\tname\n1\ta\n2\tb\n5\tc\n", "9"),
        ("index\tname\n1\ta\n1\tb\n5\tc\n9\td\n", "twice"),
        ("index\tx\ty\tz\n1\t0\t0\t0\n2\t0\tn/a\t0\n", "y 'n/a'"),
        ("index\tname\n\n1\ta\nx\tb\n", "line 4"),
        ("label\tname\n1\ta\n", "columns label, name"),
        ("index\tname\n1.5\ta\n2\tb\n5\tc\n9\td\n", "index '1.5'"),
        ("index\tname\n-1\ta\n2\tb\n5\tc\n9\td\n", "index '-1'"),
        ("index\tname\n1\ta\t\n2\tb\n5\tc\n9\td\n", "line 2"),
        ("1\t0\t0\t0\n2\t0\t0\n", "line 2"),
        ("", "the file is empty"),
        ("index\tname\n1\t\u00e9\n", "not UTF-8"),
    ],
)
def test_table_that_does_not_fit_is_refused(tmp_path: Path, text: str, found: str) -> None:
    image = save(atlas_labels(), tmp_path / "atlas.nii.gz", dtype=np.int16)
    (tmp_path / "atlas.tsv").write_text(text, encoding="latin-1")
    with pytest.raises(InputError) as caught:
        load_atlas(image, tmp_path / "atlas.tsv")
    assert all(p.code.startswith("atlas-table") for p in caught.value.problems)
    assert found in str(caught.value)


def test_atlas_images_that_are_none(tmp_path: Path) -> None:
    for name, data, code in [
        ("fractions", atlas_labels() / 2, "atlas-fractional"),
        ("nothing", np.zeros(SHAPE), "atlas-empty"),
        ("series", volumes(3), "atlas-not-3d"),
        ("negative", -atlas_labels(), "atlas-negative"),
    ]:
        image = save(data, tmp_path / f"{name}.nii.gz")
        with pytest.raises(InputError) as caught:
            load_atlas(image)
        assert caught.value.problems[0].code == code
    with pytest.raises(InputError, match="no such file"):
        load_atlas(tmp_path / "absent.nii.gz")


def test_parcels_that_the_mask_empties_are_named(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    mask = np.ones(SHAPE)
    mask[2] = 0  # all of label 2
    run = bench.run(volumes(12), mask=mask)
    masked = replace(RAW, use_mask=True)
    (problem,) = find_bold_problems([run], bench.atlas, parcel_input(), masked)
    assert problem.code == "parcel-empty"
    assert "label 2" in problem.found
    zero = replace(RAW, use_mask=True, empty_parcels="zero")
    segments = prepare_run(run, bench.atlas, parcel_input(normalisation="zscore_run"), zero)
    assert segments.emptied == ("label 2",)


def test_mask_leaves_out_voxels(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    data = volumes(12)
    mask = np.zeros(SHAPE)
    mask[:, 1:3] = 1
    masked = replace(RAW, use_mask=True)
    segments = prepare_run(bench.run(data, mask=mask), bench.atlas, parcel_input(), masked)
    np.testing.assert_allclose(segments.values[0, 1], data[2, 1:3].mean(axis=(0, 1)), rtol=1e-6)
