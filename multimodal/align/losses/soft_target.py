"""Soft-target InfoNCE: a relative is a match in part, as far as the genome is shared."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multimodal.align.losses.chunked import two_sided_logsumexp
from multimodal.align.losses.info_nce import mean_of_directions
from multimodal.align.losses.relatives import MONOZYGOTIC, Kinship, PairMask, negatives


def soft_target_info_nce(
    gene: Float[Tensor, "row latent"],
    brain: Float[Tensor, "row latent"],
    scale: Float[Tensor, ""] | float,
    relatives: Int[Tensor, " row"] | Bool[Tensor, "row row"],
    kinship: Kinship,
    *,
    kinship_weight: float,
    chunk_rows: int | None = None,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE whose targets are spread over relatives by kinship.

    ``-sum_j q_ij log(exp(s_ij) / sum_k exp(s_ik))`` with s as in `info_nce` and q_ij proportional
    to ``1[i = j] + kinship_weight * 2 phi_ij``: soft targets as Gao et al. (SoftCLIP, 2023,
    arXiv:2303.17561) have them, but of known softness. Identical twins have one genome, and
    nothing tells which brain is whose: either is as good a target, whatever the weight. Relatives
    of unknown kinship leave the candidates, as in `info_nce`.

    Parameters
    ----------
    gene, brain, scale, relatives, chunk_rows
        As `info_nce` takes them; ``None`` holds all rows of similarities at once.
    kinship : Kinship
        Coefficients of pairs of relatives; a coefficient of 0 or less is an unknown one.
    kinship_weight : float
        The lambda of the formula, more than 0 and at most 1.

    Returns
    -------
    Tensor
        Mean over rows with at least one unrelated candidate and over both directions; 0 without
        such rows.
    """
    pairs, weight = _softness(kinship, kinship_weight, gene.dtype)
    mask = PairMask(relatives, allowed=pairs)
    sums = two_sided_logsumexp(gene, brain, scale, mask, chunk_rows)
    targets = _targets(gene, brain, pairs, weight)
    losses = [each - scale * target for each, target in zip(sums, targets, strict=True)]
    return mean_of_directions(losses, negatives(relatives), gene, brain)


def _softness(kinship: Kinship, weight: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pairs that are softened, and the weight of each beside 1 for the own match."""
    known = kinship.coefficient > 0
    coefficient = kinship.coefficient[known].to(dtype)
    share = torch.where(coefficient >= MONOZYGOTIC, 1.0, weight * 2 * coefficient)
    return kinship.pairs[known], share.to(dtype)


def _targets(gene: Tensor, brain: Tensor, pairs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's similarity to its targets, weighted to one: of genes, and of brains."""
    one, other = pairs.unbind(dim=1)
    own = (gene * brain).sum(dim=1)
    total = torch.ones_like(own).index_add(0, one, weight).index_add(0, other, weight)
    there = weight * (gene[one] * brain[other]).sum(dim=1)
    back = weight * (gene[other] * brain[one]).sum(dim=1)
    of_genes = own.index_add(0, one, there).index_add(0, other, back)
    of_brains = own.index_add(0, other, there).index_add(0, one, back)
    return of_genes / total, of_brains / total
