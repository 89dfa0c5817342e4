"""The loss that the options name, with what it learns beside the towers."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from multimodal.align.losses.debiased import debiased_info_nce
from multimodal.align.losses.info_nce import info_nce
from multimodal.align.losses.nt_xent import nt_xent
from multimodal.align.losses.redundancy import barlow_twins, vicreg
from multimodal.align.losses.relatives import Kinship
from multimodal.align.losses.siglip import siglip
from multimodal.align.losses.soft_target import soft_target_info_nce
from multimodal.align.options import AlignOptions


class Pairs(NamedTuple):
    """All latents that one loss sees: of a batch, or of all processes' batches together.

    Parameters
    ----------
    gene, brain : Tensor [n, d]
        Unit length; row i of one belongs to row i of the other.
    relatives : Tensor [n] int
        Kinship component of each row.
    kinship : Kinship
        Coefficients of pairs of rows, where they are known.
    """

    gene: Float[Tensor, "row latent"]
    brain: Float[Tensor, "row latent"]
    relatives: Int[Tensor, " row"]
    kinship: Kinship


class AlignLoss(nn.Module):
    """Loss of paired latents, as ``options.loss`` names it.

    Parameters
    ----------
    options : AlignOptions
    """

    def __init__(self, options: AlignOptions) -> None:
        super().__init__()
        self.options = options
        self._compute = _COMPUTE[options.loss]
        if options.loss == "siglip":
            self.bias = nn.Parameter(torch.tensor(float(options.bias)))

    def forward(self, pairs: Pairs, scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Loss of all pairs, in float32 at least, whatever precision the towers compute in.

        Parameters
        ----------
        pairs : Pairs
        scale : Tensor
            Learned inverse temperature; losses without a temperature leave it alone.
        """
        gene, brain = (side.to(_at_least_float32(side.dtype)) for side in pairs[:2])
        with torch.autocast(gene.device.type, enabled=False):
            return self._compute(self, pairs._replace(gene=gene, brain=brain), scale)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _info_nce(loss: AlignLoss, pairs: Pairs, scale: Tensor) -> Tensor:
    gene, brain, relatives, _ = pairs
    return info_nce(gene, brain, scale, relatives, chunk_rows=loss.options.chunk_rows)


def _siglip(loss: AlignLoss, pairs: Pairs, scale: Tensor) -> Tensor:
    gene, brain, relatives, _ = pairs
    return siglip(gene, brain, scale, loss.bias, relatives, chunk_rows=loss.options.chunk_rows)


def _debiased(loss: AlignLoss, pairs: Pairs, scale: Tensor) -> Tensor:
    gene, brain, relatives, _ = pairs
    options = loss.options
    return debiased_info_nce(
        gene,
        brain,
        scale,
        relatives,
        positive_share=options.positive_share,
        chunk_rows=options.chunk_rows,
    )


def _soft_target(loss: AlignLoss, pairs: Pairs, scale: Tensor) -> Tensor:
    options = loss.options
    return soft_target_info_nce(
        pairs.gene,
        pairs.brain,
        scale,
        pairs.relatives,
        pairs.kinship,
        kinship_weight=options.kinship_weight,
        chunk_rows=options.chunk_rows,
    )


def _nt_xent(loss: AlignLoss, pairs: Pairs, scale: Tensor) -> Tensor:
    gene, brain, relatives, _ = pairs
    return nt_xent(gene, brain, scale, relatives, chunk_rows=loss.options.chunk_rows)


def _vicreg(loss: AlignLoss, pairs: Pairs, scale: Tensor) -> Tensor:
    options = loss.options
    return vicreg(
        *_of_unit_variance(pairs),
        invariance_weight=options.invariance_weight,
        variance_weight=options.variance_weight,
        covariance_weight=options.covariance_weight,
    ) + _untouched(scale)


def _barlow_twins(loss: AlignLoss, pairs: Pairs, scale: Tensor) -> Tensor:
    found = barlow_twins(
        *_of_unit_variance(pairs), redundancy_weight=loss.options.redundancy_weight
    )
    return found + _untouched(scale)


def _of_unit_variance(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Unit-length latents spread over d dimensions have variance 1 / d in each: bring it to 1."""
    root = math.sqrt(pairs.gene.shape[1])
    return root * pairs.gene, root * pairs.brain


def _untouched(scale: Tensor) -> Tensor:
    """Zero, with zero gradient: every process must see a gradient of every parameter."""
    return 0.0 * scale


_COMPUTE: dict[str, Callable[[AlignLoss, Pairs, Tensor], Tensor]] = {
    "info_nce": _info_nce,
    "siglip": _siglip,
    "debiased": _debiased,
    "soft_target": _soft_target,
    "nt_xent": _nt_xent,
    "vicreg": _vicreg,
    "barlow_twins": _barlow_twins,
}
