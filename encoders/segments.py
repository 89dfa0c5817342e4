"""Refusing segments that are not what an encoder's spec asks for."""

from torch import Tensor

from encoders.base import EncoderSpec, ParcelInput, VolumeInput
from encoders.errors import InputError, Problem

_AXES = {
    ParcelInput: ("segments", "parcels", "frames"),
    VolumeInput: ("segments", "channels", "x", "y", "z", "frames"),
}


def check_segments(spec: EncoderSpec, segments: Tensor, xyz: Tensor | None = None) -> None:
    """Refuse segments of other sizes than ``spec.input`` says, all sizes at once.

    Parameters
    ----------
    spec : EncoderSpec
        Of a brain encoder.
    segments : Tensor [B, P, T] or [B, 1, X, Y, Z, T]
    xyz : Tensor [B, P, 3], optional
        Parcel coordinates in mm.

    Raises
    ------
    InputError
        Another number of axes, or of parcels, voxels or frames; no coordinates where the spec
        wants them.
    """
    wanted = spec.input
    assert isinstance(wanted, ParcelInput | VolumeInput)
    axes = _AXES[type(wanted)]
    if segments.ndim != len(axes):
        found = f"{segments.ndim} axes"
        names = f"{len(axes)}: {', '.join(axes)}"
        raise InputError(Problem("segment-shape", f"{spec.name}: segments", found, names))
    if isinstance(wanted, ParcelInput):
        sizes: tuple[int | None, ...] = (None, wanted.parcels, wanted.frames)
    else:
        sizes = (None, 1, *wanted.shape, wanted.frames)
    problems = [
        Problem("segment-size", f"{spec.name}: {axis}", str(found), str(size))
        for axis, size, found in zip(axes, sizes, segments.shape, strict=True)
        if size is not None and size != found
    ]
    if isinstance(wanted, ParcelInput) and wanted.needs_xyz and xyz is None:
        problems.append(
            Problem(
                "xyz-missing",
                f"{spec.name}: xyz",
                "no parcel coordinates",
                "x, y, z of each parcel in mm",
                "give the atlas a table with x, y, z",
            )
        )
    if problems:
        raise InputError(problems)
