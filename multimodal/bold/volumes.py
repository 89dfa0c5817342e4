"""From one BOLD run to the segments an encoder of volumes takes."""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float32

from encoders.errors import InputError, Problem
from multimodal.bold.bids import BoldRun
from multimodal.bold.clean import clean_series, resample_series
from multimodal.bold.finite import NotFiniteVoxels, find_voxel_problems
from multimodal.bold.nifti import Scan, read_frames, scaled
from multimodal.bold.options import BoldOptions, VolumeSpec
from multimodal.bold.segments import RunSegments, segment_motion
from multimodal.bold.volume_grid import VolumeGrid
from multimodal.bold.volume_normalise import (
    LinearScaling,
    foreground_of,
    linear_scaling,
    scale_in_place,
)
from multimodal.bold.volume_plan import VolumePlan, find_volume_spec_problems, plan_volumes
from multimodal.bold.volume_stack import VolumeStack

# Voxels cleaned or interpolated together, in float64.
VOXELS_AT_ONCE = 8192


def prepare_volumes(
    run: BoldRun, spec_input: VolumeSpec, options: BoldOptions | None = None
) -> RunSegments:
    """Prepare one run exactly as an encoder of volumes says in its input record.

    Axes turned to the encoder's orientation; interpolated to its voxel size if asked; what lies
    outside the brain mask set to background; cleaned voxel by voxel if asked; censored frames
    taken out; resampled in time if asked; normalised over the run's kept frames and the whole
    brain; centred on the encoder's grid, padded with the normalisation's background; then cut, as
    `multimodal.bold.segments.prepare_run` cuts parcels.

    What the published scripts do by position is done by content here: no planes are cut off by
    number (SwiFT's preprocessing cuts 14 and 7 of y), padding is background rather than whatever
    the first corner voxel holds, all frames are used (SwiFT's loader leaves the last two out),
    and values stay in float32 (both store float16).

    Parameters
    ----------
    run : BoldRun
    spec_input : VolumeInput
        The encoder's ``spec.input``.
    options : BoldOptions, optional
        Detrending, filtering and regression count only with ``volume_clean``.

    Returns
    -------
    RunSegments
        Its values a `VolumeStack` [M, 1, X, Y, Z, T] float32.

    Raises
    ------
    InputError
        Everything wrong with the run that stands in the way.
    """
    options = options or BoldOptions()
    plan = plan_volumes(run, spec_input, options)
    problems = [*find_volume_spec_problems(spec_input), *plan.problems]
    if problems:
        raise InputError(problems)
    scan, grid, confounds = plan.scan, plan.grid, plan.confounds
    assert scan is not None
    assert grid is not None
    assert confounds is not None
    assert plan.tr_s is not None
    assert plan.starts is not None
    series = _in_time(plan, read_voxels(scan, grid, masked=plan.mask is not None), options)
    scaling = _scaling(scan, series, spec_input)
    scale_in_place(series, scaling)
    length = spec_input.frames or len(series)
    start_frame, mean_fd_mm = segment_motion(plan, confounds, length)
    return RunSegments(
        values=VolumeStack(
            series, grid.places, scaling.background, grid.shape, plan.starts, length
        ),
        start_frame=start_frame,
        mean_fd_mm=mean_fd_mm,
        xyz_mm=np.zeros((0, 3), dtype=np.float32),
        tr_s=plan.tr_s * plan.step,
        frames_found=scan.frames,
        frames_kept=int(confounds.keep.sum()),
    )


def find_volume_problems(
    runs: Iterable[BoldRun], spec_input: VolumeSpec, options: BoldOptions | None = None
) -> list[Problem]:
    """Find everything that `prepare_volumes` would refuse, in all runs, in one pass.

    Every scan is read to its end: damage and NaN volumes show only there.

    Returns
    -------
    list of Problem
        Those of the encoder first, once; then run by run.
    """
    options = options or BoldOptions()
    encoders_own = find_volume_spec_problems(spec_input)
    problems = list(encoders_own)
    for run in runs:
        plan = plan_volumes(run, spec_input, options)
        if plan.scan is not None and plan.grid is not None:
            masked = plan.mask is not None
            series = plan.attempt(read_voxels, plan.scan, plan.grid, masked=masked)
            if series is not None and plan.confounds is not None and not encoders_own:
                # Neither cleaning nor resampling empties a brain or makes it constant.
                kept = series[plan.confounds.keep]
                plan.attempt(_scaling, plan.scan, kept, spec_input)
        elif plan.scan is not None:
            plan.problems += find_voxel_problems(plan.scan)
        problems += dict.fromkeys(plan.problems)
    return problems


def read_voxels(
    scan: Scan, grid: VolumeGrid, *, masked: bool
) -> Float32[np.ndarray, "frame value"]:
    """Stream a scan and keep the voxels of a grid, interpolated where the grid says so.

    Parameters
    ----------
    scan : Scan
    grid : VolumeGrid
    masked : bool
        Whether the grid keeps to a brain mask. Numbers that are not finite are refused in it;
        without one, a voxel that is NaN throughout lies outside the field of view and becomes 0.

    Returns
    -------
    ndarray [T, N] float32
        All frames.

    Raises
    ------
    InputError
        NaN or infinite voxels (``"bold-nan"``), or a damaged file.
    """
    lost = NotFiniteVoxels(scan, np.sort(grid.voxels), absent_allowed=not masked)
    series = np.zeros((scan.frames, len(grid.places)), dtype=np.float32)
    for start, stored in read_frames(scan):
        lost.update(start, stored)
        for row, frame in enumerate(stored):
            values = scaled(scan, frame[grid.voxels])
            if stored.dtype.kind == "f":
                values[~np.isfinite(values)] = 0.0
            series[start + row] = values if grid.weights is None else grid.weights @ values
    problem = lost.problem()
    if problem is not None:
        raise InputError(problem)
    return series


def _in_time(plan: VolumePlan, series: np.ndarray, options: BoldOptions) -> np.ndarray:
    """Clean if asked, take censored frames out and change the repetition time."""
    confounds, positions = plan.confounds, plan.positions
    assert confounds is not None
    assert positions is not None
    assert plan.tr_s is not None
    keep = confounds.keep
    if not options.volume_clean and plan.step == 1:
        return series if keep.all() else series[keep]
    if not options.volume_clean:
        options = options.without_cleaning()
    result = np.empty((len(positions), series.shape[1]), dtype=np.float32)
    for columns in _column_parts(series.shape[1]):
        part = series[:, columns].astype(np.float64)
        cleaned = clean_series(part, confounds, plan.tr_s, options)
        if options.volume_clean:
            # Encoders of volumes saw each voxel's own brightness.
            cleaned += part[keep].mean(axis=0) - cleaned.mean(axis=0)
        if plan.step != 1:
            kept, tr_s = np.flatnonzero(keep), plan.tr_s
            cleaned = resample_series(cleaned, kept, positions, tr_s, tr_s * plan.step)
        result[:, columns] = cleaned
    return result


def _column_parts(columns: int) -> Iterator[slice]:
    return (slice(start, start + VOXELS_AT_ONCE) for start in range(0, columns, VOXELS_AT_ONCE))


def _scaling(scan: Scan, series: np.ndarray, spec: VolumeSpec) -> LinearScaling:
    where = str(scan.path)
    return linear_scaling(spec.normalisation, spec.statistics, foreground_of(series, where), where)
