"""The contrastive loss, and retrieval within a batch, with relatives kept out of the negatives."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


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


def info_nce(
    gene: Float[Tensor, "row latent"],
    brain: Float[Tensor, "row latent"],
    scale: Float[Tensor, ""] | float,
    relatives: Int[Tensor, " row"] | Bool[Tensor, "row row"],
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE between paired latents (van den Oord et al. 2018, arXiv:1807.03748).

    Each genome picks its brain among the batch, and each brain its genome. Relatives share
    genotype and so, in part, the signal: they leave the candidates, so that no row is punished for
    resembling its family. A row left with no other candidate teaches nothing and does not count.

    Parameters
    ----------
    gene, brain : Tensor [n, d]
        Unit-length latents; row i of one belongs to row i of the other.
    scale : Tensor or float
        Inverse temperature that multiplies the cosines.
    relatives : Tensor [n] int or [n, n] bool
        Kinship component of each row, or the pairs of rows that are relatives or one subject.

    Returns
    -------
    Tensor
        Mean over rows with at least one negative and over both directions; 0 (with zero gradient)
        when there is no such row.
    """
    related = related_pairs(relatives)
    logits = (scale * gene @ brain.T).masked_fill(related, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    total, counted = logits.new_zeros(()), 0
    for direction, excluded in ((logits, related), (logits.T, related.T)):
        has_negatives = (~excluded).sum(dim=1) > 1
        if bool(has_negatives.any()):
            total = total + F.cross_entropy(direction[has_negatives], target[has_negatives])
            counted += 1
    if not counted:
        return 0.0 * (gene.sum() + brain.sum())
    return total / counted


@torch.no_grad()
def rank_percentiles(
    gene: Float[Tensor, "row latent"],
    brain: Float[Tensor, "row latent"],
    relatives: Int[Tensor, " row"] | Bool[Tensor, "row row"],
) -> Float[Tensor, " counted"]:
    """Rank percentile of each row's match among the unrelated, averaged over both directions.

    Parameters
    ----------
    gene, brain : Tensor [n, d]
        Paired latents.
    relatives : Tensor [n] int or [n, n] bool
        As `info_nce` takes them.

    Returns
    -------
    Tensor [m]
        1 where the match is most alike, 0.5 by chance; ties take mid-ranks. Rows without an
        unrelated candidate are left out.
    """
    related = related_pairs(relatives)
    similarity = gene.double() @ brain.double().T
    sides = []
    for direction, excluded in ((similarity, related), (similarity.T, related.T)):
        match = direction.diagonal()[:, None]
        others = ~excluded
        others.fill_diagonal_(False)
        beaten = ((direction < match) & others).sum(dim=1)
        tied = ((direction == match) & others).sum(dim=1)
        sides.append((beaten + 0.5 * tied.double()) / others.sum(dim=1))
    percentile = (sides[0] + sides[1]) / 2
    return percentile[percentile.isfinite()]
