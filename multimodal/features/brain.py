"""Encoding BOLD runs: segments in, one feature each, a fixed number of subjects a shard."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from encoders.errors import InputError, Problem
from multimodal.bold.bids import BoldRun
from multimodal.bold.inputs import InputKind, input_kind, prepare
from multimodal.bold.options import BoldOptions
from multimodal.bold.parcels import Atlas
from multimodal.bold.segments import RunSegments
from multimodal.features.fingerprint import file_identity, text_digest
from multimodal.features.progress import progress_bar
from multimodal.features.shards import texts, vectors
from multimodal.features.writer import StoreWriter

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

    from encoders.base import BrainEncoder

Prepared = RunSegments | tuple[Problem, ...]
"""A run's segments, or all that is wrong with it."""
_OTHER_KINDS_OPTIONS = {
    "parcels": ("volume_resample", "volume_clean"),
    "volumes": ("atlas_resample", "empty_parcels"),
}


def bold_preprocessing(options: BoldOptions, kind: InputKind) -> dict[str, Any]:
    """Return the part of a brain store's fingerprint that `options` make.

    Parameters
    ----------
    options : BoldOptions
    kind : {"parcels", "volumes"}
        What the encoder takes; options that only the other kind has are left out, and those of
        cleaning where volumes are not cleaned.
    """
    if kind == "volumes" and not options.volume_clean:
        options = options.without_cleaning()
    left_out = _OTHER_KINDS_OPTIONS[kind]
    return {name: value for name, value in asdict(options).items() if name not in left_out}


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


@dataclass(frozen=True)
class EncodedRun:
    """The features of one run.

    Parameters
    ----------
    run : BoldRun
    start_frame : ndarray [M] int64
    mean_fd_mm : ndarray [M] float32
    values : ndarray [M, D] float32
    """

    run: BoldRun
    start_frame: np.ndarray
    mean_fd_mm: np.ndarray
    values: np.ndarray


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

    Batches run over all runs of a shard; those of volumes stay within a run, so that only one
    run's volumes are held at a time.

    Raises
    ------
    InputError
        All that is wrong with any run, after the shards of the others are written: a run that is
        mended and started again goes on from there.
    """
    problems: list[Problem] = []
    runs = sum(len(shard.runs) for shard in shards)
    one_at_a_time = input_kind(encoder.spec.input) == "volumes"
    with progress_bar(f"encoding {encoder.spec.name}", runs, "run", progress) as bar:
        for shard in shards:
            if store.has(shard.name, shard.inputs):
                bar.update(len(shard.runs))
                continue
            encoded: list[EncodedRun] = []
            waiting: list[tuple[BoldRun, RunSegments]] = []
            whole = True
            for run, prepared in zip(shard.runs, prepare_many(shard.runs), strict=True):
                if not isinstance(prepared, RunSegments):
                    problems += prepared
                    whole = False
                elif whole:
                    waiting.append((run, prepared))
                    if one_at_a_time:
                        encoded += _encode(encoder, waiting, batch_size)
                        waiting = []
                bar.update()
            if whole:
                encoded += _encode(encoder, waiting, batch_size)
                store.write(shard.name, _columns(encoded), shard.inputs)
    if problems:
        raise InputError(dict.fromkeys(problems))


def _columns(encoded: Sequence[EncodedRun]) -> dict[str, pa.Array]:
    count = [len(part.values) for part in encoded]
    runs = [part.run for part in encoded]
    return {
        "subject": texts(np.repeat([run.participant_id for run in runs], count).tolist()),
        "session": texts(np.repeat([run.session for run in runs], count).tolist()),
        "run": texts(np.repeat([run.run for run in runs], count).tolist()),
        "segment": pa.array(np.concatenate([np.arange(n, dtype=np.int32) for n in count])),
        "start_frame": pa.array(np.concatenate([part.start_frame for part in encoded])),
        "mean_fd_mm": pa.array(np.concatenate([part.mean_fd_mm for part in encoded])),
        "feature": vectors(np.concatenate([part.values for part in encoded])),
    }


def _encode(
    encoder: BrainEncoder, prepared: Sequence[tuple[BoldRun, RunSegments]], batch_size: int
) -> list[EncodedRun]:
    """Encode all segments of some runs in batches of equal shape, in their order."""
    if not prepared:
        return []
    values = encode_in_batches(
        encoder,
        (segment for _, part in prepared for segment in part.values),
        (part.xyz_mm for _, part in prepared for _ in range(len(part.values))),
        batch_size,
    )
    edges = np.cumsum([len(part.values) for _, part in prepared])[:-1]
    encoded = [
        EncodedRun(run, part.start_frame, part.mean_fd_mm, rows)
        for (run, part), rows in zip(prepared, np.split(values, edges), strict=True)
    ]
    bad = [part.run for part in encoded if not np.isfinite(part.values).all()]
    if bad:
        raise InputError(
            Problem(
                "features-not-finite",
                str(run.bold),
                f"{encoder.spec.name} gives NaN or infinite features",
                "finite numbers",
                "signals without variance, or wrong weights? check the scan and the encoder",
            )
            for run in bad
        )
    return encoded


def encode_in_batches(
    encoder: BrainEncoder,
    segments: Iterable[np.ndarray],
    xyz_mm: Iterable[np.ndarray],
    batch_size: int,
) -> np.ndarray:
    """Encode segments in batches of equal shape, in the order given.

    Parameters
    ----------
    encoder : BrainEncoder
    segments : iterable of ndarray
        Each as ``spec.input`` says, without the batch dimension; taken a batch at a time.
    xyz_mm : iterable of ndarray [P, 3]
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
        for batch in _equal_shapes(zip(segments, xyz_mm, strict=True), batch_size):
            signal = torch.from_numpy(np.stack([segment for segment, _ in batch]))
            arguments = [signal.to(device, dtype)]
            if needs_xyz:
                points = torch.from_numpy(np.stack([xyz for _, xyz in batch]))
                arguments.append(points.to(device, dtype))
            values.append(encoder(*arguments).to(torch.float32).cpu().numpy())
    return np.concatenate(values)


def _equal_shapes(
    segments: Iterable[tuple[np.ndarray, np.ndarray]], batch_size: int
) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    batch: list[tuple[np.ndarray, np.ndarray]] = []
    for segment in segments:
        if batch and (len(batch) == batch_size or segment[0].shape != batch[0][0].shape):
            yield batch
            batch = []
        batch.append(segment)
    if batch:
        yield batch


@contextmanager
def run_preparer(
    atlas: Atlas | None, spec_input: Any, options: BoldOptions, workers: int
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
        yield lambda runs: _few_ahead(pool, runs, workers)


def _few_ahead(
    pool: ProcessPoolExecutor, runs: Sequence[BoldRun], workers: int
) -> Iterator[Prepared]:
    """Prepare runs in order, no more of them ahead of the encoder than there are processes."""
    waiting: deque[Future[Prepared]] = deque()
    for run in runs:
        if len(waiting) == workers:
            yield waiting.popleft().result()
        waiting.append(pool.submit(_prepare_in_worker, run))
    while waiting:
        yield waiting.popleft().result()


def _prepare(run: BoldRun, atlas: Atlas | None, spec_input: Any, options: BoldOptions) -> Prepared:
    try:
        return prepare(run, atlas, spec_input, options)
    except InputError as error:
        return error.problems


_WORK: dict[str, Any] = {}


def _start_worker(atlas: Atlas | None, spec_input: Any, options: BoldOptions) -> None:
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
