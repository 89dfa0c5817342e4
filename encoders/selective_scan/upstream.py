"""The scan of the package mamba_ssm (state-spaces/mamba), where it is installed beside a GPU.

It is written for CUDA, holds the length in the last axis, and runs from left to right only.
"""

from typing import Any

from torch import Tensor


def scan(
    u: Tensor,
    low: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    activate: bool,
    reverse: bool,
) -> Tensor:
    """Run `encoders.selective_scan.selective_scan` through ``selective_scan_fn``.

    Parameters
    ----------
    u, low, bias, A, B, C, D
        As there; `low` are the time steps before bias and softplus.
    activate, reverse : bool
        Whether softplus is applied, and whether the scan runs from the end.

    Returns
    -------
    Tensor [B, L, D]
        In the type of `u`.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def last(values: Tensor) -> Tensor:
        # One type for all four: the kernel refuses a mixture.
        values = values.flip(1) if reverse else values
        return values.to(u.dtype).mT.contiguous()

    def wide(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.float().contiguous()

    y: Any = selective_scan_fn(
        last(u), last(low), wide(A), last(B), last(C), wide(D),
        delta_bias=wide(bias), delta_softplus=activate,
    )  # fmt: skip
    y = y.mT
    return (y.flip(1) if reverse else y).to(u.dtype)
