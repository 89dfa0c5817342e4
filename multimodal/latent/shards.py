"""Latents written block by block, so that a killed run goes on, and joined into one table."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32

from encoders.atomic import TEMPORARY, replace_file
from multimodal.features.shards import matrix, shard_inputs, vectors, write_shard

NEW = "new"
"""What the column ``split`` says of subjects the bundle was not trained with."""


class LatentShards:
    """The unfinished part of a table of latents, in a hidden folder beside it.

    Parameters
    ----------
    table : Path
        The Parquet file to come. The folder goes once it is there.
    tidy : bool
        Take away what a killed run left unfinished; only where no other process writes yet.
    """

    def __init__(self, table: Path, *, tidy: bool = True) -> None:
        self.table = Path(table)
        self.folder = self.table.with_name(f".{self.table.name}.shards")
        self._seen: dict[str, dict[int, Path]] = {}
        for stray in self.folder.rglob(f"{TEMPORARY}*") if tidy else ():
            stray.unlink()

    def has(self, modality: str, number: int, inputs: str) -> bool:
        """Whether a block is there and was made from these inputs; it is then part of the table."""
        path = self._path(modality, number)
        if shard_inputs(path) != inputs:
            return False
        self._seen.setdefault(modality, {})[number] = path
        return True

    def write(
        self,
        modality: str,
        number: int,
        participant_ids: Sequence[str],
        values: Float32[np.ndarray, "subject latent"],
        inputs: str,
    ) -> None:
        """Write a block, whole or not at all.

        Raises
        ------
        ValueError
            A latent is not of unit length.
        """
        lengths = np.linalg.norm(values.astype(np.float64), axis=1)
        if not np.allclose(lengths, 1.0, atol=1e-5):
            raise ValueError(f"{modality} latents are not of unit length")
        path = self._path(modality, number)
        columns = {"participant_id": pa.array(list(participant_ids)), "latent": vectors(values)}
        write_shard(path, columns, inputs)
        self._seen.setdefault(modality, {})[number] = path

    def join(self) -> dict[str, str]:
        """Write the table from the blocks seen, by their numbers, one in memory at a time.

        Returns
        -------
        dict of str to str
            A fingerprint for each modality: SHA-256 over participants and latents, row by row.
        """
        digests = {modality: hashlib.sha256() for modality in self._seen}

        def write(temporary: Path) -> None:
            writer: pq.ParquetWriter | None = None
            try:
                for modality, paths in self._seen.items():
                    for number in sorted(paths):
                        block = pq.ParquetFile(paths[number]).read()
                        _add_rows(digests[modality], block)
                        rows = _table_rows(block, modality)
                        writer = writer or pq.ParquetWriter(temporary, rows.schema)
                        writer.write_table(rows)
            finally:
                if writer is not None:
                    writer.close()

        for stray in self.table.parent.glob(f"{TEMPORARY}*-{self.table.name}"):
            stray.unlink()
        replace_file(self.table, write)
        shutil.rmtree(self.folder, ignore_errors=True)
        return {modality: digest.hexdigest() for modality, digest in digests.items()}

    def _path(self, modality: str, number: int) -> Path:
        return self.folder / modality / f"{number:06d}.parquet"


def _add_rows(digest: hashlib._Hash, block: pa.Table) -> None:
    for who, latent in zip(
        block["participant_id"].to_pylist(), matrix(block["latent"]), strict=True
    ):
        name = who.encode()
        digest.update(len(name).to_bytes(8, "little") + name + latent.tobytes())


def _table_rows(block: pa.Table, modality: str) -> pa.Table:
    rows = block.num_rows
    return pa.table(
        {
            "participant_id": block["participant_id"],
            "modality": pa.array([modality] * rows),
            "split": pa.array([NEW] * rows),
            "latent": block["latent"],
        }
    )
