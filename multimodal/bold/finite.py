"""Voxels that hold no number: found while a scan streams past."""

import numpy as np

from encoders.errors import InputError, Problem
from multimodal.bold.nifti import Scan, read_frames


def find_voxel_problems(scan: Scan) -> list[Problem]:
    """Read a whole scan for damage and for volumes without a single number.

    For scans that cannot be prepared because another problem stands in the way.
    """
    lost = NotFiniteVoxels(scan, np.arange(int(np.prod(scan.shape))), absent_allowed=True)
    try:
        for start, stored in read_frames(scan):
            lost.update(start, stored, whole_volumes=True)
    except InputError as error:
        return list(error.problems)
    problem = lost.problem()
    return [] if problem is None else [problem]


class NotFiniteVoxels:
    """Counts NaN and infinite voxels of a scan while it streams past.

    Parameters
    ----------
    scan : Scan
    voxels : ndarray [V] int64
        Places, in the file's order, of the voxels that must hold numbers.
    absent_allowed : bool
        Whether voxels without any number in any frame count as outside the field of view.
    """

    def __init__(self, scan: Scan, voxels: np.ndarray, *, absent_allowed: bool) -> None:
        self.scan, self.voxels, self.absent_allowed = scan, voxels, absent_allowed
        self.bad_in_frame = np.zeros(scan.frames, dtype=np.int64)
        self.infinite_in_frame = np.zeros(scan.frames, dtype=np.int64)
        self.bad_in_voxel = np.zeros(len(voxels), dtype=np.int64)

    def update(self, start: int, stored: np.ndarray, *, whole_volumes: bool = False) -> None:
        """Count in some frames, `stored` [frames, X*Y*Z] as `read_frames` gives them."""
        if stored.dtype.kind != "f":
            return
        for row, frame in enumerate(stored):
            values = frame[self.voxels]
            bad = ~np.isfinite(values)
            if not bad.any() or (whole_volumes and not bad.all()):
                continue
            self.bad_in_frame[start + row] = bad.sum()
            self.infinite_in_frame[start + row] = np.isinf(values).sum()
            self.bad_in_voxel += bad

    def absent(self, voxels: np.ndarray) -> np.ndarray:
        """Which of some voxels (a sorted subset of the watched) never hold a number."""
        never = self.voxels[self.bad_in_voxel == self.scan.frames]
        return np.isin(voxels, never)

    def problem(self) -> Problem | None:
        """What to tell of it, code ``"bold-nan"``; None where every frame is whole."""
        bad = self.bad_in_frame
        never = int((self.bad_in_voxel == self.scan.frames).sum())
        # One frame, or a scan all NaN, leaves no voxel to call the field of view.
        if self.absent_allowed and never < len(self.voxels):
            bad = np.where(self.infinite_in_frame > 0, bad, bad - never)
        frames = np.flatnonzero(bad > 0)
        if len(frames) == 0:
            return None
        whole = int((self.bad_in_frame == len(self.voxels)).sum())
        first = ", ".join(str(frame) for frame in frames[:5]) + (", ..." if len(frames) > 5 else "")
        found = f"NaN or infinite voxels in {len(frames)} of {self.scan.frames} frames"
        found += f" ({whole} of them without a single number); first frames, from 0: {first}"
        wanted = "finite numbers inside the brain mask (without one, in every voxel that is read)"
        return Problem("bold-nan", str(self.scan.path), found, wanted, "preprocess the run again")
