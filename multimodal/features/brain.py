"""Encoding BOLD runs: segments in, one feature each, a fixed number of subjects a shard."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from encoders.errors import InputError, Problem
from multimodal.bold.bids import BoldRun
from multimodal.bold.options import BoldOptions
from multimodal.bold.parcels import Atlas
from multimodal.bold.segments import RunSegments
from multimodal.features.fingerprint import file_identity, text_digest
from multimodal.features.progress import progress_bar
from multimodal.features.shards import texts, vectors
from multimodal.features.writer import StoreWriter

if TYPE_CHECKING:
    from encoders.base import BrainEncoder

Prepared = RunSegments | tuple[Problem, ...]
"""A run's segments, or all that is wrong with it."""


@dataclass(frozen=True)
class BrainShard:
    """The runs of a few subjects, in order.

    Parameters
    ----------
    name : str
        File name within the store.
    runs : tuple of BoldRun
    inputs : str
        Digest over the runs' names and the sizes of their files, so that a scan that was replaced
        is encoded again.
    """

    name: str
    runs: tuple[BoldRun, ...]
    inputs: str


def plan_shards(runs: Sequence[BoldRun], subjects_per_shard: int) -> list[BrainShard]:
    """Divide runs, ordered by subject, into shards of a fixed number of subjects."""
    by_subject: dict[str, list[BoldRun]] = {}
    for run in runs:
        by_subject.setdefault(run.participant_id, []).append(run)
    subjects = list(by_subject.values())
    shards = []
    for number, start in enumerate(range(0, len(subjects), subjects_per_shard)):
        inside = [run for group in subjects[start : start + subjects_per_shard] for run in group]
        digest = text_digest(part for run in inside for part in _identity(run))
        shards.append(BrainShard(f"segments/{number:06d}.parquet", tuple(inside), digest))
    return shards


def _identity(run: BoldRun) -> list[str]:
    return [*run_name(run), *(_content(path) for path in (run.bold, run.mask, run.confounds))]


def run_name(run: BoldRun) -> tuple[str, str, str, str]:
    """Return what a run is known by: participant, session, run, file name."""
    return run.participant_id, run.session, run.run, run.bold.name


def _content(path: Path | None) -> str:
    """Return what tells a file from another version of it, without reading a whole scan."""
    if path is None or not path.exists():
        return "none"
    if path.suffix == ".gz":
        with path.open("rb") as file:  # ends with a checksum of what it holds, and its length
            file.seek(max(0, path.stat().st_size - 8))
            return f"{path.stat().st_size}:{file.read().hex()}"
    return json.dumps(file_identity(path), sort_keys=True)


def encode_segments(
    shards: Sequence[BrainShard],
    encoder: BrainEncoder,
    prepare_many: Callable[[Sequence[BoldRun]], Iterator[Prepared]],
    store: StoreWriter,
    *,
    batch_size: int,
    progress: bool,
) -> None:
    """Write the shards that are not there yet.

    Raises
    ------
    InputError
        All that is wrong with any run, after the shards of the others are written: a run that is
        mended and started again goes on from there.
    """
    problems: list[Problem] = []
    runs = sum(len(shard.runs) for shard in shards)
    with progress_bar(f"encoding {encoder.spec.name}", runs, "run", progress) as bar:
        for shard in shards:
            if store.has(shard.name, shard.inputs):
                bar.update(len(shard.runs))
                continue
            good: list[RunSegments] = []
            for prepared in prepare_many(shard.runs):
                if isinstance(prepared, RunSegments):
                    good.append(prepared)
                else:
                    problems += prepared
                bar.update()
            if len(good) == len(shard.runs):
                values = _encode(encoder, shard.runs, good, batch_size)
                store.write(shard.name, _columns(shard.runs, good, values), shard.inputs)
    if problems:
        raise InputError(dict.fromkeys(problems))


def _columns(
    runs: Sequence[BoldRun], prepared: Sequence[RunSegments], values: np.ndarray
) -> dict[str, pa.Array]:
    count = [len(part.values) for part in prepared]
    return {
        "subject": texts(np.repeat([run.participant_id for run in runs], count).tolist()),
        "session": texts(np.repeat([run.session for run in runs], count).tolist()),
        "run": texts(np.repeat([run.run for run in runs], count).tolist()),
        "segment": pa.array(np.concatenate([np.arange(n, dtype=np.int32) for n in count])),
        "start_frame": pa.array(np.concatenate([part.start_frame for part in prepared])),
        "mean_fd_mm": pa.array(np.concatenate([part.mean_fd_mm for part in prepared])),
        "feature": vectors(values),
    }


def _encode(
    encoder: BrainEncoder,
    runs: Sequence[BoldRun],
    prepared: Sequence[RunSegments],
    batch_size: int,
) -> np.ndarray:
    """Encode all segments of a shard in batches of equal shape, in their order."""
    segments = [segment for part in prepared for segment in part.values]
    xyz_mm = [part.xyz_mm for part in prepared for _ in part.values]
    values = encode_in_batches(encoder, segments, xyz_mm, batch_size)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        owner = np.repeat(np.arange(len(runs)), [len(part.values) for part in prepared])
        names = dict.fromkeys(str(runs[row].bold) for row in owner[bad])
        raise InputError(
            Problem(
                "features-not-finite",
                name,
                f"{encoder.spec.name} gives NaN or infinite features",
                "finite numbers",
                "a parcel without variance, or wrong weights? check the scan and the encoder",
            )
            for name in names
        )
    return values


def encode_in_batches(
    encoder: BrainEncoder,
    segments: Sequence[np.ndarray],
    xyz_mm: Sequence[np.ndarray],
    batch_size: int,
) -> np.ndarray:
    """Encode segments in batches of equal shape, in the order given.

    Parameters
    ----------
    encoder : BrainEncoder
    segments : sequence of ndarray
        Each as ``spec.input`` says, without the batch dimension.
    xyz_mm : sequence of ndarray [P, 3]
        Parcel coordinates of each, for encoders that need them.
    batch_size : int

    Returns
    -------
    ndarray [n, D] float32
    """
    import torch

    from multimodal.features.devices import device_of, dtype_of

    device, dtype = device_of(encoder), dtype_of(encoder)
    needs_xyz = getattr(encoder.spec.input, "needs_xyz", False)
    values = []
    with torch.inference_mode():
        for rows in _equal_shapes(segments, batch_size):
            signal = torch.from_numpy(np.stack([segments[row] for row in rows]))
            arguments = [signal.to(device, dtype)]
            if needs_xyz:
                points = torch.from_numpy(np.stack([xyz_mm[row] for row in rows]))
                arguments.append(points.to(device, dtype))
            values.append(encoder(*arguments).to(torch.float32).cpu().numpy())
    return np.concatenate(values)


def _equal_shapes(segments: Sequence[np.ndarray], batch_size: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for row, segment in enumerate(segments):
        if batch and (len(batch) == batch_size or segment.shape != segments[batch[0]].shape):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@contextmanager
def run_preparer(
    atlas: Atlas, spec_input: Any, options: BoldOptions, workers: int
) -> Iterator[Callable[[Sequence[BoldRun]], Iterator[Prepared]]]:
    """Prepare runs here, or in `workers` other processes, in the order given.

    A bad run comes back as its problems, so that those of all are found.
    """
    if workers < 1:
        yield lambda runs: (_prepare(run, atlas, spec_input, options) for run in runs)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Plain attributes, so that the other processes need not import torch to unpack them.
    plain = SimpleNamespace(**vars(spec_input))
    with ProcessPoolExecutor(
        workers, get_context("spawn"), _start_worker, (atlas, plain, options)
    ) as pool:
        yield lambda runs: pool.map(_prepare_in_worker, runs)


def _prepare(run: BoldRun, atlas: Atlas, spec_input: Any, options: BoldOptions) -> Prepared:
    from multimodal.bold.segments import prepare_run

    try:
        return prepare_run(run, atlas, spec_input, options)
    except InputError as error:
        return error.problems


_WORK: dict[str, Any] = {}


def _start_worker(atlas: Atlas, spec_input: Any, options: BoldOptions) -> None:
    _WORK.update(atlas=atlas, spec_input=spec_input, options=options)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _prepare_in_worker(run: BoldRun) -> Prepared:
    return _prepare(run, **_WORK)


def _end_with_parent() -> None:
    """End this process when the one that started it is killed; a pool alone would wait for ever."""
    import os
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
