"""Backwards through the convolution, the scan and the norm over a sequence that comes in tiles.

The counterpart of `encoders.selective_scan.tiles`, by the native kernels and in float32. A reader
that went over a sequence from one end goes back from the other; what a tile hands to the one that
was read before it is the gradient of the state, and that of the convolution's last inputs.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from encoders.selective_scan import cpu, library
from encoders.selective_scan.library import SequenceView, address
from encoders.selective_scan.tiles import scan_natively


class ScanGradients(NamedTuple):
    """What `scan_tile_back` returns.

    Parameters
    ----------
    u : Tensor [B, T, D]
    step : Tensor [B, T, D]
        Of softplus' argument.
    B, C : Tensor [B, T, N]
    A : Tensor [D, N]
    D : Tensor [D]
    """

    u: Tensor
    step: Tensor
    B: Tensor
    C: Tensor
    A: Tensor
    D: Tensor


def _new(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def keep_tile(
    u: Float[Tensor, "batch tile channel"],
    delta: Float[Tensor, "batch tile rank"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch tile state"],
    C: Float[Tensor, "batch tile state"],
    D: Float[Tensor, " channel"],
    state: Float[Tensor, "batch state channel"],
    kept: Float[Tensor, "batch part state channel"],
    *,
    delta_weight: Float[Tensor, "channel rank"],
    delta_bias: Float[Tensor, " channel"],
    reverse: bool,
    into: Float[Tensor, "batch tile channel"],
    add: bool,
) -> None:
    """Run `encoders.selective_scan.tiles.scan_tile`, and keep the states to go back from.

    Parameters
    ----------
    u, delta, A, B, C, D, state, delta_weight, delta_bias, reverse, into, add
        As there.
    kept : Tensor [B, T / KEPT_EVERY (rounded up), N, D]
        Where the states go; the last two axes dense.
    """
    steps = (delta_weight, delta_bias)
    scan_natively(u, delta, A, B, C, D, *steps, state, reverse, into, add, None, kept)


def scan_tile_back(
    grad_y: Float[Tensor, "batch tile channel"],
    u: Float[Tensor, "batch tile channel"],
    delta: Float[Tensor, "batch tile rank"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch tile state"],
    C: Float[Tensor, "batch tile state"],
    D: Float[Tensor, " channel"],
    carry: Float[Tensor, "batch state channel"],
    kept: Float[Tensor, "batch part state channel"],
    *,
    delta_weight: Float[Tensor, "channel rank"],
    delta_bias: Float[Tensor, " channel"],
    reverse: bool,
    into: Float[Tensor, "batch tile channel"] | None = None,
    into_step: Float[Tensor, "batch tile channel"] | None = None,
) -> ScanGradients:
    """Go back over a tile that `keep_tile` went over.

    Parameters
    ----------
    grad_y : Tensor [B, T, D]
        Gradient of what it added.
    u, delta, A, B, C, D, kept, delta_weight, delta_bias, reverse
        As there.
    carry : Tensor [B, N, D]
        Gradient of the state behind the tile, zeros behind the last that was read; overwritten by
        that of the state before it.
    into, into_step : Tensor [B, T, D], optional
        Where the gradients of `u` and of softplus' argument go, by default new memory.
    """
    grad_y, u, delta, B, C = map(cpu.rowwise, (grad_y, u, delta, B, C))
    rows, _, channels = u.shape
    found_u = _new(*u.shape) if into is None else into
    found_step = _new(*u.shape) if into_step is None else into_step
    forward = cpu.scan_arguments(u, delta, delta_weight, delta_bias, A, B, C, D, True, reverse)
    forward.row_end, forward.channel_end = rows, channels
    forward.kept = SequenceView.of(kept)
    arguments, sums = cpu.scan_back_arguments(
        forward, grad_y, found_u, found_step, carry, group=channels
    )
    library.call("scan_backward", arguments)
    b_c, a, skip = sums.total()
    found_b, found_c = b_c.chunk(2, dim=-1)
    return ScanGradients(found_u, found_step, found_b, found_c, a.T, skip)


def convolve_tile_back(
    grad_y: Float[Tensor, "batch tile channel"],
    x: Float[Tensor, "batch length channel"],
    start: int,
    end: int,
    weight: Float[Tensor, "channel taps"],
    bias: Float[Tensor, " channel"] | None,
    carry: Float[Tensor, "batch taps_before channel"],
    *,
    reverse: bool,
    into: Float[Tensor, "batch tile channel"],
    add: bool,
) -> tuple[Float[Tensor, "channel taps"], Float[Tensor, " channel"]]:
    """Go back over positions `start` to `end` of a convolution with SiLU.

    Parameters
    ----------
    grad_y : Tensor [B, T, D]
        Gradient of what `encoders.selective_scan.tiles.convolve_tile` returned there.
    x, start, end, weight, bias, reverse
        As there; `weight` densely.
    carry : Tensor [B, taps - 1, D]
        Gradient before SiLU of the positions read after the tile, zeros after the last; overwritten
        by that of the tile's first ones.
    into : Tensor [B, T, D]
        Where the gradient of `x` goes.
    add : bool
        Whether to add it to what is there.

    Returns
    -------
    Tensor [D, taps], Tensor [D]
        Gradients of weight and bias.
    """
    grad_y = cpu.rowwise(grad_y)
    rows, _, channels = grad_y.shape
    taps = weight.shape[1]
    arguments = cpu.convolution_arguments(x[:, start:end], weight, bias, reverse)
    arguments.before = min(taps - 1, x.shape[1] - end if reverse else start)
    arguments.row_end, arguments.channel_end = rows, channels
    found_weight, found_bias = _new(rows, channels, taps), _new(rows, channels)
    arguments.grad_y, arguments.grad_x = SequenceView.of(grad_y), SequenceView.of(into)
    arguments.grad_weight, arguments.grad_bias = address(found_weight), address(found_bias)
    arguments.carry, arguments.accumulate = address(carry), add
    library.call("convolve_backward", arguments)
    return found_weight.sum(dim=0), found_bias.sum(dim=0)


def norm_tile_back(
    grad_y: Float[Tensor, "batch tile dim"],
    x: Float[Tensor, "batch tile dim"],
    weight: Float[Tensor, " dim"],
    eps: float,
    *,
    centre: bool,
    add: Float[Tensor, "batch tile dim"],
    into: Float[Tensor, "batch tile dim"],
) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
    """Go back over `encoders.selective_scan.tiles.norm_tile`.

    Parameters
    ----------
    grad_y : Tensor [B, T, D]
        Gradient of what it returned.
    x, weight, eps, centre
        As there; `weight` densely.
    add : Tensor [B, T, D]
        Added to the gradient of `x`.
    into : Tensor [B, T, D]
        Where the sum goes; it may be `grad_y` or `add`.

    Returns
    -------
    Tensor [D], Tensor [D]
        Gradients of weight and bias.
    """
    rows, length, width = x.shape
    found_weight, found_bias = _new(width), _new(width)
    x, grad_y, add = map(cpu.rowwise, (x, grad_y, add))
    arguments = library.NormBackward(
        rows=rows,
        length=length,
        width=width,
        centre=centre,
        x=SequenceView.of(x),
        grad_y=SequenceView.of(grad_y),
        add=SequenceView.of(add),
        grad_x=SequenceView.of(into),
        weight=address(weight),
        grad_weight=address(found_weight),
        grad_bias=address(found_bias),
        epsilon=eps,
    )
    library.call("norm_backward", arguments)
    return found_weight, found_bias


def gate_tile_back(
    y: Float[Tensor, "batch tile channel"],
    gate: Float[Tensor, "batch tile channel"],
    grad: Float[Tensor, "batch tile channel"],
) -> None:
    """Go back over ``y * silu(gate)``, in place.

    Parameters
    ----------
    y, gate : Tensor [B, T, D]
        Overwritten by their gradients.
    grad : Tensor [B, T, D]
        Gradient of the product, overwritten by the product.
    """
    rows, length, width = y.shape
    arguments = library.GateBackward(
        rows=rows,
        length=length,
        width=width,
        y=SequenceView.of(y),
        gate=SequenceView.of(gate),
        grad=SequenceView.of(grad),
    )
    library.call("gate_backward", arguments)
