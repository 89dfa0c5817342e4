"""The short causal convolution beside the scan, with its SiLU."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from encoders.selective_scan import library


def convolve_silu(
    x: Float[Tensor, "batch length channel"],
    weight: Float[Tensor, "channel taps"],
    bias: Float[Tensor, " channel"] | None = None,
    *,
    reverse: bool = False,
) -> Float[Tensor, "batch length channel"]:
    """Convolve each channel over the positions before it, and apply SiLU.

    Sums are taken in float32 at least; rounded to the type of `x` before SiLU, as upstream does.

    Parameters
    ----------
    x : Tensor [B, L, D]
    weight : Tensor [D, K]
        One filter a channel; the last tap is the position itself.
    bias : Tensor [D], optional
    reverse : bool
        Over the positions after it instead: as flipping the sequence, and the result.

    Returns
    -------
    Tensor [B, L, D]
        In the type of `x`.
    """
    native = library.is_built() and x.device.type == "cpu" and weight.shape[1] <= library.MAX_TAPS
    if native and x.dtype == weight.dtype == torch.float32:
        from encoders.selective_scan import cpu

        y: Tensor = cpu.convolve(x, weight, bias, reverse)
        return y
    if reverse:
        return convolve_silu(x.flip(1), weight, bias).flip(1)
    length, taps = x.shape[1], weight.shape[1]
    wide = torch.promote_types(x.dtype, torch.float32)
    padded = F.pad(x.to(wide), (0, 0, taps - 1, 0))
    rows = weight.to(wide).T
    out = padded[:, :length] * rows[0]
    for tap in range(1, taps):
        out = torch.addcmul(out, padded[:, tap : tap + length], rows[tap])
    if bias is not None:
        out = out + bias.to(wide)
    return F.silu(out.to(x.dtype))
