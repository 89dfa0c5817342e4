"""The projector: pooled features of one modality to a point of the shared space."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from encoders.errors import InputError, Problem

HeadKind = Literal["mlp", "linear"]

HEAD_KINDS: tuple[HeadKind, ...] = get_args(HeadKind)
LATENT_DIM = 512
HIDDEN_DIM = 1024
ORIGIN_LENGTH = 1e-3


class Head(nn.Module):
    """Projector head: features [B, D] to unit-length latents [B, 512].

    ``mlp`` is Linear(D, 1024), GELU, Dropout, Linear(1024, 512), LayerNorm; ``linear`` is
    Linear(D, 512), LayerNorm, for cohorts too small to learn more. Both end at unit length.

    Parameters
    ----------
    dim : int
        Size D of the incoming feature.
    kind : {"mlp", "linear"}
    hidden_dim : int
        Width of the hidden layer of ``mlp``.
    latent_dim : int
        Size of the latent.
    dropout : float
        Share of hidden units (``mlp``) or inputs (``linear``) dropped in training, from 0 to 1.

    Raises
    ------
    InputError
        `kind` is unknown.
    """

    def __init__(
        self,
        dim: int,
        kind: HeadKind = "mlp",
        hidden_dim: int = HIDDEN_DIM,
        latent_dim: int = LATENT_DIM,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.kind, self.hidden_dim, self.latent_dim = kind, hidden_dim, latent_dim
        self.layers: nn.Sequential
        if kind == "mlp":
            self.layers = nn.Sequential(
                nn.Linear(dim, hidden_dim),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(hidden_dim, latent_dim),
                nn.LayerNorm(latent_dim),
            )
        elif kind == "linear":
            self.layers = nn.Sequential(
                nn.Dropout(dropout), nn.Linear(dim, latent_dim), nn.LayerNorm(latent_dim)
            )
        else:
            raise InputError(
                Problem("unknown-head", "head kind", repr(kind), " or ".join(HEAD_KINDS))
            )

    @property
    def width(self) -> int:
        """Dimensions an isometry spreads canonical coordinates over."""
        return self.hidden_dim // 2 if self.kind == "mlp" else self.latent_dim

    @property
    def room(self) -> int:
        """Most canonical coordinates that `start_from_linear_map` can take."""
        room = self.latent_dim - 2
        return min(room, self.hidden_dim // 2) if self.kind == "mlp" else room

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch latent"]:
        """Project features to unit-length latents."""
        return F.normalize(self.layers(features), dim=-1)

    @torch.no_grad()
    def start_from_linear_map(
        self, linear_map: Float[Tensor, "dim canonical"], generator: torch.Generator
    ) -> None:
        """Set the weights so that the untrained head is a given linear map, then an isometry.

        Two heads started with equally seeded generators from maps into the same canonical space
        give latents whose cosines are those of the canonical coordinates: training then starts
        from a linear solution rather than from noise. The ``mlp`` reaches it exactly through
        paired hidden units with opposite signs, for GELU(z) - GELU(-z) = z.

        Parameters
        ----------
        linear_map : Tensor [D, K]
            Features to canonical coordinates, K at most `room`.
        generator : torch.Generator
            Seeded alike for the heads that are to share a space.
        """
        canonical = linear_map.shape[1]
        out = self.layers[3] if self.kind == "mlp" else self.layers[1]
        assert isinstance(out, nn.Linear)
        basis = _centred_isometry(out.out_features, canonical + 1, generator).to(linear_map)
        isometry = basis[:, :canonical]
        # A subject at the origin needs a direction too, or its latent would have no length.
        out.bias.copy_(ORIGIN_LENGTH * basis[:, canonical])
        if self.kind == "linear":
            out.weight.copy_(isometry @ linear_map.T)
            return
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        half = first.out_features // 2
        spread = _orthonormal(half, canonical, generator).to(linear_map)
        first.bias.zero_()
        first.weight.zero_()
        first.weight[:half] = spread @ linear_map.T
        first.weight[half : 2 * half] = -first.weight[:half]
        out.weight.zero_()
        out.weight[:, :half] = isometry @ spread.T
        out.weight[:, half : 2 * half] = -out.weight[:, :half]


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Random matrix with orthonormal columns."""
    if columns > rows:
        raise ValueError(f"{columns} orthonormal columns do not fit into {rows} rows")
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def _centred_isometry(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal columns, each of mean zero, which a LayerNorm leaves as they are."""
    random = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(random - random.mean(dim=0)).Q
