"""The short causal convolution for NVIDIA GPUs: Triton kernels, launched from `gpu`."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, operator, assignment"

import triton
import triton.language as tl

# As in triton_kernels: a channel a thread, its positions in registers.
_AS_THEY_COME = (
    "channels", "length", "tiles", "grad_y_row", "grad_y_position", "x_row", "x_position",
)  # fmt: skip


@triton.jit
def _summed(
    x_at, weight_at, bias_at, at, index, column, x_position, length, channels,
    TAPS: tl.constexpr, BIAS: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Convolve at [T] positions and [c] channels."""
    here = column < channels
    total = tl.zeros([at.shape[0], column.shape[0]], WIDE)
    if BIAS:
        total += tl.load(bias_at + column, mask=here, other=0.0).to(WIDE)[None, :]
    for tap in range(TAPS):
        behind = TAPS - 1 - tap
        inside = ((index >= behind) & (index < length))[:, None] & here[None, :]
        before = at + behind if REVERSE else at - behind
        where = x_at + before[:, None] * x_position + column[None, :]
        weight = tl.load(weight_at + column * TAPS + tap, mask=here, other=0.0).to(WIDE)
        total += weight[None, :] * tl.load(where, mask=inside, other=0.0).to(WIDE)
    return total


@triton.jit(do_not_specialize=_AS_THEY_COME)
def convolve(
    x_at, weight_at, bias_at, y_at, x_row, x_position, length, channels,
    TAPS: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
    WIDE: tl.constexpr, T: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Convolve a tile and apply SiLU, both rounded to the type of y."""
    row = tl.program_id(2).to(tl.int64)
    index = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    at = length - 1 - index if REVERSE else index
    out = _summed(
        x_at + row * x_row, weight_at, bias_at, at, index, column, x_position, length, channels,
        TAPS, BIAS, REVERSE, WIDE,
    )  # fmt: skip
    if SILU:
        out = out.to(y_at.dtype.element_ty).to(WIDE)
        out = out / (1.0 + tl.exp(-out))
    inside = (index < length)[:, None] & (column < channels)[None, :]
    where = y_at + (row * length + at)[:, None] * channels + column[None, :]
    tl.store(where, out.to(y_at.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_AS_THEY_COME)
def convolve_gradients(
    grad_y_at, x_at, weight_at, bias_at, grad_sum_at, grad_weight_at, grad_bias_at,
    grad_y_row, grad_y_position, x_row, x_position, length, channels, tiles,
    TAPS: tl.constexpr, BIAS: tl.constexpr, REVERSE: tl.constexpr,
    WIDE: tl.constexpr, T: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Differentiate SiLU; write the gradient of the sums, and a tile's share of the weights'."""
    tile, row = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    index = tile * T + tl.arange(0, T)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    here = column < channels
    at = length - 1 - index if REVERSE else index
    out = _summed(
        x_at + row * x_row, weight_at, bias_at, at, index, column, x_position, length, channels,
        TAPS, BIAS, REVERSE, WIDE,
    ).to(x_at.dtype.element_ty).to(WIDE)  # fmt: skip
    inside = (index < length)[:, None] & here[None, :]
    where = grad_y_at + row * grad_y_row + at[:, None] * grad_y_position + column[None, :]
    grad_y = tl.load(where, mask=inside, other=0.0).to(WIDE)
    gate = 1.0 / (1.0 + tl.exp(-out))
    grad = grad_y * gate * (1.0 + out * (1.0 - gate))
    tl.store(grad_sum_at + (row * length + at)[:, None] * channels + column[None, :], grad, inside)
    share = row * tiles + tile
    tl.store(grad_bias_at + share * channels + column, tl.sum(grad, axis=0), mask=here)
    for tap in range(TAPS):
        behind = TAPS - 1 - tap
        before = at + behind if REVERSE else at - behind
        shifted = x_at + row * x_row + before[:, None] * x_position + column[None, :]
        x = tl.load(shifted, mask=inside & (index >= behind)[:, None], other=0.0).to(WIDE)
        own = grad_weight_at + (share * TAPS + tap) * channels + column
        tl.store(own, tl.sum(grad * x, axis=0), mask=here)
