"""A coarse head: brain mask, tissues and an atlas of parcels on the grid of the BOLD images."""

from dataclasses import dataclass

import numpy as np

from encoders.errors import InputError, Problem
from multimodal.simulate.options import SimulationOptions

NETWORK_NAMES = ("Vis", "SomMot", "DorsAttn", "SalVentAttn", "Cont", "Default", "Limbic")
PARCEL_FILL = 0.8


@dataclass(frozen=True)
class Anatomy:
    """Where things lie, the same for everybody (images are in standard space).

    Parameters
    ----------
    affine : ndarray [4, 4] float64
        Voxel to MNI millimetres; left-handed (LAS), as FSL's templates are.
    mask : ndarray [X, Y, Z] bool
        Brain.
    white_matter, csf : ndarray [X, Y, Z] bool
    labels : ndarray [X, Y, Z] int16
        Parcel of each voxel, from 1; 0 outside.
    network : ndarray [P] int64
        Network of each parcel, from 0.
    names : list of str
        Name of each parcel: hemisphere, network, number.
    xyz_mm : ndarray [P, 3] float64
        Centre of each parcel.
    """

    affine: np.ndarray
    mask: np.ndarray
    white_matter: np.ndarray
    csf: np.ndarray
    labels: np.ndarray
    network: np.ndarray
    names: list[str]
    xyz_mm: np.ndarray


def make_anatomy(options: SimulationOptions) -> Anatomy:
    """Build mask, tissues and atlas; a function of the grid and the parcel numbers alone.

    Raises
    ------
    InputError
        The grid has too few grey-matter voxels for the parcels.
    """
    shape = np.array(options.voxels)
    affine = np.diag([-options.voxel_mm, options.voxel_mm, options.voxel_mm, 1.0])
    centre = (shape - 1) / 2.0
    # The middle of a head lies a little behind and above the anterior commissure, MNI's origin.
    affine[:3, 3] = np.array([0.0, -18.0, 10.0]) - affine[:3, :3] @ centre
    grid = np.stack(np.meshgrid(*(np.arange(s) for s in shape), indexing="ij"), axis=-1)
    radius = np.linalg.norm((grid - centre) / (shape / 2.0 - 0.6), axis=-1)
    mask = radius <= 1.0
    csf = radius <= 0.3
    white_matter = (radius > 0.3) & (radius <= 0.55)
    grey = np.argwhere(mask & (radius > 0.55))
    if len(grey) < options.parcels:
        raise InputError(
            Problem(
                "simulation-option",
                "cohort.parcels",
                f"{options.parcels} parcels in {len(grey)} grey-matter voxels",
                "at least one voxel a parcel wanted",
                "enlarge cohort.voxels or ask for fewer parcels",
            )
        )
    labels, centres = _parcellate(grey, options.parcels, options.voxels)
    network = np.arange(options.parcels) % options.networks
    xyz_mm = centres @ affine[:3, :3].T + affine[:3, 3]
    return Anatomy(
        affine=affine,
        mask=mask,
        white_matter=white_matter,
        csf=csf,
        labels=labels,
        network=network,
        names=[_parcel_name(p, network[p], xyz_mm[p, 0]) for p in range(options.parcels)],
        xyz_mm=np.round(xyz_mm, 2),
    )


def _parcellate(
    grey: np.ndarray, parcels: int, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Grow one blob round each of `parcels` seeds spread as far apart as the grey matter allows."""
    seeds = [0]
    distance = np.linalg.norm(grey - grey[0], axis=1)
    for _ in range(parcels - 1):
        seeds.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(grey - grey[seeds[-1]], axis=1))
    to_seed = np.linalg.norm(grey[:, None, :] - grey[seeds][None, :, :], axis=2)
    nearest = to_seed.argmin(axis=1)
    labels = np.zeros(shape, dtype=np.int16)
    centres = np.zeros((parcels, 3))
    for parcel in range(parcels):
        rows = np.flatnonzero(nearest == parcel)
        rows = rows[np.argsort(to_seed[rows, parcel], kind="stable")]
        kept = grey[rows[: max(1, round(PARCEL_FILL * len(rows)))]]
        labels[tuple(kept.T)] = parcel + 1
        centres[parcel] = kept.mean(axis=0)
    return labels, centres


def _parcel_name(parcel: int, network: int, x_mm: float) -> str:
    return f"{'LH' if x_mm < 0 else 'RH'}_{network_name(network)}_{parcel + 1}"


def network_name(network: int) -> str:
    """Return the name of a network, from 0: those of Yeo et al. (2011), then plain numbers."""
    return NETWORK_NAMES[network] if network < len(NETWORK_NAMES) else f"Net{network + 1}"
