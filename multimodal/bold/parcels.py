"""A label atlas, and the mean of a scan over each of its parcels."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped

from encoders.errors import InputError, Problem
from multimodal.bold.atlas_table import read_atlas_table
from multimodal.bold.finite import NotFiniteVoxels
from multimodal.bold.nifti import (
    Scan,
    describe_grid,
    grids_agree,
    like_grid,
    load_header,
    read_frames,
    scaled,
)


@dataclass(frozen=True)
class Atlas:
    """A parcellation: which voxel belongs to which parcel.

    Parameters
    ----------
    labels : ndarray [X, Y, Z] int64
        Parcel id of each voxel, 0 outside.
    affine : ndarray [4, 4] float64
        From voxel indices to mm.
    ids : list of int
        The P parcel ids, in the order of the time series' columns.
    names : list of str
        One a parcel.
    xyz_mm : ndarray [P, 3] float32
        One point a parcel in mm: the table's, or the label's centroid.
    """

    labels: Int64[np.ndarray, "x y z"]
    affine: Float64[np.ndarray, "4 4"]
    ids: list[int]
    names: list[str]
    xyz_mm: Float32[np.ndarray, "parcel 3"]


def load_atlas(image: str | Path, table: str | Path | None = None) -> Atlas:
    """Read a label image and, where there is one, the table that names its labels.

    Parameters
    ----------
    image : str or Path
        3D NIfTI of whole numbers; 0 is background.
    table : str or Path, optional
        Tab-separated with a header: ``index`` and any of ``name``, ``x``, ``y``, ``z`` (mm); its
        rows give the parcel order. A file of four numeric columns without header (index, X, Y,
        Z), as published with A424, is read too. Without a table: ascending labels.

    Returns
    -------
    Atlas

    Raises
    ------
    InputError
        Unreadable, not 3D, fractional or negative labels, or a table that does not match the
        image.
    """
    image = Path(image)
    labels, affine = _read_labels(image)
    present = [int(label) for label in np.unique(labels) if label != 0]
    if not present:
        raise InputError(Problem("atlas-empty", str(image), "no label above 0", "at least one"))
    centroids = _centroids_mm(labels, affine, present)
    if table is None:
        return Atlas(labels, affine, present, [f"label {i}" for i in present], centroids)
    rows = read_atlas_table(Path(table))
    ids = [int(i) for i in rows["index"]]
    _check_same_labels(Path(table), image, ids, present)
    if {"x", "y", "z"} <= set(rows.columns):
        xyz_mm = rows[["x", "y", "z"]].to_numpy(dtype=np.float32)
    else:
        xyz_mm = centroids[[present.index(i) for i in ids]]
    names = [str(n) for n in rows["name"]] if "name" in rows else [f"label {i}" for i in ids]
    return Atlas(labels, affine, ids, names, xyz_mm)


def parcel_means(
    data: Shaped[np.ndarray, "x y z frame"],
    labels: Shaped[np.ndarray, "x y z"],
    ids: Sequence[int],
) -> Float64[np.ndarray, "frame parcel"]:
    """Plain mean over the voxels of each parcel, frame by frame.

    NaN voxels are left out; a parcel without any valid voxel is 0; labels not in `ids` belong to
    no parcel. The rules are those of BrainLM's ``convert_fMRIvols_to_A424``
    (toolkit/BrainLM_Toolkit.py), without its fixed number of labels.

    Parameters
    ----------
    data : ndarray [X, Y, Z, T]
        Scan on the atlas' grid and in its orientation.
    labels : ndarray [X, Y, Z]
    ids : sequence of int
        The P labels wanted, in column order.

    Returns
    -------
    ndarray [T, P] float64

    Raises
    ------
    ValueError
        The grids' shapes differ.
    """
    if data.shape[:3] != labels.shape:
        raise ValueError(f"scan {data.shape[:3]} and atlas {labels.shape} differ in shape")
    column = label_columns(labels, ids)
    inside = column >= 0
    out = np.empty((data.shape[3], len(ids)))
    for frame in range(data.shape[3]):
        out[frame] = _frame_means(data[..., frame][inside], column[inside], len(ids))
    return out


def label_columns(
    labels: Shaped[np.ndarray, "..."], ids: Sequence[int]
) -> Int64[np.ndarray, "..."]:
    """Column of each voxel's label in `ids`, -1 where it has none."""
    wanted = np.asarray(ids)
    ascending = np.argsort(wanted, kind="stable")
    place = np.searchsorted(wanted[ascending], labels)
    column = ascending[np.minimum(place, len(wanted) - 1)]
    return np.where(wanted[column] == labels, column, -1)


def labels_on_grid(
    atlas: Atlas, shape: tuple[int, int, int], affine: np.ndarray, where: str, *, resample: bool
) -> Int64[np.ndarray, "x y z"]:
    """Atlas labels on a scan's grid, axes running as the scan's do.

    Parameters
    ----------
    atlas : Atlas
    shape, affine
        The scan's grid.
    where : str
        Name of the scan, for the message.
    resample : bool
        Resample an atlas on another grid (nearest neighbour), rather than refuse it.

    Raises
    ------
    InputError
        The atlas lies on another grid and `resample` is False (``"atlas-grid"``).
    """
    labels, turned = like_grid(atlas.labels, atlas.affine, affine)
    if grids_agree(labels.shape, turned, shape, affine):
        return labels
    if not resample:
        found = f"atlas on another grid: the scan has {describe_grid(shape, affine)}"
        wanted = f"the atlas' grid, {describe_grid(atlas.labels.shape, atlas.affine)}"
        fix = "give an atlas in the scan's space and grid, or set bold.atlas_resample=true"
        raise InputError(Problem("atlas-grid", where, found, wanted, fix))
    return _resampled(atlas, shape, affine)


@dataclass(frozen=True)
class ParcelSeries:
    """Parcel means of a run.

    Parameters
    ----------
    values : ndarray [T, P] float64
        All frames; 0 in emptied parcels.
    emptied : ndarray [E] int64
        Columns of parcels without a voxel.
    """

    values: Float64[np.ndarray, "frame parcel"]
    emptied: Int64[np.ndarray, " emptied"]


def read_parcels(
    scan: Scan,
    labels: Int64[np.ndarray, "x y z"],
    ids: Sequence[int],
    mask: Shaped[np.ndarray, "x y z"] | None,
) -> ParcelSeries:
    """Stream a scan and take the mean over each parcel, within the mask.

    Numbers that are not finite are refused in the mask. Without a mask, a voxel that is NaN
    throughout lies outside the field of view and counts as masked; one that is NaN at times is
    refused.

    Parameters
    ----------
    scan : Scan
    labels : ndarray [X, Y, Z]
        On the scan's grid (`labels_on_grid`).
    ids : sequence of int
    mask : ndarray [X, Y, Z] bool, optional
        On the scan's grid.

    Raises
    ------
    InputError
        NaN or infinite voxels (``"bold-nan"``), or a damaged file.
    """
    column = label_columns(labels, ids).ravel(order="F")
    inside = column >= 0 if mask is None else (column >= 0) & mask.ravel(order="F")
    watched = inside if mask is None else mask.ravel(order="F")
    lost = NotFiniteVoxels(scan, np.flatnonzero(watched), absent_allowed=mask is None)
    voxels = np.flatnonzero(inside)
    columns = column[voxels]
    values = np.zeros((scan.frames, len(ids)))
    for start, stored in read_frames(scan):
        lost.update(start, stored)
        for row, frame in enumerate(stored):
            parcel_values = scaled(scan, frame[voxels])
            values[start + row] = _frame_means(parcel_values, columns, len(ids))
    problem = lost.problem()
    if problem is not None:
        raise InputError(problem)
    seen = np.bincount(columns[~lost.absent(voxels)], minlength=len(ids))
    return ParcelSeries(values, np.flatnonzero(seen == 0))


def _frame_means(values: np.ndarray, column: np.ndarray, parcels: int) -> np.ndarray:
    values = values.astype(np.float64, copy=False)
    missing = np.isnan(values)
    if missing.any():
        values, column = values[~missing], column[~missing]
    total = np.bincount(column, weights=values, minlength=parcels)
    count = np.bincount(column, minlength=parcels)
    return np.divide(total, count, out=np.zeros(parcels), where=count > 0)


def _read_labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = load_header(path, "atlas")
    try:
        values = np.squeeze(np.asanyarray(image.dataobj))
    except (EOFError, OSError, ValueError, zlib.error) as error:
        found = f"cannot be read ({error})"
        raise InputError(
            Problem("atlas-truncated", str(path), found, "an intact label image", "copy it again")
        ) from error
    if values.ndim != 3:
        found = f"an image of {values.ndim} dimensions"
        raise InputError(Problem("atlas-not-3d", str(path), found, "a 3D label image"))
    fractional = int((values != np.round(values)).sum())
    if fractional:
        found = f"{fractional} voxels with a fractional label"
        fix = "resample labels by nearest neighbour; probability maps need a threshold first"
        raise InputError(Problem("atlas-fractional", str(path), found, "whole numbers", fix))
    negative = np.unique(values[values < 0])
    if len(negative):
        found = f"{len(negative)} negative labels: {_few([int(label) for label in negative])}"
        fix = "give parcels labels above 0, and the background 0"
        raise InputError(Problem("atlas-negative", str(path), found, "0 and above", fix))
    return values.astype(np.int64), np.asarray(image.affine, dtype=np.float64)


def _centroids_mm(labels: np.ndarray, affine: np.ndarray, ids: list[int]) -> np.ndarray:
    voxels = np.argwhere(labels != 0)
    column = label_columns(labels[labels != 0], ids)
    count = np.bincount(column, minlength=len(ids))
    centre = [np.bincount(column, weights=axis, minlength=len(ids)) / count for axis in voxels.T]
    return (np.stack(centre, axis=1) @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)


def _check_same_labels(table: Path, image: Path, ids: list[int], present: list[int]) -> None:
    problems = []
    only_table = sorted(set(ids) - set(present))
    only_image = sorted(set(present) - set(ids))
    if only_table:
        found = f"{len(only_table)} labels without a voxel in {image.name}: {_few(only_table)}"
        problems.append(Problem("atlas-table", str(table), found, "labels of the image only"))
    if only_image:
        found = f"{len(only_image)} labels without a row in {table.name}: {_few(only_image)}"
        problems.append(Problem("atlas-table", str(image), found, "a row for every label"))
    if problems:
        raise InputError(problems)


def _resampled(atlas: Atlas, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    import nibabel as nib
    from nilearn.image import resample_img

    image = nib.Nifti1Image(atlas.labels.astype(np.int32), atlas.affine)
    moved = resample_img(
        image,
        target_affine=affine,
        target_shape=shape,
        interpolation="nearest",
        force_resample=True,
        copy_header=True,
    )
    return np.asarray(moved.dataobj).astype(np.int64)


def _few(ids: list[int]) -> str:
    return ", ".join(str(i) for i in ids[:5]) + (", ..." if len(ids) > 5 else "")
