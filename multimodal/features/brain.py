"""Encoding BOLD runs: segments in, one feature each, a fixed number of subjects a shard."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from encoders.errors import InputError, Problem
from multimodal.bold.bids import BoldRun
from multimodal.bold.inputs import InputKind, input_kind, prepare
from multimodal.bold.options import BoldOptions
from multimodal.bold.parcels import Atlas
from multimodal.bold.segments import RunSegments
from multimodal.features.brain_shards import BrainShard, runs_digest
from multimodal.features.crew import end_with_parent
from multimodal.features.progress import progress_bar
from multimodal.features.shards import shard_inputs, texts, vectors
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


BadParticipant = Callable[[str, tuple[Problem, ...]], None]
"""Told of a participant whose scans are bad, and what is wrong; raises to stop at once."""
CheckRun = Callable[[BoldRun], tuple[Problem, ...]]
"""Says what is wrong with a run before its voxels are read."""


def encode_segments(
    shards: Sequence[BrainShard],
    encoder: BrainEncoder,
    prepare_many: Callable[[Sequence[BoldRun]], Iterator[Prepared]],
    store: StoreWriter,
    *,
    batch_size: int,
    progress: bool,
    on_bad: BadParticipant | None = None,
    check: CheckRun | None = None,
) -> None:
    """Write the shards that are not there yet.

    Batches run over all runs of a shard; those of volumes stay within a run, so that only one
    run's volumes are held at a time.

    Parameters
    ----------
    shards : sequence of BrainShard
    encoder : BrainEncoder
    prepare_many : callable
        As `run_preparer` gives it.
    store : StoreWriter
    batch_size : int
    progress : bool
    on_bad : callable, optional
        Told of each participant with a bad run, who is then left out with all their runs, and
        looked at again by the next run over this store. By default bad runs are refused.
    check : callable, optional
        Asked about each run first.

    Raises
    ------
    InputError
        Without `on_bad`, all that is wrong with any run, after the shards of the others are
        written: a run that is mended and started again goes on from there.
    """
    problems: list[Problem] = []
    runs = sum(len(shard.runs) for shard in shards)
    job = _SegmentJob(encoder, prepare_many, batch_size, check)
    with progress_bar(f"encoding {encoder.spec.name}", runs, "run", progress) as bar:
        for shard in shards:
            if store.has(shard.name, shard.inputs):
                bar.update(len(shard.runs))
                continue
            bad = {} if on_bad is None else job.still_bad(shard, store)
            if bad:
                bar.update(len(shard.runs))
            else:
                encoded, bad = job.encode(shard.runs, bar, leave_out=on_bad is not None)
                kept = tuple(run for run in shard.runs if run.participant_id not in bad)
                if kept and (on_bad is not None or not bad):
                    store.write(shard.name, _columns(encoded), runs_digest(kept))
            for who, found in bad.items():
                if on_bad is not None:
                    on_bad(who, found)
                problems += found
    if problems and on_bad is None:
        raise InputError(dict.fromkeys(problems))


@dataclass(frozen=True)
class _SegmentJob:
    """How the runs of a shard are prepared and encoded."""

    encoder: BrainEncoder
    prepare_many: Callable[[Sequence[BoldRun]], Iterator[Prepared]]
    batch_size: int
    check: CheckRun | None

    def encode(
        self, runs: Sequence[BoldRun], bar: Any, *, leave_out: bool
    ) -> tuple[list[EncodedRun], dict[str, tuple[Problem, ...]]]:
        """Return the features of whoever has good runs only, and what is wrong with the others.

        Unless the bad are to be left out, nothing is encoded any more once one is found.
        """
        bad = self._refused(runs)
        wanted = [run for run in runs if run.participant_id not in bad]
        bar.update(len(runs) - len(wanted))
        one_at_a_time = input_kind(self.encoder.spec.input) == "volumes"
        encoded: list[EncodedRun] = []
        waiting: list[tuple[BoldRun, RunSegments]] = []
        for run, prepared in zip(wanted, self.prepare_many(wanted), strict=True):
            if not isinstance(prepared, RunSegments):
                bad[run.participant_id] = bad.get(run.participant_id, ()) + prepared
            elif run.participant_id not in bad and (leave_out or not bad):
                waiting.append((run, prepared))
                if one_at_a_time:
                    encoded += _encode(self.encoder, waiting, self.batch_size)
                    waiting = []
            bar.update()
        if leave_out or not bad:
            waiting = [part for part in waiting if part[0].participant_id not in bad]
            encoded += _encode(self.encoder, waiting, self.batch_size)
        for part in encoded:
            if not np.isfinite(part.values).all():
                who = part.run.participant_id
                bad[who] = (*bad.get(who, ()), _not_finite(part.run, self.encoder))
        return [part for part in encoded if part.run.participant_id not in bad], bad

    def still_bad(self, shard: BrainShard, store: StoreWriter) -> dict[str, tuple[Problem, ...]]:
        """Look again at whoever an earlier run left out of a shard.

        Returns
        -------
        dict
            What is wrong with each, where all of them are bad still and the shard stands as it
            is; empty where it is to be written.
        """
        path = store.folder / shard.name
        if not path.exists():
            return {}
        there = set(pq.ParquetFile(path).read(["subject"])["subject"].to_pylist())
        kept = tuple(run for run in shard.runs if run.participant_id in there)
        absent = [run for run in shard.runs if run.participant_id not in there]
        digest = runs_digest(kept)
        if shard_inputs(path) != digest or not absent:
            return {}
        bad = self._refused(absent)
        for run, prepared in zip(absent, self.prepare_many(absent), strict=True):
            if not isinstance(prepared, RunSegments) and run.participant_id not in bad:
                bad[run.participant_id] = prepared
        if {run.participant_id for run in absent} - set(bad):
            return {}
        store.has(shard.name, digest)
        return bad

    def _refused(self, runs: Sequence[BoldRun]) -> dict[str, tuple[Problem, ...]]:
        bad: dict[str, tuple[Problem, ...]] = {}
        for run in runs if self.check is not None else ():
            found = self.check(run)  # type: ignore[misc]  # there are none to go through if None
            if found:
                bad[run.participant_id] = bad.get(run.participant_id, ()) + found
        return bad


def _not_finite(run: BoldRun, encoder: BrainEncoder) -> Problem:
    return Problem(
        "features-not-finite",
        str(run.bold),
        f"{encoder.spec.name} gives NaN or infinite features",
        "finite numbers",
        "signals without variance, or wrong weights? check the scan and the encoder",
    )


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
    return [
        EncodedRun(run, part.start_frame, part.mean_fd_mm, rows)
        for (run, part), rows in zip(prepared, np.split(values, edges), strict=True)
    ]


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
    end_with_parent()


def _prepare_in_worker(run: BoldRun) -> Prepared:
    return _prepare(run, **_WORK)
