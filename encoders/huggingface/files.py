"""Files of a model: configuration, tokenizer, model card; weights only once nothing wants code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from encoders.errors import InputError, Problem
from encoders.hub import fetch, is_hub_id
from encoders.huggingface.library import import_transformers
from encoders.torch_files import first_line
from encoders.weights import read_weights

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.vocab")
# All that a tokenizer is made from, for its digest.
_TOKENIZER_PARTS = (
    *("tokenizer*.json", "vocab*", "merges.txt", "*.model"),
    *("added_tokens.json", "special_tokens_map.json"),
)
_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.vocab")
_TOKENIZER_KEY = "AutoTokenizer"


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies, before its weights are read.

    Parameters
    ----------
    folder : Path
        With whatever there is beside the weights.
    weights : str or Path
        What `encoders.weights.read_weights` takes.
    revision : str or None
        Commit of a hub id; of a path, what the reader of weights refuses.
    name : str
        For messages.
    config : dict
        Of ``config.json``; empty without one.
    """

    folder: Path
    weights: str | Path
    revision: str | None
    name: str
    config: dict[str, Any]

    def load_tokenizer(self, config: Any) -> Any:
        """Load the tokenizer beside the weights.

        Parameters
        ----------
        config : transformers.PreTrainedConfig

        Raises
        ------
        InputError
            There is none, it wants code of its own, or it cannot be read.
        """
        if not any(list(self.folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
            raise InputError(
                Problem(
                    "tokenizer-missing",
                    str(self.folder),
                    "no tokenizer",
                    f"a tokenizer's files ({', '.join(_TOKENIZER_FILES)})",
                    "put them there, or describe a tokenizer of one token a base by the setting "
                    "tokenizer",
                )
            )
        settings = _read_json(self.folder / "tokenizer_config.json")
        refuse_code(settings, f"{self.name}: tokenizer_config.json", tokenizer=True)
        try:
            return import_transformers().AutoTokenizer.from_pretrained(
                str(self.folder), config=config, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # the library's readers raise errors of many kinds
            found = f"the tokenizer cannot be read: {first_line(error)}"
            wanted = "whole tokenizer files"
            raise InputError(
                Problem("tokenizer-damaged", str(self.folder), found, wanted)
            ) from error

    def tokenizer_sha256(self) -> str:
        """Return a digest over the names and bytes of the tokenizer's files."""
        digest = hashlib.sha256()
        for path in sorted({p for part in _TOKENIZER_PARTS for p in self.folder.glob(part)}):
            content = path.read_bytes()
            digest.update(f"{path.name} {len(content)}\n".encode() + content)
        return digest.hexdigest()


def find_model(weights: str | PathLike[str], revision: str | None) -> ModelFiles:
    """Find a model's folder; of a hub id, fetch all but the weights.

    Parameters
    ----------
    weights : str or path
        A folder, a weights file, or a hub id ``owner/name``, taken from the cache alone when
        ``HF_HUB_OFFLINE`` is set.
    revision : str or None
        Branch, tag or commit of a hub id.

    Raises
    ------
    InputError
        Nothing is there, or the hub cannot give it.
    """
    path = Path(weights).expanduser()
    if not path.exists() and isinstance(weights, str) and is_hub_id(weights):
        return _fetch(weights, revision)
    folder = path.parent if path.is_file() else path
    if not path.exists():
        # The reader of weights has the words for it.
        read_weights(weights, revision=revision)
    config = {} if path.is_file() else _read_json(folder / "config.json")
    return ModelFiles(folder, path, revision, path.resolve().name, config)


def refuse_code(values: Mapping[str, Any], where: str, *, tokenizer: bool) -> None:
    """Refuse a model that is defined by Python code beside its weights.

    Parameters
    ----------
    values : mapping
        Of ``config.json`` or ``tokenizer_config.json``.
    where : str
        For the message.
    tokenizer : bool
        Whether code of a tokenizer counts; else code of a network or its configuration does.

    Raises
    ------
    InputError
        ``auto_map`` names such code.
    """
    code = values.get("auto_map")
    if isinstance(code, (list, tuple)):
        code = {_TOKENIZER_KEY: code}
    named = [str(key) for key in code or () if (key == _TOKENIZER_KEY) == tokenizer]
    if not named:
        return
    ways = (
        "describe a tokenizer of one token a base by the setting tokenizer, or put a "
        "tokenizer.json of the same tokens in its place"
        if tokenizer
        else "use a copy converted to a network of transformers' own, or bring the network as an "
        "encoder of your own (entry point genebold.encoders); where transformers' own network of "
        "this model_type is known to be the same, set config.auto_map=null"
    )
    raise InputError(
        Problem(
            "remote-code",
            f"{where}: auto_map",
            f"{', '.join(sorted(named))} would run Python code that comes with the weights",
            "a network and a tokenizer that the transformers library ships itself: code of a "
            "model is never run, since it could do anything on this machine",
            ways,
        )
    )


def _fetch(hub_id: str, revision: str | None) -> ModelFiles:
    root, folder = fetch(hub_id, revision, _SMALL_FILES)
    # A snapshot's folder is named by its commit: the weights are then fetched of the same one.
    commit = root.name
    name = f"{hub_id}@{commit}"
    return ModelFiles(folder, hub_id, commit, name, _read_json(folder / "config.json"))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        found = f"cannot be read as JSON: {error}"
        raise InputError(Problem("weights-damaged", str(path), found, "a JSON file")) from error
    if not isinstance(values, dict):
        found = type(values).__name__
        raise InputError(Problem("json-not-object", str(path), found, "a JSON object {...}"))
    return values
