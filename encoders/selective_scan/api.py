"""The operation itself: argument checks, precision, and the choice of a backend."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from encoders.selective_scan import chunked, reference

Backend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

_BACKENDS: dict[str, Backend] = {"reference": reference.scan, "torch": chunked.scan}
# Fastest first; a device type that is not named takes the last row.
_PREFERRED: dict[str, tuple[str, ...]] = {"": ("torch",)}


def list_backends() -> list[str]:
    """Return the names `selective_scan` takes as `backend`."""
    return list(_BACKENDS)


def backend_for(device: torch.device) -> str:
    """Return the name of the backend that `selective_scan` takes by itself on `device`."""
    return _PREFERRED.get(device.type, _PREFERRED[""])[0]


def selective_scan(
    u: Float[Tensor, "batch length channel"],
    delta: Float[Tensor, "batch length channel"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch length state"],
    C: Float[Tensor, "batch length state"],
    D: Float[Tensor, " channel"] | None = None,
    *,
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
    delta : Tensor [B, L, D]
        Time steps, non-negative, softplus and bias already applied.
    A : Tensor [D, N]
        Continuous-time state matrix (diagonal), negative.
    B, C : Tensor [B, L, N]
        Input and output projections of each position, shared by all channels.
    D : Tensor [D], optional
        Skip connection.
    backend : str, optional
        One of `list_backends`; by default `backend_for` the device.

    Returns
    -------
    Tensor [B, L, D]
        In the type of `u`.

    Raises
    ------
    ValueError
        Shapes that do not fit together; an unknown backend.

    References
    ----------
    Gu and Dao 2023, Mamba, arXiv 2312.00752, algorithm 2 with the simplified discretisation of B.
    """
    _check_shapes(u, delta, A, B, C, D)
    name = backend_for(u.device) if backend is None else backend
    if name not in _BACKENDS:
        raise ValueError(f"unknown scan backend {name!r}; one of {', '.join(_BACKENDS)}")
    wide = torch.promote_types(torch.promote_types(u.dtype, A.dtype), torch.float32)
    u_wide, dt = u.to(wide), delta.to(wide)
    y = _BACKENDS[name](dt * u_wide, dt, A.to(wide), B.to(wide), C.to(wide))
    if D is not None:
        y = torch.addcmul(y, u_wide, D.to(wide))
    return y.to(u.dtype)


def _check_shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None
) -> None:
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(f"u wants [B, L, D] and A [D, N]; got {list(u.shape)}, {list(A.shape)}")
    batch, length, channels = u.shape
    wanted = {"delta": (batch, length, channels), "A": (channels, A.shape[1])}
    wanted |= dict.fromkeys(("B", "C"), (batch, length, A.shape[1])) | {"D": (channels,)}
    given = {"delta": delta, "A": A, "B": B, "C": C, "D": D}
    for name, tensor in given.items():
        if tensor is not None and tuple(tensor.shape) != wanted[name]:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, wants {list(wanted[name])}")
