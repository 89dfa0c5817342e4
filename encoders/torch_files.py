"""Torch files read as numbers and plain values, never as code.

``torch.load(weights_only=True)`` builds tensors and plain containers and refuses all else. One
thing more is let through, because training scripts store it beside the weights without meaning to:
a NumPy number, such as the best loss. It is read by `_numpy_number` here, so that no NumPy routine
ever sees what a file says, and comes out as a Python number. Nothing else will be: what a file
holds beyond that, an ``argparse.Namespace`` say, was an object of somebody's program.
"""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from encoders.errors import InputError, Problem

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
# Optimiser moments and a trainer's own records hold maps of tensors too, and never the weights:
# Lightning's checkpoint callback, for one, keeps a map from file names to scores.
_NOT_WEIGHTS = frozenset(
    (
        *("optimizer", "optimizers", "optimizer_states", "optimizer_state_dict"),
        *("callbacks", "loops", "lr_schedulers", "scheduler_state_dict"),
    )
)
_DEEPEST = 3
_NUMBER = re.compile(r"b1|[iu][1248]|f[248]")
_GLOBAL = re.compile(r"GLOBAL (\S+)")


@dataclass(frozen=True)
class TorchFile:
    """What a torch file holds.

    Parameters
    ----------
    tensors : dict of str to Tensor
        The one state dict in it, on the CPU, named and typed as stored.
    extra : dict
        All plain values beside it (``epoch``, ``hyper_parameters``, ``config``): numbers, strings,
        None, and lists, tuples and dicts of them. Tensors, the states of optimisers and callbacks,
        and whatever else is no plain value are left out.
    nesting : tuple of str
        The keys, from the outermost, under which the tensors lie: ``("state_dict",)``; empty for
        a bare state dict.
    """

    tensors: dict[str, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)
    nesting: tuple[str, ...] = ()


def read_torch_file(path: Path) -> TorchFile:
    """Read the weights of a torch file and the plain values beside them, running no code of it.

    Raises
    ------
    InputError
        The file is damaged, holds more than numbers and plain values, or holds no state dict or
        several.
    """
    content = _load(path)
    nesting, tensors = _find_state_dict(content, path)
    return TorchFile(tensors, _beside(content) if nesting else {}, nesting)


class _NumpyType:
    """The type of a stored NumPy number: what ``numpy.dtype`` is in the file."""

    def __init__(self, code: object, *flags: object) -> None:
        if not isinstance(code, str) or not _NUMBER.fullmatch(code):
            raise UnpicklingError(f"a NumPy value of type {code!r}, which is no number")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise UnpicklingError("a NumPy number whose byte order cannot be read")
        self.dtype = self.dtype.newbyteorder(order)


def _numpy_number(kind: object, data: object) -> bool | int | float:
    """Read a stored NumPy number: what ``numpy.core.multiarray.scalar`` is in the file."""
    if not isinstance(kind, _NumpyType) or not isinstance(data, bytes):
        raise UnpicklingError("a NumPy value that is no number")
    if len(data) != kind.dtype.itemsize:
        raise UnpicklingError(f"a NumPy number of {len(data)} bytes, not {kind.dtype.itemsize}")
    return np.frombuffer(data, kind.dtype)[0].item()


def _allow_list() -> AbstractContextManager[Any]:
    # NumPy 2 moved the module; files name it as the NumPy that wrote them did.
    return safe_globals(
        [
            (_NumpyType, "numpy.dtype"),
            (_numpy_number, "numpy.core.multiarray.scalar"),
            (_numpy_number, "numpy._core.multiarray.scalar"),
        ]
    )


def _load(path: Path) -> object:
    with _allow_list():
        try:
            # Files saved on a GPU say so: without map_location they load on a GPU alone.
            return torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            raise InputError(_unsafe(path, error)) from error
        # torch's unpickler checks nothing: cut off, a file ends in IndexError, struct.error, ...
        except Exception as error:
            raise InputError(damaged(path, error, "torch")) from error


def _unsafe(path: Path, error: UnpicklingError) -> Problem:
    # torch wraps the reason in advice to read the file unsafely: only the reason is passed on.
    reason = error.__context__ or error
    names = _foreign_names(path) or sorted(set(_GLOBAL.findall(str(reason))))
    holds = f"it names {', '.join(names)}" if names else first_line(reason)
    return Problem(
        "weights-unsafe",
        str(path),
        f"a pickle that holds more than tensors and could run code when opened ({holds})",
        "a file of tensors and plain values only",
        "if you trust it, open it where it was made and save the numbers alone: "
        "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')",
    )


def _foreign_names(path: Path) -> list[str]:
    """List what a pickle would import, reading its instructions without following them."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    # The older format, a pickle of no torch file, or one that is cut off.
    except Exception:
        return []


_NAMED = (("state_dict",), ("model_state_dict",))


def _find_state_dict(content: object, path: Path) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    candidates = _state_dicts(content, ())
    if len(candidates) > 1:
        # Class weights among the hyper-parameters, say: what is called a state dict is meant.
        named = {nesting: found for nesting, found in candidates.items() if nesting[-1:] in _NAMED}
        candidates = named if len(named) == 1 else candidates
    odd = [
        f"{'.'.join((*nesting, name))} (on {tensor.device}, {tensor.layout}, {tensor.dtype})"
        for nesting, found in candidates.items()
        for name, tensor in found.items()
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta"
    ]
    if odd:
        wanted = "dense tensors with their numbers"
        raise InputError(Problem("weights-format", str(path), ", ".join(odd[:5]), wanted))
    if len(candidates) == 1:
        return next(iter(candidates.items()))
    if candidates:
        names = ", ".join(repr(".".join(nesting)) for nesting in candidates)
        found = f"{len(candidates)} sets of tensors: {names}"
    else:
        found = f"no mapping from names to tensors ({type(content).__name__})"
    raise InputError(
        Problem(
            "weights-ambiguous",
            str(path),
            found,
            "one state_dict, alone or under one key",
            "save the one you mean as model.safetensors",
        )
    )


def _state_dicts(
    content: object, nesting: tuple[str, ...]
) -> dict[tuple[str, ...], dict[str, Tensor]]:
    """Find the non-empty mappings of names to tensors, under the keys that lead there."""
    if not isinstance(content, Mapping) or not content:
        return {}
    if not all(isinstance(key, str) for key in content):
        return {}
    if all(isinstance(value, Tensor) for value in content.values()):
        return {nesting: dict(content)}
    found: dict[tuple[str, ...], dict[str, Tensor]] = {}
    if len(nesting) < _DEEPEST:
        for key, value in content.items():
            if key not in _NOT_WEIGHTS:
                found |= _state_dicts(value, (*nesting, key))
    return found


_LEFT_OUT = object()


def _beside(content: object) -> dict[str, Any]:
    assert isinstance(content, Mapping)
    return _plain_mapping({k: v for k, v in content.items() if k not in _NOT_WEIGHTS})


def _plain_mapping(content: Mapping[Any, Any]) -> dict[Any, Any]:
    plain = {key: _plain(value) for key, value in content.items() if isinstance(key, str | int)}
    return {key: value for key, value in plain.items() if value is not _LEFT_OUT}


def _plain(value: object) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = [item for item in map(_plain, value) if item is not _LEFT_OUT]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Mapping):
        plain = _plain_mapping(value)
        return plain if plain or not value else _LEFT_OUT
    return _LEFT_OUT


def damaged(path: Path, error: Exception, kind: str) -> Problem:
    """Word the problem of a file that cannot be read as what it should be."""
    return Problem(
        "weights-damaged",
        str(path),
        f"cannot be read as {kind}: {first_line(error)}",
        f"a whole {kind} file",
        "copy or download it again",
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
