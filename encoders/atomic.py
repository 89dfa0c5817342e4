"""Whole files or none: written under a temporary name, synced, then renamed."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"
"""Prefix of unfinished files; a reader passes over them and a writer removes old ones."""


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file in the same folder, sync it and give it its name.

    Parameters
    ----------
    path : Path
        The file to appear; its folder is made where it is missing.
    write : callable
        Takes the temporary path and writes all of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    replace_file(path, lambda temporary: _write_text(temporary, text))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as JSON, keys in order, whole or not at all."""
    write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def make_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a temporary folder beside `path`, sync its files and give it its name.

    Parameters
    ----------
    path : Path
        The folder to appear; its parents are made where they are missing.
    fill : callable
        Takes the temporary folder, which exists, and writes files into it.

    Raises
    ------
    FileExistsError
        There is something at `path` already, at the start or at the end.
    """
    if path.exists():
        raise FileExistsError(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{path.name}-", dir=path.parent))
    try:
        fill(temporary)
        for file in temporary.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        temporary.chmod(0o755)  # mkdtemp's folders are for their owner alone
        temporary.rename(path)
    except OSError as error:
        # An empty folder would be replaced, one with files is not; a file cannot be either.
        if path.exists():
            raise FileExistsError(path) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
