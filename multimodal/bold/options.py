"""What can be chosen on the way from a BOLD run to segments, checked when it is chosen."""

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

from encoders.errors import InputError, Problem

Expansion = Literal["none", "basic", "power2", "derivatives", "full"]
Filter = Literal["none", "confound_cosines", "cosine", "butterworth"]
EmptyParcels = Literal["error", "zero"]
TrMismatch = Literal["error", "resample", "ignore"]
Gaps = Literal["join", "break"]
_SWITCHES = (
    "use_mask",
    "atlas_resample",
    "detrend",
    "drop_non_steady",
    "volume_resample",
    "volume_clean",
)


class FramesSpec(Protocol):
    """What every brain encoder's input record says of time (no torch needed)."""

    @property
    def frames(self) -> int | None:
        """Frames of a segment; None takes a whole run as one."""
        ...

    @property
    def tr_s(self) -> float | None:
        """Repetition time wanted, in seconds; None takes any."""
        ...


class ParcelSpec(FramesSpec, Protocol):
    """The attributes of `encoders.base.ParcelInput` that the BOLD side reads."""

    @property
    def parcels(self) -> int | None:
        """Number of parcels wanted; None takes any."""
        ...

    @property
    def atlas(self) -> str | None:
        """Name of the atlas the parcels are from, for messages; None where any will do."""
        ...

    @property
    def order(self) -> Literal["atlas", "y"]:
        """Order of the parcels: the atlas table's, or ascending in y (mm)."""
        ...

    @property
    def normalisation(self) -> str:
        """Name of the scaling of a run's values, one of those in `multimodal.bold.normalise`."""
        ...

    @property
    def statistics(self) -> Mapping[str, float]:
        """Numbers that the scaling takes from the encoder's training data, by name."""
        ...


class VolumeSpec(FramesSpec, Protocol):
    """The attributes of `encoders.base.VolumeInput` that the BOLD side reads."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        ...

    @property
    def voxel_mm(self) -> float | None:
        """Edge of a voxel wanted, in mm; None takes any."""
        ...

    @property
    def orientation(self) -> str:
        """Where the axes run to, e.g. ``"RAS"``: right, anterior, superior."""
        ...

    @property
    def normalisation(self) -> str:
        """Name of the scaling, one of those in `multimodal.bold.volume_normalise`."""
        ...

    @property
    def statistics(self) -> Mapping[str, float]:
        """Numbers that the scaling takes from the encoder's training data, by name."""
        ...


@dataclass(frozen=True)
class BoldOptions:
    """How BOLD runs become segments. Every field is the configuration key ``bold.<field>``.

    Parameters
    ----------
    space : str or None
        Which space of a derivatives folder to take, e.g. ``"MNI152NLin2009cAsym"`` or, where
        there are several resolutions, ``"MNI152NLin6Asym:res-2"``; ``"func"`` is the scanner's
        own. None takes the only one there is.
    task : str or None
        Which task to take, e.g. ``"rest"``; None takes the only one there is.
    use_mask : bool
        Keep to the voxels of each run's brain mask. False reads parcels unmasked.
    atlas_resample : bool
        Bring an atlas on another grid to the scan's by nearest neighbour, rather than refuse.
    empty_parcels : {"error", "zero"}
        A parcel without a voxel in the mask or the field of view: refuse the run, or give zeros.
    motion, wm_csf, global_signal : {"none", "basic", "power2", "derivatives", "full"}
        Confounds regressed out: as they are, with squares, with backward differences, or with
        both (motion: 6, 12, 12 or 24 columns), as in nilearn's ``load_confounds``.
    compcor : int
        Number of anatomical CompCor components regressed out (first ones of the combined mask).
    detrend : bool
        Remove the straight line of each parcel.
    filter : {"none", "confound_cosines", "cosine", "butterworth"}
        High-pass by the confounds file's own cosines (its cut-off), by cosines at
        `high_pass_hz`, or band-pass by a fifth-order zero-phase Butterworth filter.
    high_pass_hz, low_pass_hz : float or None
        Cut-offs in Hz. `low_pass_hz` needs ``filter="butterworth"``.
    fd_threshold_mm : float or None
        Frames with a larger framewise displacement are censored; None censors none.
    std_dvars_threshold : float or None
        The same for the standardised DVARS.
    min_stretch_frames : int
        Stretches of kept frames between censored ones that are shorter are censored too
        (Power et al. 2014 take 5); 0 leaves them.
    drop_non_steady : bool
        Drop frames that fMRIPrep marks ``non_steady_state_outlier``.
    skip_frames : int
        Frames dropped at the start of every run.
    min_frames : int
        Fewest kept frames of a run that is taken whole.
    stride_frames : int or None
        Frames from one segment's start to the next; None puts segments side by side.
    gaps : {"join", "break"}
        Segments run over censored frames as if these had never been, or stay within stretches
        without any. Runs taken whole always join.
    tr_mismatch : {"error", "resample", "ignore"}
        A repetition time more than 1% from the encoder's: refuse, interpolate, or take as it is.
    volume_resample : bool
        Encoders of volumes: bring a scan whose voxels differ from the encoder's by more than 1%
        to its voxel size by trilinear interpolation within the mask, rather than refuse.
    volume_clean : bool
        Encoders of volumes: detrend, filter and regress confounds out of each voxel as the options
        above say, and put its mean back. False leaves intensities as preprocessing made them,
        which is what the published encoders of volumes were trained on; frames are censored alike.

    Raises
    ------
    InputError
        A value is outside its range, or two contradict each other.
    """

    space: str | None = None
    task: str | None = None
    use_mask: bool = True
    atlas_resample: bool = False
    empty_parcels: EmptyParcels = "error"
    motion: Expansion = "full"
    wm_csf: Expansion = "basic"
    global_signal: Expansion = "none"
    compcor: int = 0
    detrend: bool = True
    filter: Filter = "cosine"
    high_pass_hz: float | None = 0.008
    low_pass_hz: float | None = None
    fd_threshold_mm: float | None = 0.5
    std_dvars_threshold: float | None = None
    min_stretch_frames: int = 0
    drop_non_steady: bool = True
    skip_frames: int = 0
    min_frames: int = 20
    stride_frames: int | None = None
    gaps: Gaps = "join"
    tr_mismatch: TrMismatch = "error"
    volume_resample: bool = False
    volume_clean: bool = False

    def __post_init__(self) -> None:
        problems = [*self._find_unknown_choices(), *self._find_other_types()]
        problems += self._find_bad_numbers()
        # Values that are none of their kind cannot be compared.
        problems = problems or self._find_contradictions()
        if problems:
            raise InputError(problems)

    @property
    def needs_confounds(self) -> bool:
        """Whether any choice reads the confounds file."""
        regressed = {self.motion, self.wm_csf, self.global_signal} != {"none"}
        censored = self.fd_threshold_mm is not None or self.std_dvars_threshold is not None
        return regressed or censored or self.compcor > 0 or self.filter == "confound_cosines"

    def without_cleaning(self) -> "BoldOptions":
        """Return these options with nothing regressed out, detrended or filtered."""
        return replace(
            self,
            motion="none",
            wm_csf="none",
            global_signal="none",
            compcor=0,
            detrend=False,
            filter="none",
            low_pass_hz=None,
        )

    def _find_unknown_choices(self) -> list[Problem]:
        choices = {
            "empty_parcels": EmptyParcels,
            "motion": Expansion,
            "wm_csf": Expansion,
            "global_signal": Expansion,
            "filter": Filter,
            "gaps": Gaps,
            "tr_mismatch": TrMismatch,
        }
        return [
            _bad(name, getattr(self, name), f"one of {', '.join(get_args(choice))}")
            for name, choice in choices.items()
            if getattr(self, name) not in get_args(choice)
        ]

    def _find_other_types(self) -> list[Problem]:
        problems = []
        for name in _SWITCHES:
            value = getattr(self, name)
            if not isinstance(value, bool):
                problems.append(_bad(name, value, "true or false"))
        for name in ("space", "task"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                problems.append(_bad(name, value, "text, or null", f'write bold.{name}="{value}"'))
        return problems

    def _find_bad_numbers(self) -> list[Problem]:
        problems = []
        for name in ("high_pass_hz", "low_pass_hz", "fd_threshold_mm", "std_dvars_threshold"):
            value = getattr(self, name)
            if value is not None and not _is_positive(value):
                problems.append(_bad(name, value, "a number above 0, or null"))
        least = {"compcor": 0, "min_stretch_frames": 0, "skip_frames": 0, "min_frames": 2}
        for name, lowest in least.items():
            if not _is_count(getattr(self, name), lowest):
                wanted = f"a whole number, {lowest} or more"
                problems.append(_bad(name, getattr(self, name), wanted))
        if self.stride_frames is not None and not _is_count(self.stride_frames, 1):
            wanted = "a whole number above 0, or null"
            problems.append(_bad("stride_frames", self.stride_frames, wanted))
        return problems

    def _find_contradictions(self) -> list[Problem]:
        if self.filter != "butterworth" and self.low_pass_hz is not None:
            wanted = "a low pass needs the Butterworth filter"
            return [_bad("low_pass_hz", self.low_pass_hz, wanted, "set bold.filter=butterworth")]
        if self.filter == "cosine" and self.high_pass_hz is None:
            wanted = "the cosine filter needs a cut-off in Hz"
            return [_bad("high_pass_hz", None, wanted, "give one, or set bold.filter=none")]
        if self.filter == "butterworth":
            if self.high_pass_hz is None and self.low_pass_hz is None:
                wanted = "the Butterworth filter needs a cut-off in Hz"
                return [_bad("high_pass_hz", None, wanted, "give one, or set bold.filter=none")]
            if (self.high_pass_hz or 0.0) >= (self.low_pass_hz or float("inf")):
                wanted = f"a cut-off below bold.low_pass_hz ({self.low_pass_hz})"
                return [_bad("high_pass_hz", self.high_pass_hz, wanted)]
        return []


def _is_positive(value: object) -> bool:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0  # type: ignore[arg-type, operator]


def _is_count(value: object, least: int) -> bool:
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_whole and value >= least  # type: ignore[operator]


def _bad(field: str, found: object, wanted: str, fix: str = "") -> Problem:
    shown = "null" if found is None else repr(found) if isinstance(found, str) else str(found)
    return Problem("bold-option", f"bold.{field}", shown, wanted, fix)
