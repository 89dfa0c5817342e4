"""The contrastive losses of SwiFT's pretraining, in upstream's scale (Transconnectome/SwiFT).

Two views of a clip, or two clips of a person, are to be alike and all others not: the NT-Xent loss
of Chen et al. (SimCLR, ICML 2020, arXiv:2002.05709), once between people and once between the
times of a person.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

TEMPERATURE = 0.1


def nt_xent(
    first: Float[Tensor, "*batch pair dim"],
    second: Float[Tensor, "*batch pair dim"],
    temperature: float = TEMPERATURE,
    similarity: Literal["cosine", "dot"] = "cosine",
) -> Float[Tensor, "*batch"]:
    """Tell each vector's partner from all other vectors of both sides: NT-Xent.

    Parameters
    ----------
    first, second : Tensor [..., N, D]
        Row k of one is the partner of row k of the other. Leading axes are losses of their own.
    temperature : float
    similarity : {"cosine", "dot"}
        Upstream trains with the cosine.

    Returns
    -------
    Tensor [...]
        Mean cross entropy over the 2N vectors.
    """
    vectors = torch.cat([first, second], dim=-2)
    if similarity == "cosine":
        vectors = F.normalize(vectors, dim=-1, eps=1e-8)
    scores = vectors @ vectors.mT / temperature
    count = scores.shape[-1]
    itself = torch.eye(count, dtype=torch.bool, device=scores.device)
    log_shares = scores.masked_fill(itself, -torch.inf).log_softmax(-1)
    partner = torch.arange(count, device=scores.device).roll(count // 2)
    chosen = partner.expand(scores.shape[:-1])[..., None]
    return -log_shares.gather(-1, chosen)[..., 0].mean(-1)


def local_local(
    y_view1: Float[Tensor, "sample dim"],
    y_view2: Float[Tensor, "sample dim"],
    other_view1: Float[Tensor, "sample dim"],
    other_view2: Float[Tensor, "sample dim"],
    temperature: float = TEMPERATURE,
) -> Float[Tensor, " sample"]:
    """Tell two clips of one recording apart, whatever the augmentation.

    Parameters
    ----------
    y_view1, y_view2 : Tensor [N, D]
        Embeddings of two augmentations of a clip of each recording.
    other_view1, other_view2 : Tensor [N, D]
        The same of a clip from another time.
    temperature : float

    Returns
    -------
    Tensor [N]
        An NT-Xent loss of two pairs for each recording; upstream adds them up.
    """
    first = torch.stack([y_view1, other_view1], dim=1)
    second = torch.stack([y_view2, other_view2], dim=1)
    return nt_xent(first, second, temperature)


def contrastive_loss(
    instances: tuple[Tensor, Tensor] | None,
    clips: tuple[Tensor, Tensor, Tensor, Tensor] | None,
    temperature: float = TEMPERATURE,
) -> Float[Tensor, ""]:
    """Return upstream's training loss: mean over instances plus sum over recordings.

    Parameters
    ----------
    instances : pair of Tensor [N, D], optional
        Arguments of `nt_xent`: contrastive types 1 and 3.
    clips : four of Tensor [N, D], optional
        Arguments of `local_local`: contrastive types 2 and 3.
    temperature : float

    Raises
    ------
    ValueError
        Neither is given.
    """
    terms = []
    if instances is not None:
        terms.append(nt_xent(*instances, temperature=temperature))
    if clips is not None:
        terms.append(local_local(*clips, temperature=temperature).sum())
    if not terms:
        raise ValueError("give instances (type 1), clips (type 2), or both (type 3)")
    return torch.stack(terms).sum()


def global_local_temporal(
    sparse: Float[Tensor, "sample clip dim"],
    dense: Float[Tensor, "sample clip dim"],
    temperature: float = TEMPERATURE,
) -> Float[Tensor, ""]:
    """Match the slices in time of a long clip with short clips of the same time.

    In upstream's code, and in none of its trainings.

    Parameters
    ----------
    sparse : Tensor [N, K, D]
        K slices of each recording's long clip.
    dense : Tensor [N, K, D]
        The K short clips themselves.
    temperature : float

    Returns
    -------
    Tensor []
        Cross entropy of both directions over dot products, summed and divided by 2N.
    """
    scores = sparse @ dense.mT / temperature
    samples, clips, _ = scores.shape
    label = torch.arange(clips, device=scores.device).repeat(samples)
    both = [
        F.cross_entropy(each.reshape(-1, clips), label, reduction="sum")
        for each in (scores, scores.mT)
    ]
    return (both[0] + both[1]) / (2 * samples)
