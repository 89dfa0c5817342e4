"""Encoding haplotype windows: each distinct sequence once, as a difference from the reference's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from encoders.errors import InputError, Problem
from multimodal.features.fingerprint import array_digest, text_digest
from multimodal.features.genotype_calls import sum_counts
from multimodal.features.progress import progress_bar
from multimodal.features.shards import texts, vectors
from multimodal.features.writer import StoreWriter
from multimodal.genome.haplotypes import WindowHaplotypes
from multimodal.genome.sequences import oriented, sequence_hash
from multimodal.genome.windows import Window

if TYPE_CHECKING:
    from encoders.base import DnaEncoder

_KEPT_BYTES = 512 * 2**20


class HaplotypeSource(Protocol):
    """What is asked of `multimodal.genome.haplotypes.Genotypes` here."""

    def haplotypes(
        self, window: Window, samples: Sequence[str], *, max_length_bp: int | None = None
    ) -> WindowHaplotypes:
        """Distinct haplotypes over a window, and who carries which."""
        ...


@dataclass(frozen=True)
class DnaPlan:
    """Windows and subjects of one encode run; reads haplotypes, keeping what memory allows.

    Parameters
    ----------
    genotypes : HaplotypeSource
    windows : list of Window
    participant_ids, samples : list of str
        The n subjects and their names in the VCF.
    max_length_bp : int or None
        Longest sequence the encoder takes.
    """

    genotypes: HaplotypeSource
    windows: list[Window]
    participant_ids: list[str]
    samples: list[str]
    max_length_bp: int | None

    def read(self, window: Window) -> WindowHaplotypes:
        """Return the haplotypes over a window."""
        return self.genotypes.haplotypes(window, self.samples, max_length_bp=self.max_length_bp)

    def survey(self, progress: bool) -> DnaSurvey:
        """Read all windows once, before anything is written.

        Raises
        ------
        InputError
            Everything wrong in any window.
        """
        kept: dict[str, WindowHaplotypes] = {}
        counts, sequences, room = [], 0, _KEPT_BYTES
        problems: list[Problem] = []
        with progress_bar("reading haplotypes", len(self.windows), "window", progress) as bar:
            for window in self.windows:
                try:
                    found = self.read(window)
                except InputError as error:
                    problems += error.problems
                else:
                    counts.append(found.counts)
                    sequences += len(found.sequences)
                    room -= sum(map(len, found.sequences)) + found.index.nbytes
                    if room > 0:
                        kept[window.name] = found
                bar.update()
        if problems:
            raise InputError(dict.fromkeys(problems))
        return DnaSurvey(kept, sequences, sum_counts(self.participant_ids, counts))


@dataclass(frozen=True)
class DnaSurvey:
    """What reading all windows told.

    Parameters
    ----------
    kept : dict of str to WindowHaplotypes
        Windows that fitted into memory, by name.
    sequences : int
        Distinct sequences over all windows, the reference's included.
    calls : DataFrame
        As `multimodal.features.genotype_calls.sum_counts` gives it.
    """

    kept: dict[str, WindowHaplotypes]
    sequences: int
    calls: pd.DataFrame


def encode_windows(
    plan: DnaPlan,
    survey: DnaSurvey,
    encoder: DnaEncoder,
    store: StoreWriter,
    *,
    batch_size: int,
    shard_sequences: int,
    progress: bool,
) -> None:
    """Write the shards of all windows that are not there yet.

    A shard holds at most `shard_sequences` sequences of one window, shortest first, and is encoded
    in batches of equal length, so that nothing depends on where an earlier run stopped.
    """
    title = f"encoding {encoder.spec.name}"
    with progress_bar(title, survey.sequences, "sequence", progress) as bar:
        for number, window in enumerate(plan.windows):
            found = survey.kept.get(window.name) or plan.read(window)
            job = _WindowJob(number, window, found, encoder, batch_size)
            job.write_carriers(store, plan.participant_ids)
            for chunk in job.chunks(shard_sequences):
                job.write_chunk(store, *chunk)
                bar.update(len(chunk[1]))
            bar.update()


class _WindowJob:
    """The shards of one window: carriers, the reference's feature, and those of its sequences."""

    def __init__(
        self,
        number: int,
        window: Window,
        found: WindowHaplotypes,
        encoder: DnaEncoder,
        batch_size: int,
    ) -> None:
        self.number, self.window, self.found = number, window, found
        self.encoder, self.batch_size = encoder, batch_size
        self.hashes = [sequence_hash(sequence) for sequence in found.sequences]
        self._reference_feature: np.ndarray | None = None

    def write_carriers(self, store: StoreWriter, participant_ids: list[str]) -> None:
        name = f"carriers/{self.number:06d}.parquet"
        index = self.found.index
        inputs = text_digest([*self.hashes, array_digest(index)])
        if store.has(name, inputs):
            return
        subjects = np.repeat(np.arange(len(index), dtype=np.int32), 2)
        haplotype = np.tile(np.array([0, 1], dtype=np.int8), len(index))
        columns = {
            "subject": texts(participant_ids, subjects),
            **self._place(len(subjects)),
            "haplotype": pa.array(haplotype),
            "sequence_hash": texts(self.hashes, index.reshape(-1)),
        }
        store.write(name, columns, inputs)

    def chunks(self, size: int) -> Iterator[tuple[int, list[int]]]:
        """Yield the chunks of sequences other than the reference's; at least one, if empty."""
        sequences = self.found.sequences
        rows = sorted(
            (row for row in range(len(sequences)) if sequences[row] != self.found.reference),
            key=lambda row: (len(sequences[row]), sequences[row]),
        )
        for chunk, start in enumerate(range(0, max(1, len(rows)), size)):
            yield chunk, rows[start : start + size]

    def write_chunk(self, store: StoreWriter, chunk: int, rows: list[int]) -> None:
        name = f"windows/{self.number:06d}-{chunk:06d}.parquet"
        reference_name = f"reference/{self.number:06d}.parquet"
        reference_hash = sequence_hash(self.found.reference)
        hashes = [self.hashes[row] for row in rows]
        inputs = text_digest([self.window.name, reference_hash, *hashes])
        if chunk == 0 and not store.has(reference_name, reference_hash):
            columns = self._columns([reference_hash], self._reference())
            store.write(reference_name, columns, reference_hash)
        if store.has(name, inputs):
            return
        change = self._encode([self.found.sequences[row] for row in rows]) - self._reference()
        if chunk == 0:
            # A carrier of the reference differs from it by nothing, not by rounding.
            hashes = [reference_hash, *hashes]
            change = np.concatenate([np.zeros_like(self._reference()), change])
        store.write(name, self._columns(hashes, change), inputs)

    def _columns(self, hashes: list[str], values: np.ndarray) -> dict[str, pa.Array]:
        return {
            **self._place(len(hashes)),
            "sequence_hash": pa.array(hashes, type=pa.string()),
            "feature": vectors(values),
        }

    def _place(self, rows: int) -> dict[str, pa.Array]:
        return {
            "region": texts([self.window.region], np.zeros(rows, dtype=np.int32)),
            "window": pa.array(np.full(rows, self.window.index, dtype=np.int32)),
        }

    def _reference(self) -> np.ndarray:
        if self._reference_feature is None:
            self._reference_feature = self._encode([self.found.reference])
        return self._reference_feature

    def _encode(self, sequences: list[str]) -> np.ndarray:
        turned = [oriented(sequence, self.window.strand) for sequence in sequences]
        values = encode_sequences(self.encoder, turned, self.batch_size)
        if not np.isfinite(values).all():
            raise InputError(
                Problem(
                    "features-not-finite",
                    f"window {self.window.name}",
                    f"{self.encoder.spec.name} gives NaN or infinite features",
                    "finite numbers",
                    "check the weights, or encode with dtype float32",
                )
            )
        return values


def encode_sequences(encoder: DnaEncoder, sequences: Sequence[str], batch_size: int) -> np.ndarray:
    """Encode sequences in batches of equal length, without padding.

    Parameters
    ----------
    encoder : DnaEncoder
    sequences : sequence of str
        As the encoder is to read them; those of equal length side by side.
    batch_size : int
        Most sequences in a batch.

    Returns
    -------
    ndarray [n, 2 * D] float64
        Strand 0's feature, then strand 1's.
    """
    import torch

    from multimodal.features.devices import device_of

    device = device_of(encoder)
    values = []
    with torch.inference_mode():
        for batch in _equal_lengths(sequences, batch_size):
            tokens = encoder.tokenize(batch)
            pooled = encoder(tokens.input_ids.to(device), tokens.mask.to(device))
            strands_first = pooled.to(torch.float64).cpu().transpose(1, 2)
            values.append(strands_first.reshape(len(batch), -1).numpy())
    if not values:
        return np.empty((0, 1))
    return np.concatenate(values)


def _equal_lengths(sequences: Sequence[str], batch_size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for sequence in sequences:
        if batch and (len(batch) == batch_size or len(sequence) != len(batch[0])):
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch
