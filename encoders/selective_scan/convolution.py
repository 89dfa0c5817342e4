"""The short causal convolution beside the scan, with its SiLU."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from encoders.selective_scan import library
from encoders.selective_scan.choice import backend_for, refusal


def convolve_silu(
    x: Float[Tensor, "batch length channel"],
    weight: Float[Tensor, "channel taps"],
    bias: Float[Tensor, " channel"] | None = None,
    *,
    reverse: bool = False,
) -> Float[Tensor, "batch length channel"]:
    """Convolve each channel over the positions before it, and apply SiLU.

    Sums are taken in float32 at least; rounded to the type of `x` before SiLU, as upstream does.
    Computed by the backend that the scan would take there.

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
    length, taps = x.shape[1], weight.shape[1]
    wide = torch.promote_types(x.dtype, torch.float32)
    backend = backend_for(x.device, torch.promote_types(wide, weight.dtype))
    plain = x.dtype == weight.dtype == torch.float32
    if backend == "cpu" and plain and taps <= library.MAX_TAPS:
        from encoders.selective_scan import cpu

        native: Tensor = cpu.convolve(x, weight, bias, reverse)
        return native
    if backend in ("triton", "mamba_ssm") and not refusal("triton", x.device, wide):
        from encoders.selective_scan import gpu

        ours: Tensor = gpu.convolve(x, weight, bias, reverse)
        return ours
    if reverse:
        return convolve_silu(x.flip(1), weight, bias).flip(1)
    padded = F.pad(x.to(wide), (0, 0, taps - 1, 0))
    rows = weight.to(wide).T
    out = padded[:, :length] * rows[0]
    for tap in range(1, taps):
        out = torch.addcmul(out, padded[:, tap : tap + length], rows[tap])
    if bias is not None:
        out = out + bias.to(wide)
    return F.silu(out.to(x.dtype))
