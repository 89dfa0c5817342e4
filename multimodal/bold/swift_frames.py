"""Which frames and voxels SwiFT's published scripts feed its network, reproduced to compare with.

Nothing here is on the way of `multimodal.bold.volumes`, which says what it does instead. Source:
Transconnectome/SwiFT, preprocessing.py and datasets.py of its data_preprocess_and_load.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float16, Shaped

from multimodal.bold.volume_grid import Pads, pad_or_crop
from multimodal.bold.volume_normalise import normalise_volumes, to_half

# Planes that the preprocessing cuts off y, whatever the scan.
Y_CROP = (-14, -7)
# Voxels added to (negative: cut from) the low and high end of x, y, z, by data set.
PADS: Mapping[str, Pads] = {
    "S1200": ((11, 10), (2, 1), (8, 7)),
    "UKB": ((3, 2), (-7, -6), (3, 2)),
    "ABCD_rest": ((9, 8), (0, 0), (6, 5)),
    "ABCD_task": ((0, 0), (0, 0), (0, 1)),
}
ABCD_REST_LARGEST_Y = 96


def swift_frames(
    volumes: Shaped[np.ndarray, "x y z frame"],
    scaling: Literal["z-norm", "minmax"],
    *,
    fill_zeroback: bool = False,
    y_crop: tuple[int, int] = Y_CROP,
) -> Float16[np.ndarray, "x y z frame"]:
    """Preprocess a recording as ``read_data`` does: crop y, normalise, round to half precision.

    Parameters
    ----------
    volumes : ndarray [X, Y, Z, T]
        Intensities, axes as the file has them.
    scaling : {"z-norm", "minmax"}
    fill_zeroback : bool
        Background becomes 0 instead of the smallest value of the foreground.
    y_crop : (int, int)
        Voxels added at the low and high end of y; negative numbers cut.

    Returns
    -------
    ndarray [X, Y', Z, T] float16
        One upstream file a frame.
    """
    cropped = pad_or_crop(volumes, ((0, 0), y_crop, (0, 0)), 0)
    name = {"z-norm": "swift_znorm", "minmax": "swift_minmax"}[scaling]
    statistics = {"background": 0.0} if fill_zeroback else {}
    return to_half(normalise_volumes(cropped, name, statistics))


def swift_pads(dataset: str, shape: Sequence[int]) -> Pads:
    """Voxels that a data set's class adds or cuts at the ends of each axis.

    Parameters
    ----------
    dataset : {"S1200", "UKB", "ABCD_rest", "ABCD_task"}
    shape : sequence of int
        The frames' size; of resting ABCD at most the first 96 planes of y stay.
    """
    pads = PADS[dataset]
    if dataset == "ABCD_rest":
        return (pads[0], (0, min(0, ABCD_REST_LARGEST_Y - shape[1])), pads[2])
    return pads


def swift_item(
    frames: Float16[np.ndarray, "x y z frame"], rows: Sequence[int], pads: Pads
) -> Float16[np.ndarray, "1 h w d time"]:
    """Lay some frames on the model's grid, as one item of upstream's data set.

    Parameters
    ----------
    frames : ndarray [X, Y, Z, T] float16
    rows : sequence of int
        Frames of the item (`SequencePlan.rows`).
    pads : sequence of (int, int)

    Returns
    -------
    ndarray [1, H, W, D, len(rows)] float16
        Padding holds the first corner voxel of the item's first frame, whatever that is.
    """
    chosen = frames[..., list(rows)]
    return pad_or_crop(chosen, pads, chosen[0, 0, 0, 0])[None]


@dataclass(frozen=True)
class SequencePlan:
    """Sequences that upstream's data set cuts a recording into.

    Parameters
    ----------
    frames : int
        Frame files of the recording.
    sequence_length : int
        Frames of an item.
    stride_between_seq : float
        Distance of neighbouring starts, in durations of a sequence.
    stride_within_seq : int
        Distance of neighbouring frames in a sequence.
    voxel_files : bool
        Whether ``voxel_mean.pt`` and ``voxel_std.pt`` lie beside the frames. Upstream takes two
        files off its count for them; without them the last two frames are never used.
    """

    frames: int
    sequence_length: int
    stride_between_seq: float = 1
    stride_within_seq: int = 1
    voxel_files: bool = False

    @property
    def counted(self) -> int:
        """Frames that upstream believes there are."""
        return self.frames if self.voxel_files else self.frames - 2

    @property
    def duration(self) -> int:
        """Frames from the first of a sequence to the one after its last."""
        return self.sequence_length * self.stride_within_seq

    @property
    def stride(self) -> int:
        """Frames from one start to the next; upstream also loads this many (see `rows`)."""
        return max(round(self.stride_between_seq * self.duration), 1)

    @property
    def starts(self) -> list[int]:
        """First frame of each sequence; a remainder shorter than one is left out."""
        return list(range(0, self.counted - self.duration + 1, self.stride))

    def rows(self, start: int) -> list[int]:
        """Frames of the item that begins at `start`: as far as `stride`, not as `duration`.

        Raises
        ------
        FileNotFoundError
            They run past the recording, as they can where starts lie over a duration apart.
        """
        found = list(range(start, start + self.stride, self.stride_within_seq))
        if found[-1] >= self.frames:
            raise FileNotFoundError(f"frame_{max(self.frames, found[0])}.pt")
        return found

    def contrastive_rows(self, start: int, random_state: np.random.RandomState) -> list[int]:
        """Frames of an item's partner, drawn from the sequences that do not overlap it.

        Raises
        ------
        ValueError
            No sequence is far enough.
        """
        last = self.counted - self.duration
        near = range(start - self.duration, start + self.duration)
        far = [other for other in range(last + 1) if other not in near]
        partner = int(random_state.choice(far, size=1, replace=False)[0])
        return list(range(partner, partner + self.duration, self.stride_within_seq))

    def shuffled_rows(self, generator: random.Random) -> list[int]:
        """Frames of an item drawn without order from the whole recording."""
        return generator.sample(range(self.counted), self.sequence_length)
