"""Symmetric InfoNCE, with relatives kept out of the negatives."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multimodal.align.losses.chunked import two_sided_logsumexp
from multimodal.align.losses.relatives import PairMask, negatives, related_pairs


def info_nce(
    gene: Float[Tensor, "row latent"],
    brain: Float[Tensor, "row latent"],
    scale: Float[Tensor, ""] | float,
    relatives: Int[Tensor, " row"] | Bool[Tensor, "row row"],
    *,
    chunk_rows: int | None = None,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE between paired latents (van den Oord et al. 2018, arXiv:1807.03748).

    Each genome picks its brain among the batch, and each brain its genome: the mean over rows i of
    ``-log(exp(s_ii) / sum_j exp(s_ij))`` with ``s_ij = scale * gene_i . brain_j``, and the same
    over columns. Relatives share genotype and so, in part, the signal: they leave the candidates
    j, so that no row is punished for resembling its family. A row left with no other candidate
    teaches nothing and does not count.

    Parameters
    ----------
    gene, brain : Tensor [n, d]
        Unit-length latents; row i of one belongs to row i of the other.
    scale : Tensor or float
        Inverse temperature that multiplies the cosines.
    relatives : Tensor [n] int or [n, n] bool
        Kinship component of each row, or the pairs of rows that are relatives or one subject.
    chunk_rows : int, optional
        Batches of more rows hold so many rows of similarities at a time, never the [n, n] matrix.

    Returns
    -------
    Tensor
        Mean over rows with at least one negative and over both directions; 0 (with zero gradient)
        when there is no such row.
    """
    if chunk_rows is not None and len(gene) > chunk_rows:
        return _chunked(gene, brain, scale, relatives, chunk_rows)
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


def _chunked(
    gene: Tensor,
    brain: Tensor,
    scale: Tensor | float,
    relatives: Tensor,
    chunk_rows: int,
) -> Tensor:
    sums = two_sided_logsumexp(gene, brain, scale, PairMask(relatives), chunk_rows)
    own = scale * (gene * brain).sum(dim=1)
    return mean_of_directions([each - own for each in sums], negatives(relatives), gene, brain)


def mean_of_directions(
    losses: list[Float[Tensor, " row"]],
    counts: tuple[Int[Tensor, " row"], Int[Tensor, " row"]],
    gene: Float[Tensor, "row latent"],
    brain: Float[Tensor, "row latent"],
) -> Float[Tensor, ""]:
    """Average over the rows that have negatives, then over the directions that have such rows.

    Parameters
    ----------
    losses : list of Tensor [n]
        Of each direction.
    counts : pair of Tensor [n] int
        Negatives of each row in each direction.
    gene, brain : Tensor [n, d]
        Where there is nothing to average, the zero that is returned still hangs on them.
    """
    kept = [loss[count > 0] for loss, count in zip(losses, counts, strict=True)]
    means = [loss.mean() for loss in kept if len(loss)]
    if not means:
        return 0.0 * (gene.sum() + brain.sum())
    return torch.stack(means).mean()
