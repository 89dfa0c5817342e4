"""NT-Xent: each latent finds its partner among all others of both sides."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multimodal.align.losses.chunked import two_sided_logsumexp
from multimodal.align.losses.info_nce import mean_of_directions
from multimodal.align.losses.relatives import PairMask, negatives


def nt_xent(
    gene: Float[Tensor, "row latent"],
    brain: Float[Tensor, "row latent"],
    scale: Float[Tensor, ""] | float,
    relatives: Int[Tensor, " row"] | Bool[Tensor, "row row"],
    *,
    chunk_rows: int | None = None,
) -> Float[Tensor, ""]:
    """NT-Xent (Chen et al., SimCLR, 2020, arXiv:2002.05709), as SwiFT's pretraining has it.

    As `info_nce`, but the candidates of a genome are all brains and all other genomes, and those of
    a brain all genomes and all other brains. Without relatives it is
    `encoders.swift.contrastive.nt_xent` of unit-length vectors at temperature 1 / scale.

    Parameters
    ----------
    gene, brain, scale, relatives, chunk_rows
        As `info_nce` takes them; ``None`` holds all rows of similarities at once.

    Returns
    -------
    Tensor
        Mean over the genes and brains with at least one negative; 0 without such rows.
    """
    vectors = torch.cat([gene, brain])
    if relatives.dim() == 2:
        # Within a side a pair has no direction.
        relatives = relatives.bool() | relatives.bool().T
    mask = PairMask(relatives, sides=2)
    sums = two_sided_logsumexp(vectors, vectors, scale, mask, chunk_rows)[0]
    own = scale * (gene * brain).sum(dim=1)
    losses = [each - own for each in sums.split(len(gene))] if len(gene) else [own, own]
    return mean_of_directions(losses, negatives(relatives), gene, brain)
