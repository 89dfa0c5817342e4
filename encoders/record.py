"""``genebold.json``: what a canonical folder remembers of the checkpoint it was made from."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from encoders.errors import InputError, Problem

RECORD_NAME = "genebold.json"
# JSON has neither tuples nor mappings with other keys than strings; torch files have both.
_TUPLE, _PAIRS = "__tuple__", "__pairs__"


@dataclass(frozen=True)
class Record:
    """Where the weights of a canonical folder came from.

    Parameters
    ----------
    encoder : str
        Name for `encoders.load_encoder`.
    source : str
        File, folder or hub id with its commit.
    sha256 : str
        `encoders.weights.tensors_sha256` of the tensors.
    code_license, weight_license : str
        SPDX or hub identifiers.
    nesting : tuple of str
        Keys under which the source held its tensors.
    extra : dict
        Plain values the source held beside them.
    """

    encoder: str
    source: str
    sha256: str
    code_license: str
    weight_license: str
    nesting: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the record as the text of ``genebold.json``."""
        values = asdict(self) | {"nesting": list(self.nesting), "extra": _pack(self.extra)}
        return json.dumps(values, indent=2) + "\n"


def read_record(folder: str | PathLike[str]) -> Record | None:
    """Read the record of a canonical folder; None for anything else.

    Raises
    ------
    InputError
        There is a ``genebold.json`` that was not written by `Record.to_json`.
    """
    path = Path(folder).expanduser() / RECORD_NAME
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        extra = _unpack(values.pop("extra"))
        return Record(**values | {"nesting": tuple(values["nesting"]), "extra": extra})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            Problem(
                "record-unreadable",
                str(path),
                f"{type(error).__name__}: {error}",
                "the record that `genebold encoders convert` writes",
                "remove the file and name the encoder: name=...",
            )
        ) from error


def _pack(value: Any) -> Any:
    if isinstance(value, tuple):
        return {_TUPLE: [_pack(item) for item in value]}
    if isinstance(value, list):
        return [_pack(item) for item in value]
    if isinstance(value, Mapping):
        plain = all(isinstance(key, str) for key in value) and not {_TUPLE, _PAIRS} & set(value)
        if plain:
            return {key: _pack(item) for key, item in value.items()}
        return {_PAIRS: [[key, _pack(item)] for key, item in value.items()]}
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {_TUPLE}:
        return tuple(_unpack(item) for item in value[_TUPLE])
    if set(value) == {_PAIRS}:
        return {key: _unpack(item) for key, item in value[_PAIRS]}
    return {key: _unpack(item) for key, item in value.items()}
