"""Who among a batch's rows is no plain negative of whom: relatives, and how nearly related."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MONOZYGOTIC = 2**-1.5
"""Kinship from which KING calls two samples one genome: identical twins or duplicates (0.354)."""

Relatives = Int[Tensor, " row"] | Bool[Tensor, "row row"]


@dataclass(frozen=True)
class Kinship:
    """Kinship coefficients of pairs of rows (or of subjects): 0.25 for siblings, 0.5 for twins.

    Parameters
    ----------
    pairs : Tensor [p, 2] int64
        Two different rows each; every pair once, in either order.
    coefficient : Tensor [p]
        Kinship coefficient phi of each pair.
    """

    pairs: Int[Tensor, "pair 2"]
    coefficient: Float[Tensor, " pair"]

    @classmethod
    def none(cls, device: torch.device | str = "cpu") -> "Kinship":
        """No pair at all."""
        pairs = torch.empty(0, 2, dtype=torch.int64, device=device)
        return cls(pairs, torch.empty(0, dtype=torch.float64, device=device))

    def among(self, subjects: Int[Tensor, " row"]) -> "Kinship":
        """Return the pairs among a batch's rows, numbered by those rows.

        Parameters
        ----------
        subjects : Tensor [n] int64
            The subject of each row, as `pairs` number them; each subject once.
        """
        pairs = self.pairs.to(subjects.device)
        coefficient = self.coefficient.to(subjects.device)
        if not len(pairs) or not len(subjects):
            return Kinship(pairs[:0], coefficient[:0])
        last = int(torch.maximum(pairs.max(), subjects.max()))
        row = torch.full((last + 1,), -1, dtype=torch.int64, device=subjects.device)
        row[subjects] = torch.arange(len(subjects), device=subjects.device)
        rows = row[pairs]
        inside = (rows >= 0).all(dim=1)
        return Kinship(rows[inside], coefficient[inside])


class PairMask:
    """Which candidates leave a row's choice, a few rows at a time: never the whole matrix at once.

    Parameters
    ----------
    relatives : Tensor [n] int or [n, n] bool
        Kinship component of each row, equal for relatives; or the pairs of relatives themselves.
    sides : {1, 2}
        2 where rows and candidates are both sides of the pairs, one behind the other (NT-Xent):
        the mask is then [2n, 2n], and a row is no candidate of itself.
    own : bool
        Whether a row's own match leaves as well.
    allowed : Tensor [p, 2] int64, optional
        Pairs of relatives that stay candidates.
    """

    def __init__(
        self,
        relatives: Relatives,
        *,
        sides: int = 1,
        own: bool = False,
        allowed: Int[Tensor, "pair 2"] | None = None,
    ) -> None:
        self.relatives, self.sides, self.own = relatives, sides, own
        self.rows = len(relatives) * sides
        both = None if allowed is None else torch.cat([allowed, allowed.flip(1)])
        # Sorted by row, so that a block finds its own by bisection.
        self.allowed = None if both is None else both[both[:, 0].argsort()]

    def block(self, start: int, stop: int) -> Bool[Tensor, "some candidate"]:
        """Return the mask of rows `start` to `stop`: True where a candidate leaves."""
        device, single = self.relatives.device, len(self.relatives)
        row = torch.arange(start, stop, device=device)
        subject = row % single
        if self.relatives.dim() == 2:
            masked = self.relatives[subject].bool()
        else:
            masked = self.relatives[subject, None] == self.relatives[None, :]
        here = torch.arange(stop - start, device=device)
        masked[here, subject] = self.own
        if self.allowed is not None:
            first, last = torch.searchsorted(
                self.allowed[:, 0].contiguous(), torch.tensor([start, stop], device=device)
            ).tolist()
            pairs = self.allowed[first:last]
            masked[pairs[:, 0] - start, pairs[:, 1]] = False
        if self.sides == 2:
            masked = masked.repeat(1, 2)
            masked[here, row] = True
        return masked


def related_pairs(
    relatives: Int[Tensor, " row"] | Bool[Tensor, "row row"],
) -> Bool[Tensor, "row row"]:
    """Tell which two different rows are relatives, or the same subject.

    Parameters
    ----------
    relatives : Tensor [n] int or [n, n] bool
        Kinship component of each row, equal for relatives; or the pairs themselves.

    Returns
    -------
    Tensor [n, n] bool
        False on the diagonal: a row is its own match, not its relative.
    """
    related = relatives if relatives.dim() == 2 else relatives[:, None] == relatives[None, :]
    own = torch.eye(len(relatives), dtype=torch.bool, device=relatives.device)
    return related.bool() & ~own


def negatives(relatives: Relatives) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
    """Count each row's unrelated candidates, as a gene among brains and as a brain among genes.

    Parameters
    ----------
    relatives : Tensor [n] int or [n, n] bool
        As `related_pairs` takes them.
    """
    if relatives.dim() == 2:
        related = related_pairs(relatives)
        others = len(relatives) - 1
        return others - related.sum(dim=1), others - related.sum(dim=0)
    _, member, size = torch.unique(relatives, return_inverse=True, return_counts=True)
    count = len(relatives) - size[member]
    return count, count
