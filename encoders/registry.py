"""Encoders by name: ours, and those that installed packages bring by entry point."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.errors import InputError, Problem
from encoders.licences import say_licence_once

if TYPE_CHECKING:
    from encoders.base import Encoder

ENTRY_POINT_GROUP = "genebold.encoders"
DTYPES = ("float32", "float64", "bfloat16", "float16")

_OURS = {
    "caduceus": "encoders.caduceus.encoder:load_caduceus",
    "caduceus_ps": "encoders.caduceus.encoder:load_caduceus_ps",
    "caduceus_ph": "encoders.caduceus.encoder:load_caduceus_ph",
    "huggingface": "encoders.huggingface.load:load_huggingface",
    "brainlm_nystromformer": "encoders.brainlm.encoder:load_nystromformer",
    "brainlm_vitmae": "encoders.brainlm.encoder:load_vitmae",
    "swift": "encoders.swift.encoder:load_swift",
    "brainmt": "encoders.brainmt.encoder:load_brainmt",
    "fc": "encoders.connectivity:load_connectivity",
}


def list_encoders() -> list[str]:
    """Return the names `load_encoder` takes, ours first, then those of installed packages."""
    return [*_OURS, *sorted(third_party())]


def third_party() -> dict[str, EntryPoint]:
    """Return the encoders of installed packages by name; a name of ours stays ours."""
    points = entry_points(group=ENTRY_POINT_GROUP)
    return {point.name: point for point in points if point.name not in _OURS}


def find_factory(name: str) -> Callable[..., Encoder]:
    """Return what makes the encoder of a name: ``(weights, *, config, ...) -> Encoder``.

    Raises
    ------
    InputError
        No such encoder, or an installed package whose module does not import.
    """
    if name in _OURS:
        module, _, attribute = _OURS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    points = third_party()
    if name not in points:
        raise InputError(_unknown(name))
    try:
        return points[name].load()
    # Whatever a package of somebody else raises while it is imported.
    except Exception as error:
        raise InputError(
            Problem(
                "encoder-broken",
                f"encoder '{name}'",
                f"its entry point {points[name].value} does not load "
                f"({type(error).__name__}: {error})",
                "a module that imports, and a function in it",
                "install the package again, or what it needs",
            )
        ) from error


def _unknown(name: str) -> Problem:
    names = list_encoders()
    near = difflib.get_close_matches(str(name), names, n=1)
    own = f"a package can bring its own by an entry point in the group '{ENTRY_POINT_GROUP}'"
    return Problem(
        "unknown-encoder",
        "encoder name",
        f"'{name}' is not installed",
        f"one of {', '.join(names)}",
        f"did you mean '{near[0]}'? Else: {own}" if near else own,
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
        wrongly shaped or not finite (all listed at once); a package whose encoder cannot be made.

    Notes
    -----
    Weights under a licence that forbids commercial use say so once in a process, as a warning of
    the logger ``encoders.licences``.
    """
    if dtype not in DTYPES:
        raise InputError(Problem("bad-dtype", "dtype", f"'{dtype}'", f"one of {', '.join(DTYPES)}"))
    _check_device(device)
    factory = find_factory(name)
    try:
        encoder = factory(
            weights, config=config, revision=revision, device=device, dtype=dtype, seed=seed
        )
    except TypeError as error:
        # A short factory hands `config` to a constructor, which says so where it does not fit.
        if name in _OURS:
            raise
        wanted = f"arguments that {name} takes"
        raise InputError(Problem("config-value", f"{name}: config", str(error), wanted)) from error
    check_encoder(encoder, f"encoder '{name}'")
    say_licence_once(encoder.spec.weight_license, encoder.spec.weights_id)
    return encoder.eval()


def check_encoder(made: object, where: str) -> None:
    """Raise InputError where what a factory or a class made is no encoder with a spec."""
    from torch import nn

    from encoders.base import BrainEncoder, DnaEncoder, EncoderSpec

    kind = type(made).__name__
    if not isinstance(made, BrainEncoder | DnaEncoder):
        found, fix = f"made a {kind}", "derive the class from encoders.base.BrainEncoder"
    elif not isinstance(getattr(made, "spec", None), EncoderSpec):
        found, fix = f"made a {kind} without spec", "set self.spec to an EncoderSpec"
    elif not isinstance(getattr(made, "backbone", None), nn.Module):
        found, fix = f"made a {kind} without backbone", "set self.backbone to the network"
    else:
        return
    raise InputError(Problem("not-an-encoder", where, found, "a DnaEncoder or BrainEncoder", fix))


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
