"""The selective scan as its definition reads: one step a position. Slow, and the yardstick."""

import torch
from jaxtyping import Float
from torch import Tensor


def scan(
    x: Float[Tensor, "batch length channel"],
    dt: Float[Tensor, "batch length channel"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch length state"],
    C: Float[Tensor, "batch length state"],
) -> Float[Tensor, "batch length channel"]:
    """Run ``h = exp(dt A) h + B x; y = C h`` over the length, from ``h = 0``."""
    state = x.new_zeros(x.shape[0], *A.shape)
    outputs = []
    for position in range(x.shape[1]):
        decay = torch.exp(dt[:, position, :, None] * A)
        state = decay * state + x[:, position, :, None] * B[:, position, None, :]
        outputs.append((state * C[:, position, None, :]).sum(dim=-1))
    return torch.stack(outputs, dim=1) if outputs else torch.zeros_like(x)
