"""The selective scan in plain torch: one call a position, over as many numbers as pay for a call.

Where a row's channels and states are many, a block of positions is one tile, run through position
by position. Where they are few, it is cut into tiles of equal length that advance together, one
position a step, from zero; their end states, carried from tile to tile, give every tile its true
start; a second pass from there gives the states. So a block of T tiles of K positions takes 2 K + T
steps where the definition takes T K, and each step works on T times the numbers. Decays are only
ever multiplied (each is at most one), never divided by, so that nothing overflows however large the
time steps.

Equal inputs give equal results but for the last bit of a decay, which may depend on where in memory
it lies: torch computes `exp2` of a tensor's last few numbers by other instructions than the rest.

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

MOST_TILES = 32
# A tile of its own: long enough that what is done once a block costs little.
LONG_TILE = 64
# Numbers in one step's states: enough to hide the cost of a call, few enough for the cache.
_STEP_NUMBERS = {"cpu": 2**13, "cuda": 2**21}


def scan(
    x: Float[Tensor, "batch length channel"],
    dt: Float[Tensor, "batch length channel"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch length state"],
    C: Float[Tensor, "batch length state"],
) -> Float[Tensor, "batch length channel"]:
    """Run ``h = exp(dt A) h + B x; y = C h`` over the length, from ``h = 0``."""
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, dt, A, B, C))
    y: Tensor = forward(x, dt, A, B, C, keep)[0]
    return y


class _Steps(NamedTuple):
    """Numbers of a block [K, R, T, N, c], and the view of each position."""

    whole: Tensor
    each: tuple[Tensor, ...]


class _Scratch(threading.local):
    """Memory for one block's states, kept between calls: fresh pages cost more than the sums.

    So are the views of its positions, which cost nearly as much in small blocks.
    """

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self.steps: dict[tuple[str, torch.dtype], _Steps] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor) -> _Steps:
        if like.device.type != "cpu":
            whole = like.new_empty(shape)
            return _Steps(whole, whole.unbind())
        key = name, like.dtype
        kept = self.steps.get(key)
        if kept is None or kept.whole.shape != shape:
            # A tensor born in inference mode could not be written to outside of it.
            with torch.inference_mode(False), torch.no_grad():
                whole = self._buffer(key, math.prod(shape)).view(*shape)
                kept = self.steps[key] = _Steps(whole, whole.unbind())
        return kept

    def _buffer(self, key: tuple[str, torch.dtype], numbers: int) -> Tensor:
        buffer = self.buffers.get(key)
        if buffer is None or len(buffer) < numbers:
            buffer = self.buffers[key] = torch.empty(numbers, dtype=key[1])
        return buffer[:numbers]


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
    tile: int  # positions


@torch.library.custom_op("genebold::torch_scan", mutates_args=())
def forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    """Run `scan`; one operator, so that torch.compile and torch.export need not look inside.

    Returns
    -------
    y : Tensor [B, L, D]
    starts : Tensor [blocks, B, N, D]
        The state before each block, which the backward pass starts from; empty unless `keep`.
    """
    y, starts = x.new_empty(x.shape), x.new_zeros(_starts_shape(x, A, keep))
    state = starts
    for part in _parts(x, A.shape[1]):
        if part.block == 0:
            state = x.new_zeros(x[part.rows].shape[0], A.shape[1], A[part.channels].shape[0])
        if keep:
            starts[part.block, part.rows, :, part.channels] = state
        block = _cut(part, x, dt, A, B, C)
        states, _, _, state = _run(block, state)
        outputs = (block.C.unsqueeze(-2) @ states.whole).squeeze(-2)
        _uncut_into(y, part, outputs)
    return y, starts


@forward.register_fake
def _(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(_starts_shape(x, A, keep))


@torch.library.custom_op("genebold::torch_scan_backward", mutates_args=())
def backward(
    grad_y: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, dt, A, B and C."""
    gx, gdt = x.new_empty(x.shape), dt.new_empty(dt.shape)
    gA, gB, gC = (tensor.new_zeros(tensor.shape) for tensor in (A, B, C))
    grad_state = starts
    last = starts.shape[0] - 1
    for part in _parts(x, A.shape[1], backwards=True):
        start = starts[part.block, part.rows, :, part.channels]
        if part.block == last:
            grad_state = torch.zeros_like(start)
        block = _cut(part, x, dt, A, B, C)
        out = _tile(grad_y[part.rows, part.positions, part.channels], part.tile)
        *own, grad_state = _run_backward(block, start, out, grad_state)
        _uncut_into(gx, part, own[0])
        _uncut_into(gdt, part, own[1])
        gA[part.channels] += own[2].T
        # Every channel chunk adds its share to the projections that all channels use.
        shared = part._replace(channels=slice(None))
        _uncut_into(gB, shared, own[3], add=True)
        _uncut_into(gC, shared, own[4], add=True)
    return gx, gdt, gA, gB, gC


@backward.register_fake
def _(
    grad_y: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gx, gdt, gA, gB, gC = (tensor.new_empty(tensor.shape) for tensor in (x, dt, A, B, C))
    return gx, gdt, gA, gB, gC


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], output[1])
    ctx.set_materialize_grads(False)  # zeros for the starts, for nothing


def _gradients(ctx: Any, grad_y: Tensor, _: None) -> tuple[Tensor | None, ...]:
    return (*backward(grad_y, *ctx.saved_tensors), None)


forward.register_autograd(_gradients, setup_context=_save)


def _run(block: _Block, start: Tensor) -> tuple[_Steps, _Steps, Tensor, Tensor]:
    """Return states [K, R, T, N, c], decays, tile start states [R, T, N, c], the end state."""
    shape = torch.Size((*block.B.shape, block.x.shape[-1]))
    decay = _SCRATCH.take("decay", shape, block.x)
    torch.mul(block.dt.unsqueeze(-2), block.A2, out=decay.whole).exp2_()
    states = _SCRATCH.take("states", shape, block.x)
    torch.mul(block.x.unsqueeze(-2), block.B.unsqueeze(-1), out=states.whole)
    steps = list(zip(states.each, decay.each, strict=True))
    if shape[2] == 1:
        tile_starts, end = start.unsqueeze(1), None
    else:
        tile_starts, end = _tile_starts(block, steps, start)
    state = tile_starts
    for inputs, factor in steps:
        state = torch.addcmul(inputs, factor, state, out=inputs)
    return states, decay, tile_starts, state[:, 0].clone() if end is None else end


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
    grads = _SCRATCH.take("grads", states.whole.shape, block.x)
    torch.mul(block.C.unsqueeze(-1), grad_y.unsqueeze(-2), out=grads.whole)
    state, grad_start = _tile_end_grads(block, grads.each, decay.each, grad_end)
    following = grads.each[-1].add_(state)
    steps = zip(reversed(grads.each[:-1]), reversed(decay.each[1:]), strict=True)
    for inputs, factor in steps:
        following = torch.addcmul(inputs, factor, following, out=inputs)
    # Products and sums: as matrix products with single vectors the same numbers take far longer.
    product = _SCRATCH.take("product", states.whole.shape, block.x).whole
    gC = torch.mul(states.whole, grad_y.unsqueeze(-2), out=product).sum(dim=-1)
    gB = torch.mul(grads.whole, block.x.unsqueeze(-2), out=product).sum(dim=-1)
    gx = (block.B.unsqueeze(-2) @ grads.whole).squeeze(-2)
    if grad_start is None:
        grad_start = (grads.each[0] * decay.each[0])[:, 0]
    exponent = decay.whole.mul_(grads.whole)
    exponent[0] *= tile_starts
    exponent[1:] *= states.whole[:-1]
    gdt = torch.mul(exponent, block.A, out=product).sum(dim=-2)
    gA = exponent.mul_(block.dt.unsqueeze(-2)).sum(dim=(0, 1, 2))
    return gx, gdt, gA, gB, gC, grad_start


def _tile_end_grads(
    block: _Block, inputs: Sequence[Tensor], decay: Sequence[Tensor], grad_end: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Carry state gradients from tile to tile, last to first; also that of the start state.

    A tile alone carries nothing, and gives its start state's gradient in the end.
    """
    if inputs[0].shape[1] == 1:
        return grad_end.unsqueeze(1), None
    before = inputs[-1] * decay[-1]
    for own, factor in zip(reversed(inputs[:-1]), reversed(decay[:-1]), strict=True):
        before.add_(own).mul_(factor)
    whole = (block.dt.sum(dim=0).unsqueeze(-2) * block.A2).exp2_()
    tile_ends = torch.empty_like(before)
    tile_ends[:, -1] = grad_end
    grad_start = torch.empty_like(grad_end)
    targets = [grad_start, *tile_ends.unbind(1)]
    ends = list(enumerate(zip(before.unbind(1), whole.unbind(1), strict=True)))
    for tile, (own, factor) in reversed(ends):
        torch.addcmul(own, factor, targets[tile + 1], out=targets[tile])
    return tile_ends, grad_start


def _cutting(x: Tensor, states: int) -> tuple[int, int, int]:
    """Return channels at a time, tiles a block and positions a tile; the batch has no say in it.

    Few tiles are enough where channels are many. Their length is then about the square root of the
    sequence's, so that both loops are short.
    """
    length, channels = x.shape[1:]
    budget = _STEP_NUMBERS.get(x.device.type, 2**21)
    width = max(1, min(channels, max(32, budget // states)))
    tiles = max(1, min(MOST_TILES, budget // (width * states)))
    if tiles == 1:
        return width, 1, LONG_TILE
    tile = next((size for size in (4, 8, 16) if length <= size * size), 32)
    return width, max(1, min(tiles, -(-length // tile))), tile


def _starts_shape(x: Tensor, A: Tensor, keep: bool) -> tuple[int, ...]:
    _, tiles, tile = _cutting(x, A.shape[1])
    blocks = -(-x.shape[1] // (tiles * tile)) if keep else 0
    return blocks, x.shape[0], A.shape[1], x.shape[2]


def _parts(x: Tensor, states: int, *, backwards: bool = False) -> Iterator[_Part]:
    """Walk rows and channels in chunks, and each chunk's blocks in order (or last to first)."""
    batch, length, channels = x.shape
    width, tiles, tile = _cutting(x, states)
    numbers = _STEP_NUMBERS.get(x.device.type, 2**21)
    height = max(1, numbers // (tiles * width * states))
    block = tiles * tile
    blocks = list(enumerate(range(0, length, block)))
    for row in range(0, batch, height):
        for channel in range(0, channels, width):
            for index, position in reversed(blocks) if backwards else blocks:
                yield _Part(
                    slice(row, row + height),
                    slice(channel, channel + width),
                    slice(position, min(position + block, length)),
                    index,
                    tile,
                )


def _cut(part: _Part, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> _Block:
    rows, channels, positions, _, tile = part
    A = A[channels].T.contiguous()
    return _Block(
        _tile(x[rows, positions, channels], tile),
        _tile(dt[rows, positions, channels], tile),
        A,
        A * math.log2(math.e),
        _tile(B[rows, positions], tile),
        _tile(C[rows, positions], tile),
    )


def _tile(
    values: Float[Tensor, "row length any"], tile: int
) -> Float[Tensor, "position row tile any"]:
    """Cut the length into tiles, positions first; a zero time step at the end changes no state."""
    rows, length, size = values.shape
    if length <= tile:
        return values.transpose(0, 1).unsqueeze(2).contiguous()
    values = torch.nn.functional.pad(values, (0, 0, 0, -length % tile))
    return values.reshape(rows, -1, tile, size).permute(2, 0, 1, 3).contiguous()


def _uncut_into(whole: Tensor, part: _Part, tiles: Tensor, *, add: bool = False) -> None:
    target = whole[part.rows, part.positions, part.channels]
    values = tiles.permute(1, 2, 0, 3).reshape(len(target), -1, target.shape[2])
    values = values[:, : target.shape[1]]
    target.add_(values) if add else target.copy_(values)
