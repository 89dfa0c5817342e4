"""How a head moves in the scanner, and the confounds table that tells of it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from multimodal.simulate.options import SimulationOptions

HEAD_RADIUS_MM = 50.0
PARAMETERS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
SPIKE_MM = 0.8
FD_OUTLIER_MM = 0.5
DVARS_OUTLIER = 1.5
HIGH_PASS_S = 128.0
COMPCOR_COMPONENTS = 6
# Framewise displacement adds up six steps, each of mean absolute size 0.8 standard deviations.
STEP_SD_PER_FD = 1.0 / (6 * 0.8)


@dataclass(frozen=True)
class Motion:
    """Head motion of one run.

    Parameters
    ----------
    parameters : ndarray [T, 6] float64
        Translations in mm and rotations in radians, as `PARAMETERS` names them.
    fd_mm : ndarray [T] float64
        Framewise displacement (Power et al. 2012), 0 at the first frame.
    """

    parameters: np.ndarray
    fd_mm: np.ndarray


def draw_motion(
    rng: np.random.Generator, options: SimulationOptions, frames: int, level: float
) -> Motion:
    """Draw the motion of a run of `frames` frames by a subject who moves `level` times as usual."""
    unit = np.array([1.0, 1.0, 1.0, *(3 * [1.0 / HEAD_RADIUS_MM])])
    step_sd = options.motion_fd_mm * STEP_SD_PER_FD * level
    steps = rng.standard_normal((frames, 6)) * step_sd
    jumps = np.flatnonzero(rng.random(frames) < options.spike_rate * level)
    size = SPIKE_MM * rng.lognormal(0.0, 0.35, len(jumps))
    direction = rng.standard_normal((len(jumps), 6))
    direction /= np.abs(direction).sum(axis=1, keepdims=True)
    steps[jumps] += size[:, None] * direction
    # Half of the jumps go back at the next frame, as a cough does; the others stay.
    back = (rng.random(len(jumps)) < 0.5) & (jumps + 1 < frames)
    steps[jumps[back] + 1] -= size[back, None] * direction[back]
    steps[0] = 0.0
    position = np.zeros((frames, 6))
    for t in range(1, frames):
        position[t] = 0.995 * position[t - 1] + steps[t]
    fd_mm = np.concatenate([[0.0], np.abs(np.diff(position, axis=0)).sum(axis=1)])
    return Motion(parameters=position * unit, fd_mm=fd_mm)


def cosine_basis(frames: int, tr_s: float) -> np.ndarray:
    """Return the discrete cosines slower than 128 s, [T, C], as fMRIPrep lists them."""
    count = int(np.floor(2.0 * frames * tr_s / HIGH_PASS_S))
    time = np.arange(frames) + 0.5
    order = np.arange(1, count + 1)
    return np.sqrt(2.0 / frames) * np.cos(np.pi * time[:, None] * order[None, :] / frames)


def confounds_table(
    motion: Motion,
    signals: dict[str, np.ndarray],
    components: np.ndarray,
    dvars: np.ndarray,
    cosines: np.ndarray,
    non_steady_frames: int,
) -> pd.DataFrame:
    """Lay out what is known of a run as fMRIPrep does.

    Parameters
    ----------
    motion : Motion
    signals : dict of str to ndarray [T]
        Mean signals by fMRIPrep's names: global_signal, csf, white_matter.
    components : ndarray [T, C] float64
        aCompCor components.
    dvars : ndarray [T] float64
        Root mean square frame-to-frame difference over the brain; the first value is ignored.
    cosines : ndarray [T, C] float64
    non_steady_frames : int

    Returns
    -------
    DataFrame
        One row a frame; values that do not exist (first differences) are missing.
    """
    columns: dict[str, np.ndarray] = {}
    for name, values in signals.items():
        columns.update(_expand(name, values))
    frames = len(motion.fd_mm)
    first_missing = np.where(np.arange(frames) == 0, np.nan, 1.0)
    steady = dvars[1 + non_steady_frames :]
    columns["std_dvars"] = dvars / np.median(steady) * first_missing
    columns["dvars"] = dvars * first_missing
    columns["framewise_displacement"] = motion.fd_mm * first_missing
    columns["rmsd"] = _rmsd(motion.parameters) * first_missing
    for c in range(components.shape[1]):
        columns[f"a_comp_cor_{c:02d}"] = components[:, c]
    for c in range(cosines.shape[1]):
        columns[f"cosine{c:02d}"] = cosines[:, c]
    for frame in range(non_steady_frames):
        columns[f"non_steady_state_outlier{frame:02d}"] = _indicator(frames, frame)
    for p, name in enumerate(PARAMETERS):
        columns.update(_expand(name, motion.parameters[:, p]))
    outlier = (motion.fd_mm > FD_OUTLIER_MM) | (columns["std_dvars"] > DVARS_OUTLIER)
    outlier[:non_steady_frames] = False
    for number, at in enumerate(np.flatnonzero(outlier).tolist()):
        columns[f"motion_outlier{number:02d}"] = _indicator(frames, at)
    return pd.DataFrame(columns)


def confounds_sidecar(components: int) -> dict[str, dict[str, object]]:
    """Return the JSON that describes the aCompCor columns."""
    return {
        f"a_comp_cor_{c:02d}": {
            "Mask": "combined",
            "Method": "aCompCor",
            "Retained": True,
        }
        for c in range(components)
    }


def _indicator(frames: int, frame: int) -> np.ndarray:
    column = np.zeros(frames)
    column[frame] = 1.0
    return column


def _expand(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Return a signal with its first difference and both squared (Satterthwaite et al. 2013)."""
    difference = np.concatenate([[np.nan], np.diff(values)])
    return {
        name: values,
        f"{name}_derivative1": difference,
        f"{name}_derivative1_power2": difference**2,
        f"{name}_power2": values**2,
    }


def _rmsd(parameters: np.ndarray) -> np.ndarray:
    """Approximate root mean square displacement over a sphere (Jenkinson 1999), small rotations."""
    step = np.concatenate([np.zeros((1, 6)), np.diff(parameters, axis=0)])
    rotation = (step[:, 3:] ** 2).sum(axis=1) * 2.0 / 5.0 * HEAD_RADIUS_MM**2
    return np.sqrt(rotation + (step[:, :3] ** 2).sum(axis=1))
