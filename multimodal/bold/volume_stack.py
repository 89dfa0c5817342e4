"""Segments of a volume series that are laid out one at a time, when they are asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64


@dataclass(frozen=True, eq=False)
class VolumeStack:
    """Segments [M, 1, X, Y, Z, T] of one run, read like an array.

    A run's voxels inside the brain take a quarter of the room of its segments, so only those are
    held; an index gives one segment, `numpy.asarray` all of them.

    Parameters
    ----------
    series : ndarray [F, N] float32
        Values of the brain's voxels, normalised.
    places : ndarray [N] int64
        Where each stands on the grid, last axis fastest; -1 for those cut off.
    background : float
        Value of all other voxels of the grid.
    grid : tuple of int
        Voxels along x, y, z.
    starts : ndarray [M] int64
        First row of each segment.
    frames : int
        T, frames of a segment.
    """

    series: Float32[np.ndarray, "frame voxel"]
    places: Int64[np.ndarray, " voxel"]
    background: float
    grid: tuple[int, int, int]
    starts: Int64[np.ndarray, " segment"]
    frames: int

    @property
    def shape(self) -> tuple[int, int, int, int, int, int]:
        """M, 1, X, Y, Z, T."""
        return (len(self.starts), 1, *self.grid, self.frames)

    @property
    def ndim(self) -> int:
        """Number of axes, 6."""
        return 6

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers, float32."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._segment(start) for start in self.starts)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return segment ``index`` [1, X, Y, Z, T]; any other index is one into the whole array."""
        if isinstance(index, int | np.integer):
            return self._segment(self.starts[index])
        return np.asarray(self)[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("segments are laid out when asked for: there is no array to share")
        values = np.empty(self.shape, dtype=np.float32)
        for row, segment in enumerate(self):
            values[row] = segment
        return values if dtype is None else values.astype(dtype)

    def _segment(self, start: int) -> np.ndarray:
        segment = np.full((int(np.prod(self.grid)), self.frames), self.background, np.float32)
        rows = self.series[start : start + self.frames].T
        on_grid = self.places >= 0
        segment[self.places[on_grid]] = rows[on_grid]
        return segment.reshape(1, *self.grid, self.frames)
