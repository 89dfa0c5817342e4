"""Caduceus' layers as `encoders.caduceus.streamed` runs them: weights folded, a tile at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from encoders.caduceus.layers import BiMamba, Block, RcBlock, bare_norm, mixer_of
from encoders.caduceus.model import CaduceusForMaskedLM
from encoders.caduceus.products import Product
from encoders.caduceus.scratch import Scratch
from encoders.caduceus.visits import can_visit, described
from encoders.mamba import LayerNorm, Reading, RMSNorm, at_least_float32
from encoders.selective_scan import library
from encoders.selective_scan.tiles import convolve_tile, norm_tile, scan_tile


def embedding_of(network: CaduceusForMaskedLM) -> nn.Embedding:
    """Return the embedding of a network, out of its wrapper if it has one."""
    words = network.caduceus.backbone.embeddings["word_embeddings"]
    embedding = words if isinstance(words, nn.Embedding) else words.embedding
    assert isinstance(embedding, nn.Embedding)
    return embedding


def _turned(weight: Tensor, axis: int, flipped: bool) -> Tensor:
    return weight.detach().flip(axis) if flipped else weight.detach()


class InputNorm:
    """The norm on the way into a layer."""

    def __init__(self, norm: RMSNorm | LayerNorm, flipped: bool) -> None:
        self.eps = norm.eps
        bias = norm.bias if isinstance(norm, LayerNorm) else None
        self.centre = bias is not None
        self.weight = at_least_float32(_turned(norm.weight, 0, flipped)).contiguous()
        self.bias = None
        if bias is not None:
            self.bias = at_least_float32(_turned(bias, 0, flipped)).contiguous()

    def __call__(self, residual: Tensor, scratch: Scratch) -> Tensor:
        out = scratch.take("norm", residual.shape, residual.dtype)
        return norm_tile(residual, self.weight, self.bias, self.eps, centre=self.centre, out=out)


class Reader:
    """One reading direction of a Mamba block."""

    def __init__(self, reading: Reading, *, reverse: bool) -> None:
        self.reverse = reverse
        # Kernels take all of these as they lie densely.
        self.taps = at_least_float32(reading.conv1d.weight[:, 0]).contiguous()
        self.taps_bias = None
        if reading.conv1d.bias is not None:
            self.taps_bias = at_least_float32(reading.conv1d.bias).contiguous()
        self.projection = Product(reading.x_proj.weight)
        self.A = -torch.exp(at_least_float32(reading.A_log)).contiguous()
        self.D = at_least_float32(reading.D).contiguous()
        rank, self.states = reading.dt_proj.in_features, self.A.shape[1]
        self.parts = [rank, self.states, self.states]  # of what is projected: time steps, B, C
        self.width = sum(self.parts)
        self.steps_weight = at_least_float32(reading.dt_proj.weight).contiguous()
        self.steps_bias = at_least_float32(reading.dt_proj.bias).contiguous()

    @property
    def values(self) -> tuple[Tensor | None, ...]:
        """All that is not multiplied as a matrix."""
        steps = (self.steps_weight, self.steps_bias)
        return (self.taps, self.taps_bias, *steps, self.A, self.D)

    def start(self, rows: int) -> Tensor:
        """Return the state before anything was read."""
        return self.A.new_zeros(rows, self.states, self.A.shape[0])

    def read(
        self, u: Tensor, start: int, end: int, state: Tensor, into: Tensor, *,
        add: bool, gate: Tensor | None, scratch: Scratch,
    ) -> None:  # fmt: skip
        """Convolve and scan one tile of u [R, L, I]; see `scan_tile`."""
        shape = (len(u), end - start, u.shape[2])
        out = scratch.take("convolved", shape, u.dtype)
        x = convolve_tile(u, start, end, self.taps, self.taps_bias, reverse=self.reverse, out=out)
        out = scratch.take("projected", (*shape[:2], self.width), u.dtype)
        low, B, C = self.projection.into(out, x, scratch).split(self.parts, dim=-1)
        scan_tile(
            x, low, self.A, B, C, self.D, state,
            delta_weight=self.steps_weight, delta_bias=self.steps_bias, reverse=self.reverse,
            into=into, add=add, gate=gate,
        )  # fmt: skip


class StreamLayer:
    """One layer's weights, flipped where the stream lies flipped before it.

    With RC parameter sharing every fused layer exchanges the strands' halves, that is, it sees the
    other strand flipped along channels and positions. Two such layers undo one another, so that on
    every second one, counted from the last, the weights are flipped: the norm's, the columns of
    the first product and the rows of the last; and the two directions are exchanged.
    """

    def __init__(self, norm: RMSNorm | LayerNorm, mixer: BiMamba, flipped: bool) -> None:
        mamba = mixer.mamba_fwd
        inner = mamba.out_proj.in_features
        first = _turned(mamba.in_proj.weight, 1, flipped)
        last = _turned(mamba.out_proj.weight, 0, flipped)
        last_bias = None
        if mamba.out_proj.bias is not None:
            last_bias = _turned(mamba.out_proj.bias, 0, flipped)
        biases: Sequence[Tensor | None] = (None, None)
        if mamba.in_proj.bias is not None:
            biases = mamba.in_proj.bias.split(inner)
        self.norm = InputNorm(norm, flipped)
        self.inner = inner
        self.both = Product(first, mamba.in_proj.bias)
        self.inputs = Product(first[:inner], biases[0])
        self.gate = Product(first[inner:], biases[1])
        self.outputs = Product(last, last_bias)
        self.readers = [Reader(mamba.readings[0], reverse=flipped)]
        if mixer.mamba_rev is not None:
            self.readers.append(Reader(mixer.mamba_rev.readings[0], reverse=not flipped))
        self._visits: dict[tuple[bool, bool], library.Visit] = {}
        self.native = can_visit(self)

    def visit_of(self, reader: Reader, *, whole: bool) -> library.Visit:
        """Return a new description of a reader; see `encoders.caduceus.visits.described`."""
        key = reader.reverse, whole
        if key not in self._visits:
            self._visits[key] = described(self, reader, whole=whole)
        return library.Visit.from_buffer_copy(self._visits[key])


def prepare_layers(
    network: CaduceusForMaskedLM, *, folds: bool
) -> tuple[list[StreamLayer], InputNorm]:
    """Return the layers of a network, and its last norm.

    Parameters
    ----------
    network : CaduceusForMaskedLM
    folds : bool
        Whether its layers exchange the strands' halves; see `StreamLayer`.
    """
    backbone = network.caduceus.backbone
    count = len(backbone.layers)
    layers = []
    for index, block in enumerate(backbone.layers):
        assert isinstance(block, Block | RcBlock)
        flipped = folds and (count - 1 - index) % 2 == 1
        layers.append(StreamLayer(bare_norm(block.norm), mixer_of(block), flipped))
    return layers, InputNorm(bare_norm(backbone.norm_f), flipped=False)
