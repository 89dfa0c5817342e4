"""The compiled CPU kernels: finding, loading and building them. Called through ctypes.

The kernels are one shared library with a plain C interface, no headers of Python or torch, so that
one build serves all versions of both. Without it everything runs, on the torch backend.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from encoders.errors import InputError, Problem

FOLDER = Path(__file__).parent
SOURCES = FOLDER / "native"
SUFFIXES = (".so", ".dylib")
# As in setup.py, which cannot import this.
COMPILE_ARGS = (
    "-O3",
    "-std=c++17",
    "-Wno-psabi",
    "-Wno-ignored-attributes",
    "-Wno-unknown-pragmas",
)
LEVELS = ("baseline", "avx2", "avx512")
LEVEL_VARIABLE = "GENEBOLD_CPU_LEVEL"
INTERFACE_VERSION = 6
KEPT_EVERY = 16
MAX_TAPS = 8
PANEL = 16

_SIZE = ctypes.c_int64
_ARRAY = ctypes.c_void_p


class SequenceView(ctypes.Structure):
    """``Sequence`` of arguments.h: where [B, L, ...] lies, what follows densely."""

    _fields_ = (("data", _ARRAY), ("row", _SIZE), ("position", _SIZE))

    @classmethod
    def of(cls, values: Tensor | None) -> "SequenceView":
        """Describe a tensor; None is a null pointer."""
        if values is None:
            return cls(None, 0, 0)
        return cls(values.data_ptr(), values.stride(0), values.stride(1))


_RANGE = [(name, _SIZE) for name in ("row_begin", "row_end", "channel_begin", "channel_end")]


class ScanForward(ctypes.Structure):
    """``ScanForward`` of arguments.h."""

    _fields_ = (
        *((name, _SIZE) for name in ("length", "channels", "states", "rank")),
        *_RANGE,
        *((name, _SIZE) for name in ("reverse", "accumulate", "activate")),
        *((name, SequenceView) for name in ("u", "low", "b", "c")),
        *((name, _ARRAY) for name in ("weight", "bias", "a", "skip")),
        ("gate", SequenceView),
        ("y", SequenceView),
        ("kept", SequenceView),
        ("state", _ARRAY),
    )


class ScanBackward(ctypes.Structure):
    """``ScanBackward`` of arguments.h."""

    _fields_ = (
        ("forward", ScanForward),
        *((name, SequenceView) for name in ("grad_y", "grad_u", "grad_low")),
        ("grad_b_c", _ARRAY),
        ("group", _SIZE),
        ("rows", _SIZE),
        ("grad_a", _ARRAY),
        ("grad_skip", _ARRAY),
        ("carry", _ARRAY),
    )


class Convolution(ctypes.Structure):
    """``Convolution`` of arguments.h."""

    _fields_ = (
        *((name, _SIZE) for name in ("length", "channels", "taps")),
        *_RANGE,
        *((name, _SIZE) for name in ("reverse", "before", "accumulate")),
        ("x", SequenceView),
        ("y", SequenceView),
        ("weight", _ARRAY),
        ("bias", _ARRAY),
        ("grad_y", SequenceView),
        ("grad_x", SequenceView),
        ("grad_weight", _ARRAY),
        ("grad_bias", _ARRAY),
        ("carry", _ARRAY),
    )


class Product(ctypes.Structure):
    """``Product`` of arguments.h."""

    _fields_ = (
        *((name, _SIZE) for name in ("rows", "depth", "width", "accumulate", "bfloat16")),
        *((name, _SIZE) for name in ("x_row", "y_row")),
        *((name, _ARRAY) for name in ("x", "y", "weight", "bias")),
    )


class Packing(ctypes.Structure):
    """``Packing`` of arguments.h."""

    _fields_ = (
        *((name, _SIZE) for name in ("depth", "width", "row", "column")),
        ("from_", _ARRAY),
        ("to", _ARRAY),
    )


class Norm(ctypes.Structure):
    """``Norm`` of arguments.h."""

    _fields_ = (
        *((name, _SIZE) for name in ("rows", "length", "width", "centre")),
        *((name, SequenceView) for name in ("x", "y")),
        ("weight", _ARRAY),
        ("bias", _ARRAY),
        ("epsilon", ctypes.c_float),
    )


class Visit(ctypes.Structure):
    """``Visit`` of arguments.h."""

    _fields_ = (
        *((name, _SIZE) for name in ("start", "end", "first", "last")),
        ("norm", Norm),
        *((name, Product) for name in ("inputs", "gate", "projection", "outputs")),
        ("convolution", Convolution),
        ("scan", ScanForward),
    )


class NormBackward(ctypes.Structure):
    """``NormBackward`` of arguments.h."""

    _fields_ = (
        *((name, _SIZE) for name in ("rows", "length", "width", "centre")),
        *((name, SequenceView) for name in ("x", "grad_y", "add", "grad_x")),
        *((name, _ARRAY) for name in ("weight", "grad_weight", "grad_bias")),
        ("epsilon", ctypes.c_float),
    )


class GateBackward(ctypes.Structure):
    """``GateBackward`` of arguments.h."""

    _fields_ = (
        *((name, _SIZE) for name in ("rows", "length", "width")),
        *((name, SequenceView) for name in ("y", "gate", "grad")),
    )


def address(values: Tensor | None) -> int | None:
    """Return where a contiguous tensor lies; None for None."""
    return None if values is None else values.data_ptr()


def _close(library: ctypes.CDLL) -> None:
    """Let go of a library: an open one is found again by its path, whatever lies there by then."""
    if sys.platform != "win32":
        import _ctypes

        _ctypes.dlclose(library._handle)


def _load() -> ctypes.CDLL | None:
    """Load the kernels; None where they were not built, or do not fit this version."""
    for path in sorted(FOLDER.glob("_native*")):
        if path.suffix not in SUFFIXES:
            continue
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        version = getattr(library, "genebold_interface_version", None)
        if version is not None and version() == INTERFACE_VERSION:
            return library
        _close(library)
    return None


# Loaded once, at import, so that tracing a network finds a constant here.
_library = _load()


def is_built() -> bool:
    """Tell whether the kernels are there."""
    return _library is not None


def level() -> str:
    """Return the instruction set in use: the best this CPU has, or a lower one asked for.

    Raises
    ------
    InputError
        ``GENEBOLD_CPU_LEVEL`` is none of `LEVELS`.
    """
    best = LEVELS[_library.genebold_level()] if _library is not None else LEVELS[0]
    wanted = os.environ.get(LEVEL_VARIABLE, best)
    if wanted not in LEVELS:
        raise InputError(
            Problem("cpu-level", LEVEL_VARIABLE, repr(wanted), f"one of {', '.join(LEVELS)}")
        )
    return min(wanted, best, key=LEVELS.index)


def multiplies_bfloat16() -> bool:
    """Tell whether this CPU has vectors of bfloat16 to multiply, and may use them."""
    if _library is None or level() != LEVELS[-1]:
        return False
    return bool(_library.genebold_multiplies_bfloat16())


def call(function: str, arguments: ctypes.Structure) -> None:
    """Call a kernel; ctypes lets other Python threads run meanwhile.

    Raises
    ------
    MemoryError
        No room for the kernel's buffers.
    """
    assert _library is not None, "asked for the CPU kernels, which are not built"
    code = getattr(_library, f"genebold_{function}")(
        ctypes.byref(arguments), ctypes.c_int(LEVELS.index(level()))
    )
    if code != 0:
        raise MemoryError(f"the CPU kernel {function} found no memory for its buffers")


def build(compilers: Sequence[str] | None = None) -> Path:
    """Compile the kernels in place, as installing with a compiler at hand would have.

    Parameters
    ----------
    compilers : sequence of str, optional
        Commands to try; by default ``$CXX``, then c++, g++ and clang++.

    Returns
    -------
    Path
        The library.

    Raises
    ------
    InputError
        No C++ compiler was found, it failed, or the installation's folder cannot be written to.
    """
    chosen = compilers or [*filter(None, [os.environ.get("CXX")]), "c++", "g++", "clang++"]
    compiler = next((path for name in chosen if (path := shutil.which(name))), None)
    if compiler is None:
        raise InputError(
            Problem(
                "no-compiler",
                "C++ compiler",
                f"none of {', '.join(chosen)}",
                "g++ or clang++",
                "install one (Debian: apt install g++; macOS: xcode-select --install) "
                "or name it in CXX",
            )
        )
    target = FOLDER / "_native.so"
    try:
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            made = Path(folder) / "native.so"
            source = str(SOURCES / "native.cpp")
            words = [compiler, *COMPILE_ARGS, "-fPIC", "-shared", "-o", str(made), source]
            ended = subprocess.run(words, capture_output=True, text=True, check=False)
            if ended.returncode != 0:
                found = (ended.stderr.strip().splitlines() or ["no message"])[-1]
                raise InputError(
                    Problem(
                        "compiler-failed", compiler, found, "the kernels compiled", " ".join(words)
                    )
                )
            made.replace(target)
    except OSError as error:
        found = f"cannot be written to: {error.strerror}"
        raise InputError(
            Problem("not-writable", str(FOLDER), found, "a folder you may write to")
        ) from error
    global _library
    _library = _load()
    return target


def describe() -> str:
    """Say in a line what computes on this CPU."""
    if is_built():
        return f"native kernels, {level()}, {torch.get_num_threads()} threads"
    return "torch (slow): the native kernels are not built; `genebold encoders build` makes them"
