"""All that can be known of a run for an encoder of volumes before its voxels are read."""

from dataclasses import dataclass

import numpy as np
from nibabel.orientations import axcodes2ornt

from encoders.errors import Problem
from multimodal.bold.bids import BoldRun
from multimodal.bold.confounds import read_confounds
from multimodal.bold.nifti import Scan, open_scan, repetition_time_s
from multimodal.bold.options import BoldOptions, VolumeSpec
from multimodal.bold.plan import RunPlan, find_cutoff_problems, place_segments, read_mask
from multimodal.bold.volume_grid import VolumeGrid, plan_grid
from multimodal.bold.volume_normalise import find_volume_normalisation_problems

# Volume of a voxel below which an affine says nothing of place, in cubic mm.
LEAST_VOXEL_MM3 = 1e-6


@dataclass
class VolumePlan(RunPlan):
    """A `RunPlan` without labels, and with the encoder's grid.

    Parameters
    ----------
    grid : VolumeGrid or None
        None where a problem stands in its way.
    """

    grid: VolumeGrid | None = None


def plan_volumes(run: BoldRun, spec: VolumeSpec, options: BoldOptions) -> VolumePlan:
    """Read headers, mask and confounds of a run, lay the grid over it and place its segments.

    Never raises for bad input: all problems are in the result.
    """
    plan = VolumePlan(run)
    if not options.volume_clean:
        options = options.without_cleaning()
    plan.scan = plan.attempt(open_scan, run.bold)
    if plan.scan is None:
        return plan
    scan = plan.scan
    plan.tr_s = plan.attempt(repetition_time_s, scan, run.tr_s)
    if plan.tr_s is not None:
        plan.problems += find_cutoff_problems(scan, plan.tr_s, options)
    if _is_flat(scan.affine):
        plan.problems.append(_flat(scan))
    else:
        if options.use_mask:
            plan.mask = plan.attempt(read_mask, run, scan)
        known = plan.mask is not None or not options.use_mask
        if known and not find_orientation_problems(spec):
            plan.grid = plan.attempt(plan_grid, scan, plan.mask, spec, options)
    plan.confounds = plan.attempt(
        read_confounds, run.confounds, scan.frames, options, str(scan.path)
    )
    plan.attempt(place_segments, plan, scan, spec, options)
    return plan


def find_volume_spec_problems(spec: VolumeSpec) -> list[Problem]:
    """Problems of an encoder's record that no run can change."""
    problems = find_volume_normalisation_problems(spec.normalisation, spec.statistics)
    return [*problems, *find_orientation_problems(spec)]


def find_orientation_problems(spec: VolumeSpec) -> list[Problem]:
    """Problems of the letters that say which way an encoder's axes run."""
    try:
        axes = axcodes2ornt(tuple(spec.orientation))
        if sorted(axes[:, 0].tolist()) == [0.0, 1.0, 2.0]:
            return []
    except (ValueError, IndexError):
        pass
    wanted = "one letter each of R or L, A or P, S or I"
    return [Problem("orientation", "the encoder's orientation", spec.orientation, wanted)]


def _is_flat(affine: np.ndarray) -> bool:
    volume_mm3 = abs(np.linalg.det(affine[:3, :3]))
    return not volume_mm3 > LEAST_VOXEL_MM3


def _flat(scan: Scan) -> Problem:
    found = "an affine whose voxels have no volume"
    wanted = "one that says where each voxel lies, in mm"
    return Problem("affine", str(scan.path), found, wanted, "correct the image's sform or qform")
