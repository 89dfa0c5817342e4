"""The selective scan for NVIDIA GPUs: Triton kernels, launched from `gpu`.

The length is cut into tiles. A program holds one tile of positions and channels [T, c] and goes
through the states one by one, scanning each over the tile's positions in registers. Between tiles
travel the states, in ``starts`` [B, tiles + 1, N, D]: slot k is the state before tile k. There are
two ways to make them. Either a program walks through all tiles of its row and channels in turn
(few programs, every decay computed once), or three passes run with a program for each tile (many
programs, decays twice): states that tiles end in when they start from zero, their accumulation
from tile to tile, and the outputs. The backward pass does the same from the end with the gradients
of the states.

Everything is computed in WIDE (float32, or float64 where the inputs are), whatever is read and
written. Positions are counted along the scan: in reverse, position 0 is the last of the sequence.
"""

# Kernels name their arguments as the paper does, and Triton wants the types it compiles for.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, operator, assignment"

import triton
import triton.language as tl

# Were rows known to be aligned, a thread would read several channels at once, and the positions of
# a tile would be spread over threads; so each thread has a channel, and scans in its registers.
_AS_THEY_COME = (
    "channels", "length", "tiles",
    "grad_y_row", "u_row", "low_row", "b_row", "c_row",
    "grad_y_position", "u_position", "low_position", "b_position", "c_position",
)  # fmt: skip

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _after(left_decay, left, right_decay, right):
    """Compose two stretches of ``h -> decay h + value``, first the left one."""
    return right_decay * left_decay, right_decay * left + right


@triton.jit
def _after_with_carried(left_decay, left, left_carried, right_decay, right, right_carried):
    """Compose as `_after`, and also give the value without the last position's own input."""
    carried = right_decay * left
    return right_decay * left_decay, carried + right, carried + right_carried


@triton.jit
def _log1p(x):
    # Exact to rounding for small x too, where log(1 + x) alone is not.
    one_more = 1.0 + x
    tiny = one_more == 1.0
    return tl.where(tiny, x, tl.log(one_more) * (x / tl.where(tiny, 1.0, one_more - 1.0)))


@triton.jit
def _time_steps(low, bias, inside, SOFTPLUS: tl.constexpr):
    """Make time steps [T, c] of what was projected; none outside, which leaves states alone."""
    steps = low + bias[None, :]
    if SOFTPLUS:
        steps = tl.maximum(steps, 0.0) + _log1p(tl.exp(-tl.abs(steps)))
    return tl.where(inside, steps, 0.0)


@triton.jit
def _load(where, rows, row_stride, columns, inside, WIDE: tl.constexpr):
    """Read [T, c], zero outside; neighbours in memory are neighbouring channels."""
    at = where + rows[:, None] * row_stride + columns[None, :]
    return tl.load(at, mask=inside, other=0.0).to(WIDE)


@triton.jit
def _positions(index, length, REVERSE: tl.constexpr):
    """Turn positions along the scan into positions in memory."""
    return length - 1 - index if REVERSE else index


@triton.jit
def _next_steps(
    low_at, low_position, index, column, bias, length, channels,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, WIDE: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Give the time steps of the positions after those of a tile, none after its last."""
    followed = (index + 1 < length) & (tl.arange(0, T) < T - 1)
    inside = followed[:, None] & (column < channels)[None, :]
    at = _positions(index + 1, length, REVERSE)
    low = _load(low_at, at, low_position, column, inside, WIDE)
    return _time_steps(low, bias, inside, SOFTPLUS)


@triton.jit(do_not_specialize=_AS_THEY_COME)
def tile_ends(
    u_at, low_at, bias_at, a_at, b_at, starts_at, totals_at,
    u_row, u_position, low_row, low_position, b_row, b_position,
    length, channels, states, tiles,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, BIAS: tl.constexpr, WIDE: tl.constexpr,
    T: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Write the state each tile ends in from zero into slot k + 1, and its sum of time steps."""
    tile, row = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    index, column = tile * T + tl.arange(0, T), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    here, kept = column < channels, index < length
    inside, at = kept[:, None] & here[None, :], _positions(index, length, REVERSE)
    bias = tl.zeros([WIDTH], WIDE)
    if BIAS:
        bias = tl.load(bias_at + column, mask=here, other=0.0).to(WIDE)
    low = _load(low_at + row * low_row, at, low_position, column, inside, WIDE)
    dt = _time_steps(low, bias, inside, SOFTPLUS)
    x = dt * _load(u_at + row * u_row, at, u_position, column, inside, WIDE)
    own_total = totals_at + (row * tiles + tile) * channels + column
    tl.store(own_total, tl.sum(dt, axis=0), mask=here)
    dt_next = _next_steps(
        low_at + row * low_row, low_position, index, column, bias, length, channels,
        REVERSE, SOFTPLUS, WIDE, T,
    )  # fmt: skip
    # Not the total less what has passed: a large step would take the digits of small ones.
    later = tl.cumsum(dt_next, axis=0, reverse=True)
    slot = starts_at + (row * (tiles + 1) + tile + 1) * states * channels + column
    for n in range(states):
        rate = tl.load(a_at + n * channels + column, mask=here, other=0.0).to(WIDE) * LOG2_E
        b = tl.load(b_at + row * b_row + at * b_position + n, mask=kept, other=0.0).to(WIDE)
        end = tl.sum(tl.exp2(later * rate[None, :]) * (x * b[:, None]), axis=0)
        tl.store(slot + n * channels, end, mask=here)


@triton.jit(do_not_specialize=_AS_THEY_COME)
def tile_grad_ends(
    grad_y_at, low_at, bias_at, a_at, c_at, grads_at, totals_at,
    grad_y_row, grad_y_position, low_row, low_position, c_row, c_position,
    length, channels, states, tiles,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, BIAS: tl.constexpr, WIDE: tl.constexpr,
    T: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Write each tile's own gradient of its start state into slot k, and its sum of time steps."""
    tile, row = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    index, column = tile * T + tl.arange(0, T), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    here, kept = column < channels, index < length
    inside, at = kept[:, None] & here[None, :], _positions(index, length, REVERSE)
    bias = tl.zeros([WIDTH], WIDE)
    if BIAS:
        bias = tl.load(bias_at + column, mask=here, other=0.0).to(WIDE)
    low = _load(low_at + row * low_row, at, low_position, column, inside, WIDE)
    dt = _time_steps(low, bias, inside, SOFTPLUS)
    passed = tl.cumsum(dt, axis=0)
    own_total = totals_at + (row * tiles + tile) * channels + column
    tl.store(own_total, tl.sum(dt, axis=0), mask=here)
    grad_y = _load(grad_y_at + row * grad_y_row, at, grad_y_position, column, inside, WIDE)
    slot = grads_at + (row * (tiles + 1) + tile) * states * channels + column
    for n in range(states):
        rate = tl.load(a_at + n * channels + column, mask=here, other=0.0).to(WIDE) * LOG2_E
        c = tl.load(c_at + row * c_row + at * c_position + n, mask=kept, other=0.0).to(WIDE)
        first = tl.sum(tl.exp2(passed * rate[None, :]) * (grad_y * c[:, None]), axis=0)
        tl.store(slot + n * channels, first, mask=here)


@triton.jit(do_not_specialize=_AS_THEY_COME)
def carry(
    values_at, totals_at, a_at, channels, states, tiles,
    BACKWARDS: tl.constexpr, WIDE: tl.constexpr, T: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Accumulate the slots of one state in place, from first to last or from last to first."""
    n, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    here = column < channels
    rate = tl.load(a_at + n * channels + column, mask=here, other=0.0).to(WIDE) * LOG2_E
    slots = values_at + (row * (tiles + 1) * states + n) * channels
    last = tl.arange(0, T)[:, None] == T - 1
    carried = tl.zeros([WIDTH], WIDE)
    for first in range(0, tiles, T):
        index = first + tl.arange(0, T).to(tl.int64)
        inside = (index < tiles)[:, None] & here[None, :]
        tile = tiles - 1 - index if BACKWARDS else index
        slot = tile if BACKWARDS else tile + 1
        at = slots + (slot * states * channels)[:, None] + column[None, :]
        own = tl.load(at, mask=inside, other=0.0)
        total = _load(totals_at + row * tiles * channels, tile, channels, column, inside, WIDE)
        decay = tl.exp2(total * rate[None, :])
        decay, own = tl.associative_scan((decay, own), 0, _after)
        own += decay * carried[None, :]
        tl.store(at, own, mask=inside)
        carried = tl.sum(tl.where(last, own, 0.0), axis=0)


@triton.jit(do_not_specialize=_AS_THEY_COME)
def outputs(
    u_at, low_at, bias_at, a_at, b_at, c_at, skip_at, starts_at, y_at,
    u_row, u_position, low_row, low_position, b_row, b_position, c_row, c_position,
    length, channels, states, tiles, tiles_each,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, BIAS: tl.constexpr, SKIP: tl.constexpr,
    WIDE: tl.constexpr, T: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Scan tiles from their start states; with more than one a program, hand the states on."""
    row = tl.program_id(2).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    here = column < channels
    bias = tl.zeros([WIDTH], WIDE)
    if BIAS:
        bias = tl.load(bias_at + column, mask=here, other=0.0).to(WIDE)
    last = tl.arange(0, T)[:, None] == T - 1
    first_tile = tl.program_id(0).to(tl.int64) * tiles_each
    for tile in range(first_tile, tl.minimum(first_tile + tiles_each, tiles)):
        index = tile * T + tl.arange(0, T)
        kept = index < length
        inside, at = kept[:, None] & here[None, :], _positions(index, length, REVERSE)
        low = _load(low_at + row * low_row, at, low_position, column, inside, WIDE)
        dt = _time_steps(low, bias, inside, SOFTPLUS)
        u = _load(u_at + row * u_row, at, u_position, column, inside, WIDE)
        x = dt * u
        y = tl.zeros([T, WIDTH], WIDE)
        if SKIP:
            y += u * tl.load(skip_at + column, mask=here, other=0.0).to(WIDE)[None, :]
        slot = starts_at + (row * (tiles + 1) + tile) * states * channels + column
        for n in range(states):
            rate = tl.load(a_at + n * channels + column, mask=here, other=0.0).to(WIDE) * LOG2_E
            b = tl.load(b_at + row * b_row + at * b_position + n, mask=kept, other=0.0).to(WIDE)
            c = tl.load(c_at + row * c_row + at * c_position + n, mask=kept, other=0.0).to(WIDE)
            start = tl.load(slot + n * channels, mask=here, other=0.0)
            decay, h = tl.associative_scan((tl.exp2(dt * rate[None, :]), x * b[:, None]), 0, _after)
            h += decay * start[None, :]
            y += c[:, None] * h
            if tiles_each > 1:
                end = tl.sum(tl.where(last, h, 0.0), axis=0)
                tl.store(slot + (states + n) * channels, end, mask=here)
        where = y_at + (row * length + at)[:, None] * channels + column[None, :]
        tl.store(where, y.to(y_at.dtype.element_ty), mask=inside)
        # The next tile's states were written by other threads of this program.
        tl.debug_barrier()


@triton.jit(do_not_specialize=_AS_THEY_COME)
def gradients(
    grad_y_at, u_at, low_at, bias_at, a_at, b_at, c_at, skip_at, starts_at, grads_at,
    grad_u_at, grad_low_at, grad_a_at, grad_b_at, grad_c_at, grad_skip_at,
    grad_y_row, grad_y_position, u_row, u_position, low_row, low_position,
    b_row, b_position, c_row, c_position,
    length, channels, states, tiles, tiles_each,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, BIAS: tl.constexpr, SKIP: tl.constexpr,
    WIDE: tl.constexpr, T: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Differentiate tiles, last to first; those of B and C are left as one share a channel block.

    ``grads`` [B, tiles + 1, N, D] holds the gradient of the state before each tile, and zero last.
    """
    row, block = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    column = block * WIDTH + tl.arange(0, WIDTH)
    here = column < channels
    bias = tl.zeros([WIDTH], WIDE)
    if BIAS:
        bias = tl.load(bias_at + column, mask=here, other=0.0).to(WIDE)
    skip = tl.zeros([WIDTH], WIDE)
    if SKIP:
        skip = tl.load(skip_at + column, mask=here, other=0.0).to(WIDE)
    first = tl.arange(0, T)[:, None] == 0
    first_tile = tl.program_id(0).to(tl.int64) * tiles_each
    end_tile = tl.minimum(first_tile + tiles_each, tiles)
    for back in range(end_tile - first_tile):
        tile = end_tile - 1 - back
        index = tile * T + tl.arange(0, T)
        kept = index < length
        inside, at = kept[:, None] & here[None, :], _positions(index, length, REVERSE)
        low = _load(low_at + row * low_row, at, low_position, column, inside, WIDE)
        dt = _time_steps(low, bias, inside, SOFTPLUS)
        dt_next = _next_steps(
            low_at + row * low_row, low_position, index, column, bias, length, channels,
            REVERSE, SOFTPLUS, WIDE, T,
        )  # fmt: skip
        u = _load(u_at + row * u_row, at, u_position, column, inside, WIDE)
        grad_y = _load(grad_y_at + row * grad_y_row, at, grad_y_position, column, inside, WIDE)
        x = dt * u
        grad_x, grad_dt = tl.zeros([T, WIDTH], WIDE), tl.zeros([T, WIDTH], WIDE)
        slot = (row * (tiles + 1) + tile) * states * channels + column
        for n in range(states):
            a = tl.load(a_at + n * channels + column, mask=here, other=0.0).to(WIDE)
            rate = a * LOG2_E
            b = tl.load(b_at + row * b_row + at * b_position + n, mask=kept, other=0.0).to(WIDE)
            c = tl.load(c_at + row * c_row + at * c_position + n, mask=kept, other=0.0).to(WIDE)
            start = tl.load(starts_at + slot + n * channels, mask=here, other=0.0)
            decay = tl.exp2(dt * rate[None, :])
            own = x * b[:, None]
            passed, h, carried = tl.associative_scan(
                (decay, own, tl.zeros_like(own)), 0, _after_with_carried
            )
            h += passed * start[None, :]
            carried += passed * start[None, :]
            coming = tl.load(grads_at + slot + (states + n) * channels, mask=here, other=0.0)
            to_come, grad_h = tl.associative_scan(
                (tl.exp2(dt_next * rate[None, :]), grad_y * c[:, None]), 0, _after, reverse=True
            )
            grad_h += to_come * coming[None, :]
            grad_x += grad_h * b[:, None]
            exponent = grad_h * carried
            grad_dt += exponent * a[None, :]
            share = ((block * tl.num_programs(2) + row) * length + at) * states + n
            tl.store(grad_c_at + share, tl.sum(grad_y * h, axis=1), mask=kept)
            tl.store(grad_b_at + share, tl.sum(grad_h * x, axis=1), mask=kept)
            own_a = grad_a_at + ((row * tiles + tile) * states + n) * channels + column
            tl.store(own_a, tl.sum(exponent * dt, axis=0), mask=here)
            if tiles_each > 1:
                before = tl.sum(tl.where(first, grad_h * decay, 0.0), axis=0)
                tl.store(grads_at + slot + n * channels, before, mask=here)
        grad_dt += grad_x * u
        if SOFTPLUS:
            grad_dt /= 1.0 + tl.exp(-(low + bias[None, :]))
        where = (row * length + at)[:, None] * channels + column[None, :]
        tl.store(grad_low_at + where, grad_dt, mask=inside)
        tl.store(grad_u_at + where, grad_x * dt + grad_y * skip[None, :], mask=inside)
        own_skip = grad_skip_at + (row * tiles + tile) * channels + column
        tl.store(own_skip, tl.sum(grad_y * u, axis=0), mask=here)
        # The previous tile's gradients were written by other threads of this program.
        tl.debug_barrier()
