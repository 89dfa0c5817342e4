"""What the latents must not tell: an adversary reads confounds from them, and they unlearn it."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

UNKNOWN = -1
"""Code of a confound that is not known of a subject."""


def reverse_gradient(values: Float[Tensor, "row latent"]) -> Float[Tensor, "row latent"]:
    """Return `values` as they are; in the backward pass their gradient changes sign.

    Ganin and Lempitsky (2015), Unsupervised domain adaptation by backpropagation, arXiv:1409.7495.
    """
    reversed_: Tensor = _Reverse.apply(values)
    return reversed_


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class Adversary(nn.Module):
    """Reads each confound (site, ancestry) from gene and brain latents, by a small network a side.

    Its own weights learn to read; the towers, behind the reversed gradient, learn to be unreadable.

    Parameters
    ----------
    latent_dim : int
    classes : sequence of int
        Number of values of each confound.
    hidden_dim : int
    """

    def __init__(self, latent_dim: int, classes: list[int], hidden_dim: int = 64) -> None:
        super().__init__()
        self.classes = list(classes)
        self.gene, self.brain = (
            nn.Sequential(
                nn.Linear(latent_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, sum(classes))
            )
            for _ in range(2)
        )

    def forward(
        self,
        gene: Float[Tensor, "row latent"],
        brain: Float[Tensor, "row latent"],
        confounds: Int[Tensor, "row confound"],
    ) -> Float[Tensor, ""]:
        """Cross entropy of what is read, averaged over sides and confounds.

        Parameters
        ----------
        gene, brain : Tensor [n, d]
        confounds : Tensor [n, c] int64
            Value of each confound, from 0; `UNKNOWN` where it is not known, which does not count.
        """
        terms = []
        for read, latents in ((self.gene, gene), (self.brain, brain)):
            # Unit-length latents have small coordinates; the network wants them of unit size.
            scores = read(reverse_gradient(latents) * latents.shape[1] ** 0.5)
            for part, values in zip(
                scores.split(self.classes, 1), confounds.unbind(1), strict=True
            ):
                known = (values != UNKNOWN).sum().clamp(min=1)
                total = F.cross_entropy(part, values, ignore_index=UNKNOWN, reduction="sum")
                terms.append(total / known)
        return torch.stack(terms).mean()
