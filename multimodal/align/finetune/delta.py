"""What fine-tuning changed in an encoder, kept apart from weights that may not be handed on.

A tuned encoder is always the published one and a change applied to it, so that a run and whoever
gets its bundle have the same numbers. Applying LoRA's factors needs no peft: they are multiplied
out into the layers' weights.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from encoders.base import Encoder
from encoders.errors import InputError, Problem
from encoders.weights import tensors_sha256

Delta = dict[str, Tensor]
"""By a parameter's name in the backbone: its ``full`` difference, or LoRA's ``down`` [r, in] and
``up`` [out, r], whose product ``up @ down`` is the difference; as ``name:full`` and so on."""

_NAME = re.compile(r"(?P<parameter>[^:]+):(?P<part>full|down|up)")


def split_sides(tensors: Mapping[str, Tensor]) -> dict[str, Delta]:
    """Undo `join_sides`."""
    sides: dict[str, Delta] = {}
    for name, tensor in tensors.items():
        side, _, rest = name.partition("/")
        sides.setdefault(side, {})[rest] = tensor
    return sides


def join_sides(deltas: Mapping[str, Delta]) -> Delta:
    """Put the changes of several encoders into one table, as a file holds them."""
    return {f"{side}/{name}": t for side, delta in deltas.items() for name, t in delta.items()}


@torch.no_grad()
def apply_delta(encoder: Encoder, delta: Mapping[str, Tensor], source: str) -> None:
    """Change an encoder's weights in place, completely or not at all, and its record with them.

    Parameters
    ----------
    encoder : Encoder
        With the weights that were fine-tuned.
    delta : mapping of str to Tensor
        See `Delta`.
    source : str
        Name of the change, for errors.

    Raises
    ------
    InputError
        It does not fit the encoder: every name, shape and value that is wrong.
    """
    parameters = dict(encoder.backbone.named_parameters())
    problems: list[Problem] = []
    changes: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in delta.items():
        match = _NAME.fullmatch(name)
        if match is None or match["parameter"] not in parameters:
            problems.append(_misfit(source, f"tensor {name}", "a parameter of the encoder"))
        elif not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            problems.append(_misfit(source, f"{name} is not finite", "finite numbers"))
        else:
            parts.setdefault(match["parameter"], {})[match["part"]] = tensor
    for name, found in parts.items():
        like = parameters[name]
        change = _difference(found, like)
        if change is None:
            shapes = ", ".join(f"{part} {list(t.shape)}" for part, t in sorted(found.items()))
            wanted = f"a difference of shape {list(like.shape)}"
            problems.append(_misfit(source, f"{name}: {shapes}", wanted))
        else:
            changes[name] = change
    if problems:
        raise InputError(problems)
    for name, change in changes.items():
        like = parameters[name]
        like.copy_((like.double() + change.to(like.device)).to(like.dtype))
    digest = tensors_sha256(
        {**delta, "base": torch.tensor(list(encoder.spec.weights_sha256.encode()))}
    )
    encoder.spec = replace(
        encoder.spec,
        weights_id=f"{encoder.spec.weights_id} (fine-tuned)",
        weights_sha256=digest,
    )


def _difference(parts: Mapping[str, Tensor], like: Tensor) -> Tensor | None:
    """The difference in float64; None where the parts do not make one of the right shape."""
    if parts.keys() == {"full"}:
        change = parts["full"].double()
    elif parts.keys() == {"down", "up"} and all(part.dim() == 2 for part in parts.values()):
        up, down = parts["up"].double(), parts["down"].double()
        # Not multiplied before it is known to fit: small factors can make a huge product.
        if up.shape[1] != down.shape[0] or (len(up), down.shape[1]) != tuple(like.shape):
            return None
        change = up @ down
    else:
        return None
    return change if change.shape == like.shape else None


def _misfit(source: str, found: str, wanted: str) -> Problem:
    return Problem("delta-misfit", source, found, wanted, "copy the bundle again, or align again")
