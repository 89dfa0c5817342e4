"""Parcels or volumes: runs prepared as whatever an encoder takes."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from encoders.errors import InputError, Problem
from multimodal.bold.bids import BoldRun
from multimodal.bold.options import BoldOptions
from multimodal.bold.parcels import Atlas
from multimodal.bold.segments import RunSegments, find_bold_problems, prepare_run
from multimodal.bold.volumes import find_volume_problems, prepare_volumes

InputKind = Literal["parcels", "volumes"]


def input_kind(spec_input: object) -> InputKind:
    """Say which kind of segments an encoder's input record describes, by its attributes.

    Parameters
    ----------
    spec_input : ParcelInput or VolumeInput
        The encoder's ``spec.input``, or any object with the attributes of one.

    Raises
    ------
    InputError
        It is neither (``"brain-input"``).
    """
    if hasattr(spec_input, "parcels"):
        return "parcels"
    if hasattr(spec_input, "shape"):
        return "volumes"
    raise InputError(
        Problem(
            "brain-input",
            "brain.name",
            f"an encoder that takes {type(spec_input).__name__}",
            "an encoder of parcels (ParcelInput) or of volumes (VolumeInput)",
        )
    )


def prepare(
    run: BoldRun, atlas: Atlas | None, spec_input: Any, options: BoldOptions | None = None
) -> RunSegments:
    """Prepare one run as an encoder's input record says.

    Parameters
    ----------
    run : BoldRun
    atlas : Atlas or None
        For encoders of parcels.
    spec_input : ParcelInput or VolumeInput
    options : BoldOptions, optional

    Raises
    ------
    InputError
        Everything wrong with the run that stands in the way; no atlas for parcels.
    """
    if input_kind(spec_input) == "volumes":
        return prepare_volumes(run, spec_input, options)
    return prepare_run(run, _wanted(atlas), spec_input, options)


def find_problems(
    runs: Iterable[BoldRun],
    atlas: Atlas | None,
    spec_input: Any,
    options: BoldOptions | None = None,
) -> list[Problem]:
    """Find everything that `prepare` would refuse, in all runs, in one pass."""
    if input_kind(spec_input) == "volumes":
        return find_volume_problems(runs, spec_input, options)
    return find_bold_problems(runs, _wanted(atlas), spec_input, options)


def describe_input(spec_input: Any) -> str:
    """Say in words what a segment of volumes is, e.g. ``"96 x 96 x 96 voxels, 20 frames"``."""
    shape: Sequence[int] = spec_input.shape
    return f"{' x '.join(str(size) for size in shape)} voxels, {spec_input.frames} frames"


def _wanted(atlas: Atlas | None) -> Atlas:
    if atlas is None:
        wanted = "a label image, for an encoder of parcels"
        raise InputError(Problem("cohort-path", "cohort.atlas", "no file", wanted))
    return atlas
