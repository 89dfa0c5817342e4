"""Which tokens the encoder sees, and in which order: what both families share."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class EncoderOutput:
    """What the encoder half of a masked autoencoder computes; K of N tokens are kept.

    Parameters
    ----------
    embeddings : Tensor [B, 1 + K, D]
        CLS token and kept tokens before the first layer.
    last_hidden_state : Tensor [B, 1 + K, D]
        After the final layer norm, CLS token first.
    pre_layernorm_cls : Tensor [B, D]
        CLS token before the final layer norm.
    mask : Tensor [B, N]
        1 where a token is masked, in natural order.
    ids_restore : Tensor [B, N] int64
        Place of each token in the shuffled order: kept tokens come first.
    """

    embeddings: Float[Tensor, "batch kept_and_cls dim"]
    last_hidden_state: Float[Tensor, "batch kept_and_cls dim"]
    pre_layernorm_cls: Float[Tensor, "batch dim"]
    mask: Float[Tensor, "batch token"]
    ids_restore: Int[Tensor, "batch token"]

    @property
    def cls(self) -> Float[Tensor, "batch dim"]:
        """The CLS token of the last hidden state."""
        return self.last_hidden_state[:, 0]


def count_kept(tokens: int, mask_ratio: float) -> int:
    """Return how many of `tokens` are kept: rounded down as a float, which can lose one.

    ``count_kept(100, 0.9)`` is 9, because ``1 - 0.9`` lies a little below 0.1 (as upstream).
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio is {mask_ratio}; it must be at least 0 and below 1")
    return int(tokens * (1 - mask_ratio))


def default_noise(
    tokens: Float[Tensor, "batch token dim"], mask_ratio: float
) -> Float[Tensor, "batch token"]:
    """Return increasing noise (natural order) where nothing is masked, else uniform noise.

    Upstream draws uniform noise always, and so shuffles the tokens even where it masks none.
    """
    batch, count = tokens.shape[:2]
    if mask_ratio > 0:
        return torch.rand(batch, count, device=tokens.device)
    return torch.arange(count, device=tokens.device, dtype=torch.float64).expand(batch, count)


def keep_tokens(
    tokens: Float[Tensor, "batch token dim"], noise: Float[Tensor, "batch token"], kept: int
) -> tuple[
    Float[Tensor, "batch kept dim"], Float[Tensor, "batch token"], Int[Tensor, "batch token"]
]:
    """Keep the `kept` tokens with the smallest noise, in the order of their noise.

    Returns
    -------
    kept_tokens : Tensor [B, K, D]
    mask : Tensor [B, N]
        1 where a token is left out.
    ids_restore : Tensor [B, N]
        Place of each token in the order of noise.

    Raises
    ------
    ValueError
        The noise has another shape than the tokens.
    """
    if noise.shape != tokens.shape[:2]:
        raise ValueError(
            f"noise has shape {list(noise.shape)}; it must be {list(tokens.shape[:2])}, "
            "one number a token"
        )
    order = torch.argsort(noise, dim=1, stable=True)
    ids_restore = torch.argsort(order, dim=1)
    index = order[:, :kept, None].expand(-1, -1, tokens.shape[2])
    mask = (ids_restore >= kept).to(tokens.dtype)
    return torch.gather(tokens, 1, index), mask, ids_restore


def encode_kept(
    tokens: Float[Tensor, "batch token dim"],
    cls_token: Float[Tensor, "1 1 dim"],
    noise: Float[Tensor, "batch token"],
    kept: int,
    *,
    layers: nn.Module,
    final_norm: nn.Module,
) -> EncoderOutput:
    """Keep the tokens with the smallest noise, put the CLS token first, run the layers.

    Parameters
    ----------
    tokens : Tensor [B, N, D]
        Embedded, with their positions.
    cls_token : Tensor [1, 1, D]
        With its position, if it has one.
    noise : Tensor [B, N]
    kept : int
        As `keep_tokens`.
    layers, final_norm : nn.Module
        What the tokens run through.

    Raises
    ------
    ValueError
        As `keep_tokens`.
    """
    tokens, mask, ids_restore = keep_tokens(tokens, noise, kept)
    embeddings = torch.cat([cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
    hidden = layers(embeddings)
    last = final_norm(hidden)
    return EncoderOutput(embeddings, last, hidden[:, 0], mask, ids_restore)


def restore_tokens(
    kept: Float[Tensor, "batch kept dim"],
    mask_token: Float[Tensor, "1 1 dim"],
    ids_restore: Int[Tensor, "batch token"],
) -> Float[Tensor, "batch token dim"]:
    """Put kept tokens back into natural order, with the mask token where one was left out."""
    batch, count = ids_restore.shape
    missing = mask_token.expand(batch, count - kept.shape[1], -1)
    shuffled = torch.cat([kept, missing], dim=1)
    return torch.gather(shuffled, 1, ids_restore[:, :, None].expand(-1, -1, kept.shape[2]))
