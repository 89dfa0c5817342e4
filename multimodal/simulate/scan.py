"""One run of resting-state BOLD: signal, scanner, physiology and motion, as int16 volumes."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.signal import lfilter

from multimodal.simulate.anatomy import Anatomy
from multimodal.simulate.motion import (
    COMPCOR_COMPONENTS,
    Motion,
    confounds_table,
    cosine_basis,
    draw_motion,
)
from multimodal.simulate.options import SimulationOptions

MEAN_INTENSITY = 1000.0
SCL_SLOPE = 1.5
# A multiple of the slope, so that zeros outside the brain stay exactly zero.
SCL_INTER = 600.0
CONTRAST = {"grey": 1.0, "white_matter": 0.85, "csf": 1.3}
PHYSIOLOGY_PERCENT = {"grey": 0.4, "white_matter": 0.8, "csf": 2.0}
PHYSIOLOGY_HZ = ((0.05, 1.0), (0.3, 0.7))
DRIFT_PERCENT = 1.0
MOTION_PERCENT_PER_MM = 1.5
SPIKE_PERCENT_PER_MM = 2.0
NON_STEADY_PERCENT = 15.0
SITE_NOISE_STEP = 0.1
SITE_MEAN_STEP = 0.08
BURN_IN_FRAMES = 50


@dataclass(frozen=True)
class Scan:
    """One run, ready to be written.

    Parameters
    ----------
    volumes : ndarray [X, Y, Z, T] int16
        Stored values; intensity is ``volumes * SCL_SLOPE + SCL_INTER``.
    confounds : DataFrame
    mean_fd_mm : float
    """

    volumes: np.ndarray
    confounds: pd.DataFrame
    mean_fd_mm: float


def simulate_scan(
    rng: np.random.Generator,
    options: SimulationOptions,
    anatomy: Anatomy,
    *,
    correlation: np.ndarray,
    frames: int,
    motion_level: float,
    site: int,
) -> Scan:
    """Simulate one run.

    Parameters
    ----------
    rng : numpy.random.Generator
    options : SimulationOptions
    anatomy : Anatomy
    correlation : ndarray [networks, networks] float64
        Network correlations of this run.
    frames : int
    motion_level : float
        How much this subject moves, 1 being usual.
    site : int
        Scanner; each has its own intensity and noise.
    """
    motion = draw_motion(rng, options, frames, motion_level)
    parcels = parcel_signals(rng, options, anatomy.network, correlation, frames)
    percent = _voxel_percent(rng, options, anatomy, parcels, motion, site)
    tissue = _by_tissue(anatomy, CONTRAST)
    bias = 1.0 + 0.1 * rng.standard_normal(3) @ _coordinates(anatomy)
    mean = MEAN_INTENSITY * (1.0 + SITE_MEAN_STEP * site) * tissue * np.clip(bias, 0.7, 1.3)
    stored = np.rint((mean[:, None] * (1.0 + percent / 100.0) - SCL_INTER) / SCL_SLOPE)
    limits = np.iinfo(np.int16)
    stored = np.clip(stored, limits.min, limits.max).astype(np.int16)
    volumes = np.full((*anatomy.mask.shape, frames), round(-SCL_INTER / SCL_SLOPE), dtype=np.int16)
    volumes[anatomy.mask] = stored
    intensity = stored.astype(np.float64) * SCL_SLOPE + SCL_INTER
    return Scan(
        volumes=volumes,
        confounds=_confounds(options, anatomy, intensity, motion),
        mean_fd_mm=float(motion.fd_mm[1:].mean()),
    )


def parcel_signals(
    rng: np.random.Generator,
    options: SimulationOptions,
    network: np.ndarray,
    correlation: np.ndarray,
    frames: int,
) -> np.ndarray:
    """Draw unit-variance parcel signals [P, T]: a network's share and the parcel's own.

    Every source is a first-order autoregressive process; parcels of networks i and j correlate by
    ``coherence * correlation[i, j]`` (within a network by `coherence`).
    """
    phi = float(np.exp(-options.tr_s / options.time_constant_s))
    count = len(correlation) + len(network)
    white = rng.standard_normal((count, frames + BURN_IN_FRAMES)) * np.sqrt(1.0 - phi**2)
    sources = lfilter([1.0], [1.0, -phi], white, axis=1)[:, BURN_IN_FRAMES:]
    networks = np.linalg.cholesky(correlation) @ sources[: len(correlation)]
    own = sources[len(correlation) :]
    return np.sqrt(options.coherence) * networks[network] + np.sqrt(1.0 - options.coherence) * own


def _voxel_percent(
    rng: np.random.Generator,
    options: SimulationOptions,
    anatomy: Anatomy,
    parcels: np.ndarray,
    motion: Motion,
    site: int,
) -> np.ndarray:
    """Percent signal change [voxels of the mask, T]: BOLD, noise, drift, physiology, motion."""
    frames = parcels.shape[1]
    xyz = _coordinates(anatomy)
    labels = anatomy.labels[anatomy.mask]
    noise_percent = options.voxel_noise_percent * (1.0 + SITE_NOISE_STEP * site)
    percent = rng.standard_normal((len(labels), frames), dtype=np.float32).astype(np.float64)
    percent *= noise_percent
    inside = labels > 0
    percent[inside] += options.bold_percent * parcels[labels[inside] - 1]
    time = np.linspace(-1.0, 1.0, frames)
    slow = np.stack([time, time**2 - 1.0 / 3.0])
    percent += _smooth_field(rng, xyz, 2) @ slow * DRIFT_PERCENT
    percent += _by_tissue(anatomy, PHYSIOLOGY_PERCENT)[:, None] * _physiology(rng, options, frames)
    # Partial volume at edges makes intensity follow the head's position; what is not linear in it
    # (spin history) comes with the frame the head moves at.
    edge = np.linalg.norm(xyz, axis=0) ** 2
    scale = np.array([1.0, 1.0, 1.0, 50.0, 50.0, 50.0])
    position = (motion.parameters - motion.parameters.mean(axis=0)) * scale
    loadings = _smooth_field(rng, xyz, 6) * edge[:, None] * MOTION_PERCENT_PER_MM
    percent += loadings @ position.T
    jump = np.where(motion.fd_mm > 3 * options.motion_fd_mm, motion.fd_mm, 0.0)
    percent -= SPIKE_PERCENT_PER_MM * (0.5 + 0.5 * edge)[:, None] * jump
    percent[:, : options.non_steady_frames] += NON_STEADY_PERCENT * 0.4 ** np.arange(
        options.non_steady_frames
    )
    return percent


def _physiology(rng: np.random.Generator, options: SimulationOptions, frames: int) -> np.ndarray:
    """Breathing and the slow wave of its depth: two oscillations whose phase wanders."""
    time_s = np.arange(frames) * options.tr_s
    total = np.zeros(frames)
    for frequency_hz, amplitude in PHYSIOLOGY_HZ:
        wander = np.cumsum(rng.standard_normal(frames)) * 0.15
        phase = 2 * np.pi * frequency_hz * time_s + wander + rng.uniform(0, 2 * np.pi)
        total += amplitude * np.sin(phase)
    return total


def _smooth_field(rng: np.random.Generator, xyz: np.ndarray, count: int) -> np.ndarray:
    """Draw `count` spatially linear fields over the voxels, [voxels, count]."""
    field = xyz.T @ rng.standard_normal((3, count)) + 0.5 * rng.standard_normal(count)
    return np.asarray(field)


def _coordinates(anatomy: Anatomy) -> np.ndarray:
    """Coordinates of the mask's voxels, [3, voxels], from -1 to 1."""
    index = np.argwhere(anatomy.mask).T
    half = (np.array(anatomy.mask.shape)[:, None] - 1) / 2.0
    return np.asarray((index - half) / half)


def _by_tissue(anatomy: Anatomy, values: dict[str, float]) -> np.ndarray:
    """Return a value for each voxel of the mask by its tissue."""
    result = np.full(int(anatomy.mask.sum()), values["grey"])
    result[anatomy.white_matter[anatomy.mask]] = values["white_matter"]
    result[anatomy.csf[anatomy.mask]] = values["csf"]
    return result


def _confounds(
    options: SimulationOptions, anatomy: Anatomy, intensity: np.ndarray, motion: Motion
) -> pd.DataFrame:
    """Measure the confounds on the volumes themselves, as fMRIPrep does."""
    frames = intensity.shape[1]
    white_matter = anatomy.white_matter[anatomy.mask]
    csf = anatomy.csf[anatomy.mask]
    cosines = cosine_basis(frames, options.tr_s)
    signals = {
        "global_signal": intensity.mean(axis=0),
        "csf": intensity[csf].mean(axis=0),
        "white_matter": intensity[white_matter].mean(axis=0),
    }
    difference = np.diff(intensity, axis=1)
    dvars = np.concatenate([[0.0], np.sqrt((difference**2).mean(axis=0))])
    components = _compcor(intensity[csf | white_matter], cosines, options.non_steady_frames)
    return confounds_table(motion, signals, components, dvars, cosines, options.non_steady_frames)


def _compcor(voxels: np.ndarray, cosines: np.ndarray, non_steady_frames: int) -> np.ndarray:
    """First principal time courses of noise voxels (Behzadi et al. 2007), [T, C].

    Slow cosines are taken out first; frames before the steady state are left out and stay 0.
    """
    steady = voxels[:, non_steady_frames:].T
    basis = np.column_stack([np.ones(len(steady)), cosines[non_steady_frames:]])
    steady = steady - basis @ np.linalg.lstsq(basis, steady, rcond=None)[0]
    steady = steady / np.maximum(steady.std(axis=0), 1e-9)
    count = min(COMPCOR_COMPONENTS, *steady.shape)
    left = np.linalg.svd(steady, full_matrices=False)[0][:, :count]
    left = left * np.sign(left[np.abs(left).argmax(axis=0), np.arange(count)])
    return np.concatenate([np.zeros((non_steady_frames, count)), left])
