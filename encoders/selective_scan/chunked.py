"""The selective scan in plain torch: tiles side by side, blocks one after the other.

A block is cut into tiles of equal length. All tiles advance together, one position a step, from
zero; their end states, carried from tile to tile, give every tile its true start; a second pass
from there gives the states. So a block of T tiles of K positions takes 2 K + T steps where the
definition takes T K, and each step works on T times the numbers. Decays are only ever multiplied
(each is at most one), never divided by, so that nothing overflows however large the time steps.

Memory is bounded: states of one block, a few rows and some channels are all that exists at a
time, in the backward pass too, which keeps one state a block and recomputes the rest.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_TILES = 32
# Numbers in one step's states: enough to hide the cost of a call, few enough for the cache.
_STEP_NUMBERS = {"cpu": 2**15, "cuda": 2**21}


def scan(
    x: Float[Tensor, "batch length channel"],
    dt: Float[Tensor, "batch length channel"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch length state"],
    C: Float[Tensor, "batch length state"],
) -> Float[Tensor, "batch length channel"]:
    """Run ``h = exp(dt A) h + B x; y = C h`` over the length, from ``h = 0``."""
    y: Tensor = _Scan.apply(x, dt, A, B, C)
    return y


class _Scratch(threading.local):
    """Memory for one block's states, kept between calls: fresh pages cost more than the sums."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        # What a traced run leaves here would be no memory, and wrong numbers in every later run.
        if like.device.type != "cpu" or torch.compiler.is_compiling():
            return like.new_empty(shape)
        numbers = math.prod(shape)
        buffer = self.buffers.get((name, like.dtype))
        if buffer is None or len(buffer) < numbers:
            # A tensor born in inference mode could not be written to outside of it.
            with torch.inference_mode(False):
                buffer = torch.empty(numbers, dtype=like.dtype)
            self.buffers[name, like.dtype] = buffer
        return buffer[:numbers].view(*shape)


_SCRATCH = _Scratch()


class _Block(NamedTuple):
    """One block of rows and channels, cut into tiles: K positions, R rows, T tiles, channels c."""

    x: Tensor  # [K, R, T, c]
    dt: Tensor  # [K, R, T, c]
    A: Tensor  # [N, c]
    A2: Tensor  # [N, c], A over log 2: torch's exp2 is several times faster than its exp on CPUs
    B: Tensor  # [K, R, T, N]
    C: Tensor  # [K, R, T, N]


class _Part(NamedTuple):
    """Where a block lies in the whole."""

    rows: slice
    channels: slice
    positions: slice
    block: int


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        y = torch.empty_like(x)
        keep = any(ctx.needs_input_grad)
        blocks = max(1, -(-x.shape[1] // _block_length(x.shape[1])))
        starts = x.new_zeros((blocks if keep else 1), x.shape[0], A.shape[1], x.shape[2])
        state = starts[0]
        for part in _parts(x, A.shape[1]):
            if part.block == 0:
                state = x.new_zeros(x[part.rows].shape[0], A.shape[1], A[part.channels].shape[0])
            if keep:
                starts[part.block, part.rows, :, part.channels] = state
            block = _cut(part, x, dt, A, B, C)
            states, _, _, state = _run(block, state)
            outputs = (block.C.unsqueeze(-2) @ states).squeeze(-2)
            _uncut_into(y, part, outputs)
        if keep:
            ctx.save_for_backward(x, dt, A, B, C, starts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
        x, dt, A, B, C, starts = ctx.saved_tensors
        grads = [torch.zeros_like(tensor) for tensor in (x, dt, A, B, C)]
        grad_state = starts[0]
        last = starts.shape[0] - 1
        for part in _parts(x, A.shape[1], backwards=True):
            start = starts[part.block, part.rows, :, part.channels]
            if part.block == last:
                grad_state = torch.zeros_like(start)
            block = _cut(part, x, dt, A, B, C)
            out = _tile(grad_y[part.rows, part.positions, part.channels])
            gx, gdt, gA, gB, gC, grad_state = _run_backward(block, start, out, grad_state)
            _uncut_into(grads[0], part, gx)
            _uncut_into(grads[1], part, gdt)
            grads[2][part.channels] += gA.T
            # Every channel chunk adds its share to the projections that all channels use.
            shared = part._replace(channels=slice(None))
            _uncut_into(grads[3], shared, gB, add=True)
            _uncut_into(grads[4], shared, gC, add=True)
        return tuple(grads)


def _run(block: _Block, start: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return states [K, R, T, N, c], decays, tile start states [R, T, N, c], the end state."""
    shape = (*block.B.shape, block.x.shape[-1])
    decay = _SCRATCH.take("decay", shape, block.x)
    torch.mul(block.dt.unsqueeze(-2), block.A2, out=decay).exp2_()
    states = _SCRATCH.take("states", shape, block.x)
    torch.mul(block.x.unsqueeze(-2), block.B.unsqueeze(-1), out=states)
    steps = list(zip(states.unbind(), decay.unbind(), strict=True))
    tile_starts, end = _tile_starts(block, steps, start)
    state = tile_starts
    for inputs, factor in steps:
        state = torch.addcmul(inputs, factor, state, out=inputs)
    return states, decay, tile_starts, end


def _tile_starts(
    block: _Block, steps: list[tuple[Tensor, Tensor]], start: Tensor
) -> tuple[Tensor, Tensor]:
    """Carry the state from tile to tile; give the state before each tile, and after the last."""
    ends = steps[0][0].clone()
    for inputs, factor in steps[1:]:
        torch.addcmul(inputs, factor, ends, out=ends)
    whole = (block.dt.sum(dim=0).unsqueeze(-2) * block.A2).exp2_()
    tile_starts = torch.empty_like(ends)
    tile_starts[:, 0] = start
    end = torch.empty_like(start)
    targets = [*tile_starts.unbind(1), end]
    for tile, (own, factor) in enumerate(zip(ends.unbind(1), whole.unbind(1), strict=True)):
        torch.addcmul(own, factor, targets[tile], out=targets[tile + 1])
    return tile_starts, end


def _run_backward(
    block: _Block, start: Tensor, grad_y: Tensor, grad_end: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of x, dt, A, B, C of a block and of its start state."""
    states, decay, tile_starts, _ = _run(block, start)
    grads = _SCRATCH.take("grads", states.shape, states)
    torch.mul(block.C.unsqueeze(-1), grad_y.unsqueeze(-2), out=grads)
    state, grad_start = _tile_end_grads(block, grads, decay, grad_end)
    grads[-1] += state
    for position in range(len(grads) - 2, -1, -1):
        following = position + 1
        torch.addcmul(grads[position], decay[following], grads[following], out=grads[position])
    gC = (states @ grad_y.unsqueeze(-1)).squeeze(-1)
    gB = (grads @ block.x.unsqueeze(-1)).squeeze(-1)
    gx = (block.B.unsqueeze(-2) @ grads).squeeze(-2)
    exponent = decay.mul_(grads)
    exponent[0] *= tile_starts
    exponent[1:] *= states[:-1]
    gA = torch.einsum("krtnc,krtc->nc", exponent, block.dt)
    gdt = torch.einsum("krtnc,nc->krtc", exponent, block.A)
    return gx, gdt, gA, gB, gC, grad_start


def _tile_end_grads(
    block: _Block, inputs: Tensor, decay: Tensor, grad_end: Tensor
) -> tuple[Tensor, Tensor]:
    """Carry state gradients from tile to tile, last to first; also that of the start state."""
    before = inputs[-1] * decay[-1]
    for position in range(len(inputs) - 2, -1, -1):
        before.add_(inputs[position]).mul_(decay[position])
    whole = (block.dt.sum(dim=0).unsqueeze(-2) * block.A2).exp2_()
    tile_ends = torch.empty_like(before)
    tile_ends[:, -1] = grad_end
    grad_start = torch.empty_like(grad_end)
    targets = [grad_start, *tile_ends.unbind(1)]
    steps = list(enumerate(zip(before.unbind(1), whole.unbind(1), strict=True)))
    for tile, (own, factor) in reversed(steps):
        torch.addcmul(own, factor, targets[tile + 1], out=targets[tile])
    return tile_ends, grad_start


def _tile_length(length: int) -> int:
    """Positions a tile: about the square root of the length, so that both loops are short."""
    return next((size for size in (4, 8, 16) if length <= size * size), 32)


def _block_length(length: int) -> int:
    return _tile_length(length) * BLOCK_TILES


def _parts(x: Tensor, states: int, *, backwards: bool = False) -> Iterator[_Part]:
    """Walk rows and channels in chunks, and each chunk's blocks in order (or last to first)."""
    batch, length, channels = x.shape
    block = _block_length(length)
    tiles = max(1, min(BLOCK_TILES, -(-length // _tile_length(length))))
    budget = max(1, _STEP_NUMBERS.get(x.device.type, 2**21) // (tiles * states))
    width = min(channels, max(32, budget))
    height = max(1, budget // width)
    blocks = list(enumerate(range(0, length, block)))
    for row in range(0, batch, height):
        for channel in range(0, channels, width):
            for index, position in reversed(blocks) if backwards else blocks:
                yield _Part(
                    slice(row, row + height),
                    slice(channel, channel + width),
                    slice(position, min(position + block, length)),
                    index,
                )


def _cut(part: _Part, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> _Block:
    rows, channels, positions, _ = part
    A = A[channels].T.contiguous()
    return _Block(
        _tile(x[rows, positions, channels]),
        _tile(dt[rows, positions, channels]),
        A,
        A * math.log2(math.e),
        _tile(B[rows, positions]),
        _tile(C[rows, positions]),
    )


def _tile(values: Float[Tensor, "row length any"]) -> Float[Tensor, "position row tile any"]:
    """Cut the length into tiles, positions first; a zero time step at the end changes no state."""
    rows, length, size = values.shape
    tile = _tile_length(length)
    values = torch.nn.functional.pad(values, (0, 0, 0, -length % tile))
    return values.reshape(rows, -1, tile, size).permute(2, 0, 1, 3).contiguous()


def _uncut_into(whole: Tensor, part: _Part, tiles: Tensor, *, add: bool = False) -> None:
    target = whole[part.rows, part.positions, part.channels]
    values = tiles.permute(1, 2, 0, 3).reshape(len(target), -1, target.shape[2])
    values = values[:, : target.shape[1]]
    target.add_(values) if add else target.copy_(values)
