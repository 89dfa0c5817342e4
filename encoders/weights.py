"""Safe reading of published checkpoints, and loading that leaves nothing open.

Only safetensors, and torch files through ``torch.load(weights_only=True)``, are read: a checkpoint
can bring numbers, never code. Loading is strict: every parameter is filled and every tensor used,
or one error lists all that does not fit.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from encoders.errors import InputError, Problem
from encoders.hub import download, is_hub_id
from encoders.licences import read_card_licence, say_licence_once
from encoders.record import RECORD_NAME, read_record
from encoders.torch_files import TORCH_SUFFIXES, TorchFile, damaged, read_torch_file

WEIGHT_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
# In order of preference: the names under which upstream libraries save a whole model.
_STANDARD_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class Weights:
    """A checkpoint in memory.

    Parameters
    ----------
    tensors : dict of str to Tensor
        On the CPU, named and typed as stored.
    config : dict or None
        The ``config.json`` beside the weights; None for a bare file.
    id : str
        File or folder name, or hub id with the commit it resolved to; of a canonical folder (see
        `encoders.canonical`), that of what it was made from.
    sha256 : str
        `tensors_sha256` of `tensors`.
    extra : dict
        The plain values that a torch file holds beside its tensors (``hyper_parameters``,
        ``config``), see `encoders.torch_files.TorchFile`; empty for other files.
    nesting : tuple of str
        The keys under which a torch file holds its tensors, such as ``("state_dict",)``.
    license : str or None
        What the model card of a folder or hub id says; see `encoders.licences`.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any] | None
    id: str
    sha256: str
    extra: dict[str, Any] = field(default_factory=dict)
    nesting: tuple[str, ...] = ()
    license: str | None = None


def read_weights(
    path_or_hub_id: str | PathLike[str] | Weights, *, revision: str | None = None
) -> Weights:
    """Read a checkpoint from a file, a folder or the Hugging Face hub.

    Parameters
    ----------
    path_or_hub_id : str or path
        A ``.safetensors``, ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file; a folder with
        ``config.json`` and weights (also in shards with an index); or a hub id
        ``owner/name[/subfolder]``, taken from the cache alone when ``HF_HUB_OFFLINE`` is set.
        `Weights` already read are returned as they are.
    revision : str, optional
        Branch, tag or commit of a hub id.

    Returns
    -------
    Weights

    Raises
    ------
    InputError
        The file is missing, damaged, holds code (a pickle of more than tensors), or it is not
        clear which of its tensors are the weights; a revision of a local path; a canonical folder
        whose tensors are not those it was made with.
    """
    if isinstance(path_or_hub_id, Weights):
        return path_or_hub_id
    path = Path(path_or_hub_id).expanduser()
    if path.exists() and revision is not None:
        raise InputError(
            Problem(
                "revision-of-a-path",
                str(path),
                f"a local path with revision {revision!r}",
                "a revision for hub ids only",
                "leave the revision out, or move the path away if you mean the hub id",
            )
        )
    if path.is_dir():
        return _read_local_folder(path)
    if path.is_file():
        file = _read_file(path)
        digest = tensors_sha256(file.tensors)
        return Weights(file.tensors, None, path.name, digest, file.extra, file.nesting)
    if isinstance(path_or_hub_id, str) and is_hub_id(path_or_hub_id):
        snapshot = download(path_or_hub_id, revision)
        if snapshot.license is not None:
            say_licence_once(snapshot.license, snapshot.id)
        return _read_folder(snapshot.folder, snapshot.id, snapshot.license)
    raise InputError(
        Problem(
            "weights-missing",
            str(path_or_hub_id),
            "no such file or folder",
            f"a weights file ({', '.join(WEIGHT_SUFFIXES)}), a folder with config.json and "
            "weights, or a Hugging Face hub id owner/name",
        )
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of one ``.safetensors`` or torch file onto the CPU.

    Raises
    ------
    InputError
        As `read_weights`.
    """
    return _read_file(path).tensors


def _read_file(path: Path) -> TorchFile:
    if path.suffix == ".safetensors":
        try:
            return TorchFile(load_file(path))
        except (SafetensorError, OSError) as error:
            raise InputError(damaged(path, error, "safetensors")) from error
    if path.suffix in TORCH_SUFFIXES:
        return read_torch_file(path)
    raise InputError(
        Problem(
            "weights-format",
            str(path),
            f"a file with suffix {path.suffix or '(none)'!r}",
            f"one of {', '.join(WEIGHT_SUFFIXES)}",
        )
    )


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest over name, dtype, shape and bytes of all tensors, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        header = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(header).encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_strict(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    ties: Mapping[str, str] | None = None,
    ignore: Collection[str] = (),
) -> None:
    """Fill a module from a checkpoint, completely and without leftovers, or not at all.

    Parameters
    ----------
    module : nn.Module
        Its parameters and persistent buffers are the names wanted. Values take the module's dtype.
    tensors : mapping of str to Tensor
        What the checkpoint holds.
    source : str
        Name of the checkpoint for error messages.
    ties : mapping of str to str, optional
        Name -> the name it is one tensor with. Absent, it is filled from there; present, it must
        be equal to it. A tied name need not exist in the module.
    ignore : collection of str
        Names in the checkpoint that are known and not wanted.

    Raises
    ------
    InputError
        Lists every missing, unexpected, wrongly shaped, wrongly typed and non-finite tensor and
        every tie that does not hold; the module is then unchanged.
    """
    ties = ties or {}
    wanted = module.state_dict(keep_vars=True)
    given = {name: tensor for name, tensor in tensors.items() if name not in ignore}
    problems = [*_broken_ties(given, ties, source)]
    given |= {n: given[o] for n, o in ties.items() if n not in given and o in given}
    for name, target in wanted.items():
        if name not in given:
            problems.append(
                Problem("tensor-missing", source, f"no tensor {name}", f"{list(target.shape)}")
            )
        else:
            problems += _misfits(name, given[name], target, source)
    problems += [
        Problem("tensor-unexpected", source, f"tensor {name}", "no such name in the network")
        for name in given
        if name not in wanted and name not in ties
    ]
    if problems:
        raise InputError(problems)
    with torch.no_grad():
        for name, target in wanted.items():
            target.copy_(given[name])


def _broken_ties(
    given: Mapping[str, Tensor], ties: Mapping[str, str], source: str
) -> list[Problem]:
    return [
        Problem(
            "tensor-tie",
            source,
            f"{name} differs from {origin}",
            "equal values: the configuration says that they are one tensor",
            "check the configuration's options for tied weights",
        )
        for name, origin in ties.items()
        if name in given and origin in given and not _equal(given[name], given[origin])
    ]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _misfits(name: str, tensor: Tensor, target: Tensor, source: str) -> list[Problem]:
    problems = []
    if tensor.shape != target.shape:
        found = f"{name} has shape {list(tensor.shape)}"
        problems.append(Problem("tensor-shape", source, found, f"{list(target.shape)}"))
    if tensor.is_floating_point() != target.is_floating_point():
        found, kind = f"{name} is {tensor.dtype}", str(target.dtype)
        problems.append(Problem("tensor-dtype", source, found, kind))
    elif tensor.is_floating_point():
        # As they will be used: float16 ends at 65,504.
        bad = ~tensor.to(target.dtype).isfinite()
        if bool(bad.any()):
            found = f"{name} has {int(bad.sum())} values that are NaN or infinite in {target.dtype}"
            problems.append(Problem("tensor-not-finite", source, found, "finite numbers"))
    return problems


def _read_local_folder(path: Path) -> Weights:
    licence, record = read_card_licence(path), read_record(path)
    if record is None:
        return _read_folder(path, path.resolve().name, licence)
    weights = _read_folder(path, record.source, licence or record.weight_license)
    if weights.sha256 != record.sha256:
        raise InputError(
            Problem(
                "weights-changed",
                str(path),
                f"other tensors than {RECORD_NAME} says: digest {weights.sha256[:16]}",
                record.sha256[:16],
                f"copy or convert the folder again; if you changed them yourself, remove "
                f"{RECORD_NAME}",
            )
        )
    return weights


def _read_folder(folder: Path, name: str, licence: str | None) -> Weights:
    path = _find_weights_file(folder)
    indexed = path.name.endswith(".index.json")
    file = TorchFile(_read_shards(path)) if indexed else _read_file(path)
    config_path = folder / "config.json"
    config = _read_json(config_path) if config_path.is_file() else None
    digest = tensors_sha256(file.tensors)
    return Weights(file.tensors, config, name, digest, file.extra, file.nesting, licence)


def _find_weights_file(folder: Path) -> Path:
    for name in _STANDARD_NAMES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    if len(others) == 1:
        return others[0]
    found = f"{len(others)} weights files" if others else "no weights file"
    raise InputError(
        Problem(
            "weights-missing",
            str(folder),
            found + (f" ({', '.join(path.name for path in others)})" if others else ""),
            "model.safetensors or pytorch_model.bin",
            "name the file itself" if others else "",
        )
    )


def _read_shards(index_path: Path) -> dict[str, Tensor]:
    weight_map = _read_json(index_path).get("weight_map")
    named = isinstance(weight_map, dict) and all(isinstance(x, str) for x in weight_map.values())
    if not named or not weight_map:
        raise InputError(
            Problem("weights-index", str(index_path), "no weight_map", "tensor name -> shard file")
        )
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        path = index_path.parent / Path(shard).name
        if not path.is_file():
            wanted = f"all shards named in {index_path.name}"
            raise InputError(Problem("weights-missing", str(path), "no such file", wanted))
        tensors |= read_tensors(path)
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        found = f"{len(absent)} tensors are in no shard, the first {absent[0]}"
        raise InputError(
            Problem("weights-index", str(index_path), found, "every tensor of weight_map")
        )
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(damaged(path, error, "JSON")) from error
    if not isinstance(values, dict):
        raise InputError(
            Problem("json-not-object", str(path), type(values).__name__, "a JSON object {...}")
        )
    return values
