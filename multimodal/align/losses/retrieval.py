"""Retrieval within a batch, with relatives kept out of the candidates."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multimodal.align.losses.relatives import related_pairs


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
