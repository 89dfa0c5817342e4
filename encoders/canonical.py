"""Checkpoints turned into folders of one layout, and back into what upstream reads.

A canonical folder holds what `encoders.load_encoder` takes and nothing that can run:

- ``model.safetensors``: every tensor of the source under the name and in the type it had there,
  so that the folder is the checkpoint, decoders and heads included;
- ``config.json``: upstream's own, where it had one; else the constructor arguments, as its
  loader found them (in a Lightning checkpoint's hyper-parameters, in the shapes of tensors);
- ``genebold.json``: which encoder it is, where it came from, its digest and licences, and the plain
  values the source held beside its weights, for the way back;
- a tokenizer's data, where the source has it.

Optimiser states are no weights and stay behind.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from encoders.atomic import make_folder, replace_file
from encoders.base import Encoder
from encoders.errors import InputError, Problem
from encoders.recognise import recognise
from encoders.record import RECORD_NAME, Record, read_record
from encoders.registry import load_encoder
from encoders.torch_files import TORCH_SUFFIXES
from encoders.weights import WEIGHT_SUFFIXES, Weights, read_weights

# Under which keys upstream's own training scripts put the weights.
_UPSTREAM_NESTING = {
    ("swift", ".ckpt"): ("state_dict",),
    ("brainmt", ".pth"): ("model_state_dict",),
}
# A tokenizer's data, never its code: what transformers writes beside a model that reads text.
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model"),
)


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Parameters
    ----------
    encoder : str
        Name for `load_encoder`.
    source : str
        File, folder or hub id with its commit.
    target : Path
        What was written.
    tensors : int
        How many.
    numbers : int
        How many numbers they hold.
    sha256 : str
        `encoders.weights.tensors_sha256`, equal for source and target.
    """

    encoder: str
    source: str
    target: Path
    tensors: int
    numbers: int
    sha256: str


def convert(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
) -> Conversion:
    """Write a checkpoint in another layout, bit for bit; refuse to overwrite anything.

    Parameters
    ----------
    source : str or path
        Whatever `encoders.weights.read_weights` reads, canonical folders included.
    target : str or path
        A new folder, for the canonical layout; or a new file ending in ``.safetensors``, ``.bin``,
        ``.pt``, ``.pth`` or ``.ckpt``, for upstream's: tensors under upstream's names, nested and
        with the plain values beside them as they were in the file that the folder was made from.
    name : str, optional
        Which encoder it is; told from ``genebold.json`` or the tensors' names by default.
    config : mapping, optional
        Upstream's constructor arguments, where the source does not hold them.
    revision : str, optional
        Revision of a hub id.

    Returns
    -------
    Conversion

    Raises
    ------
    InputError
        The target exists; the source cannot be read, is of no known encoder, or does not fill its
        encoder exactly.
    """
    target = Path(target).expanduser()
    if target.exists():
        raise InputError(_exists(target))
    stored = read_weights(source, revision=revision)
    record = read_record(source)
    name = name or (record.encoder if record else None) or recognise(stored)
    encoder = load_encoder(name, str(source), config=config, revision=revision)
    try:
        if target.suffix in WEIGHT_SUFFIXES:
            replace_file(target, lambda path: _write_file(path, stored, name, encoder, record))
        else:
            made = _make_record(stored, encoder, record)

            def fill(folder: Path) -> None:
                _copy_tokenizer(Path(source).expanduser(), folder)
                _write_folder(folder, stored, encoder, config, made)

            make_folder(target, fill)
    except FileExistsError as error:
        raise InputError(_exists(target)) from error
    numbers = sum(tensor.numel() for tensor in stored.tensors.values())
    return Conversion(name, stored.id, target, len(stored.tensors), numbers, stored.sha256)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write_folder(
    folder: Path,
    stored: Weights,
    encoder: Encoder,
    config: Mapping[str, Any] | None,
    record: Record,
) -> None:
    given = {**stored.config, **(config or {})} if stored.config is not None else None
    arguments = given if given is not None else encoder.spec.config
    _save_safetensors(stored.tensors, folder / "model.safetensors")
    text = json.dumps(arguments, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    (folder / RECORD_NAME).write_text(record.to_json(), encoding="utf-8")
    _check_same(stored, read_weights(folder))
    again = load_encoder(encoder.spec.name, folder)
    if again.spec.as_dict() != encoder.spec.as_dict():
        raise RuntimeError(
            f"{stored.id}: config.json does not give the same encoder back; please report this"
        )


def _write_file(
    path: Path, stored: Weights, name: str, encoder: Encoder, record: Record | None
) -> None:
    if path.suffix in TORCH_SUFFIXES:
        if record is not None:
            nesting, extra = record.nesting, record.extra
        else:
            nesting, extra = stored.nesting, stored.extra
        nesting = nesting or _UPSTREAM_NESTING.get((name, path.suffix), ())
        torch.save(_nest(_unshared(stored.tensors), nesting, extra), path)
    else:
        _save_safetensors(stored.tensors, path)
    _check_same(stored, read_weights(path))


def _nest(
    tensors: dict[str, Tensor], nesting: tuple[str, ...], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Put tensors under their keys, among the plain values that lay around them."""
    if not nesting:
        return tensors
    key, *inner = nesting
    around = extra.get(key, {})
    return {**extra, key: _nest(tensors, tuple(inner), around)}


def _save_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    # The entry by which transformers knows which library's tensors they are.
    save_file(_unshared(tensors), path, metadata={"format": "pt"})


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that own their numbers: tied ones and views are stored in full."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def _check_same(stored: Weights, written: Weights) -> None:
    if written.sha256 != stored.sha256:
        raise RuntimeError(f"{stored.id}: what was written differs; the disk may be failing")


def _make_record(stored: Weights, encoder: Encoder, record: Record | None) -> Record:
    spec = encoder.spec
    return Record(
        encoder=spec.name,
        source=record.source if record else stored.id,
        sha256=stored.sha256,
        code_license=spec.code_license,
        weight_license=stored.license or spec.weight_license,
        nesting=record.nesting if record else stored.nesting,
        extra=record.extra if record else stored.extra,
    )


def _exists(target: Path) -> Problem:
    return Problem(
        "target-exists",
        str(target),
        "is there already",
        "a name that is free: nothing is overwritten",
        "remove it, or choose another",
    )
