"""Brains inside the training step: the segments of a batch of subjects, encoded with gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from encoders.base import BrainEncoder
from encoders.errors import InputError, Problem
from multimodal.align.finetune.batches import equal_batches
from multimodal.bold.bids import BoldRun
from multimodal.bold.segments import RunSegments
from multimodal.bold.volume_stack import VolumeStack
from multimodal.features.devices import device_of, dtype_of
from multimodal.features.tables import BrainFeatures
from projectors.pooling import MotionWeighting, motion_weights, pool_segments

_KEPT_BYTES = 2 * 2**30


@dataclass
class BrainInputs:
    """What the brain encoder sees of each subject.

    Parameters
    ----------
    brain : BrainFeatures
        The stored features of the subjects that are trained on: which segments there are, of which
        runs, and how still the head was.
    runs : list of list of BoldRun
        Runs of each subject, in the order in which `brain` numbers them.
    prepare : callable
        Gives a run's segments.
    weighting : {"motion", "mean"}
    batch_size : int
        Most segments the encoder takes at once.
    kept_bytes : int
        How much of what was prepared stays in memory, besides the last run; the rest is prepared
        for each batch anew.
    """

    brain: BrainFeatures
    runs: Sequence[Sequence[BoldRun]]
    prepare: Callable[[BoldRun], RunSegments]
    weighting: MotionWeighting
    batch_size: int
    kept_bytes: int = _KEPT_BYTES
    _kept: dict[int, RunSegments] = field(default_factory=dict, init=False, repr=False)
    # A run's segments come one after another.
    _last: dict[int, RunSegments] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        brain = self.brain
        run_of_row = np.stack([brain.subject, brain.run])
        begins = np.any(np.diff(run_of_row, axis=1, prepend=-1) != 0, axis=0)
        self._number = np.cumsum(begins) - 1
        self._edges = np.append(np.flatnonzero(begins), len(begins))

    def pooled(
        self, encoder: BrainEncoder, rows: np.ndarray, kept_segments: np.ndarray | None = None
    ) -> Float[Tensor, "subject 1 dim"]:
        """Encode subjects as the feature store would, and pool their segments.

        Parameters
        ----------
        encoder : BrainEncoder
            As it is now.
        rows : ndarray of int
            At least one subject.
        kept_segments : ndarray of int, optional
            The rows of `brain` that take part, ascending; all by default.

        Returns
        -------
        Tensor [n, 1, D] float64
            As `multimodal.align.aligner.pool_brains` gives it.
        """
        chosen = self._segments_of(rows, kept_segments)
        subject = np.repeat(np.arange(len(rows)), [len(own) for own in chosen])
        segments = np.concatenate(chosen)
        values = self.encode(encoder, segments)
        fd_mm = torch.from_numpy(np.asarray(self.brain.mean_fd_mm[segments], dtype=np.float64))
        device = values.device
        pooled = pool_segments(
            values,
            torch.from_numpy(subject).to(device),
            torch.from_numpy(self.brain.run[segments]).to(device),
            motion_weights(fd_mm, self.weighting).to(device),
            len(rows),
        )
        return pooled[:, None, :]

    def first(self, encoder: BrainEncoder) -> Tensor:
        """Encode the first segment: all that makes a feature takes part."""
        return self.encode(encoder, np.arange(1))

    def encode(self, encoder: BrainEncoder, segments: np.ndarray) -> Float[Tensor, "segment dim"]:
        """Encode segments, in batches of equal shape, with gradients where they are asked for.

        Parameters
        ----------
        encoder : BrainEncoder
        segments : ndarray of int
            Rows of `brain`.
        """
        device, dtype = device_of(encoder), dtype_of(encoder)
        needs_xyz = getattr(encoder.spec.input, "needs_xyz", False)
        parts = []
        for batch in equal_batches(map(self._segment, segments), _shape, self.batch_size):
            tables = [np.stack([segment for segment, _ in batch])]
            if needs_xyz:
                tables.append(np.stack([xyz_mm for _, xyz_mm in batch]))
            arguments = [torch.from_numpy(table).to(device, dtype) for table in tables]
            parts.append(encoder(*arguments).double())
        return torch.cat(parts)

    def _segments_of(self, rows: np.ndarray, kept: np.ndarray | None) -> list[np.ndarray]:
        """Rows of `brain` for each subject; they lie side by side there."""
        edges = np.searchsorted(self.brain.subject, np.stack([rows, rows + 1], axis=1))
        if kept is None:
            return [np.arange(first, end) for first, end in edges]
        return [kept[first:end] for first, end in np.searchsorted(kept, edges)]

    def _segment(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """A segment and its parcels' coordinates, by its row of `brain`."""
        number = int(self._number[row])
        prepared = self._prepared(number)
        return prepared.values[int(row - self._edges[number])], prepared.xyz_mm

    def _prepared(self, number: int) -> RunSegments:
        for prepared in (self._kept, self._last):
            if number in prepared:
                return prepared[number]
        first, end = self._edges[number], self._edges[number + 1]
        run = self.runs[int(self.brain.subject[first])][int(self.brain.run[first])]
        found = self.prepare(run)
        if len(found.values) != end - first:
            raise InputError(
                Problem(
                    "scan-changed",
                    str(run.bold),
                    f"{len(found.values)} segments",
                    f"the {end - first} that were encoded",
                    "start again: scans that were replaced are encoded anew",
                )
            )
        stack = found.values
        size = stack.series.nbytes if isinstance(stack, VolumeStack) else stack.nbytes
        if size <= self.kept_bytes:
            self.kept_bytes -= size
            self._kept[number] = found
        else:
            self._last = {number: found}
        return found


def _shape(segment: tuple[np.ndarray, np.ndarray]) -> tuple[int, ...]:
    return segment[0].shape
