"""What made a store: written beside it, and compared before anything is added or read."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from encoders.errors import Problem

STORE_VERSION = 1

# The same tensors may come from a folder here and from a hub there; their digest is what counts.
_NOT_COMPARED = ("encoder.weights_id",)
_WHOLE_FILE_BYTES = 64 * 2**20
_SHOWN = 8


def text_digest(parts: Iterable[str]) -> str:
    """Return a SHA-256 over a sequence of strings, their boundaries included."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def array_digest(*arrays: np.ndarray) -> str:
    """Return a SHA-256 over shapes, types and bytes of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def file_identity(path: Path) -> dict[str, Any]:
    """Return a file's size and SHA-256: over all of it up to 64 MiB, beyond that over both ends."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        if size <= _WHOLE_FILE_BYTES:
            digest.update(stream.read())
        else:
            digest.update(stream.read(2**20))
            stream.seek(size - 2**20)
            digest.update(stream.read())
    return {"bytes": size, "sha256": digest.hexdigest()}


def code_version() -> str:
    """Return the version of the installed distribution."""
    from importlib.metadata import version

    return version("genebold")


def as_json(fingerprint: Mapping[str, Any]) -> str:
    """Return the text of ``fingerprint.json``."""
    return json.dumps(fingerprint, indent=2, sort_keys=True, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


def difference(where: Path, stored: str, wanted: str) -> Problem | None:
    """Compare two fingerprints, given as JSON, field by field.

    Returns
    -------
    Problem or None
        Names the fields that differ, with both values.
    """
    found, sought = (_flat(json.loads(text)) for text in (stored, wanted))
    names = [
        name
        for name in sorted(found.keys() | sought.keys())
        if name not in _NOT_COMPARED and found.get(name) != sought.get(name)
    ]
    if not names:
        return None
    shown = names[:_SHOWN]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return Problem(
        "features-other-fingerprint",
        str(where),
        f"the features were made with {_listed(found, shown)}{more}",
        f"this run has {_listed(sought, shown)}{more}",
        "set features.dir to another folder, or delete this one",
    )


def _listed(values: Mapping[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name}={json.dumps(values.get(name))}" for name in names)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{prefix}.{name}" if prefix else str(name)))
    return flat
