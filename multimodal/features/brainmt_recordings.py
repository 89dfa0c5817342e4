"""Recordings in the form that BrainMT's published scripts leave and read them.

For data that were prepared so already, and to compare with; `multimodal.bold.volumes` prepares
scans itself. Source: arunkumar-kannan/BrainMT-fMRI, its data set class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from encoders.errors import InputError, Problem

if TYPE_CHECKING:
    import torch

FILE_NAME = "func_data_MNI_fp16.pt"


@dataclass(frozen=True)
class BrainmtRecordings:
    """The recordings of a folder, in the order of a table of targets.

    Parameters
    ----------
    folder : Path
        Holds ``<id>/func_data_MNI_fp16.pt``, a float16 tensor [X, Y, Z, T] each.
    ids : list of str
        The table's ids that have a recording, in its order, repeated ids repeated.
    targets : dict of str to float
        The last row's value of each id.
    left_out : dict of str to str
        Why the table's other ids, and recordings that are in no row, are left out; upstream
        leaves them out without a word.
    frames : int
        Frames of an item.
    """

    folder: Path
    ids: list[str]
    targets: dict[str, float]
    frames: int
    left_out: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def series(self, row: int) -> np.ndarray:
        """Read one recording whole, [X, Y, Z, T] float16.

        Raises
        ------
        InputError
            The file is no 4D tensor, or not one that is read without running its code.
        """
        return read_brainmt_series(self.folder / self.ids[row] / FILE_NAME)

    def item(
        self, row: int, generator: torch.Generator | None = None
    ) -> tuple[np.ndarray, np.float16]:
        """Cut an item out of a recording, from a random start where it is longer.

        Parameters
        ----------
        row : int
        generator : torch.Generator, optional
            Where the start is drawn from; torch's own by default, as upstream does also in
            validation and test.

        Returns
        -------
        data : ndarray [T, 1, Y, X, Z] float16
            The first two axes of space are swapped against the file. A recording shorter than
            an item comes whole.
        target : float16
        """
        series = self.series(row)
        start = draw_start(series.shape[3], self.frames, generator)
        chosen = series[..., start : start + self.frames]
        return chosen.transpose(3, 1, 0, 2)[:, None], np.float16(self.targets[self.ids[row]])


def find_brainmt_recordings(
    folder: str | Path, table: str | Path, *, id_column: str, target_column: str, frames: int
) -> BrainmtRecordings:
    """Find the recordings that a table has targets for.

    Parameters
    ----------
    folder : path
    table : path
        Comma-separated, with the two columns. Ids are compared as pandas reads them: a column of
        digits loses leading zeros.
    id_column, target_column : str
    frames : int
        Frames of an item.

    Raises
    ------
    InputError
        The table cannot be read or lacks a column.
    """
    folder = Path(folder)
    try:
        rows = pd.read_csv(table)
    except (ValueError, OSError) as error:
        wanted = "a comma-separated table"
        raise InputError(Problem("table-unreadable", str(table), f"{error}", wanted)) from error
    absent = [name for name in (id_column, target_column) if name not in rows.columns]
    if absent:
        raise InputError(
            Problem("table-column", str(table), f"no column '{name}'", "a column of that name")
            for name in absent
        )
    names = [str(value) for value in rows[id_column]]
    targets = dict(zip(names, (float(value) for value in rows[target_column]), strict=True))
    found = {name for name in targets if (folder / name / FILE_NAME).is_file()}
    left_out = {name: f"no {name}/{FILE_NAME}" for name in names if name not in found}
    for path in sorted(folder.glob(f"*/{FILE_NAME}")):
        if path.parent.name not in targets:
            left_out[path.parent.name] = "no row in the table"
    return BrainmtRecordings(
        folder, [name for name in names if name in found], targets, frames, left_out
    )


def draw_start(found: int, frames: int, generator: torch.Generator | None = None) -> int:
    """First frame of an item; drawn only where the recording is longer than one."""
    import torch

    if found <= frames:
        return 0
    return int(torch.randint(0, found - frames + 1, (1,), generator=generator).item())


def read_brainmt_series(path: str | Path) -> np.ndarray:
    """Read a recording as upstream's preprocessing saves it, without running code in it.

    Returns
    -------
    ndarray [X, Y, Z, T] float16

    Raises
    ------
    InputError
        No such file, or no 4D tensor (``"volumes-unreadable"``).
    """
    import pickle

    import torch

    wanted = "one 4D tensor [x, y, z, frames], saved by torch.save"
    try:
        series = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        found = f"cannot be read ({str(error).splitlines()[0]})"
        raise InputError(Problem("volumes-unreadable", str(path), found, wanted)) from error
    if not isinstance(series, torch.Tensor) or series.ndim != 4:
        shape = getattr(series, "shape", None)
        found = f"a {type(series).__name__}" if shape is None else f"a tensor {list(shape)}"
        raise InputError(Problem("volumes-unreadable", str(path), found, wanted))
    return series.numpy()
