"""What the towers are trained to minimise. Relatives are never counted as plain negatives."""

from multimodal.align.losses.choice import AlignLoss
from multimodal.align.losses.debiased import debiased_info_nce
from multimodal.align.losses.info_nce import info_nce
from multimodal.align.losses.nt_xent import nt_xent
from multimodal.align.losses.redundancy import barlow_twins, vicreg
from multimodal.align.losses.relatives import Kinship, related_pairs
from multimodal.align.losses.retrieval import rank_percentiles
from multimodal.align.losses.siglip import siglip
from multimodal.align.losses.soft_target import soft_target_info_nce

__all__ = [
    "AlignLoss",
    "Kinship",
    "barlow_twins",
    "debiased_info_nce",
    "info_nce",
    "nt_xent",
    "rank_percentiles",
    "related_pairs",
    "siglip",
    "soft_target_info_nce",
    "vicreg",
]
