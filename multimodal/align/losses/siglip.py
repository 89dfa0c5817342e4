"""SigLIP: every pair of a genome and a brain is a question of its own, match or not."""

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multimodal.align.losses.chunked import softplus_sum
from multimodal.align.losses.relatives import PairMask


def siglip(
    gene: Float[Tensor, "row latent"],
    brain: Float[Tensor, "row latent"],
    scale: Float[Tensor, ""] | float,
    bias: Float[Tensor, ""] | float,
    relatives: Int[Tensor, " row"] | Bool[Tensor, "row row"],
    *,
    chunk_rows: int | None = None,
) -> Float[Tensor, ""]:
    """Pairwise sigmoid loss (Zhai et al. 2023, arXiv:2303.15343).

    ``-1/n sum_ij log sigmoid(z_ij (scale * gene_i . brain_j + bias))`` with z = 1 for a match and
    -1 otherwise. Pairs of relatives are asked nothing.

    Parameters
    ----------
    gene, brain : Tensor [n, d]
        Unit-length latents; row i of one belongs to row i of the other.
    scale : Tensor or float
        Inverse temperature.
    bias : Tensor or float
        Negative at first, since nearly all pairs are no match; learned in training.
    relatives : Tensor [n] int or [n, n] bool
        As `info_nce` takes them.
    chunk_rows : int, optional
        Rows of similarities that are held at a time; None for all.

    Returns
    -------
    Tensor
        Summed over pairs, divided by n; 0 without rows.
    """
    own = scale * (gene * brain).sum(dim=1) + bias
    others = softplus_sum(gene, brain, scale, bias, PairMask(relatives, own=True), chunk_rows)
    return (F.softplus(-own).sum() + others) / max(len(gene), 1)
