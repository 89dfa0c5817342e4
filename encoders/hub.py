"""Checkpoints of the Hugging Face hub: named by id, pinned by revision, kept in its cache.

``huggingface_hub`` does the work and obeys its own settings: with ``HF_HUB_OFFLINE=1`` nothing
leaves the machine and the cache alone answers; ``HF_HOME`` says where it lies; a token is used
where the repository wants one. No code of a repository is fetched.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from encoders.errors import InputError, Problem
from encoders.licences import read_card_licence
from encoders.torch_files import TORCH_SUFFIXES, first_line

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[\w.-]+)*")
_NO_CODE = ("config.json", "README.md", "*.safetensors", "*.safetensors.index.json")
_TORCH = ("*.bin.index.json", *(f"*{suffix}" for suffix in TORCH_SUFFIXES))


def is_hub_id(text: str) -> bool:
    """Tell whether a text can be a hub id ``owner/name[/subfolder]``."""
    return bool(_HUB_ID.fullmatch(text)) and not text.endswith((".safetensors", *TORCH_SUFFIXES))


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository of the hub, in its cache.

    Parameters
    ----------
    folder : Path
        Where configuration and weights lie.
    id : str
        The hub id with the commit it resolved to, ``owner/name@commit``: name that commit as
        revision to have the same weights again.
    license : str or None
        What the model card of the folder, or else of the repository, names.
    """

    folder: Path
    id: str
    license: str | None


def download(hub_id: str, revision: str | None) -> Snapshot:
    """Fetch configuration, model card and weights of a hub id.

    Torch files are fetched only where there are no safetensors.

    Parameters
    ----------
    hub_id : str
        ``owner/name`` or ``owner/name/subfolder``.
    revision : str, optional
        Branch, tag or commit; the main branch by default.

    Returns
    -------
    Snapshot

    Raises
    ------
    InputError
        The hub, or offline the cache, does not have it.
    """
    root, folder = fetch(hub_id, revision, _NO_CODE)
    if not list(folder.glob("*.safetensors")):
        fetch(hub_id, revision, _TORCH)
    if not folder.is_dir():
        prefix = "/".join(hub_id.split("/")[2:]) + "/"
        raise InputError(
            Problem("weights-hub", hub_id, f"no folder {prefix}", "a folder of the repository")
        )
    licence = read_card_licence(folder) or read_card_licence(root)
    return Snapshot(folder, f"{hub_id}@{root.name}", licence)


def fetch(hub_id: str, revision: str | None, patterns: Sequence[str]) -> tuple[Path, Path]:
    """Fetch those files of a hub id's folder that match, and the repository's card.

    Returns
    -------
    root, folder : Path
        The repository's snapshot, named by its commit, and the id's folder in it, which need
        not exist.

    Raises
    ------
    InputError
        The hub, or offline the cache, does not have it.
    """
    from huggingface_hub import snapshot_download

    owner, name, *subfolder = hub_id.split("/")
    prefix = "".join(f"{part}/" for part in subfolder)
    wanted = [prefix + pattern for pattern in patterns]
    if prefix:
        wanted.append("README.md")
    try:
        found = snapshot_download(f"{owner}/{name}", revision=revision, allow_patterns=wanted)
    # huggingface_hub's own errors derive from these; a bad id or revision is a ValueError.
    except (OSError, ValueError) as error:
        raise InputError(
            Problem(
                "weights-hub",
                hub_id + (f" at revision {revision}" if revision else ""),
                f"no such local file or folder, and the hub could not give it: {first_line(error)}",
                "a path that exists, or a hub id that can be reached or lies in the cache",
                "without network, download the folder elsewhere and give its path",
            )
        ) from error
    root = Path(found)
    return root, root.joinpath(*subfolder)
