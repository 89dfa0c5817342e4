"""Embeddings of single variants: windows around them with the reference and the other allele.

Upstream: kuleshov-group/caduceus, ``vep_embeddings.py``.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from encoders.caduceus.encoder import CaduceusEncoder
from encoders.errors import InputError, Problem

Reading = Literal["aligned", "upstream"]
NO_VARIANT = -1


class VariantEmbeddings(NamedTuple):
    """Means around the variants; reference allele first, then the other, along the channels.

    Parameters
    ----------
    forward : Tensor [B, 2 D]
        Of the forward strand.
    reverse : Tensor [B, 2 D]
        Of the reverse-complement strand.
    position : Tensor [B]
        Where each variant was read, from 0 on the forward strand.
    """

    forward: Float[Tensor, "batch alleles_dim"]
    reverse: Float[Tensor, "batch alleles_dim"]
    position: Int[Tensor, " batch"]


def find_variants(
    reference_ids: Int[Tensor, "batch length"],
    variant_ids: Int[Tensor, "batch length"],
    expected: int | None = None,
) -> Int[Tensor, " batch"]:
    """Find where the two alleles of each window differ.

    Parameters
    ----------
    reference_ids, variant_ids : Tensor [B, L]
        Token ids, one a base.
    expected : int, optional
        Position to take if the alleles differ there; by default the middle, L // 2. Windows of
        the other strand have it at L // 2 - 1.

    Returns
    -------
    Tensor [B]
        Else the last position that differs; -1 where none does.

    Raises
    ------
    ValueError
        The alleles have different shapes.
    """
    if reference_ids.shape != variant_ids.shape:
        shapes = f"{list(reference_ids.shape)} and {list(variant_ids.shape)}"
        raise ValueError(f"reference and variant windows want one shape; got {shapes}")
    length = reference_ids.shape[1]
    middle = length // 2 if expected is None else expected
    differs = reference_ids != variant_ids
    places = torch.arange(length, device=differs.device)
    last = torch.where(differs, places, NO_VARIANT).amax(dim=1)
    return torch.where(differs[:, middle], middle, last)


def embed_variants(
    encoder: CaduceusEncoder,
    reference_ids: Int[Tensor, "batch length"],
    variant_ids: Int[Tensor, "batch length"],
    *,
    window: int,
    reading: Reading = "aligned",
) -> VariantEmbeddings:
    """Average both alleles' hidden states over the bases around each variant.

    Parameters
    ----------
    encoder : CaduceusEncoder
    reference_ids, variant_ids : Tensor [B, L]
        Both alleles' windows as ``encoder.tokenize`` gives them: one length, no padding.
    window : int
        Bases to average over: W + 1 around the variant for an even W; an odd W reaches one base
        further to the left than to the right, as upstream's. Places beyond the window's ends count
        as its first or last base.
    reading : {"aligned", "upstream"}
        Where the reverse strand of a network with RC parameter sharing is read: over the variant,
        or, as upstream's script does, at the forward position although that strand is stored from
        its own beginning, so that a variant off the middle is read at its mirror position. Without
        RC parameter sharing the two are the same.

    Returns
    -------
    VariantEmbeddings

    Raises
    ------
    InputError
        Lists all windows whose alleles do not differ; with "upstream" they are read at the start.
    ValueError
        The alleles have different shapes, or a window below 1.
    """
    if window < 1:
        raise ValueError(f"window is {window}; it must be at least 1")
    position = find_variants(reference_ids, variant_ids)
    if reading == "aligned":
        _check_all_differ(position)
    means = []
    for ids in (reference_ids, variant_ids):
        states = _hidden(encoder, ids, reading)
        means.append(_mean_around(states, position, window))
    forward, reverse = torch.cat(means, dim=1).unbind(-1)
    return VariantEmbeddings(forward, reverse, position)


def _hidden(
    encoder: CaduceusEncoder, ids: Tensor, reading: Reading
) -> Float[Tensor, "batch length dim strand"]:
    if reading == "upstream" and encoder.backbone.config.rcps:
        return encoder.backbone.strand_embeddings(ids)
    return encoder.hidden(ids, torch.ones_like(ids, dtype=torch.bool))


def _mean_around(
    states: Float[Tensor, "batch length dim strand"], position: Tensor, window: int
) -> Float[Tensor, "batch dim strand"]:
    offsets = torch.arange((-window) // 2, window // 2 + 1, device=position.device)
    places = (position[:, None] + offsets).clamp(0, states.shape[1] - 1)
    rows = torch.arange(len(places), device=places.device)[:, None]
    return states[rows, places].mean(dim=1)


def _check_all_differ(position: Tensor) -> None:
    rows = (position == NO_VARIANT).nonzero()[:, 0].tolist()
    problems = [
        Problem(
            "variant-absent",
            f"window {row + 1}",
            "the two alleles are the same sequence",
            "at least one base that differs",
            "leave the window out, or look whether the variant lies in it",
        )
        for row in rows
    ]
    if problems:
        raise InputError(problems)
