"""Debiased InfoNCE: some of the unrelated are alike all the same, and are reckoned out."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multimodal.align.losses.chunked import two_sided_logsumexp
from multimodal.align.losses.info_nce import mean_of_directions
from multimodal.align.losses.relatives import PairMask, negatives


def debiased_info_nce(
    gene: Float[Tensor, "row latent"],
    brain: Float[Tensor, "row latent"],
    scale: Float[Tensor, ""] | float,
    relatives: Int[Tensor, " row"] | Bool[Tensor, "row row"],
    *,
    positive_share: float,
    chunk_rows: int | None = None,
) -> Float[Tensor, ""]:
    """Debiased contrastive loss (Chuang et al. 2020, arXiv:2007.00224), in both directions.

    ``-log(exp(s_ii) / (exp(s_ii) + N g_i))`` with N negatives j of row i, s as in `info_nce`, and
    ``g_i = max((mean_j exp(s_ij) - positive_share * exp(s_ii)) / (1 - positive_share),
    exp(-scale))``: what the negatives would sum to if none of them were a positive in disguise.

    Parameters
    ----------
    gene, brain, scale, relatives, chunk_rows
        As `info_nce` takes them; ``None`` holds all rows of similarities at once.
    positive_share : float
        Chance that an unrelated candidate is as good a match as the own one, at least 0 and less
        than 1 (the paper's tau+). 0 gives `info_nce`.

    Returns
    -------
    Tensor
        Mean over rows with at least one negative and over both directions; 0 without such rows.
    """
    scale = torch.as_tensor(scale, dtype=gene.dtype, device=gene.device)
    counts = negatives(relatives)
    sums = two_sided_logsumexp(gene, brain, scale, PairMask(relatives, own=True), chunk_rows)
    own = scale * (gene * brain).sum(dim=1)
    losses = [
        _row_losses(own, each, count, scale, positive_share)
        for each, count in zip(sums, counts, strict=True)
    ]
    return mean_of_directions(losses, counts, gene, brain)


def _row_losses(
    own: Tensor, log_sum: Tensor, count: Tensor, scale: Tensor, positive_share: float
) -> Tensor:
    # Rows without negatives do not count, but their -inf would make NaN of gradients.
    log_sum = log_sum.masked_fill(count == 0, 0.0)
    number = count.clamp(min=1).to(own.dtype)
    log_mean = log_sum - number.log()
    top = torch.maximum(log_mean, own).detach()
    true_negative = (log_mean - top).exp() - positive_share * (own - top).exp()
    floor = (-scale - top).exp()
    mean = torch.maximum(true_negative / (1 - positive_share), floor)
    if positive_share == 0:
        # Nothing is reckoned out, and the floor, which a mean of exp(s) >= exp(-scale) never
        # falls below, must not decide over rounding.
        mean = true_negative
    return ((own - top).exp() + number * mean).log() + top - own
