"""Genomes inside the training step: the haplotypes of a batch, each distinct one encoded once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from encoders.base import DnaEncoder
from multimodal.align.finetune.batches import equal_batches
from multimodal.features.devices import device_of
from multimodal.features.dna import DnaPlan
from multimodal.genome.haplotypes import WindowHaplotypes
from multimodal.genome.sequences import oriented
from multimodal.genome.windows import Window
from projectors.pooling import pool_haplotypes
from projectors.strand import MergeMode, merge


class HaplotypeBatch(NamedTuple):
    """The haplotypes that some subjects carry.

    Parameters
    ----------
    sequences : list of str
        Distinct, as the encoder reads them, those of equal length side by side.
    pairs : Tensor [K, 2]
        Rows of `sequences`: a window's haplotype, and its reference.
    carried : Tensor [n, W, 2]
        Row of `pairs` for each subject, window and haplotype.
    """

    sequences: list[str]
    pairs: Int[Tensor, "difference two"]
    carried: Int[Tensor, "subject window haplotype"]


@dataclass(frozen=True)
class GenomeInputs:
    """What the DNA encoder reads of each subject.

    Parameters
    ----------
    plan : DnaPlan
        Of the subjects that are trained on, in their order.
    strand_merge : str
        See `projectors.strand.merge`.
    batch_size : int
        Most sequences the encoder takes at once.
    kept : mapping of str to WindowHaplotypes
        Windows that are in memory, by name; others are read for each batch.
    """

    plan: DnaPlan
    strand_merge: MergeMode
    batch_size: int
    kept: Mapping[str, WindowHaplotypes] = field(default_factory=dict)

    def batch(self, rows: np.ndarray) -> HaplotypeBatch:
        """Gather the haplotypes of the (distinct) subjects at `rows`."""
        place: dict[str, int] = {}
        pairs: list[tuple[int, int]] = []
        index = []
        for window in self.plan.windows:
            sequences, reference, carried = self._read(window, rows)
            base = place.setdefault(oriented(reference, window.strand), len(place))
            used, inverse = np.unique(carried, return_inverse=True)
            index.append(len(pairs) + inverse.reshape(carried.shape))
            read = (oriented(sequences[row], window.strand) for row in used)
            pairs += [(place.setdefault(sequence, len(place)), base) for sequence in read]
        texts = list(place)
        order = sorted(range(len(texts)), key=lambda row: (len(texts[row]), texts[row]))
        new_row = np.empty(len(order), dtype=np.int64)
        new_row[order] = np.arange(len(order))
        return HaplotypeBatch(
            [texts[row] for row in order],
            torch.from_numpy(new_row[np.asarray(pairs, dtype=np.int64)]),
            torch.from_numpy(np.stack(index, axis=1)),
        )

    def pooled(
        self, encoder: DnaEncoder, rows: np.ndarray, kept_segments: np.ndarray | None = None
    ) -> Float[Tensor, "subject window dim"]:
        """Encode subjects as the feature store would: differences from the encoded reference.

        Parameters
        ----------
        encoder : DnaEncoder
            As it is now, the reference's features included.
        rows : ndarray of int
            At least one subject.
        kept_segments : optional
            Of brains; not looked at.

        Returns
        -------
        Tensor [n, W, D] float64
            As `multimodal.align.aligner.pool_genes` gives it.
        """
        batch = self.batch(rows)
        values = self.encode(encoder, batch.sequences)
        own, reference = batch.pairs.to(values.device).unbind(1)
        # Not by indexing, whose gradients may be summed in another order each time.
        difference = values.index_select(0, own) - values.index_select(0, reference)
        merged = merge(difference, self.strand_merge)
        return pool_haplotypes(merged, batch.carried.to(values.device))

    def first(self, encoder: DnaEncoder) -> Tensor:
        """Encode the first window's reference: all that makes a feature takes part."""
        window = self.plan.windows[0]
        _, reference, _ = self._read(window, np.arange(1))
        return self.encode(encoder, [oriented(reference, window.strand)])

    def encode(
        self, encoder: DnaEncoder, sequences: Sequence[str]
    ) -> Float[Tensor, "sequence strand dim"]:
        """Encode sequences, in batches of equal length, with gradients where they are asked for."""
        device = device_of(encoder)
        parts = []
        for batch in equal_batches(sequences, len, self.batch_size):
            tokens = encoder.tokenize(batch)
            pooled = encoder(tokens.input_ids.to(device), tokens.mask.to(device))
            parts.append(pooled.double().transpose(1, 2))
        return torch.cat(parts)

    def _read(self, window: Window, rows: np.ndarray) -> tuple[list[str], str, np.ndarray]:
        found = self.kept.get(window.name)
        if found is not None:
            return found.sequences, found.reference, found.index[rows]
        samples = [self.plan.samples[int(row)] for row in rows]
        read = self.plan.genotypes.haplotypes(
            window, samples, max_length_bp=self.plan.max_length_bp
        )
        return read.sequences, read.reference, read.index
