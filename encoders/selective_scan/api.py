"""The operation itself: argument checks, precision, and the call of a backend."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from encoders.selective_scan import chunked, reference
from encoders.selective_scan.choice import backend_for, refusal


def selective_scan(
    u: Float[Tensor, "batch length channel"],
    delta: Float[Tensor, "batch length rank"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch length state"],
    C: Float[Tensor, "batch length state"],
    D: Float[Tensor, " channel"] | None = None,
    *,
    delta_weight: Float[Tensor, "channel rank"] | None = None,
    delta_bias: Float[Tensor, " channel"] | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    backend: str | None = None,
) -> Float[Tensor, "batch length channel"]:
    """Run the selective state-space recurrence of Mamba over the length.

    For each channel and state: ``h[l] = exp(delta[l] A) h[l-1] + delta[l] B[l] u[l]`` from zero,
    then ``y[l] = sum over states of C[l] h[l]``, plus ``D u[l]``. Differentiable once in all
    arguments. States are held in float32 at least, whatever the inputs' type.

    Parameters
    ----------
    u : Tensor [B, L, D]
        Input.
    delta : Tensor [B, L, D] or [B, L, R]
        Time steps; after weight, bias and softplus, if there are any, non-negative.
    A : Tensor [D, N]
        Continuous-time state matrix (diagonal), negative.
    B, C : Tensor [B, L, N]
        Input and output projections of each position, shared by all channels.
    D : Tensor [D], optional
        Skip connection.
    delta_weight : Tensor [D, R], optional
        What time steps of low rank are multiplied by.
    delta_bias : Tensor [D], optional
        Added to the time steps.
    delta_softplus : bool
        Whether softplus is applied to them then.
    reverse : bool
        Run from the last position to the first; as flipping all sequences, and the result.
    backend : str, optional
        One of `list_backends`; by default `backend_for` device and type, which the environment
        variable ``GENEBOLD_SCAN_BACKEND`` decides where it is set.

    Returns
    -------
    Tensor [B, L, D]
        In the type of `u`.

    Raises
    ------
    ValueError
        Shapes that do not fit together; a backend that is unknown, or cannot compute in the
        inputs' type on their device.
    InputError
        The same, asked for by the environment variable.

    References
    ----------
    Gu and Dao 2023, Mamba, arXiv 2312.00752, algorithm 2 with the simplified discretisation of B.
    """
    _check_shapes(u, delta, A, B, C, D, delta_weight, delta_bias)
    wide = torch.promote_types(torch.promote_types(u.dtype, A.dtype), torch.float32)
    name = backend_for(u.device, wide) if backend is None else backend
    if backend is not None and (refused := refusal(name, u.device, wide)):
        raise ValueError(refused)
    if name == "cpu":
        from encoders.selective_scan import cpu

        steps = (u, delta, delta_weight, delta_bias, A, B, C, D)
        keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in steps)
        return cpu.scan(*steps, delta_softplus, reverse, keep)[0].to(u.dtype)
    if delta_weight is not None:
        delta = F.linear(delta.to(wide), delta_weight.to(wide))
    if name == "triton":
        from encoders.selective_scan import gpu

        rest = (delta_bias, A, B, C, D, delta_softplus, reverse, None)
        return gpu.scan(u, delta, *rest)[0]
    if name == "mamba_ssm":
        from encoders.selective_scan import upstream

        return upstream.scan(u, delta, delta_bias, A, B, C, D, delta_softplus, reverse)
    if delta_bias is not None:
        delta = delta.to(wide) + delta_bias.to(wide)
    if delta_softplus:
        delta = F.softplus(delta.to(wide))
    run = chunked.scan if name == "torch" else reference.scan
    u_wide, dt, B, C = (values.to(wide) for values in (u, delta, B, C))
    steps_of = [dt * u_wide, dt, B, C]
    if reverse:
        steps_of = [values.flip(1) for values in steps_of]
    x, dt, B, C = steps_of
    y = run(x, dt, A.to(wide), B, C)
    if reverse:
        y = y.flip(1)
    if D is not None:
        y = torch.addcmul(y, u_wide, D.to(wide))
    return y.to(u.dtype)


def _check_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_weight: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(f"u wants [B, L, D] and A [D, N]; got {list(u.shape)}, {list(A.shape)}")
    if delta_weight is not None and delta_weight.shape[-1] == 0:
        raise ValueError("delta_weight [D, R] wants a rank R of one at least")
    batch, length, channels = u.shape
    rank = channels if delta_weight is None else delta_weight.shape[-1]
    wanted = {"delta": (batch, length, rank), "A": (channels, A.shape[1])}
    wanted |= dict.fromkeys(("B", "C"), (batch, length, A.shape[1]))
    wanted |= {"D": (channels,), "delta_weight": (channels, rank), "delta_bias": (channels,)}
    given = {
        "delta": delta, "A": A, "B": B, "C": C, "D": D,
        "delta_weight": delta_weight, "delta_bias": delta_bias,
    }  # fmt: skip
    for name, tensor in given.items():
        if tensor is not None and tuple(tensor.shape) != wanted[name]:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, wants {list(wanted[name])}")
