"""All that can be known of a run before its voxels are read, every problem at once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ParamSpec, TypeVar

import numpy as np
from jaxtyping import Bool, Float64, Int64

from encoders.errors import InputError, Problem
from multimodal.bold.bids import BoldRun
from multimodal.bold.clean import cosine_drifts, resampled_positions
from multimodal.bold.confounds import Confounds, read_confounds
from multimodal.bold.nifti import (
    Scan,
    describe_grid,
    differ,
    grids_agree,
    like_grid,
    load_header,
    open_scan,
    repetition_time_s,
)
from multimodal.bold.normalise import find_normalisation_problems
from multimodal.bold.options import BoldOptions, FramesSpec, ParcelSpec
from multimodal.bold.parcels import Atlas, label_columns, labels_on_grid

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class RunPlan:
    """What `plan_run` found: parts are None where a problem stands in their way.

    Parameters
    ----------
    run : BoldRun
    scan : Scan or None
    tr_s : float or None
        Repetition time of the recording in seconds.
    labels : ndarray [X, Y, Z] or None
        Atlas labels on the scan's grid.
    mask : ndarray [X, Y, Z] bool or None
        On the scan's grid; also None where none is used.
    confounds : Confounds or None
    positions : ndarray [F] or None
        Frames that segments are cut from, in recorded frames; fractions after resampling.
    step : float
        Distance of neighbouring positions without censoring: 1, or the repetition times' ratio.
    starts : ndarray [M] or None
        First position of each segment.
    problems : list of Problem
    """

    run: BoldRun
    scan: Scan | None = None
    tr_s: float | None = None
    labels: Int64[np.ndarray, "x y z"] | None = None
    mask: Bool[np.ndarray, "x y z"] | None = None
    confounds: Confounds | None = None
    positions: Float64[np.ndarray, " frame"] | None = None
    step: float = 1.0
    starts: Int64[np.ndarray, " segment"] | None = None
    problems: list[Problem] = field(default_factory=list)

    def attempt(self, step: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """Call a step; on `InputError` note its problems and go on with None."""
        try:
            return step(*args, **kwargs)
        except InputError as error:
            self.problems += error.problems
            return None


def plan_run(run: BoldRun, atlas: Atlas, spec: ParcelSpec, options: BoldOptions) -> RunPlan:
    """Read headers, mask and confounds of a run, and place its segments.

    Never raises for bad input: all problems are in the result.
    """
    plan = RunPlan(run)
    plan.scan = plan.attempt(open_scan, run.bold)
    if plan.scan is None:
        return plan
    scan = plan.scan
    plan.tr_s = plan.attempt(repetition_time_s, scan, run.tr_s)
    if plan.tr_s is not None:
        plan.problems += find_cutoff_problems(scan, plan.tr_s, options)
    plan.labels = plan.attempt(
        labels_on_grid,
        atlas,
        scan.shape,
        scan.affine,
        str(scan.path),
        resample=options.atlas_resample,
    )
    if options.use_mask:
        plan.mask = plan.attempt(read_mask, run, scan)
    if plan.labels is not None and (plan.mask is not None or not options.use_mask):
        plan.attempt(check_emptied, scan, atlas, _seen(plan.labels, plan.mask, atlas), options)
    plan.confounds = plan.attempt(
        read_confounds, run.confounds, scan.frames, options, str(scan.path)
    )
    plan.attempt(place_segments, plan, scan, spec, options)
    return plan


def find_spec_problems(atlas: Atlas, spec: ParcelSpec) -> list[Problem]:
    """Problems of atlas and encoder that no run can change."""
    problems = find_normalisation_problems(spec.normalisation, spec.statistics)
    if spec.parcels is not None and len(atlas.ids) != spec.parcels:
        found = f"the atlas has {len(atlas.ids)} labels"
        wanted = f"the encoder wants {spec.parcels}" + (f" ({spec.atlas})" if spec.atlas else "")
        image = f"an {spec.atlas} image" if spec.atlas else f"an image of {spec.parcels} labels"
        fix = f"set cohort.atlas to {image}"
        problems.append(Problem("channel-count", "channel count", found, wanted, fix))
    return problems


def find_cutoff_problems(scan: Scan, tr_s: float, options: BoldOptions) -> list[Problem]:
    """Problems of a band-pass whose cut-offs the recording is too slow for.

    Parameters
    ----------
    scan : Scan
    tr_s : float
        Repetition time of the recording in seconds; its Nyquist frequency is half the inverse.
    options : BoldOptions

    Returns
    -------
    list of Problem
        Code ``"filter-cut-off"``, one a cut-off. Empty unless the filter is Butterworth.
    """
    if options.filter != "butterworth":
        return []
    nyquist_hz = 0.5 / tr_s
    wanted = f"below {nyquist_hz:g} Hz, the fastest that a repetition time of {tr_s:g} s can show"
    fixes = {
        "high_pass_hz": "set bold.high_pass_hz lower (0.008 is usual), or null",
        "low_pass_hz": "set bold.low_pass_hz lower (0.1 is usual), or null",
    }
    return [
        Problem("filter-cut-off", str(scan.path), f"bold.{name} is {cut_hz:g} Hz", wanted, fix)
        for name, fix in fixes.items()
        if (cut_hz := getattr(options, name)) is not None and cut_hz >= nyquist_hz
    ]


def check_emptied(scan: Scan, atlas: Atlas, seen: np.ndarray, options: BoldOptions) -> None:
    """Refuse parcels without a voxel, if the options say so.

    Parameters
    ----------
    seen : ndarray [P]
        Voxels of each parcel.

    Raises
    ------
    InputError
        Code ``"parcel-empty"``.
    """
    empty = np.flatnonzero(seen == 0)
    if len(empty) == 0 or options.empty_parcels == "zero":
        return
    names = ", ".join(atlas.names[i] for i in empty[:5]) + (", ..." if len(empty) > 5 else "")
    where = "brain mask and field of view" if options.use_mask else "field of view"
    found = f"{len(empty)} of {len(atlas.ids)} parcels without a voxel in the {where}: {names}"
    fix = "check the mask's coverage, or set bold.empty_parcels=zero"
    raise InputError(Problem("parcel-empty", str(scan.path), found, "a voxel in each parcel", fix))


def segment_starts(
    positions: Float64[np.ndarray, " frame"],
    step: float,
    length: int,
    stride: int,
    *,
    within_gaps: bool,
) -> Int64[np.ndarray, " segment"]:
    """First row of each segment of `length` rows, one every `stride` rows.

    With `within_gaps` segments may run over censored frames; without, each stretch between gaps
    is cut on its own.
    """
    gaps = np.flatnonzero(np.diff(positions) > 1.5 * step) + 1
    edges = [0, *([] if within_gaps else gaps), len(positions)]
    starts = [np.arange(first, last - length + 1, stride) for first, last in pairwise(edges)]
    return np.concatenate(starts).astype(np.int64)


def _seen(labels: np.ndarray, mask: np.ndarray | None, atlas: Atlas) -> np.ndarray:
    columns = label_columns(labels if mask is None else labels[mask], atlas.ids)
    return np.bincount(columns[columns >= 0], minlength=len(atlas.ids))


def read_mask(run: BoldRun, scan: Scan) -> Bool[np.ndarray, "x y z"]:
    """Read a run's brain mask, with its axes running as the scan's do.

    Raises
    ------
    InputError
        No mask, one that cannot be read, or on another grid (``"mask-missing"``,
        ``"mask-unreadable"``, ``"mask-grid"``).
    """
    fix = "give the run's brain mask, or set bold.use_mask=false"
    if run.mask is None or not run.mask.is_file():
        found = "no brain mask" if run.mask is None else f"no such mask: {run.mask}"
        wanted = "a mask beside the scan (*_desc-brain_mask.nii.gz)"
        raise InputError(Problem("mask-missing", str(scan.path), found, wanted, fix))
    image = load_header(run.mask, "mask")
    try:
        values = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel passes on whatever the decompressor raises
        found = f"cannot be read ({error})"
        raise InputError(
            Problem("mask-unreadable", str(run.mask), found, "an intact mask", fix)
        ) from error
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        found = f"{values.ndim} dimensions"
        raise InputError(Problem("mask-unreadable", str(run.mask), found, "a 3D mask", fix))
    mask, affine = like_grid(np.nan_to_num(values) != 0, image.affine, scan.affine)
    if not grids_agree(mask.shape, affine, scan.shape, scan.affine):
        found = f"mask on another grid: {describe_grid(values.shape, image.affine)}"
        wanted = f"the scan's grid, {describe_grid(scan.shape, scan.affine)}"
        raise InputError(Problem("mask-grid", str(run.mask), found, wanted, fix))
    return mask


def place_segments(plan: RunPlan, scan: Scan, spec: FramesSpec, options: BoldOptions) -> None:
    """Note in the plan which frames stay and where segments begin.

    Raises
    ------
    InputError
        Too few frames for a segment, or for what is regressed out (``"run-too-short"``,
        ``"confounds-too-many"``). Another repetition time than the encoder's is noted in the plan.
    """
    keep = np.ones(scan.frames, dtype=bool)
    if plan.confounds is not None:
        keep = plan.confounds.keep
    positions = np.flatnonzero(keep).astype(np.float64)
    if plan.tr_s is not None and spec.tr_s is not None and differ(plan.tr_s, spec.tr_s):
        if options.tr_mismatch == "error":
            found = f"repetition time {plan.tr_s:g} s"
            wanted = f"the encoder wants {spec.tr_s:g} s"
            fix = "set bold.tr_mismatch=resample to interpolate, or =ignore"
            plan.problems.append(Problem("tr-mismatch", str(scan.path), found, wanted, fix))
        elif options.tr_mismatch == "resample":
            plan.step = spec.tr_s / plan.tr_s
            positions = resampled_positions(keep, plan.tr_s, spec.tr_s)
    length = spec.frames or max(len(positions), options.min_frames)
    plan.positions = positions
    plan.starts = segment_starts(
        positions,
        plan.step,
        length,
        options.stride_frames or length,
        within_gaps=spec.frames is None or options.gaps == "join",
    )
    if len(plan.starts) == 0:
        raise InputError(_too_short(plan, scan, spec, options, length))
    if plan.confounds is not None:
        _check_degrees(plan, plan.confounds, scan, options)


def _too_short(
    plan: RunPlan, scan: Scan, spec: FramesSpec, options: BoldOptions, length: int
) -> Problem:
    assert plan.positions is not None
    found = f"run too short: {_count(scan.frames)}"
    dropped = plan.confounds.dropped if plan.confounds is not None else {}
    if dropped:
        reasons = ", ".join(f"{number} {reason}" for reason, number in dropped.items())
        found += f", {scan.frames - sum(dropped.values())} of them kept ({reasons})"
    if plan.step != 1:
        found += f", {len(plan.positions)} after resampling to the encoder's repetition time"
    if spec.frames is None:
        wanted = f"at least {_count(length)} in a run (bold.min_frames)"
        fix = "leave the run out"
    else:
        wanted = f"a segment needs {_count(length)}"
        together = options.gaps == "break" and len(plan.positions) >= length
        wanted += " without a gap (bold.gaps=break)" if together else ""
        fix = "leave the run out, or take an encoder with shorter segments"
    if dropped:
        fix += ", or censor less (bold.fd_threshold_mm, bold.std_dvars_threshold)"
    return Problem("run-too-short", str(scan.path), found, wanted, fix)


def _check_degrees(plan: RunPlan, confounds: Confounds, scan: Scan, options: BoldOptions) -> None:
    kept, columns = int(confounds.keep.sum()), confounds.regressors.shape[1]
    if options.filter == "cosine" and plan.tr_s is not None:
        columns += cosine_drifts(scan.frames, plan.tr_s, options.high_pass_hz or 0.0).shape[1]
    lost = columns + (2 if options.detrend else 0)
    if lost and lost >= kept:
        line = " and a straight line" if options.detrend else ""
        found = f"{columns} confounds and cosines{line} taken out of {kept} frames leave nothing"
        fix = "regress out less (bold.motion, bold.compcor, bold.high_pass_hz) or censor less"
        raise InputError(
            Problem("confounds-too-many", str(scan.path), found, "fewer confounds", fix)
        )


def _count(frames: int) -> str:
    return f"{frames} frame" if frames == 1 else f"{frames} frames"
