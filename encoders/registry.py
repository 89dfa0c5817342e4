"""Encoders by name: ours, and those that installed packages bring by entry point."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.errors import InputError, Problem

if TYPE_CHECKING:
    from encoders.base import Encoder

ENTRY_POINT_GROUP = "genebold.encoders"
DTYPES = ("float32", "float64", "bfloat16", "float16")

_OURS = {
    "caduceus": "encoders.caduceus.encoder:load_caduceus",
    "caduceus_ps": "encoders.caduceus.encoder:load_caduceus_ps",
    "caduceus_ph": "encoders.caduceus.encoder:load_caduceus_ph",
    "brainlm_nystromformer": "encoders.brainlm.encoder:load_nystromformer",
    "brainlm_vitmae": "encoders.brainlm.encoder:load_vitmae",
    "fc": "encoders.connectivity:load_connectivity",
}


def list_encoders() -> list[str]:
    """Return the names `load_encoder` takes, ours first, then those of installed packages."""
    third_party = sorted(point.name for point in entry_points(group=ENTRY_POINT_GROUP))
    return [*_OURS, *(name for name in third_party if name not in _OURS)]


def _factory(name: str) -> Callable[..., Encoder]:
    if name in _OURS:
        module, _, attribute = _OURS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            return point.load()
    raise InputError(
        Problem(
            "unknown-encoder",
            "encoder name",
            f"'{name}' is not installed",
            f"one of {', '.join(list_encoders())}",
            f"a package can bring its own by an entry point in the group '{ENTRY_POINT_GROUP}'",
        )
    )


def load_encoder(
    name: str,
    weights: str | Path | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
) -> Encoder:
    """Load an encoder in eval mode.

    Parameters
    ----------
    name : str
        One of `list_encoders`.
    weights : str or Path, optional
        A folder or file in upstream's own layout, or a Hugging Face hub id; None for random
        weights drawn from `seed`.
    config : mapping, optional
        Upstream's constructor arguments, for files that do not carry them and for small models.
    revision : str, optional
        Revision of a hub id.
    device : str
        A torch device.
    dtype : {"float32", "float64", "bfloat16", "float16"}
        Type of parameters and arithmetic.
    seed : int
        Seed of random weights; they are equal on every machine with the same torch version.

    Returns
    -------
    Encoder

    Raises
    ------
    InputError
        Unknown name, device or dtype; weights missing, unsafe, incomplete, with tensors left over,
        wrongly shaped or not finite (all listed at once).
    """
    if dtype not in DTYPES:
        raise InputError(Problem("bad-dtype", "dtype", f"'{dtype}'", f"one of {', '.join(DTYPES)}"))
    _check_device(device)
    encoder = _factory(name)(
        weights, config=config, revision=revision, device=device, dtype=dtype, seed=seed
    )
    return encoder.eval()


def _check_device(device: str) -> None:
    import torch

    try:
        # Making a tensor there tells more than the name: whether this machine has the device.
        torch.empty(0, device=device)
    # torch raises AssertionError for a CUDA device in a build without CUDA.
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            Problem(
                "bad-device",
                "device",
                f"{device!r} ({reason})",
                "a device that torch finds on this machine: cpu, cuda, cuda:0, mps, ...",
            )
        ) from error
