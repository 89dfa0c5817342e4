"""From one BOLD run to the segments an encoder takes."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from encoders.errors import InputError, Problem
from multimodal.bold.bids import BoldRun
from multimodal.bold.clean import clean_series, resample_series
from multimodal.bold.confounds import Confounds
from multimodal.bold.finite import find_voxel_problems
from multimodal.bold.nifti import Scan
from multimodal.bold.normalise import normalise
from multimodal.bold.options import BoldOptions, ParcelSpec
from multimodal.bold.parcels import Atlas, ParcelSeries, read_parcels
from multimodal.bold.plan import RunPlan, check_emptied, find_spec_problems, plan_run
from multimodal.bold.volume_stack import VolumeStack


@dataclass(frozen=True)
class RunSegments:
    """Segments of one run, ready for an encoder.

    Parameters
    ----------
    values : ndarray [M, P, T] or VolumeStack [M, 1, X, Y, Z, T], float32
        Normalised; parcels in the order that the encoder wants. One segment of all kept frames
        for an encoder that takes whole runs.
    start_frame : ndarray [M] int64
        Recorded frame (from 0) that each segment begins at.
    mean_fd_mm : ndarray [M] float32
        Mean framewise displacement over each segment's frames in mm; 0 where unknown.
    xyz_mm : ndarray [P, 3] float32
        Parcel coordinates, in the same order; [0, 3] for volumes.
    tr_s : float
        Repetition time of `values` in seconds.
    frames_found, frames_kept : int
        Frames of the recording, and those left by censoring.
    emptied : tuple of str
        Parcels without a voxel, all zeros here.
    """

    values: Float32[np.ndarray, "segment parcel frame"] | VolumeStack
    start_frame: Int64[np.ndarray, " segment"]
    mean_fd_mm: Float32[np.ndarray, " segment"]
    xyz_mm: Float32[np.ndarray, "parcel 3"]
    tr_s: float
    frames_found: int
    frames_kept: int
    emptied: tuple[str, ...] = ()


def prepare_run(
    run: BoldRun, atlas: Atlas, spec_input: ParcelSpec, options: BoldOptions | None = None
) -> RunSegments:
    """Prepare one run exactly as an encoder's input record says.

    Parcel means within the mask; confounds, drifts and censored frames removed over the whole
    run; resampled in time if asked; normalised over the run's kept frames; parcels put in order;
    then cut. Censored frames are gone before cutting, so a segment of T frames holds T good ones
    and, with ``gaps="join"``, may span more time than T repetitions. What is left over at the end
    and shorter than a segment is not used.

    Parameters
    ----------
    run : BoldRun
    atlas : Atlas
    spec_input : ParcelInput
        The encoder's ``spec.input``.
    options : BoldOptions, optional

    Returns
    -------
    RunSegments

    Raises
    ------
    InputError
        Everything wrong with the run that stands in the way.
    """
    options = options or BoldOptions()
    plan = plan_run(run, atlas, spec_input, options)
    problems = [*find_spec_problems(atlas, spec_input), *plan.problems]
    if problems:
        raise InputError(problems)
    scan, labels, confounds = plan.scan, plan.labels, plan.confounds
    assert scan is not None
    assert labels is not None
    assert confounds is not None
    assert plan.tr_s is not None
    parcels = _read(plan, scan, labels, atlas, options)
    cleaned = clean_series(parcels.values, confounds, plan.tr_s, options)
    # Without detrending, regression leaves rounding in parcels that hold nothing but zeros.
    cleaned[:, parcels.emptied] = 0.0
    resampled = plan.step != 1
    tr_s = plan.tr_s * plan.step
    if resampled:
        assert plan.positions is not None
        kept = np.flatnonzero(confounds.keep)
        cleaned = resample_series(cleaned, kept, plan.positions, plan.tr_s, tr_s)
    normal = normalise(cleaned, spec_input.normalisation, spec_input.statistics)
    order = parcel_order(atlas.xyz_mm, spec_input.order)
    ordered = normal[:, order]
    length = spec_input.frames or len(ordered)
    start_frame, mean_fd_mm = segment_motion(plan, confounds, length)
    return RunSegments(
        values=_cut(plan, ordered, length),
        start_frame=start_frame,
        mean_fd_mm=mean_fd_mm,
        xyz_mm=np.ascontiguousarray(atlas.xyz_mm[order], dtype=np.float32),
        tr_s=tr_s,
        frames_found=scan.frames,
        frames_kept=int(confounds.keep.sum()),
        emptied=tuple(atlas.names[i] for i in parcels.emptied),
    )


def find_bold_problems(
    runs: Iterable[BoldRun],
    atlas: Atlas,
    spec_input: ParcelSpec,
    options: BoldOptions | None = None,
) -> list[Problem]:
    """Find everything that `prepare_run` would refuse, in all runs, in one pass.

    Every scan is read to its end: damage and NaN volumes show only there.

    Returns
    -------
    list of Problem
        Those of atlas and encoder first, once; then run by run.
    """
    options = options or BoldOptions()
    problems = find_spec_problems(atlas, spec_input)
    for run in runs:
        plan = plan_run(run, atlas, spec_input, options)
        masked = plan.mask is not None or not options.use_mask
        if plan.scan is not None and plan.labels is not None and masked:
            plan.attempt(_read, plan, plan.scan, plan.labels, atlas, options)
        elif plan.scan is not None:
            plan.problems += find_voxel_problems(plan.scan)
        problems += dict.fromkeys(plan.problems)
    return problems


def parcel_order(
    xyz_mm: Float32[np.ndarray, "parcel 3"], order: str
) -> Int64[np.ndarray, " parcel"]:
    """Parcel indices in the order wanted.

    ``"y"`` sorts stably by ascending Y (back to front), as BrainLM's ViT family was trained.
    """
    if order == "y":
        return np.argsort(xyz_mm[:, 1], kind="stable")
    return np.arange(len(xyz_mm))


def segment_motion(
    plan: RunPlan, confounds: Confounds, length: int
) -> tuple[Int64[np.ndarray, " segment"], Float32[np.ndarray, " segment"]]:
    """Where each segment of a plan begins, and how much the head moves over it.

    Parameters
    ----------
    plan : RunPlan
        With its segments placed.
    confounds : Confounds
    length : int
        Frames of a segment.

    Returns
    -------
    start_frame : ndarray [M] int64
        Recorded frame, from 0.
    mean_fd_mm : ndarray [M] float32
        Mean framewise displacement in mm over frames where it is known; 0 where none is.
    """
    assert plan.positions is not None
    assert plan.starts is not None
    rows = plan.starts[:, None] + np.arange(length)
    nearest = np.rint(plan.positions).astype(np.int64)[rows]
    fd_mm = confounds.fd_mm[nearest]
    known = ~np.isnan(fd_mm)
    total = np.where(known, fd_mm, 0.0).sum(axis=1)
    mean_fd_mm = total / np.maximum(known.sum(axis=1), 1)
    return nearest[:, 0], mean_fd_mm.astype(np.float32)


def _read(
    plan: RunPlan, scan: Scan, labels: np.ndarray, atlas: Atlas, options: BoldOptions
) -> ParcelSeries:
    parcels = read_parcels(scan, labels, atlas.ids, plan.mask)
    seen = np.ones(len(atlas.ids), dtype=np.int64)
    seen[parcels.emptied] = 0
    check_emptied(scan, atlas, seen, options)
    return parcels


def _cut(plan: RunPlan, series: Float64[np.ndarray, "frame parcel"], length: int) -> np.ndarray:
    assert plan.starts is not None
    rows = plan.starts[:, None] + np.arange(length)
    return np.ascontiguousarray(series[rows].transpose(0, 2, 1), dtype=np.float32)
