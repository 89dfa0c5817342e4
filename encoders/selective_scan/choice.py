"""Which backend computes: by device, by what is installed, or as the environment says."""

import os
import warnings
from functools import cache
from importlib.util import find_spec

import torch

from encoders.errors import InputError, Problem
from encoders.selective_scan import library

BACKENDS = ("cpu", "triton", "mamba_ssm", "torch", "reference")
BACKEND_VARIABLE = "GENEBOLD_SCAN_BACKEND"
# Looked up once: tracing a network finds constants here.
_INSTALLED = {name: find_spec(name) is not None for name in ("triton", "mamba_ssm")}


def list_backends() -> list[str]:
    """Return the names `selective_scan` takes as `backend` on this machine.

    ``cpu`` are the native kernels, in float32, and only there where they were built; ``triton`` are
    our kernels for NVIDIA GPUs, and ``mamba_ssm`` are upstream's where that package is installed;
    ``torch`` runs anywhere in any precision; ``reference`` is the definition, one step a position.
    """
    return [name for name in BACKENDS if not _missing(name)]


def backend_for(device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Return the name of the backend that `selective_scan` takes by itself.

    Parameters
    ----------
    device : torch.device
    dtype : torch.dtype
        What it computes in: float32, or float64 where an input is.

    Raises
    ------
    InputError
        ``GENEBOLD_SCAN_BACKEND`` names no backend, or one that cannot compute this.
    """
    asked = _asked()
    if asked is not None:
        refused = refusal(asked, device, dtype)
        if refused:
            fix = f"unset {BACKEND_VARIABLE} to have one chosen"
            raise InputError(Problem("scan-backend", BACKEND_VARIABLE, repr(asked), refused, fix))
        return asked
    if device.type == "cuda" and not refusal("triton", device, dtype):
        return "triton"
    if device.type == "cpu" and dtype == torch.float32:
        if library.is_built():
            return "cpu"
        _say_slow()
    return "torch"


def describe() -> str:
    """Say in a line what computes the scan on this machine."""
    if asked := _asked():
        return f"{asked}, as {BACKEND_VARIABLE} says"
    words = f"on the CPU {library.describe()}"
    if torch.cuda.is_available():
        missing = _missing("triton")
        words += f"; on GPUs torch (slow): {missing}" if missing else "; on GPUs Triton kernels"
    return words


def refusal(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Say why a backend cannot compute in this type there; an empty text if it can."""
    if name not in BACKENDS:
        return f"unknown scan backend {name!r}; one of {', '.join(BACKENDS)}"
    if missing := _missing(name):
        return f"the {name} backend cannot run here: {missing}"
    if name == "cpu" and (dtype != torch.float32 or device.type != "cpu"):
        return f"the cpu backend computes in float32 on CPUs, not in {dtype} on {device}"
    if name == "mamba_ssm" and (dtype != torch.float32 or device.type != "cuda"):
        return f"the mamba_ssm backend computes in float32 on GPUs, not in {dtype} on {device}"
    if name == "triton" and device.type != "cuda" and not is_interpreted():
        return f"the triton backend computes on NVIDIA GPUs, not on {device}"
    return ""


@torch.compiler.assume_constant_result
def is_interpreted() -> bool:
    """Tell whether Triton interprets its kernels on the CPU: slow, to test them without a GPU."""
    return os.environ.get("TRITON_INTERPRET", "") == "1"


@torch.compiler.assume_constant_result
def _asked() -> str | None:
    return os.environ.get(BACKEND_VARIABLE) or None


def _missing(name: str) -> str:
    """Say what a backend lacks on this machine; an empty text if nothing."""
    if name == "cpu" and not library.is_built():
        return "the native kernels are not built; `genebold encoders build` makes them"
    if name in _INSTALLED and not _INSTALLED[name]:
        return f"the package {name} is not installed"
    if name in _INSTALLED and not torch.cuda.is_available():
        return "" if name == "triton" and is_interpreted() else "torch finds no CUDA device"
    return ""


@cache
def _say_slow() -> None:
    warnings.warn(
        "the selective scan runs on its slow path: the native CPU kernels are not built; "
        "`genebold encoders build` makes them where a C++ compiler is at hand",
        stacklevel=4,
    )
