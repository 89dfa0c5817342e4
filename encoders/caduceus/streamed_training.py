"""Caduceus' layers in training, tile by tile: the layers' inputs are all that is kept.

The layers are those of `encoders.caduceus.streamed`, and forwards they run as there. Backwards, a
layer is first read again, which leaves its inner input, what its readers gave, and their states
every few positions. Then the two readers go back, each from the end it has come to. Of the two that
visit a tile, the first takes the gradient through the output projection and the gate, the second
through the input projection and the norm, and both through their scan and their convolution.

Which of them is the first is settled beforehand, by the tile's place, and every sum is taken in an
order of its own: gradients do not depend on the number of threads, bit by bit.
"""

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from encoders.caduceus.layers import (
    BiMamba,
    Block,
    RcBlock,
    bare_norm,
    join_strands,
    mixer_of,
    stack_strands,
    swap_halves,
)
from encoders.caduceus.scratch import Scratch
from encoders.caduceus.stream_layers import StreamLayer
from encoders.caduceus.streamed import LONG, Stream, is_changed, tile_of, windows_together
from encoders.caduceus.streamed_back import Back, Sums
from encoders.caduceus.workers import alone, run_all
from encoders.large_pages import in_large_pages
from encoders.mamba import Reading
from encoders.selective_scan import backend_for
from encoders.selective_scan.library import KEPT_EVERY, MAX_TAPS

# As for inference; longer, since every tile ends in sums over gradients as large as the weights.
TILE_NUMBERS = 2**20
# Gradients of the weights are summed in so many places side by side, and then with one another.
LANES = 16


def can_train_streamed(layers: nn.ModuleList, total: Tensor) -> bool:
    """Tell whether `add_up_streamed` does here and now what running the layers would do.

    It takes the native kernels and float32 throughout. As for inference
    (`encoders.caduceus.streamed.can_stream`) nothing may trace the layers or listen to them, nor
    may they have been replaced, and two directions share their projections and are added.

    Parameters
    ----------
    layers : nn.ModuleList of Block or RcBlock
    total : Tensor [B, L, width]
        What the first layer takes.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    values = [total, *layers.parameters()]
    if type(total) not in (Tensor, nn.Parameter):
        return False
    if any(value.dtype != torch.float32 or value.device.type != "cpu" for value in values):
        return False
    if total.shape[1] == 0 or backend_for(total.device, total.dtype) != "cpu":
        return False
    return not is_changed(layers) and all(_is_known(layer) for layer in layers)


def _is_known(layer: nn.Module) -> bool:
    if not isinstance(layer, Block | RcBlock):
        return False
    mixer = mixer_of(layer)
    taps = mixer.mamba_fwd.ssm.d_conv
    return (mixer.added_once or mixer.mamba_rev is None) and taps <= MAX_TAPS


def add_up_streamed(
    layers: nn.ModuleList, total: Float[Tensor, "batch length width"], *, rcps: bool, fused: bool
) -> Float[Tensor, "batch length width"]:
    """Return the sum of hidden state and residual behind the last layer.

    Parameters
    ----------
    layers : nn.ModuleList of Block or RcBlock
    total : Tensor [B, L, D], or [B, L, 2 D] with RC parameter sharing
    rcps, fused : bool
        Whether the layers share parameters between strands, and exchange the halves.

    Returns
    -------
    Tensor
        As `total`; differentiable once in it and in the layers' parameters.
    """
    folds = rcps and fused
    turned = folds and len(layers) % 2 == 1
    streams = total
    if rcps:
        streams = stack_strands(swap_halves(total) if turned else total)
    forwards, room = Scratch(), _Room()
    for index, layer in enumerate(layers):
        assert isinstance(layer, Block | RcBlock)
        flipped = folds and (len(layers) - 1 - index) % 2 == 1
        weights = Weights(bare_norm(layer.norm), mixer_of(layer), flipped, index)
        parameters = weights.named.values()
        streams = _Layer.apply(streams, weights, forwards, room, *parameters)
    return join_strands(streams) if rcps else streams


class _Room:
    """The memory of one way back through all layers."""

    def __init__(self) -> None:
        self._scratch: Scratch | None = None

    def take(self) -> Scratch:
        """Return the memory, new where a way back begins."""
        if self._scratch is None:
            self._scratch = Scratch()
        return self._scratch

    def leave(self) -> None:
        """Give it back: the graph may outlive the way back."""
        self._scratch = None


class Weights:
    """A layer's parameters in one row, and the layer that streams run through.

    Parameters
    ----------
    norm, mixer, flipped
        As `encoders.caduceus.stream_layers.StreamLayer` takes them.
    index : int
        Layers before it.
    """

    def __init__(self, norm: Any, mixer: BiMamba, flipped: bool, index: int) -> None:
        self.index = index
        with torch.no_grad():
            self.layer = StreamLayer(norm, mixer, flipped)
        self.flipped = flipped
        mamba = mixer.mamba_fwd
        self.named: dict[str, Tensor] = {
            "norm": norm.weight, "inputs": mamba.in_proj.weight, "outputs": mamba.out_proj.weight,
        }  # fmt: skip
        self._add("norm_bias", getattr(norm, "bias", None))
        self._add("inputs_bias", mamba.in_proj.bias)
        self._add("outputs_bias", mamba.out_proj.bias)
        self._add_reading(0, mamba.readings[0])
        if mixer.mamba_rev is not None:
            self._add_reading(1, mixer.mamba_rev.readings[0])

    def _add(self, name: str, value: Tensor | None) -> None:
        if value is not None:
            self.named[name] = value

    def _add_reading(self, number: int, reading: Reading) -> None:
        self._add(f"taps{number}", reading.conv1d.weight)
        self._add(f"taps_bias{number}", reading.conv1d.bias)
        self._add(f"projection{number}", reading.x_proj.weight)
        self._add(f"steps{number}", reading.dt_proj.weight)
        self._add(f"steps_bias{number}", reading.dt_proj.bias)
        self._add(f"A{number}", reading.A_log)
        self._add(f"D{number}", reading.D)


class _Layer(torch.autograd.Function):
    """Residuals [S, L, D] of any number of streams through one layer."""

    @staticmethod
    def forward(
        ctx: Any,
        streams: Tensor,
        weights: Weights,
        forwards: Scratch,
        room: _Room,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.weights, ctx.room = weights, room
        ctx.comes_after_others = weights.index > 0 and ctx.needs_input_grad[0]
        ctx.save_for_backward(streams, *parameters)
        out = in_large_pages(torch.empty_like(streams, memory_format=torch.contiguous_format))
        _forwards(streams, out, weights.layer, forwards)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Read for the check that nothing was changed in place since.
        streams, *parameters = ctx.saved_tensors
        weights: Weights = ctx.weights
        wanted = dict(zip(weights.named, ctx.needs_input_grad[4:], strict=True))
        room: _Room = ctx.room
        found_streams, found = _backwards(streams, grad.contiguous(), weights, wanted, room.take())
        if not ctx.comes_after_others:
            room.leave()
        named: list[Tensor | None] = []
        for name, parameter in zip(weights.named, parameters, strict=True):
            if not wanted[name]:
                named.append(None)
            elif name in found:
                named.append(found[name].reshape(parameter.shape))
            else:  # of no streams at all
                named.append(torch.zeros_like(parameter))
        return found_streams, None, None, None, *named


def _pieces(streams: Tensor, layer: StreamLayer) -> list[slice]:
    """Return which streams are taken at once."""
    count, length = streams.shape[:2]
    rows = windows_together(layer.inner, length)
    return [slice(first, first + rows) for first in range(0, count, rows)]


def _tile(layer: StreamLayer, length: int) -> int:
    """Return the positions of a tile: whole numbers of kept states."""
    return -(-tile_of(layer.inner, length, TILE_NUMBERS) // KEPT_EVERY) * KEPT_EVERY


def _forwards(streams: Tensor, out: Tensor, layer: StreamLayer, scratch: Scratch) -> None:
    stop, tile = threading.Event(), _tile(layer, streams.shape[1])

    @torch.no_grad()
    def run(piece: slice, helper: ThreadPoolExecutor | None) -> None:
        out[piece].copy_(streams[piece])
        Stream(out[piece], stop, tile, scratch).run(layer, helper)

    two_way, long = len(layer.readers) == 2, streams.shape[1] >= LONG
    with alone() as threads:
        run_all(run, _pieces(streams, layer), stop, threads, two_way=two_way, long=long)


def _backwards(
    streams: Tensor, grad: Tensor, weights: Weights, wanted: dict[str, bool], scratch: Scratch
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the gradients of the streams, and of the parameters as they lie in the modules."""
    layer = weights.layer
    found = in_large_pages(torch.empty_like(grad))
    stop, tile = threading.Event(), _tile(layer, streams.shape[1])
    pieces = _pieces(streams, layer)
    lanes = [pieces[first::LANES] for first in range(min(LANES, len(pieces)))]

    def run(lane: Sequence[slice], helper: ThreadPoolExecutor | None) -> list[Sums]:
        # The two readers may be in two threads, and sum for themselves.
        sums = [Sums(wanted) for _ in layer.readers]
        with torch.no_grad(), torch.autocast("cpu", enabled=False, cache_enabled=False):
            for piece in lane:
                mine = (streams[piece], grad[piece], found[piece])
                Back(layer, sums, *mine, tile=tile, scratch=scratch, stop=stop).go(helper)
        return sums

    two_way, long = len(layer.readers) == 2, streams.shape[1] >= LONG
    with alone() as threads:
        all_sums = run_all(run, lanes, stop, threads, two_way=two_way, long=long)
    return found, _as_parameters([sums for lane in all_sums for sums in lane], weights)


def _as_parameters(all_sums: Iterable[Sums], weights: Weights) -> dict[str, Tensor]:
    """Add up, and turn back what is flipped or transformed on its way into a layer."""
    found: dict[str, Tensor] = {}
    for sums in all_sums:
        for name, values in sums.found.items():
            found[name] = values if name not in found else found[name].add_(values)
    axes = {"norm": 0, "norm_bias": 0, "inputs": 1, "outputs": 0, "outputs_bias": 0}
    for name, axis in axes.items():
        if weights.flipped and name in found:
            found[name] = found[name].flip(axis)
    for number, reader in enumerate(weights.layer.readers):
        if f"A{number}" in found:
            found[f"A{number}"] *= reader.A  # A = -exp(A_log) is its own derivative
    return found
