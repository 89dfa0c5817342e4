"""A bundle: a folder with all that is needed to embed new subjects.

``bundle.json`` (what made it and what it takes), ``towers.safetensors`` (the towers with their
fitted standardisers) and ``card.md``. No pickles and no code: encoders resolve by name among those
installed. It holds no participant ids, but genome embeddings made with it are personal data.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.errors import InputError, Problem
from multimodal.latent.card import model_card

if TYPE_CHECKING:
    from multimodal.align.aligner import Aligner

FORMAT = 1
_REQUIRED = ("format", "dna", "brain", "genome", "bold", "regions", "towers", "towers_sha256")


@dataclass(frozen=True)
class Bundle:
    """A bundle read from disk.

    Parameters
    ----------
    path : Path
    manifest : dict
        The content of ``bundle.json``.
    """

    path: Path
    manifest: dict[str, Any]

    def load_aligner(self) -> Aligner:
        """Return the trained towers, in eval mode on the CPU."""
        from multimodal.align.aligner import Aligner

        return Aligner.load(self.manifest["towers"], self.path / "towers.safetensors")


def write_bundle(path: Path, aligner: Aligner, manifest: dict[str, Any]) -> Bundle:
    """Write a bundle; what lay at `path` before is replaced only once the new one is complete.

    Parameters
    ----------
    path : Path
        The bundle's folder.
    aligner : Aligner
        The trained towers.
    manifest : dict
        JSON-ready values: ``dna``, ``brain`` (encoder name, config, seed, weights digest, spec),
        ``genome``, ``bold`` (preprocessing), ``regions``, ``training`` (counts, no ids),
        ``metrics``.
    """
    path = Path(path)
    fresh = path.with_name(f".{path.name}.writing")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    towers = aligner.save(fresh / "towers.safetensors")
    digest = _file_sha256(fresh / "towers.safetensors")
    content = {"format": FORMAT, **manifest, "towers": towers, "towers_sha256": digest}
    (fresh / "bundle.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    (fresh / "card.md").write_text(model_card(content))
    for file in fresh.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    old = path.with_name(f".{path.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    fresh.rename(path)
    shutil.rmtree(old, ignore_errors=True)
    return Bundle(path, content)


def read_bundle(path: Path | str, *, installed: bool = True) -> Bundle:
    """Read and check a bundle, before anything in it is used.

    Parameters
    ----------
    path : path
        The bundle's folder.
    installed : bool
        Whether its encoders must be installed; to load the towers alone they need not.

    Raises
    ------
    InputError
        No such folder, files missing or truncated, a digest that does not fit, an encoder that
        is not installed.
    """
    from encoders.registry import list_encoders

    path = Path(path)
    file = path / "bundle.json"
    if not file.is_file():
        raise InputError(
            Problem(
                "bundle-missing", str(path), "no bundle.json in it", "a bundle written by `align`",
                "set bundle=DIR to the folder that holds bundle.json",
            )
        )  # fmt: skip
    try:
        manifest = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(
            Problem("bundle-broken", str(file), f"not JSON ({error})", "a complete bundle.json")
        ) from error
    missing = [key for key in _REQUIRED if key not in manifest]
    if missing or manifest["format"] != FORMAT:
        found = f"keys missing: {missing}" if missing else f"format {manifest['format']}"
        raise InputError(Problem("bundle-broken", str(file), found, f"a bundle of format {FORMAT}"))
    problems = []
    known = [*list_encoders(), "dosage"]
    for side in ("dna", "brain"):
        name = manifest[side].get("name")
        if installed and name not in known:
            problems.append(
                Problem(
                    "bundle-encoder", f"{file} {side}.name", f"'{name}' is not installed",
                    f"one of {', '.join(known)}",
                )
            )  # fmt: skip
    towers = path / "towers.safetensors"
    if not towers.is_file():
        problems.append(Problem("bundle-broken", str(towers), "no such file", "the trained towers"))
    elif _file_sha256(towers) != manifest["towers_sha256"]:
        problems.append(
            Problem(
                "bundle-broken", str(towers), "its content is not what bundle.json says",
                f"sha256 {manifest['towers_sha256']}", "copy the bundle again",
            )
        )  # fmt: skip
    if problems:
        raise InputError(problems)
    return Bundle(path, manifest)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
