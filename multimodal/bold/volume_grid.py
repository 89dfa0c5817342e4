"""Which voxel of a scan goes where on an encoder's grid: orientation, voxel size, crop and padding.

The grid lies centred on the scan's field of view; of an odd difference the larger half is added or
cut at the low end of an axis. So do SwiFT's paddings for HCP (75 x 93 x 81 voxels) and UK Biobank
(91 x 109 x 91) to 96 x 96 x 96 (Transconnectome/SwiFT, data_preprocess_and_load/datasets.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from encoders.errors import InputError, Problem
from multimodal.bold.nifti import Scan
from multimodal.bold.options import BoldOptions, VolumeSpec

VOXEL_TOLERANCE = 0.01
# A grid that cuts more than this share of the brain off is another encoder's.
MOST_CUT_OFF = 0.05
Pads = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class VolumeGrid:
    """From the voxels of a file to those of an encoder.

    Parameters
    ----------
    shape : tuple of int
        The encoder's voxels along x, y, z.
    voxels : ndarray [V] int64
        Places in the file (first axis fastest) of the voxels that are read.
    weights : sparse matrix [N, V] or None
        Gives the values on the encoder's voxel size from those read; None where these are them.
    places : ndarray [N] int64
        Place of each value on the encoder's grid (last axis fastest); -1 where it is cut off.
    """

    shape: tuple[int, int, int]
    voxels: Int64[np.ndarray, " voxel"]
    weights: Any
    places: Int64[np.ndarray, " value"]


def plan_grid(
    scan: Scan, mask: Bool[np.ndarray, "x y z"] | None, spec: VolumeSpec, options: BoldOptions
) -> VolumeGrid:
    """Lay an encoder's grid over a scan.

    Parameters
    ----------
    scan : Scan
    mask : ndarray [X, Y, Z] bool, optional
        Brain mask as the scan is stored; all voxels without one.
    spec : VolumeInput
    options : BoldOptions

    Raises
    ------
    InputError
        A mask without a voxel (``"mask-empty"``), other voxels than the encoder's
        (``"voxel-size"``), more than 5% of the brain beyond the grid (``"volume-cut"``).
    """
    inside = np.ones(scan.shape, dtype=bool) if mask is None else mask
    if not inside.any():
        fix = "give the run's own brain mask, or set bold.use_mask=false"
        raise InputError(
            Problem("mask-empty", str(scan.path), "a brain mask without a voxel", "a brain", fix)
        )
    turn = ornt_transform(io_orientation(scan.affine), axcodes2ornt(spec.orientation))
    files_place = np.arange(inside.size).reshape(inside.shape, order="F")
    turned = apply_orientation(files_place, turn)
    affine = scan.affine @ inv_ornt_aff(turn, scan.shape)
    kept = inside.ravel(order="F")[turned]
    weights = None
    voxels = turned[kept]
    if spec.voxel_mm is not None and sizes_differ(affine, spec.voxel_mm):
        if not options.volume_resample:
            raise InputError(_voxel_size(scan, affine, spec.voxel_mm))
        weights, kept = resampling_weights(kept, voxel_sizes_mm(affine), spec.voxel_mm)
    places = _places(kept, spec.shape)
    if mask is not None and (places < 0).mean() > MOST_CUT_OFF:
        raise InputError(_cut_off(scan, kept.shape, float((places < 0).mean()), spec))
    return VolumeGrid(tuple(spec.shape), voxels, weights, places)  # type: ignore[arg-type]


def centred_pads(shape: Sequence[int], wanted: Sequence[int]) -> list[tuple[int, int]]:
    """Voxels to add (or, negative, to cut) at the low and high end of each axis."""
    pads = []
    for found, size in zip(shape, wanted, strict=True):
        sign = 1 if size >= found else -1
        more = abs(size - found)
        pads.append((sign * (more - more // 2), sign * (more // 2)))
    return pads


def pad_or_crop(values: Shaped[np.ndarray, "..."], pads: Pads, fill: float) -> np.ndarray:
    """Add or cut voxels at the ends of the first axes.

    Parameters
    ----------
    values : ndarray [X, Y, Z, ...]
    pads : sequence of (int, int)
        Low and high end of each axis, negative numbers cut; later axes stay as they are.
    fill : scalar
        Value of the added voxels.

    Returns
    -------
    ndarray of the same dtype
    """
    cut = tuple(
        slice(max(0, -low), size - max(0, -high))
        for (low, high), size in zip(pads, values.shape, strict=False)
    )
    added = [(max(0, low), max(0, high)) for low, high in pads]
    added += [(0, 0)] * (values.ndim - len(pads))
    return np.pad(values[cut], added, constant_values=fill)


def voxel_sizes_mm(affine: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, " 3"]:
    """Edges of a voxel along the three axes, in mm."""
    return np.sqrt((affine[:3, :3] ** 2).sum(axis=0))


def sizes_differ(affine: Float64[np.ndarray, "4 4"], voxel_mm: float) -> bool:
    """Whether some edge of a voxel is more than 1% from `voxel_mm`."""
    apart = np.abs(voxel_sizes_mm(affine) - voxel_mm)
    return bool((apart > VOXEL_TOLERANCE * voxel_mm).any())


def resampling_weights(
    inside: Bool[np.ndarray, "x y z"], sizes_mm: Float64[np.ndarray, " 3"], voxel_mm: float
) -> tuple[Any, Bool[np.ndarray, "i j k"]]:
    """Trilinear interpolation onto voxels of another size, over the same field of view.

    Only voxels inside take part, with weights that sum to 1: what lies outside the brain never
    bleeds into its edge. A new voxel is inside where at least half of its weight is.

    Parameters
    ----------
    inside : ndarray [X, Y, Z] bool
    sizes_mm : ndarray [3]
        Edges of its voxels in mm.
    voxel_mm : float
        Edge of the new voxels in mm.

    Returns
    -------
    weights : sparse matrix [N, V] float64
        V voxels inside and N new ones inside, last axis fastest.
    kept : ndarray [I, J, K] bool
        The new voxels inside.
    """
    from scipy.sparse import csr_matrix

    old = np.array(inside.shape)
    new = np.maximum(1, np.ceil(old * sizes_mm / voxel_mm - 1e-6)).astype(np.int64)
    scale = voxel_mm / sizes_mm
    along = [
        (np.arange(n) - (n - 1) / 2) * step + (o - 1) / 2
        for n, o, step in zip(new, old, scale, strict=True)
    ]
    column = np.full(inside.shape, -1)
    column[inside] = np.arange(int(inside.sum()))
    rows, columns, parts = [], [], []
    for corner in product((0, 1), repeat=3):
        place, weight, within = _corner(along, corner, old)
        found = np.where(within, column[np.ix_(*place)], -1)
        row = np.flatnonzero((found.ravel() >= 0) & (weight.ravel() > 0))
        rows.append(row)
        columns.append(found.ravel()[row])
        parts.append(weight.ravel()[row])
    triplets = (np.concatenate(parts), (np.concatenate(rows), np.concatenate(columns)))
    matrix = csr_matrix(triplets, shape=(int(new.prod()), int(inside.sum())))
    total = np.asarray(matrix.sum(axis=1)).ravel()
    kept = total >= 0.5 - 1e-9
    matrix = matrix[kept]
    matrix.data /= np.repeat(total[kept], np.diff(matrix.indptr))
    return matrix, kept.reshape(new)


def _corner(
    along: list[np.ndarray], corner: tuple[int, ...], shape: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Old voxel at one corner around each new one, its weight, and whether there is one."""
    place, weights, within = [], [], []
    for points, side, size in zip(along, corner, shape, strict=True):
        low = np.floor(points + 1e-9).astype(np.int64)
        part = np.clip(points - low, 0.0, 1.0)
        index = low + side
        weights.append(part if side else 1.0 - part)
        within.append((index >= 0) & (index < size))
        place.append(np.clip(index, 0, size - 1))
    weight = weights[0][:, None, None] * weights[1][:, None] * weights[2]
    return place, weight, within[0][:, None, None] & within[1][:, None] & within[2]


def _places(kept: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    number = np.full(kept.shape, -1)
    number[kept] = np.arange(int(kept.sum()))
    on_grid = pad_or_crop(number, centred_pads(kept.shape, shape), -1).ravel()
    taken = np.flatnonzero(on_grid >= 0)
    places = np.full(int(kept.sum()), -1)
    places[on_grid[taken]] = taken
    return places


def _voxel_size(scan: Scan, affine: np.ndarray, voxel_mm: float) -> Problem:
    found = f"voxels of {_by(voxel_sizes_mm(affine))} mm"
    wanted = f"the encoder wants {voxel_mm:g} mm along every axis"
    fix = "set bold.volume_resample=true to interpolate, or give scans of that voxel size"
    return Problem("voxel-size", str(scan.path), found, wanted, fix)


def _cut_off(scan: Scan, shape: Sequence[int], share: float, spec: VolumeSpec) -> Problem:
    found = (
        f"{100 * share:.0f}% of the brain mask lies beyond the encoder's {_by(spec.shape)} voxels"
    )
    found += f" when these are centred on the scan's {_by(shape)}"
    wanted = f"at most {100 * MOST_CUT_OFF:g}%"
    fix = "take an encoder with a larger grid, or one that names the voxel size it wants"
    if spec.voxel_mm is not None:
        fix = "crop the scan's field of view around the brain"
    return Problem("volume-cut", str(scan.path), found, wanted, fix)


def _by(sizes: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{size:g}" for size in sizes)
