"""The operation itself: argument checks, precision, and the choice of a backend."""

import warnings
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from encoders.selective_scan import chunked, library, reference

BACKENDS = ("cpu", "torch", "reference")


def list_backends() -> list[str]:
    """Return the names `selective_scan` takes as `backend`, fastest first.

    ``cpu`` are the native kernels, in float32, and only there where they were built; ``torch`` runs
    anywhere in any precision; ``reference`` is the definition, one step a position.
    """
    return [name for name in BACKENDS if name != "cpu" or library.is_built()]


def backend_for(device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Return the name of the backend that `selective_scan` takes by itself.

    Parameters
    ----------
    device : torch.device
    dtype : torch.dtype
        What it computes in: float32, or float64 where an input is.
    """
    if device.type == "cpu" and dtype == torch.float32:
        if library.is_built():
            return "cpu"
        _say_slow()
    return "torch"


@cache
def _say_slow() -> None:
    warnings.warn(
        "the selective scan runs on its slow path: the native CPU kernels are not built; "
        "`genebold encoders build` makes them where a C++ compiler is at hand",
        stacklevel=4,
    )


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
        One of `list_backends`; by default `backend_for` device and type.

    Returns
    -------
    Tensor [B, L, D]
        In the type of `u`.

    Raises
    ------
    ValueError
        Shapes that do not fit together; a backend that is unknown, or cannot compute in the
        inputs' type.

    References
    ----------
    Gu and Dao 2023, Mamba, arXiv 2312.00752, algorithm 2 with the simplified discretisation of B.
    """
    _check_shapes(u, delta, A, B, C, D, delta_weight, delta_bias)
    wide = torch.promote_types(torch.promote_types(u.dtype, A.dtype), torch.float32)
    name = backend_for(u.device, wide) if backend is None else backend
    if name not in list_backends():
        raise ValueError(f"unknown scan backend {name!r}; one of {', '.join(list_backends())}")
    if name == "cpu":
        from encoders.selective_scan import cpu

        if wide != torch.float32 or u.device.type != "cpu":
            raise ValueError(f"the cpu backend computes in float32 there, not {wide} on {u.device}")
        steps = (u, delta, delta_weight, delta_bias, A, B, C, D)
        keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in steps)
        return cpu.scan(*steps, delta_softplus, reverse, keep)[0].to(u.dtype)
    if delta_weight is not None:
        delta = F.linear(delta.to(wide), delta_weight.to(wide))
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
