"""Nuisance regression, filtering and censoring of parcel series, and change of repetition time."""

import warnings

import numpy as np
from jaxtyping import Float64, Int64

from multimodal.bold.confounds import Confounds
from multimodal.bold.options import BoldOptions

# Rounding of a parcel that does not vary is about 1e-16 of its size; real variation is over 1e-6.
CONSTANT_BELOW = 1e-10
# Frames that scipy mirrors at each end for a band-pass of nilearn's order.
BUTTERWORTH_PADDING = 33


def clean_series(
    series: Float64[np.ndarray, "frame parcel"],
    confounds: Confounds,
    tr_s: float,
    options: BoldOptions,
) -> Float64[np.ndarray, "kept parcel"]:
    """Detrend, filter, regress out confounds and censor, through `nilearn.signal.clean`.

    With cosines, or no filter, censored frames are left out before the regression; with Butterworth
    they are bridged by splines, filtered over, then left out (M. A. Lindquist et al., Human Brain
    Mapping 40 (2019) 2358). Nothing is standardised here. Parcels that do not vary come out as 0
    wherever the mean is removed, not as amplified rounding.

    Parameters
    ----------
    series : ndarray [T, P]
        All frames of a run.
    confounds : Confounds
    tr_s : float
        Repetition time in seconds.
    options : BoldOptions

    Returns
    -------
    ndarray [K, P] float64
        Kept frames only.
    """
    keep = np.flatnonzero(confounds.keep)
    filters = _butterworth(keep, tr_s, options)
    regressors = confounds.regressors
    if options.filter == "cosine":
        drifts = cosine_drifts(len(series), tr_s, options.high_pass_hz or 0.0)
        regressors = np.hstack([regressors, drifts])
    if regressors.shape[1] == 0 and not options.detrend and options.filter != "butterworth":
        return series[keep]
    from nilearn.signal import clean

    with warnings.catch_warnings():
        # A parcel without variance is dealt with below.
        warnings.filterwarnings("ignore", message=".*(zero variance|invalid value).*")
        cleaned = clean(
            series,
            detrend=options.detrend,
            standardize=None,
            extrapolate=False,
            sample_mask=None if confounds.keep.all() else keep.copy(),  # nilearn shifts it in place
            confounds=regressors if regressors.shape[1] else None,
            **filters,
        )
    size = np.abs(series[keep]).max(axis=0)
    constant = np.ptp(series[keep], axis=0) <= CONSTANT_BELOW * size
    cleaned[:, constant] = 0.0 if options.detrend else cleaned[:, constant].mean(axis=0)
    cleaned[:, np.abs(cleaned).max(axis=0) <= CONSTANT_BELOW * size] = 0.0
    return cleaned


def _butterworth(keep: np.ndarray, tr_s: float, options: BoldOptions) -> dict[str, object]:
    if options.filter != "butterworth":
        return {"filter": False}
    filters: dict[str, object] = {"filter": "butterworth", "t_r": tr_s}
    filters |= {"high_pass": options.high_pass_hz, "low_pass": options.low_pass_hz}
    span = int(keep[-1] - keep[0]) + 1
    if span <= BUTTERWORTH_PADDING:
        filters["butterworth__padlen"] = span - 1
    return filters


def cosine_drifts(
    frames: int, tr_s: float, high_pass_hz: float
) -> Float64[np.ndarray, "frame cosine"]:
    """Cosines slower than a cut-off: the discrete cosine basis without its constant.

    nilearn would make the same ones, but leaves all of them out of a run where one happens to
    correlate with a confound; a cohort's runs must not be cleaned differently.

    Parameters
    ----------
    frames : int
    tr_s : float
        Repetition time in seconds.
    high_pass_hz : float
        Cut-off in Hz. A run too short for any cosine below it gets none.
    """
    count = min(frames - 1, int(2 * frames * tr_s * high_pass_hz))
    phase = np.pi * (np.arange(frames) + 0.5) / frames
    return np.cos(np.outer(phase, np.arange(1, count + 1)))


def resampled_positions(
    keep: np.ndarray, tr_s: float, wanted_tr_s: float
) -> Float64[np.ndarray, " frame"]:
    """Frames of the wanted repetition time, as positions on the recorded frames' axis.

    Those next to a censored frame are left out: they would be made from it.

    Parameters
    ----------
    keep : ndarray [T] bool
    tr_s, wanted_tr_s : float
        Recorded and wanted repetition time in seconds.
    """
    last = len(keep) - 1
    count = int(np.floor(last * tr_s / wanted_tr_s + 1e-6)) + 1
    positions = np.minimum(np.arange(count) * (wanted_tr_s / tr_s), last)
    before = np.floor(positions + 1e-6).astype(np.int64)
    after = np.minimum(np.ceil(positions - 1e-6).astype(np.int64), last)
    return positions[keep[before] & keep[after]]


def resample_series(
    cleaned: Float64[np.ndarray, "kept parcel"],
    kept: Int64[np.ndarray, " kept"],
    positions: Float64[np.ndarray, " frame"],
    tr_s: float,
    wanted_tr_s: float,
) -> Float64[np.ndarray, "frame parcel"]:
    """Interpolate a cleaned series at other times, by cubic splines through the kept frames.

    Where the wanted repetition time is longer, what lies above its Nyquist frequency is removed
    first (eighth-order zero-phase Butterworth filter at 0.9 of it), on the evenly spaced series in
    which splines bridge censored frames.

    Parameters
    ----------
    cleaned : ndarray [K, P]
    kept : ndarray [K]
        Index of each row among the recorded frames.
    positions : ndarray [F]
        Wanted times, in recorded frames (`resampled_positions`).
    tr_s, wanted_tr_s : float
        Seconds.
    """
    from scipy.interpolate import CubicSpline
    from scipy.signal import butter, sosfiltfilt

    spline = CubicSpline(kept, cleaned, axis=0)
    if wanted_tr_s <= tr_s:
        return spline(positions)
    even = np.arange(kept[0], kept[-1] + 1)
    filters = butter(4, 0.9 * tr_s / wanted_tr_s, output="sos")  # twice: there and back
    smooth = sosfiltfilt(filters, spline(even), axis=0, padlen=min(30, len(even) - 1))
    return CubicSpline(even, smooth, axis=0)(positions)
