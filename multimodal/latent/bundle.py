"""A bundle: a folder with all that is needed to embed new subjects.

``bundle.json`` (what made it and what it takes), ``towers.safetensors`` (the towers with their
fitted standardisers), ``MODEL_CARD.md`` and, after fine-tuning, ``encoder_delta.safetensors`` (what
it changed in the encoders). No pickles and no code: encoders resolve by name among
those installed. It holds no participant ids, but genome embeddings made with it are personal data.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.atomic import sync_folder, write_json, write_text
from encoders.errors import InputError, Problem
from encoders.hub import fetch, is_hub_id
from multimodal.latent.card import model_card, public_metrics
from multimodal.latent.delta import DELTA, KEY, file_sha256, find_delta_problems, write_delta
from multimodal.latent.manifest import (
    FORMAT,
    FORMAT_WITH_CHANGES,
    SIDES,
    find_manifest_problems,
)

if TYPE_CHECKING:
    from multimodal.align.aligner import Aligner
    from multimodal.align.finetune.delta import Delta

TOWERS, MANIFEST, CARD = "towers.safetensors", "bundle.json", "MODEL_CARD.md"
FILES = (MANIFEST, TOWERS, CARD, DELTA)
"""All that a bundle consists of; the last only after fine-tuning."""


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
        """Return the trained towers, in eval mode on the CPU.

        Raises
        ------
        InputError
            The towers are not what the manifest says.
        """
        from multimodal.align.aligner import Aligner

        try:
            return Aligner.load(self.manifest["towers"], self.path / TOWERS)
        except (KeyError, TypeError) as error:
            raise InputError(
                Problem(
                    "bundle-broken", f"{self.path / MANIFEST} towers", f"cannot be used ({error})",
                    "the towers' configuration as `align` writes it", "copy the bundle again",
                )
            ) from error  # fmt: skip


def write_bundle(
    path: Path,
    aligner: Aligner,
    manifest: dict[str, Any],
    deltas: Mapping[str, Delta] | None = None,
) -> Bundle:
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
    deltas : mapping of str to Delta, optional
        By side, what fine-tuning changed in the encoders.
    """
    path = Path(path)
    fresh = path.with_name(f".{path.name}.writing")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    towers = aligner.save(fresh / TOWERS)
    content = {
        "format": FORMAT_WITH_CHANGES if deltas else FORMAT,
        **manifest,
        "towers": towers,
        "towers_sha256": file_sha256(fresh / TOWERS),
    }
    if deltas:
        content[KEY] = write_delta(fresh, deltas)
    _write_words(fresh, content)
    old = path.with_name(f".{path.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    fresh.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)
    return Bundle(path, content)


def record_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Put what an evaluation found into a bundle's manifest and model card.

    Parameters
    ----------
    path : Path
        The bundle's folder.
    metrics : mapping
        As ``metrics.json`` holds them; no null distributions, and nothing of the cohort, is kept.
    """
    bundle = read_bundle(path, installed=False)
    _write_words(bundle.path, {**bundle.manifest, "metrics": public_metrics(metrics)})


def _write_words(folder: Path, manifest: dict[str, Any]) -> None:
    # The card first: the manifest is what a reader goes by.
    write_text(folder / CARD, model_card(manifest))
    write_json(folder / MANIFEST, manifest)


def read_bundle(path: Path | str, *, installed: bool = True, revision: str | None = None) -> Bundle:
    """Read and check a bundle, before anything in it is used.

    Parameters
    ----------
    path : path or str
        The bundle's folder, or a hub id ``owner/name``.
    installed : bool
        Whether its encoders must be installed; to load the towers alone they need not.
    revision : str, optional
        Branch, tag or commit of a hub id.

    Raises
    ------
    InputError
        No such folder, files missing, truncated or lying elsewhere, a digest that does not fit,
        code or paths in the manifest, an encoder that is not installed.
    """
    folder, cached = find_bundle(path, revision)
    file = folder / MANIFEST
    if not file.is_file():
        raise InputError(_missing(path))
    if not cached and (strays := _find_strays(folder)):
        raise InputError(strays)
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            Problem("bundle-broken", str(file), f"not JSON ({error})", "a complete bundle.json")
        ) from error
    problems = find_manifest_problems(manifest, file)
    if problems:
        raise InputError(problems)
    if installed:
        problems += _find_unknown_encoders(manifest, file)
    towers = folder / TOWERS
    if not towers.is_file():
        problems.append(Problem("bundle-broken", str(towers), "no such file", "the trained towers"))
    elif file_sha256(towers) != manifest["towers_sha256"]:
        problems.append(
            Problem(
                "bundle-broken", str(towers), "its content is not what bundle.json says",
                f"sha256 {manifest['towers_sha256']}", "copy the bundle again",
            )
        )  # fmt: skip
    problems += find_delta_problems(folder, manifest)
    if problems:
        raise InputError(problems)
    return Bundle(folder, manifest)


def find_bundle(path: Path | str, revision: str | None = None) -> tuple[Path, bool]:
    """Return the folder of a bundle, fetched where it is a hub id, and whether it was.

    A text is a hub id where it can be one and nothing of that name, nor its first part, lies here.
    ``HF_HUB_OFFLINE=1`` leaves the hub's cache only.

    Raises
    ------
    InputError
        No such folder, and no such hub id or revision.
    """
    text = str(path)
    folder = Path(path).expanduser()
    if folder.exists() or Path(folder.parts[0] if folder.parts else ".").exists():
        if revision is not None:
            wanted = "a hub id, for one of its revisions"
            raise InputError(Problem("bundle-revision", "revision", f"{text} is a path", wanted))
        return folder, False
    if not is_hub_id(text):
        raise InputError(_missing(path))
    return fetch(text, revision, FILES)[1], True


def _missing(path: Path | str) -> Problem:
    return Problem(
        "bundle-missing", str(path), "no bundle.json in it", "a bundle written by `align`",
        "set bundle=DIR to the folder that holds bundle.json, or to a hub id",
    )  # fmt: skip


def _find_strays(folder: Path) -> list[Problem]:
    """Name files of a bundle that are links to somewhere outside it."""
    inside = folder.resolve()
    return [
        Problem(
            "bundle-path", str(folder / name), f"a link to {(folder / name).resolve()}",
            "a file of the bundle itself", "copy the bundle with its files",
        )
        for name in FILES
        if (folder / name).is_symlink() and inside not in (folder / name).resolve().parents
    ]  # fmt: skip


def _find_unknown_encoders(manifest: Mapping[str, Any], file: Path) -> list[Problem]:
    from encoders.registry import list_encoders

    known = [*list_encoders(), "dosage"]
    return [
        Problem(
            "bundle-encoder", f"{file} {side}.name", f"'{manifest[side]['name']}' is not installed",
            f"one of {', '.join(known)}",
            "install the package that brings it by an entry point (docs/encoders.md)",
        )
        for side in SIDES
        if manifest[side]["name"] not in known
    ]  # fmt: skip
