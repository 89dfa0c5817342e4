"""Normalisations of a recording ``[frames, parcels]``, by the names encoders ask for.

Formulas named after BrainLM's columns are those its published scripts compute
(vandijklab/BrainLM, convert_ukbiobank_to_arrow.py and toolkit/BrainLM_Toolkit.py), which differ
from each other under the same column names.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from encoders.errors import InputError, Problem

Series = Float64[np.ndarray, "frame parcel"]


def normalise(
    series: Series,
    name: str,
    statistics: Mapping[str, float] | None = None,
) -> Series:
    """Normalise one recording.

    Parameters
    ----------
    series : ndarray [T, P]
    name : str
        A key of `NORMALISATIONS`:

        - ``none``: as it is
        - ``zscore_parcel``: (x - mean) / standard deviation, over each parcel's frames
        - ``zscore_run``: the same over all parcels and frames at once
        - ``subtract_mean_divide``: (x - mean over each parcel's frames) / ``divide_by``
        - ``robust_parcel``: (x - median) / interquartile range, over each parcel's frames
        - ``minmax_fixed``: (x - ``minimum``) / (``maximum`` - ``minimum``)
        - ``minmax_run``, ``minmax_parcel``: the same with the extremes of the recording, or of
          each parcel (one that does not vary stays as it is, as upstream leaves it)
        - ``subtract_frame_mean_divide``: (x - mean over each frame's parcels) / ``divide_by``
        - ``minmax_frame``: min and max over each frame's parcels

        Standard deviations are those of the population (divisor T). Where the divisor is 0 and
        nothing else is said the result is 0.
    statistics : mapping of str to float, optional
        Constants. ``divide_by`` divides the result of any of them, and is needed by
        ``subtract_mean_divide`` and ``subtract_frame_mean_divide``.

    Returns
    -------
    ndarray [T, P] float64

    Raises
    ------
    InputError
        Unknown name, or a constant that it needs is not given or 0.
    """
    given = dict(statistics or {})
    problems = find_normalisation_problems(name, given)
    if problems:
        raise InputError(problems)
    values = NORMALISATIONS[name](np.asarray(series, dtype=np.float64), given)
    return values / given["divide_by"] if "divide_by" in given else values


def find_normalisation_problems(name: str, statistics: Mapping[str, float]) -> list[Problem]:
    """Check a normalisation's name and constants, without data."""
    where = "the encoder's normalisation"
    if name not in NORMALISATIONS:
        wanted = f"one of {', '.join(NORMALISATIONS)}"
        return [Problem("normalisation-unknown", where, name, wanted)]
    problems = [
        Problem("normalisation-statistics", where, f"{name} without {constant}", "this constant")
        for constant in _NEEDED.get(name, ())
        if constant not in statistics
    ]
    if statistics.get("divide_by") == 0:
        problems.append(Problem("normalisation-statistics", where, "divide_by 0", "not 0"))
    if not problems and name == "minmax_fixed" and statistics["maximum"] <= statistics["minimum"]:
        found = f"maximum {statistics['maximum']:g}, minimum {statistics['minimum']:g}"
        problems.append(
            Problem("normalisation-statistics", where, found, "a maximum above the minimum")
        )
    return problems


def minmax(values: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """(x - low) / (high - low); where high equals low, x as it is.

    With extremes per parcel over all recordings of a set, this is BrainLM's
    ``Per_Voxel_All_Patient`` column.
    """
    span = np.asarray(high, dtype=np.float64) - low
    flat = span == 0
    return np.where(flat, values, (values - low) / np.where(flat, 1.0, span))


def brainlm_robust_statistics(
    recordings: Sequence[Series], frames: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """Median and interquartile range of each parcel over a set of recordings.

    Of the first `frames` frames after removing each recording's own mean; for the interquartile
    range exact zeros are left out (toolkit/BrainLM_Toolkit.py).

    Returns
    -------
    median, iqr : ndarray [P] float64
        `iqr` is NaN for a parcel that never varies.
    """
    centred = np.concatenate([(x - x.mean(axis=0, dtype=np.float64))[:frames] for x in recordings])
    varying = np.where(centred == 0, np.nan, centred)
    iqr = np.full(centred.shape[1], np.nan)
    some = ~np.isnan(varying).all(axis=0)
    quartiles = np.nanpercentile(varying[:, some], [25, 75], axis=0)
    iqr[some] = quartiles[1] - quartiles[0]
    return np.median(centred, axis=0), iqr


def brainlm_robust(recording: Series, median: np.ndarray, iqr: np.ndarray) -> Series:
    """BrainLM's ``Voxelwise_RobustScaler`` column as its toolkit computes it.

    That is (x - mean) - median / iqr: operator precedence makes the published script subtract
    the ratio rather than scale by the range. ``robust_parcel`` is the usual robust scaling.
    """
    return recording - recording.mean(axis=0, dtype=np.float64) - median / iqr


def _divided(values: np.ndarray, by: np.ndarray | np.floating) -> np.ndarray:
    by = np.broadcast_to(by, values.shape)
    return np.divide(values, by, out=np.zeros_like(values), where=by > 0)


def _zscore_parcel(x: np.ndarray, _: Mapping[str, float]) -> np.ndarray:
    return _divided(x - x.mean(axis=0), np.where(np.ptp(x, axis=0) > 0, x.std(axis=0), 0.0))


def _zscore_run(x: np.ndarray, _: Mapping[str, float]) -> np.ndarray:
    return _divided(x - x.mean(), np.where(np.ptp(x) > 0, x.std(), 0.0))


def _robust_parcel(x: np.ndarray, _: Mapping[str, float]) -> np.ndarray:
    lower, median, upper = np.percentile(x, [25, 50, 75], axis=0)
    return _divided(x - median, upper - lower)


def _minmax_fixed(x: np.ndarray, constants: Mapping[str, float]) -> np.ndarray:
    return minmax(x, constants["minimum"], constants["maximum"])


NORMALISATIONS: dict[str, Callable[[np.ndarray, Mapping[str, float]], np.ndarray]] = {
    "none": lambda x, _: x,
    "zscore_parcel": _zscore_parcel,
    "zscore_run": _zscore_run,
    "subtract_mean_divide": lambda x, _: x - x.mean(axis=0),
    "robust_parcel": _robust_parcel,
    "minmax_fixed": _minmax_fixed,
    "minmax_run": lambda x, _: minmax(x, x.min(), x.max()),
    "minmax_parcel": lambda x, _: minmax(x, x.min(axis=0), x.max(axis=0)),
    "subtract_frame_mean_divide": lambda x, _: x - x.mean(axis=1, keepdims=True),
    "minmax_frame": lambda x, _: minmax(
        x, x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    ),
}
_NEEDED = {
    "subtract_mean_divide": ("divide_by",),
    "subtract_frame_mean_divide": ("divide_by",),
    "minmax_fixed": ("minimum", "maximum"),
}
