"""Caduceus' layers as `encoders.caduceus.streamed` runs them: weights folded, a tile at a time."""

import math
import threading
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from encoders.caduceus.layers import BiMamba, Block, RcBlock, bare_norm, mixer_of
from encoders.caduceus.model import CaduceusForMaskedLM
from encoders.large_pages import in_large_pages
from encoders.mamba import LayerNorm, Reading, RMSNorm, at_least_float32
from encoders.selective_scan.tiles import convolve_tile, norm_tile, scan_tile


def embedding_of(network: CaduceusForMaskedLM) -> nn.Embedding:
    """Return the embedding of a network, out of its wrapper if it has one."""
    words = network.caduceus.backbone.embeddings["word_embeddings"]
    embedding = words if isinstance(words, nn.Embedding) else words.embedding
    assert isinstance(embedding, nn.Embedding)
    return embedding


@cache
def _multiplies(dtype: torch.dtype) -> bool:
    """Tell whether this CPU has products in a reduced precision that are faster than float32's."""
    if dtype != torch.bfloat16:
        return False
    known: Callable[[], dict[str, object]] | None = getattr(torch.cpu, "get_capabilities", None)
    found = known() if known is not None else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


class Scratch(threading.local):
    """Memory that each thread uses over and over: new memory is mapped, cleared, unmapped again.

    Threads of one process wait for one another there, and longer than the sums take.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return uninitialised memory of the CPU, the same whenever a thread gives this name.

        Parameters
        ----------
        name : str
            Of a use; what it was taken for the last time is overwritten.
        shape : sequence of int
        dtype : torch.dtype
        """
        count = math.prod(shape)
        held = self._held.get((name, dtype))
        if held is None or held.numel() < count:
            held = in_large_pages(torch.empty(count, dtype=dtype, device="cpu"))
            self._held[name, dtype] = held
        return held[:count].view(*shape)


def _turned(weight: Tensor, axis: int, flipped: bool) -> Tensor:
    return weight.detach().flip(axis) if flipped else weight.detach()


class Product:
    """A linear map of values in float32 or more.

    Weights of fewer bits are multiplied as such where this CPU has instructions for it, and then
    what they are multiplied with and what comes out are rounded; elsewhere they are widened, and
    nothing is rounded.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        taken = weight if _multiplies(weight.dtype) else at_least_float32(weight)
        self.weight = taken.contiguous()
        self.bias = None if bias is None else at_least_float32(bias)

    def into(self, out: Tensor, x: Tensor, scratch: Scratch) -> Tensor:
        """Put the product of x [R, T, K] into dense memory [R, T, N], and return that."""
        rows, flat = x.flatten(0, 1), out.view(-1, out.shape[-1])
        if self.weight.dtype != x.dtype:
            flat.copy_(self._rounded(rows, scratch))
            if self.bias is not None:
                flat += self.bias
        elif self.bias is None:
            torch.mm(rows, self.weight.T, out=flat)
        else:
            torch.addmm(self.bias, rows, self.weight.T, out=flat)
        return out

    def add_to(self, out: Tensor, x: Tensor, scratch: Scratch) -> None:
        """Add the product of x [R, T, K] to what lies in dense memory [R, T, N]."""
        rows, flat = x.flatten(0, 1), out.view(-1, out.shape[-1])
        if self.weight.dtype != x.dtype:
            flat += self._rounded(rows, scratch)
        else:
            torch.addmm(flat, rows, self.weight.T, out=flat)
        if self.bias is not None:
            flat += self.bias

    def _rounded(self, rows: Tensor, scratch: Scratch) -> Tensor:
        dtype = self.weight.dtype
        narrow = scratch.take("rounded", rows.shape, dtype).copy_(rows)
        found = scratch.take("product", (len(rows), len(self.weight)), dtype)
        return torch.mm(narrow, self.weight.T, out=found)


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
