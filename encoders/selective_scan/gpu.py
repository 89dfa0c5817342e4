"""The scan and the short convolution on NVIDIA GPUs: operators around the Triton kernels.

Triton comes with torch's builds for CUDA; nothing else needs installing. Without a GPU, its
interpreter runs the kernels on the CPU where ``TRITON_INTERPRET=1`` is set before they are
imported: far too slow for anything but tests.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from encoders.selective_scan import triton_convolution, triton_kernels
from encoders.selective_scan.convolution_gradients import differentiate_convolution

# Positions in a program's registers; and channels, one a thread.
TILE, WIDTH = 16, 128
_CARRY_TILE, _CARRY_WIDTH = 32, 64
# Programs a multiprocessor needs before walking through all tiles in turn pays.
_PROGRAMS_EACH = 4
_WIDE = {torch.float32: tl.float32, torch.float64: tl.float64}
_NEW = torch.library.custom_op


def _on(device: torch.device) -> AbstractContextManager[None]:
    """Launch there, not on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _rowwise(values: Tensor) -> Tensor:
    return values if values.stride(-1) == 1 else values.contiguous()


def _width(channels: int) -> int:
    return min(WIDTH, max(16, triton.next_power_of_2(channels)))


def _options(width: int, wide: torch.dtype) -> dict[str, Any]:
    """Return what every kernel is compiled for: a warp for 32 channels, a channel a thread."""
    warps = max(1, width // 32)
    return {"WIDE": _WIDE[wide], "T": TILE, "WIDTH": width, "num_warps": warps}


def _wide(*tensors: Tensor | None) -> torch.dtype:
    wide = torch.float32
    for tensor in tensors:
        if tensor is not None:
            wide = torch.promote_types(wide, tensor.dtype)
    return wide


def _walks(u: Tensor, walk: bool | None) -> bool:
    """Decide whether a program walks through all tiles, or each tile has its own."""
    if walk is not None or u.device.type != "cuda":
        return bool(walk)
    programs = u.shape[0] * triton.cdiv(u.shape[2], _width(u.shape[2]))
    processors = torch.cuda.get_device_properties(u.device).multi_processor_count
    return programs >= _PROGRAMS_EACH * processors


def _rates(A: Tensor, wide: torch.dtype) -> Tensor:
    return A.to(wide).T.contiguous()


def _starts_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    return u.shape[0], triton.cdiv(u.shape[1], TILE) + 1, A.shape[1], u.shape[2]


def _strides(*sequences: Tensor) -> list[int]:
    return [stride for values in sequences for stride in values.stride()[:2]]


@_NEW("genebold::triton_scan", mutates_args=())
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
    walk: bool | None,
) -> tuple[Tensor, Tensor]:
    """Run `encoders.selective_scan.selective_scan` in float32, or in float64 where an input is.

    Parameters
    ----------
    u, low, bias, A, B, C, D
        As there; `low` are the time steps before bias and softplus.
    activate, reverse : bool
        Whether softplus is applied, and whether the scan runs from the end.
    walk : bool, optional
        Whether one program goes through all tiles of some channels; by default where there are
        enough of them to fill the GPU.

    Returns
    -------
    y : Tensor [B, L, D]
        In the type of `u`.
    starts : Tensor [B, tiles + 1, N, D]
        States before each tile, and in the end.
    """
    wide = _wide(u, low, bias, A, B, C, D)
    u, low, B, C = map(_rowwise, (u, low, B, C))
    rates, y = _rates(A, wide), u.new_empty(u.shape)
    shape = _starts_shape(u, A)
    rows, slots, states, channels = shape
    tiles, width = slots - 1, _width(channels)
    starts = u.new_empty(shape, dtype=wide)
    starts[:, 0] = 0
    if y.numel() == 0:
        return y, starts
    blocks = triton.cdiv(channels, width)
    options = {"REVERSE": reverse, "SOFTPLUS": activate, "BIAS": bias is not None}
    options |= _options(width, wide)
    walk = _walks(u, walk)
    with _on(u.device):
        if not walk:
            totals = u.new_empty((rows, tiles, channels), dtype=wide)
            triton_kernels.tile_ends[tiles, blocks, rows](
                u, low, bias, rates, B, starts, totals, *_strides(u, low, B),
                u.shape[1], channels, states, tiles, **options,
            )  # fmt: skip
            _carry(starts, totals, rates, backwards=False)
        triton_kernels.outputs[1 if walk else tiles, blocks, rows](
            u, low, bias, rates, B, C, D, starts, y, *_strides(u, low, B, C),
            u.shape[1], channels, states, tiles, tiles if walk else 1,
            SKIP=D is not None, **options,
        )  # fmt: skip
    return y, starts


def _carry(values: Tensor, totals: Tensor, rates: Tensor, *, backwards: bool) -> None:
    rows, tiles, channels = totals.shape
    states, width = len(rates), min(_CARRY_WIDTH, _width(channels))
    triton_kernels.carry[states, triton.cdiv(channels, width), rows](
        values, totals, rates, channels, states, tiles,
        BACKWARDS=backwards, WIDE=_WIDE[values.dtype], T=_CARRY_TILE, WIDTH=width,
    )  # fmt: skip


@scan.register_fake
def _(
    u: Tensor,
    low: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    activate: bool,
    reverse: bool,
    walk: bool | None,
) -> tuple[Tensor, Tensor]:
    wide = _wide(u, low, bias, A, B, C, D)
    return u.new_empty(u.shape), u.new_empty(_starts_shape(u, A), dtype=wide)


@_NEW("genebold::triton_scan_backward", mutates_args=())
def scan_backward(
    grad_y: Tensor,
    u: Tensor,
    low: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    starts: Tensor,
    activate: bool,
    reverse: bool,
    walk: bool | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return gradients of u, of softplus' argument [B, L, D], of A, B, C, D, in the wide type."""
    wide = starts.dtype
    grad_y, u, low, B, C = map(_rowwise, (grad_y, u, low, B, C))
    rates = _rates(A, wide)
    rows, slots, states, channels = starts.shape
    tiles, length, width = slots - 1, u.shape[1], _width(channels)
    blocks = triton.cdiv(channels, width)

    def new(*shape: int) -> Tensor:
        return u.new_empty(shape, dtype=wide)

    grad_u, grad_low, carried = new(*u.shape), new(*u.shape), new(*starts.shape)
    carried[:, -1] = 0
    grad_a, grad_skip = new(rows, tiles, states, channels), new(rows, tiles, channels)
    grad_b, grad_c = new(blocks, rows, length, states), new(blocks, rows, length, states)
    walk = _walks(u, walk)
    options = {"REVERSE": reverse, "SOFTPLUS": activate, "BIAS": bias is not None}
    options |= _options(width, wide)
    if grad_u.numel():
        with _on(u.device):
            if not walk:
                totals = new(rows, tiles, channels)
                triton_kernels.tile_grad_ends[tiles, blocks, rows](
                    grad_y, low, bias, rates, C, carried, totals, *_strides(grad_y, low, C),
                    length, channels, states, tiles, **options,
                )  # fmt: skip
                _carry(carried, totals, rates, backwards=True)
            triton_kernels.gradients[1 if walk else tiles, blocks, rows](
                grad_y, u, low, bias, rates, B, C, D, starts, carried,
                grad_u, grad_low, grad_a, grad_b, grad_c, grad_skip,
                *_strides(grad_y, u, low, B, C),
                length, channels, states, tiles, tiles if walk else 1,
                SKIP=D is not None, **options,
            )  # fmt: skip
    return (
        grad_u,
        grad_low,
        grad_a.sum(dim=(0, 1)).T.contiguous(),
        grad_b.sum(dim=0),
        grad_c.sum(dim=0),
        grad_skip.sum(dim=(0, 1)),
    )


@scan_backward.register_fake
def _(
    grad_y: Tensor,
    u: Tensor,
    low: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    starts: Tensor,
    activate: bool,
    reverse: bool,
    walk: bool | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def like(of: Tensor) -> Tensor:
        return of.new_empty(of.shape, dtype=starts.dtype)

    return like(u), like(u), like(A), like(B), like(C), like(A[:, 0])


def _save_scan(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.activate, ctx.reverse, ctx.walk = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.set_materialize_grads(False)  # zeros for the starts, as large as u, for nothing


def _scan_gradients(ctx: Any, grad_y: Tensor, _: None) -> tuple[Tensor | None, ...]:
    u, low, bias, A, B, C, D, starts = ctx.saved_tensors
    grad_u, step, grad_a, grad_b, grad_c, grad_d = scan_backward(
        grad_y, u, low, bias, A, B, C, D, starts, ctx.activate, ctx.reverse, ctx.walk
    )
    grad_bias = None if bias is None else step.sum(dim=(0, 1)).to(bias.dtype)
    grad_skip = None if D is None else grad_d.to(D.dtype)
    typed = [grad.to(of.dtype) for grad, of in ((grad_a, A), (grad_b, B), (grad_c, C))]
    return (
        grad_u.to(u.dtype), step.to(low.dtype), grad_bias, *typed, grad_skip, None, None, None
    )  # fmt: skip


scan.register_autograd(_scan_gradients, setup_context=_save_scan)


def _launch_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, reverse: bool, silu: bool
) -> None:
    if y.numel() == 0:
        return
    rows, length, channels = x.shape
    width = _width(channels)
    with _on(x.device):
        triton_convolution.convolve[
            triton.cdiv(length, TILE), triton.cdiv(channels, width), rows
        ](
            x, weight, bias, y, *_strides(x), length, channels,
            TAPS=weight.shape[1], BIAS=bias is not None, SILU=silu, REVERSE=reverse,
            **_options(width, _wide(x, weight, bias)),
        )  # fmt: skip


@_NEW("genebold::triton_convolve", mutates_args=())
def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """Convolve and apply SiLU as `selective_scan.convolve_silu`."""
    x, weight = _rowwise(x), weight.contiguous()
    y = x.new_empty(x.shape)
    _launch_convolution(x, weight, bias, y, reverse, silu=True)
    return y


@convolve.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    return x.new_empty(x.shape)


@_NEW("genebold::triton_convolve_backward", mutates_args=())
def convolve_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias, in the wide type."""
    wide = _wide(x, weight, bias)
    grad_y, x, weight = _rowwise(grad_y), _rowwise(x), weight.contiguous()
    rows, length, channels = x.shape
    taps, tiles, width = weight.shape[1], triton.cdiv(length, TILE), _width(channels)
    grad_sum, grad_x = x.new_empty(x.shape, dtype=wide), x.new_empty(x.shape, dtype=wide)
    grad_weight = x.new_empty((rows, tiles, taps, channels), dtype=wide)
    grad_bias = x.new_empty((rows, tiles, channels), dtype=wide)
    if x.numel():
        with _on(x.device):
            triton_convolution.convolve_gradients[
                tiles, triton.cdiv(channels, width), rows
            ](
                grad_y, x, weight, bias, grad_sum, grad_weight, grad_bias, *_strides(grad_y, x),
                length, channels, tiles,
                TAPS=taps, BIAS=bias is not None, REVERSE=reverse, **_options(width, wide),
            )  # fmt: skip
    # A position's input reaches the sums after it: the same filter, run the other way.
    _launch_convolution(grad_sum, weight, None, grad_x, not reverse, silu=False)
    return grad_x, grad_weight.sum(dim=(0, 1)).T.contiguous(), grad_bias.sum(dim=(0, 1))


@convolve_backward.register_fake
def _(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    wide = _wide(x, weight, bias)
    shapes = x.shape, weight.shape, (x.shape[2],)
    grad_x, grad_weight, grad_bias = (x.new_empty(shape, dtype=wide) for shape in shapes)
    return grad_x, grad_weight, grad_bias


differentiate_convolution(convolve, convolve_backward)
