"""Normalisations of a volume series, by the names encoders ask for.

Published encoders of volumes take every value that is exactly 0 for background, voxel by voxel and
frame by frame, and one mean and standard deviation (or minimum and maximum) over all other values
of the recording. Background then gets the smallest scaled value of the foreground, or a constant.
Sources: Transconnectome/SwiFT, data_preprocess_and_load/preprocessing.py, and the preprocessing
script of arunkumar-kannan/BrainMT-fMRI, which computes the same.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float16, Float32, Float64

from encoders.errors import InputError, Problem

Scaling = Literal["znorm", "minmax", "none"]

# Scaling, and whether background gets the foreground's minimum (or stays 0).
VOLUME_NORMALISATIONS: dict[str, tuple[Scaling, bool]] = {
    "swift_znorm": ("znorm", True),
    "swift_minmax": ("minmax", True),
    "brainmt_znorm": ("znorm", True),
    "brainmt_minmax": ("minmax", True),
    "brainmt_none": ("none", True),
    "none": ("none", False),
}
CHUNK_VALUES = 2**22


@dataclass(frozen=True)
class Foreground:
    """What is known of the values of a recording that are not exactly 0.

    Parameters
    ----------
    count : int
    mean, std, minimum, maximum : float
        The standard deviation has the divisor count - 1; it is NaN of a single value.
    """

    count: int
    mean: float
    std: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class LinearScaling:
    """(x - subtract) / divide_by for the foreground, and what the background becomes."""

    subtract: float
    divide_by: float
    background: float


def foreground_of(values: np.ndarray, where: str = "the volumes") -> Foreground:
    """Take statistics over all values that are not exactly 0, in float64 and a part at a time.

    Parameters
    ----------
    values : ndarray [frames, ...]
    where : str
        Name of the recording, for messages.

    Raises
    ------
    InputError
        All values are 0 (``"volume-empty"``).
    """
    count, total, minimum, maximum = 0, 0.0, math.inf, -math.inf
    for part in _parts(values):
        found = part[part != 0].astype(np.float64)
        if len(found):
            count, total = count + len(found), total + float(found.sum())
            minimum = min(minimum, float(found.min()))
            maximum = max(maximum, float(found.max()))
    if count == 0:
        fix = "check the scan and its brain mask"
        raise InputError(Problem("volume-empty", where, "every value is 0", "a brain", fix))
    mean = total / count
    squares = 0.0
    for part in _parts(values):
        squares += float(((part[part != 0].astype(np.float64) - mean) ** 2).sum())
    std = math.sqrt(squares / (count - 1)) if count > 1 else math.nan
    return Foreground(count, mean, std, minimum, maximum)


def linear_scaling(
    name: str,
    statistics: Mapping[str, float] | None,
    foreground: Foreground,
    where: str = "the volumes",
) -> LinearScaling:
    """Return what a normalisation does to a recording with a given foreground.

    Parameters
    ----------
    name : str
        A key of `VOLUME_NORMALISATIONS`:

        - ``swift_znorm``, ``brainmt_znorm``: (x - mean) / standard deviation
        - ``swift_minmax``, ``brainmt_minmax``: (x - minimum) / (maximum - minimum)
        - ``brainmt_none``: as it is, background the smallest value of the foreground
        - ``none``: as it is, background 0
    statistics : mapping of str to float, optional
        ``background``, a constant that background gets instead of the smallest scaled value of
        the foreground (0 is upstream's ``fill_zeroback``). Others are not read.
    foreground : Foreground
    where : str
        Name of the recording, for messages.

    Raises
    ------
    InputError
        Unknown name; a foreground of one value only, which cannot be scaled
        (``"volume-constant"``).
    """
    given = dict(statistics or {})
    problems = find_volume_normalisation_problems(name, given)
    if problems:
        raise InputError(problems)
    scaling, lowest = VOLUME_NORMALISATIONS[name]
    if scaling != "none" and foreground.minimum == foreground.maximum:
        found = f"all values that are not 0 equal {foreground.minimum:g}"
        raise InputError(Problem("volume-constant", where, found, f"values that {name} can scale"))
    if scaling == "znorm":
        subtract, divide_by = foreground.mean, foreground.std
    elif scaling == "minmax":
        subtract, divide_by = foreground.minimum, foreground.maximum - foreground.minimum
    else:
        subtract, divide_by = 0.0, 1.0
    background = (foreground.minimum - subtract) / divide_by if lowest else 0.0
    return LinearScaling(subtract, divide_by, given.get("background", background))


def find_volume_normalisation_problems(name: str, statistics: Mapping[str, float]) -> list[Problem]:
    """Check a normalisation's name and constants, without data."""
    where = "the encoder's normalisation"
    if name not in VOLUME_NORMALISATIONS:
        wanted = f"one of {', '.join(VOLUME_NORMALISATIONS)}"
        return [Problem("normalisation-unknown", where, name, wanted)]
    background = statistics.get("background", 0.0)
    if not math.isfinite(background):
        found = f"background {background:g}"
        return [Problem("normalisation-statistics", where, found, "a finite number")]
    return []


def normalise_volumes(
    values: np.ndarray, name: str, statistics: Mapping[str, float] | None = None
) -> Float64[np.ndarray, "..."]:
    """Normalise one recording, every exact 0 being background.

    Parameters
    ----------
    values : ndarray [...]
        All frames of a recording, axes in any order; finite.
    name, statistics
        As `linear_scaling` takes them.

    Returns
    -------
    ndarray [...] float64

    Raises
    ------
    InputError
        Unknown name, no foreground, or a constant one that cannot be scaled.
    """
    values = np.asarray(values)
    scaling = linear_scaling(name, statistics, foreground_of(values))
    scaled = (values.astype(np.float64) - scaling.subtract) / scaling.divide_by
    return np.where(values == 0, scaling.background, scaled)


def scale_in_place(series: Float32[np.ndarray, "frame voxel"], scaling: LinearScaling) -> None:
    """Scale a recording where it lies, computing in float64, a few frames at a time."""
    for part in _parts(series):
        scaled = (part.astype(np.float64) - scaling.subtract) / scaling.divide_by
        scaled[part == 0] = scaling.background
        part[...] = scaled


def to_half(values: np.ndarray) -> Float16[np.ndarray, "..."]:
    """Round to half precision as upstream stores frames: beyond 65,504 becomes infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float16)


def _parts(values: np.ndarray) -> Iterator[np.ndarray]:
    """Views of a few frames each."""
    rows = max(1, CHUNK_VALUES // max(1, int(np.prod(values.shape[1:]))))
    return (values[start : start + rows] for start in range(0, len(values), rows))
