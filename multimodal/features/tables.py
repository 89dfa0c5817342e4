"""Features in memory, as the towers take them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64


@dataclass(frozen=True)
class GeneFeatures:
    """Gene-side features of a set of subjects, as differences from the reference sequence's.

    Parameters
    ----------
    participant_ids : list of str
        The n subjects, one a row.
    windows : list of str
        Names of the W windows, ``"region"`` or ``"region:index"``.
    distinct : ndarray [U, S, D] float32
        Features of the distinct inputs: S = 2 strands for a DNA encoder, 1 for a source without.
    index : ndarray [n, W, H] int64
        Row of `distinct` for each subject, window and haplotype: H = 2, or 1 for a source that
        has no haplotypes (dosages, covariates).
    """

    participant_ids: list[str]
    windows: list[str]
    distinct: Float32[np.ndarray, "distinct strand dim"]
    index: Int64[np.ndarray, "subject window haplotype"]

    def take(self, rows: np.ndarray) -> "GeneFeatures":
        """Return the same features for the subjects at `rows`, in that order."""
        ids = [self.participant_ids[int(row)] for row in rows]
        return GeneFeatures(ids, self.windows, self.distinct, self.index[rows])


@dataclass(frozen=True)
class BrainFeatures:
    """Brain-side features of a set of subjects, one row a segment.

    Parameters
    ----------
    participant_ids : list of str
        The n subjects.
    values : ndarray [M, D] float32
        One feature a segment.
    subject : ndarray [M] int64
        Row of `participant_ids` of each segment.
    run : ndarray [M] int64
        Number of the run within the subject (sessions and runs counted through), from 0.
    mean_fd_mm : ndarray [M] float32
        Mean framewise displacement of each segment in mm; 0 where unknown.
    """

    participant_ids: list[str]
    values: Float32[np.ndarray, "segment dim"]
    subject: Int64[np.ndarray, " segment"]
    run: Int64[np.ndarray, " segment"]
    mean_fd_mm: Float32[np.ndarray, " segment"]

    def take(self, rows: np.ndarray) -> "BrainFeatures":
        """Return the same features for the subjects at `rows` (distinct), in that order."""
        new_row = np.full(len(self.participant_ids), -1, dtype=np.int64)
        new_row[rows] = np.arange(len(rows))
        subject = new_row[self.subject]
        keep = np.flatnonzero(subject >= 0)
        keep = keep[np.argsort(subject[keep], kind="stable")]
        ids = [self.participant_ids[int(row)] for row in rows]
        return BrainFeatures(
            ids, self.values[keep], subject[keep], self.run[keep], self.mean_fd_mm[keep]
        )
