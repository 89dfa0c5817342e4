"""Haplotype sequences from edits, each distinct one built once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multimodal.genome.edits import Edit, Piece, clipped, earlier_overlaps


@dataclass(frozen=True)
class HaplotypeEdits:
    """Which of 2n haplotypes carries which edit of a window.

    Parameters
    ----------
    pieces : list of Piece
        The E edits' parts inside the window, in genomic order.
    carried : ndarray [E, 2n] bool
        Haplotypes 2i and 2i + 1 are subject i's.
    overlapping : ndarray [n] int64
        Alleles inside the window left out because of an earlier one.
    """

    pieces: list[Piece]
    carried: np.ndarray
    overlapping: np.ndarray

    @classmethod
    def of(
        cls,
        records: Sequence[tuple[int, np.ndarray, Mapping[int, Edit]]],
        start_bp: int,
        end_bp: int,
        chrom_length_bp: int,
        subjects: int,
    ) -> "HaplotypeEdits":
        """Gather the edits that anybody carries; where two overlap on a haplotype, keep the first.

        Parameters
        ----------
        records : sequence of (start_bp, alleles [n, 2], edits by allele number)
            In file order; those outside the window count where they overlap others.
        start_bp, end_bp, chrom_length_bp : int
            The window, and the length of its chromosome, in bases.
        subjects : int
            n.
        """
        edits: list[Edit] = []
        starts: list[int] = []
        rows: list[np.ndarray] = []
        for record_start, alleles, by_allele in records:
            for allele, edit in by_allele.items():
                carriers = (alleles == allele).reshape(-1)
                if carriers.any():
                    edits.append(edit)
                    starts.append(record_start)
                    rows.append(carriers)
        carried = np.stack(rows) if rows else np.zeros((0, 2 * subjects), dtype=bool)
        inside = [clipped(edit, start_bp, end_bp, chrom_length_bp) for edit in edits]
        overlapping = np.zeros(subjects, dtype=np.int64)
        for row, earlier in earlier_overlaps(edits, starts).items():
            blocked = carried[row] & carried[earlier].any(axis=0)
            carried[row] &= ~blocked
            if inside[row] is not None:
                overlapping += blocked.reshape(-1, 2).sum(axis=1)
        order = sorted(range(len(edits)), key=lambda row: (edits[row].start_bp, edits[row].end_bp))
        kept = [row for row in order if inside[row] is not None]
        pieces = [piece for row in kept if (piece := inside[row]) is not None]
        return cls(pieces, carried[kept], overlapping)


def build_sequences(reference: str, edits: HaplotypeEdits) -> tuple[list[str], np.ndarray]:
    """Return the distinct sequences, the reference's first and the others sorted, and their rows.

    Parameters
    ----------
    reference : str
        The reference's sequence over the window.
    edits : HaplotypeEdits

    Returns
    -------
    sequences : list of str
    index : ndarray [n, 2] int64
    """
    haplotypes = edits.carried.shape[1]
    if not edits.pieces or not haplotypes:
        return [reference], np.zeros((haplotypes // 2, 2), dtype=np.int64)
    packed = np.packbits(edits.carried, axis=0).T
    patterns, pattern_of = np.unique(packed, axis=0, return_inverse=True)
    bits = np.unpackbits(patterns, axis=1, count=len(edits.pieces))
    built = [_apply(reference, [edits.pieces[row] for row in np.flatnonzero(bit)]) for bit in bits]
    sequences = [reference, *sorted(set(built) - {reference})]
    row_of = {sequence: row for row, sequence in enumerate(sequences)}
    rows = np.array([row_of[sequence] for sequence in built], dtype=np.int64)
    return sequences, rows[pattern_of.reshape(-1)].reshape(-1, 2)


def _apply(reference: str, pieces: Sequence[Piece]) -> str:
    """Put `pieces`, in order and apart from each other, in the place of reference bases."""
    parts: list[str] = []
    done = 0
    for piece in pieces:
        parts += [reference[done : piece.start], piece.text]
        done = piece.end
    parts.append(reference[done:])
    return "".join(parts)
