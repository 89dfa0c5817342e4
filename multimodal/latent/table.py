"""``latents.parquet``: one row a participant and modality."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from encoders.atomic import replace_file


@dataclass(frozen=True)
class Latents:
    """Latents of one modality.

    Parameters
    ----------
    modality : {"gene", "brain"}
    participant_ids : sequence of str
        n participants.
    split : sequence of str
        ``train``, ``validation``, ``test``, or ``new`` for subjects not in the training cohort.
    values : ndarray [n, 512] float32
        Rows of unit length.
    """

    modality: str
    participant_ids: Sequence[str]
    split: Sequence[str]
    values: Float[np.ndarray, "subject latent"]


def write_latents(path: Path, parts: Sequence[Latents]) -> None:
    """Write latents as Parquet: participant_id, modality, split, latent (list of float32).

    Raises
    ------
    ValueError
        A latent is not of unit length.
    """
    for part in parts:
        lengths = np.linalg.norm(part.values.astype(np.float64), axis=1)
        if not np.allclose(lengths, 1.0, atol=1e-5):
            raise ValueError(f"{part.modality} latents are not of unit length")
    dim = parts[0].values.shape[1] if parts else 512
    flat = [np.ascontiguousarray(part.values, dtype=np.float32).reshape(-1) for part in parts]
    table = pa.table(
        {
            "participant_id": [str(name) for part in parts for name in part.participant_ids],
            "modality": [part.modality for part in parts for _ in part.participant_ids],
            "split": [str(name) for part in parts for name in part.split],
            "latent": pa.FixedSizeListArray.from_arrays(
                pa.array(np.concatenate(flat) if flat else np.empty(0, np.float32)), dim
            ),
        }
    )
    replace_file(Path(path), lambda fresh: pq.write_table(table, fresh))


def read_latents(path: Path) -> tuple[pd.DataFrame, Float[np.ndarray, "row latent"]]:
    """Return the table without its latents, and the latents as an array [rows, 512]."""
    table = pq.read_table(path)
    column = table["latent"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    frame = table.drop_columns(["latent"]).to_pandas()
    return frame, values.reshape(len(frame), -1)
