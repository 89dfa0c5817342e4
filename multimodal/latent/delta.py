"""``encoder_delta.safetensors``: what fine-tuning changed in the encoders a bundle names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.atomic import replace_file
from encoders.errors import InputError, Problem

if TYPE_CHECKING:
    from encoders.base import Encoder
    from multimodal.align.finetune.delta import Delta

DELTA = "encoder_delta.safetensors"
KEY = "encoder_delta"
"""Under it a manifest says which sides were changed, and the file's digest."""


def write_delta(folder: Path, deltas: Mapping[str, Delta]) -> dict[str, Any]:
    """Write the changes of some encoders, and return what the manifest says of them.

    A change of nothing but zeros is written too, where training kept its start: a bundle whose
    settings speak of fine-tuning and that holds no change is one that somebody took it out of.

    Parameters
    ----------
    folder : Path
        The bundle's.
    deltas : mapping of str to Delta
        By side, ``"dna"`` and ``"brain"``.
    """
    from safetensors.torch import save_file

    from multimodal.align.finetune.delta import join_sides

    tensors = {name: tensor.contiguous() for name, tensor in join_sides(deltas).items()}
    replace_file(folder / DELTA, lambda temporary: save_file(tensors, temporary))
    return {"sides": sorted(deltas), "sha256": file_sha256(folder / DELTA)}


def changed_sides(manifest: Mapping[str, Any]) -> list[str]:
    """Return the sides whose encoders were fine-tuned."""
    return list((manifest.get(KEY) or {}).get("sides", ()))


def find_delta_problems(folder: Path, manifest: Mapping[str, Any]) -> list[Problem]:
    """Find what is wrong with the file, without looking into it."""
    file, said = folder / DELTA, manifest.get(KEY)
    if said is None:
        if not file.exists():
            return []
        found = "a change of encoders that bundle.json does not name"
        fix = "do not use this bundle: `align` writes none like it"
        return [Problem("bundle-broken", str(file), found, "no such file", fix)]
    if not file.is_file():
        wanted = f"what fine-tuning changed of {' and '.join(said['sides'])}"
        return [Problem("bundle-broken", str(file), "no such file", wanted, _COPY)]
    if file_sha256(file) != said["sha256"]:
        found, wanted = "its content is not what bundle.json says", f"sha256 {said['sha256']}"
        return [Problem("bundle-broken", str(file), found, wanted, _COPY)]
    return []


def apply_bundle_delta(
    folder: Path, manifest: Mapping[str, Any], side: str, encoder: Encoder
) -> None:
    """Make of an encoder as it was published the one that the bundle's towers were trained with.

    Parameters
    ----------
    folder : Path
        The bundle's, already checked.
    manifest : mapping
    side : {"dna", "brain"}
    encoder : Encoder
        Of this side, with the weights the bundle names; changed in place.

    Raises
    ------
    InputError
        The file does not fit the encoder or the manifest.
    """
    if side not in changed_sides(manifest):
        return
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from multimodal.align.finetune.delta import apply_delta, split_sides

    file = folder / DELTA
    try:
        found = split_sides(load_file(file))
    except (OSError, SafetensorError) as error:
        wanted = "a safetensors file that genebold wrote"
        problem = Problem("bundle-broken", str(file), f"cannot be read ({error})", wanted, _COPY)
        raise InputError(problem) from error
    if sorted(found) != changed_sides(manifest):
        told = f"changes of {', '.join(sorted(found)) or 'nothing'}"
        wanted = f"of {', '.join(changed_sides(manifest))}, as bundle.json says"
        raise InputError(Problem("bundle-broken", str(file), told, wanted, _COPY))
    apply_delta(encoder, found[side], f"{file} {side}")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


_COPY = "copy the bundle again, or align again"
