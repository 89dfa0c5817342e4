"""Writing a feature store: one run at a time, shard by shard, complete or not."""

import errno
import fcntl
import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from encoders.atomic import TEMPORARY, sync_folder, write_text
from encoders.errors import InputError, Problem
from multimodal.features.crew import Crew, Takes, take_all
from multimodal.features.fingerprint import as_json, difference, text_digest
from multimodal.features.shards import shard_inputs, write_shard

FINGERPRINT = "fingerprint.json"
COMPLETE = "complete.json"
LOCK = ".lock"


class StoreWriter:
    """One encode run's hold on a store: its lock, its fingerprint, its shards.

    Use as a context manager. Where the run fails before any shard is there, a store it made is
    taken away again.

    Parameters
    ----------
    folder : Path
        The store of one encoder.
    fingerprint : mapping
        What makes the features, JSON-ready.
    alone : bool
        Whether no other process writes shards into it meanwhile.

    Attributes
    ----------
    takes : callable
        Whether a shard, by its name, is this process's to write.

    Raises
    ------
    InputError
        On entry: another run holds the store, or something else made it.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], *, alone: bool = True) -> None:
        self.folder = folder
        self.takes: Takes = take_all
        self._alone = alone
        self._fingerprint = as_json(fingerprint)
        self._lock = -1
        self._made: list[Path] = []
        self._shards: dict[str, str] = {}

    def check(self) -> None:
        """Compare with the fingerprint already there, if there is one, and touch nothing."""
        path = self.folder / FINGERPRINT
        if path.exists():
            problem = difference(path, path.read_text(encoding="utf-8"), self._fingerprint)
            if problem is not None:
                raise InputError(problem)

    def is_complete(self, shards: Mapping[str, str] | None = None) -> bool:
        """Whether all is there, of exactly these shards and inputs where they are given."""
        path = self.folder / COMPLETE
        if not path.exists():
            return False
        return shards is None or path.read_text(encoding="utf-8") == _summary(shards)

    def __enter__(self) -> "StoreWriter":
        self._made = [
            folder for folder in (self.folder, *self.folder.parents) if not folder.exists()
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self.check()
            for stray in self.folder.rglob(f"{TEMPORARY}*"):
                stray.unlink()
            if not (self.folder / FINGERPRINT).exists():
                write_text(self.folder / FINGERPRINT, self._fingerprint)
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if (
            kind is not None
            and self._alone
            and self._made
            and not any(self.folder.rglob("*.parquet"))
        ):
            self._take_away()
        self._release()

    def has(self, name: str, inputs: str) -> bool:
        """Whether nothing is to be done for a shard.

        It is there and was made from these inputs, and then counts as written; or another process
        has taken it on.
        """
        if shard_inputs(self.folder / name) != inputs:
            return not self.takes(name)
        self._shards[name] = inputs
        return True

    def write(self, name: str, columns: Mapping[str, pa.Array], inputs: str) -> None:
        """Write a shard; a store once complete is not while shards are replaced."""
        if (self.folder / COMPLETE).exists():
            (self.folder / COMPLETE).unlink(missing_ok=True)  # another process may be as far
            sync_folder(self.folder)
        write_shard(self.folder / name, columns, inputs)
        self._shards[name] = inputs

    def finish(self) -> None:
        """Declare the store complete: of the shards seen or written, and no others."""
        for path in self.folder.rglob("*.parquet"):
            if path.relative_to(self.folder).as_posix() not in self._shards:
                path.unlink()
        write_text(self.folder / COMPLETE, _summary(self._shards))

    def refuse_others(self) -> None:
        """Raise where another run holds the store, before anything is read for it; take no hold.

        Raises
        ------
        InputError
            Another run holds it.
        """
        if self._lock < 0 and (self.folder / LOCK).exists():
            self._take_lock()
            self._release()

    def _take_lock(self) -> None:
        self._lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            # Some cluster file systems know no locks; a second run there is the user's care.
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                self._lock = -1
                return
            raise InputError(
                Problem(
                    "features-locked",
                    str(self.folder),
                    "another run is writing these features",
                    "one run at a time",
                    "wait for it to end, or set features.dir to another folder",
                )
            ) from error

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take_away(self) -> None:
        for name in (FINGERPRINT, LOCK):
            (self.folder / name).unlink(missing_ok=True)
        for folder in sorted(self.folder.rglob("*"), reverse=True):
            folder.rmdir()
        for folder in self._made:
            if any(folder.iterdir()):
                return
            folder.rmdir()


def write_together(
    store: StoreWriter,
    crew: Crew,
    work: Callable[[bool], None],
    last: Callable[[], None] = lambda: None,
) -> None:
    """Write a store's shards with other processes; it is complete when this returns.

    Parameters
    ----------
    store : StoreWriter
        Not open yet; not `alone` where there are others.
    crew : Crew
        Of processes that all do the same.
    work : callable
        Writes those of the shards for which `store` has nothing; told whether to show how far it
        is.
    last : callable
        Writes, in the first process, what comes after them.
    """

    def share(takes: Takes, shown: bool) -> None:
        store.takes = takes
        work(shown)

    with store if crew.is_first else nullcontext():
        crew.from_first(f"{store.folder} is open", lambda: True)
        crew.share_out(str(store.folder), share)
        if crew.is_first:
            last()
            store.finish()
    crew.from_first(f"{store.folder} is finished", lambda: True)


def _summary(shards: Mapping[str, str]) -> str:
    listed = [text for name in sorted(shards) for text in (name, shards[name])]
    return json.dumps({"inputs_sha256": text_digest(listed), "shards": len(shards)}) + "\n"
