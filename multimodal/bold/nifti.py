"""4D NIfTI images read safely: scaling, repetition time, orientation, truncation."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float64
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.orientations import (
    apply_orientation,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError

from encoders.errors import InputError, Problem

# No whole-brain protocol repeats more slowly than 20 s or faster than 0.02 s.
LONGEST_TR_S = 20.0
SHORTEST_TR_S = 0.02
# Between 20 and 100 a number without a trustworthy unit is odd as seconds and as milliseconds.
SHORTEST_MILLISECONDS = 100.0
TR_TOLERANCE = 0.01
GRID_TOLERANCE_VOXELS = 0.05
# What nibabel reads to tell the type of an image.
SNIFFED_BYTES = 1024
CHUNK_BYTES = 64 * 2**20
_SECONDS_A_UNIT = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}


@dataclass(frozen=True)
class Scan:
    """A 4D image on disk: its grid, and how to decode its voxels.

    Parameters
    ----------
    path : Path
    shape : tuple of int
        Voxels along the three axes, as stored.
    frames : int
        Number of volumes.
    affine : ndarray [4, 4] float64
        From voxel indices to mm.
    header_tr : float
        Fourth pixel dimension as stored, in `header_unit`.
    header_unit : str
        Time unit the header declares: ``"sec"``, ``"msec"``, ``"usec"`` or ``"unknown"``.
    dtype : numpy.dtype
        Stored type, byte order included.
    slope, inter : float
        Scaling: value = stored * slope + inter.
    offset_bytes : int
        Where the voxels begin.
    """

    path: Path
    shape: tuple[int, int, int]
    frames: int
    affine: Float64[np.ndarray, "4 4"]
    header_tr: float
    header_unit: str
    dtype: np.dtype[Any]
    slope: float
    inter: float
    offset_bytes: int


def load_header(path: Path, code: str = "bold") -> Any:
    """Open an image without reading its voxels.

    Parameters
    ----------
    path : Path
        A NIfTI file.
    code : str
        First word of the problem codes: ``<code>-missing``, ``<code>-unreadable``.

    Returns
    -------
    nibabel.Nifti1Image

    Raises
    ------
    InputError
        The file is missing, empty or not NIfTI.
    """
    if not path.is_file():
        raise InputError(
            Problem(f"{code}-missing", str(path), "no such file", "a NIfTI image (.nii or .nii.gz)")
        )
    try:
        image = nib.load(path)
    except (ImageFileError, HeaderDataError, EOFError, OSError, zlib.error, ValueError) as error:
        raise InputError(_unreadable(path, error, code)) from error
    if not isinstance(image, nib.Nifti1Image):
        found = f"a {type(image).__name__}"
        raise InputError(
            Problem(f"{code}-unreadable", str(path), found, "a NIfTI image (.nii or .nii.gz)")
        )
    return image


def open_scan(path: str | Path) -> Scan:
    """Read the header of a 4D image, and nothing more.

    Parameters
    ----------
    path : str or Path
        ``.nii`` or ``.nii.gz``.

    Returns
    -------
    Scan

    Raises
    ------
    InputError
        The file is missing, unreadable, not 4D, has no real numbers as voxels, or is shorter than
        its header says (seen here only if not compressed).
    """
    path = Path(path)
    image = load_header(path)
    if len(image.shape) != 4 or image.shape[3] < 1:
        found = f"an image of {len(image.shape)} dimensions, {_by(image.shape)}"
        wanted = "a 4D image, three of space and one of time"
        raise InputError(
            Problem("not-4d", str(path), found, wanted, "give the BOLD series, not a reference")
        )
    proxy = image.dataobj
    if proxy.dtype.kind not in "iuf":
        found = f"voxels of type {proxy.dtype}"
        raise InputError(
            Problem("bold-unreadable", str(path), found, "one real number a voxel and frame")
        )
    unit = image.header.get_xyzt_units()[1]
    scan = Scan(
        path=path,
        shape=tuple(int(size) for size in image.shape[:3]),  # type: ignore[arg-type]
        frames=int(image.shape[3]),
        affine=np.asarray(image.affine, dtype=np.float64),
        header_tr=float(image.header["pixdim"][4]),
        header_unit=unit if unit in _SECONDS_A_UNIT else "unknown",
        dtype=proxy.dtype,
        slope=float(proxy.slope),
        inter=float(proxy.inter),
        offset_bytes=int(proxy.offset),
    )
    if path.suffix == ".nii":
        _check_size(scan)
    return scan


def header_tr_s(scan: Scan) -> float | None:
    """Repetition time by the header, in seconds; None where it says none.

    A declared unit is honoured, except that seconds (or no unit) with a number between 100 and
    20,000 can only be milliseconds: some converters declare seconds and store milliseconds.
    A 1 without a unit is what libraries write when nobody set it, so it counts as none.

    Raises
    ------
    InputError
        The number is no repetition time in either unit (code ``"tr-implausible"``).
    """
    value, unit = scan.header_tr, scan.header_unit
    if value == 0 or (unit == "unknown" and value == 1):
        return None
    if unit in ("msec", "usec"):
        tr_s = value * _SECONDS_A_UNIT[unit]
    elif SHORTEST_MILLISECONDS <= value <= LONGEST_TR_S * 1000:
        tr_s = value / 1000
    else:
        tr_s = value
    if not SHORTEST_TR_S <= tr_s <= LONGEST_TR_S:
        found = f"repetition time {value:g} (unit in the header: {unit})"
        raise InputError(_implausible(str(scan.path), found))
    return tr_s


def repetition_time_s(scan: Scan, sidecar_tr_s: float | None) -> float:
    """Repetition time in seconds, of the sidecar and the header together.

    Parameters
    ----------
    scan : Scan
    sidecar_tr_s : float or None
        ``RepetitionTime`` of the JSON sidecar, or ``tr_s`` of a table of paths, in seconds.

    Raises
    ------
    InputError
        None is given (``"tr-missing"``), they differ by more than 1% (``"tr-disagrees"``), or one
        is out of range (``"tr-implausible"``).
    """
    where = str(scan.path)
    sidecar = f"RepetitionTime in {sidecar_path(scan.path).name}, or tr_s in the table of paths"
    if sidecar_tr_s is not None and not SHORTEST_TR_S <= sidecar_tr_s <= LONGEST_TR_S:
        found = f"sidecar or table says a repetition time of {sidecar_tr_s:g} s"
        raise InputError(_implausible(where, found))
    try:
        header = header_tr_s(scan)
    except InputError:
        # A stated repetition time settles what a header without a unit leaves open.
        if sidecar_tr_s is None or scan.header_unit != "unknown":
            raise
        header = None
    if header is None and sidecar_tr_s is None:
        found = "no repetition time, neither in the header nor in a sidecar"
        raise InputError(
            Problem("tr-missing", where, found, "a repetition time in seconds", f"add {sidecar}")
        )
    if header is not None and sidecar_tr_s is not None and differ(header, sidecar_tr_s):
        found = f"header says {header:g} s, sidecar or table says {sidecar_tr_s:g} s"
        wanted = "one repetition time, equal to within 1%"
        raise InputError(
            Problem("tr-disagrees", where, found, wanted, f"correct the header, or {sidecar}")
        )
    tr_s = sidecar_tr_s if sidecar_tr_s is not None else header
    assert tr_s is not None
    return tr_s


def differ(tr_s: float, other_tr_s: float) -> bool:
    """Whether two repetition times are more than 1% apart."""
    return abs(tr_s - other_tr_s) > TR_TOLERANCE * other_tr_s


def sidecar_path(bold: Path) -> Path:
    """Return the JSON file that describes an image: the same name with ``.json``."""
    stem = bold.name.removesuffix(".gz").removesuffix(".nii")
    return bold.with_name(f"{stem}.json")


def read_sidecar_tr_s(path: Path) -> float | None:
    """``RepetitionTime`` (seconds) of a BIDS sidecar; None where the field is absent.

    Raises
    ------
    InputError
        The file is no JSON object, or the field no number.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        value = fields.get("RepetitionTime")
        return None if value is None else float(value)
    except (ValueError, TypeError, AttributeError) as error:
        found = f"cannot be read ({error})"
        wanted = 'a JSON object with "RepetitionTime" in seconds'
        raise InputError(Problem("sidecar-unreadable", str(path), found, wanted)) from error


def read_frames(scan: Scan) -> Iterator[tuple[int, np.ndarray]]:
    """Read the voxels in one pass, a few volumes at a time.

    Parameters
    ----------
    scan : Scan

    Yields
    ------
    start : int
        First frame of the chunk.
    stored : ndarray [frames, X*Y*Z]
        Stored numbers, scaling not yet applied; voxels in the file's order (first axis fastest).

    Raises
    ------
    InputError
        The file ends early (``"bold-truncated"``) or its checksum fails (``"bold-corrupt"``).
    """
    frame_bytes = int(np.prod(scan.shape)) * scan.dtype.itemsize
    chunk = max(1, CHUNK_BYTES // max(frame_bytes, 1))
    start = 0
    try:
        with ImageOpener(str(scan.path)) as stream:
            stream.seek(scan.offset_bytes)
            while start < scan.frames:
                count = min(chunk, scan.frames - start)
                buffer = stream.read(count * frame_bytes)
                if len(buffer) < count * frame_bytes:
                    raise EOFError
                yield start, np.frombuffer(buffer, dtype=scan.dtype).reshape(count, -1)
                start += count
            # gzip compares its checksum only when the end is reached.
            while stream.read(2**20):
                pass
    except EOFError as error:
        last = min(start + chunk, scan.frames)
        found = f"ends within frames {start + 1} to {last}" if start < last else "lacks its end"
        raise InputError(_truncated(scan, found)) from error
    except (OSError, zlib.error) as error:
        found = f"compressed data are damaged ({error})"
        raise InputError(
            Problem("bold-corrupt", str(scan.path), found, "an intact file", "copy it again")
        ) from error


def scaled(scan: Scan, stored: np.ndarray) -> Float64[np.ndarray, "..."]:
    """Apply the image's scaling, in float64."""
    values = stored.astype(np.float64)
    if scan.slope != 1:
        values *= scan.slope
    if scan.inter != 0:
        values += scan.inter
    return values


def like_grid(
    data: np.ndarray, affine: np.ndarray, target_affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Flip and swap the axes of a 3D array so that they run as another image's do.

    Nothing is interpolated. Returns the array and its new affine.
    """
    turn = ornt_transform(io_orientation(affine), io_orientation(target_affine))
    return apply_orientation(data, turn), affine @ inv_ornt_aff(turn, data.shape)


def grids_agree(
    shape: tuple[int, ...], affine: np.ndarray, other_shape: tuple[int, ...], other: np.ndarray
) -> bool:
    """Whether two grids have the same voxels: every corner within 5% of a voxel."""
    if tuple(shape) != tuple(other_shape):
        return False
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape])).reshape(3, -1)
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    voxel_mm = np.sqrt((other[:3, :3] ** 2).sum(axis=0)).min()
    apart_mm = np.linalg.norm(((affine - other) @ corners)[:3], axis=0).max()
    return bool(apart_mm <= GRID_TOLERANCE_VOXELS * voxel_mm)


def describe_grid(shape: tuple[int, ...], affine: np.ndarray) -> str:
    """Shape and affine in words, for messages."""
    axes = "".join(code or "?" for code in nib.aff2axcodes(affine))
    rows = ", ".join("[" + ", ".join(f"{v:.6g}" for v in row) + "]" for row in affine[:3])
    return f"{_by(shape)} voxels ({axes}), affine {rows}"


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)


def _check_size(scan: Scan) -> None:
    expected = scan.offset_bytes + int(np.prod(scan.shape)) * scan.frames * scan.dtype.itemsize
    found = scan.path.stat().st_size
    if found < expected:
        raise InputError(_truncated(scan, f"{found:,} bytes of the header's {expected:,}"))


def _truncated(scan: Scan, found: str) -> Problem:
    wanted = f"{scan.frames} frames, as its header says"
    return Problem(
        "bold-truncated", str(scan.path), f"truncated: {found}", wanted, "copy or make it again"
    )


def _implausible(where: str, found: str) -> Problem:
    wanted = f"between {SHORTEST_TR_S:g} and {LONGEST_TR_S:g} seconds"
    fix = "set RepetitionTime in the sidecar (tr_s in a table of paths), in seconds"
    return Problem("tr-implausible", where, found, wanted, fix)


def _ends_in_header(path: Path) -> bool:
    """Whether a compressed file ends within the header, which nibabel calls an unknown type."""
    try:
        with gzip.open(path) as stream:
            stream.read(SNIFFED_BYTES)
    except EOFError:
        return True
    except (OSError, zlib.error):
        return False
    return False


def _unreadable(path: Path, error: BaseException, code: str) -> Problem:
    wanted = "a NIfTI image (.nii or .nii.gz)"
    if isinstance(error, EOFError) or _ends_in_header(path):
        found = "truncated: ends within its header"
        return Problem(f"{code}-truncated", str(path), found, wanted, "copy it again")
    return Problem(f"{code}-unreadable", str(path), f"cannot be read ({error})", wanted)
