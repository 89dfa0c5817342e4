"""Caduceus' pooled features, tile by tile: no hidden state of a whole layer is ever held.

Each strand of a window is a stream of its own, kept in one orientation from the first layer to the
last; a layer that sees it flipped has flipped weights instead (`encoders.caduceus.stream_layers`).
In a layer two readers walk the stream, one from either end. The first to come to a tile projects
it, convolves and scans; the second adds its own scan, gates, projects back and adds to the
residual, in place. So every product is taken once, and a stream needs its residual and two buffers
of the inner width.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules import module as modules

from encoders.caduceus.layers import BiMamba
from encoders.caduceus.model import CaduceusForMaskedLM
from encoders.caduceus.scratch import Scratch
from encoders.caduceus.stream_layers import (
    InputNorm,
    Reader,
    StreamLayer,
    embedding_of,
    prepare_layers,
)
from encoders.caduceus.visits import Visits
from encoders.caduceus.workers import StoppedError, alone, run_all, run_both
from encoders.mamba import at_least_float32
from encoders.selective_scan import backend_for

# Most numbers of the inner width in a tile: 512 positions at the published width, whose buffers
# stay in cache; narrow networks take longer tiles.
TILE_NUMBERS = 2**18
# In a window from which on it is cut into tiles, and in shorter windows that are run together:
# fewer, so that there is work for more threads.
TOGETHER_NUMBERS = 2**18
# Windows from here on are read by two threads from both ends, so that half as many are in memory.
LONG = 2**14


def can_stream(network: CaduceusForMaskedLM, length: int) -> bool:
    """Tell whether `pool_streamed` gives here and now what running the network would give.

    In reduced precision, that is, up to what the network rounds on its way and this does not.
    Not where gradients or autocast are on, something traces the network or listens to its layers,
    or layers were replaced; nor for the few options of which no weights were published: directions
    that share no projections or are multiplied. Without the native kernels it is the slower way,
    and taken for long windows only, for their memory.

    Parameters
    ----------
    network : CaduceusForMaskedLM
    length : int
        Of the windows, in bases.
    """
    first = next(network.parameters())
    wide = torch.promote_types(first.dtype, torch.float32)
    if first.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    if torch.is_grad_enabled() and any(value.requires_grad for value in network.parameters()):
        return False
    native = backend_for(first.device, wide) == "cpu"
    return (native or length >= LONG) and streams(network) and not is_changed(network)


def streams(network: CaduceusForMaskedLM) -> bool:
    """Tell whether the architecture is one that `pool_streamed` knows."""
    return all(
        block.added_once or block.mamba_rev is None
        for block in network.modules()
        if isinstance(block, BiMamba)
    )


_OWN_KINDS = (nn.Linear, nn.Conv1d, nn.Embedding, nn.ModuleList, nn.ModuleDict)


def is_changed(network: nn.Module) -> bool:
    """Tell whether layers have hooks, or are others than those the network was built with.

    So they are where parameters are no plain tensors: kernels read memory that such may not have.
    """
    everywhere = (
        modules._global_forward_hooks,
        modules._global_forward_pre_hooks,
        modules._global_backward_hooks,
        modules._global_backward_pre_hooks,
    )
    if any(everywhere):
        return True
    if any(type(value) not in (Tensor, nn.Parameter) for value in network.parameters()):
        return True
    for module in network.modules():
        hooks = (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
        if any(hooks) or "forward" in vars(module):
            return True
        kind = type(module)
        if kind not in _OWN_KINDS and not kind.__module__.startswith("encoders."):
            return True
    return False


def pool_streamed(
    network: CaduceusForMaskedLM,
    input_ids: Int[Tensor, "batch length"],
    complement_map: Int[Tensor, " vocabulary"],
    weights: Float[Tensor, "batch length"],
) -> Float[Tensor, "batch dim strand"]:
    """Weighted mean of the last hidden states of windows of equal length, for both strands.

    For inference. Of weights in reduced precision, products alone may be taken in it
    (`encoders.caduceus.products.Product`); all else is in float32, so that this is nearer than
    the network itself to what the weights say.

    Calls from several threads wait for one another: each uses all of torch's threads. Memory is
    that of the longest streams in flight: 1,280 numbers a base and stream at published size, two
    threads to a stream where windows are long.

    Parameters
    ----------
    network : CaduceusForMaskedLM
        One that `streams`; `can_stream` looks at the circumstances as well.
    input_ids : Tensor [B, L]
        Without padding.
    complement_map : Tensor [V]
        Token of each token's complement.
    weights : Tensor [B, L]
        Of each base; a window's sum is above zero.

    Returns
    -------
    Tensor [B, D, 2]
        In float32 at least; as `CaduceusEncoder.forward`.
    """
    with alone() as threads, torch.inference_mode():
        pooled = _pool(network, input_ids, complement_map, weights, threads)
    return pooled.clone()  # outside of inference mode: an ordinary tensor


def tile_of(inner: int, length: int, most: int) -> int:
    """Return the positions of a tile: equal parts, as many for each of two readers.

    Parameters
    ----------
    inner : int
        Width of the network.
    length : int
        Of the window, in bases.
    most : int
        Numbers of a tile; `TOGETHER_NUMBERS` are never cut.
    """
    if length * inner <= TOGETHER_NUMBERS:
        return max(1, length)
    return -(-length // (2 * -(-length * inner // (2 * most))))


def windows_together(inner: int, length: int) -> int:
    """Return how many windows of so many bases are run as one, at a network's inner width."""
    return max(1, TOGETHER_NUMBERS // inner // max(1, length))


def _pool(
    network: CaduceusForMaskedLM,
    input_ids: Tensor,
    complement_map: Tensor,
    weights: Tensor,
    threads: int,
) -> Tensor:
    folds = network.config.rcps and network.config.fused_add_norm
    layers, last_norm = prepare_layers(network, folds=folds)
    turned = folds and len(layers) % 2 == 1
    length = input_ids.shape[1]
    tile = tile_of(layers[0].inner, length, TILE_NUMBERS)
    rows = windows_together(layers[0].inner, length)
    jobs = []
    for first in range(0, len(input_ids), rows):
        ids = input_ids[first : first + rows]
        other = complement_map[ids].flip(1)
        share = weights[first : first + rows]
        pair = (other.flip(1), ids.flip(1)) if turned else (ids, other)
        for strand, tokens in enumerate(pair):
            jobs.append((tokens, share.flip(1) if strand else share))
    table = at_least_float32(embedding_of(network).weight)
    table = table.flip(-1) if turned else table

    stop, scratch = threading.Event(), Scratch()

    @torch.inference_mode()
    def run(job: tuple[Tensor, Tensor], helper: ThreadPoolExecutor | None) -> Tensor:
        tokens, share = job
        embedded = scratch.take("residual", (*tokens.shape, table.shape[1]), table.dtype)
        torch.index_select(table, 0, tokens.flatten(), out=embedded.view(-1, table.shape[1]))
        stream = Stream(embedded, stop, tile, scratch)
        for layer in layers:
            stream.run(layer, helper)
        return stream.pool(last_norm, share)

    two_way = len(layers[0].readers) == 2
    pooled = run_all(run, jobs, stop, threads, two_way=two_way, long=length >= LONG)
    strands = [torch.cat(pooled[strand::2]) for strand in range(2)]
    total = weights.to(strands[0].dtype).sum(dim=1)
    return torch.stack(strands, dim=-1) / total[:, None, None]


@dataclass
class _Claims:
    """Which tiles of a layer a reader has come to, and which it has left."""

    changed: threading.Condition
    come: set[int]
    left: set[int]
    stop: threading.Event
    failed: bool = False

    def claim(self, tile: int) -> bool:
        """Return whether nobody came before; else wait until that reader has left."""
        if self.stop.is_set():
            raise StoppedError
        with self.changed:
            if tile not in self.come:
                self.come.add(tile)
                return True
            self.changed.wait_for(lambda: tile in self.left or self.failed)
            if self.failed:
                raise StoppedError
            return False

    def leave(self, tile: int) -> None:
        """Let the other reader in."""
        with self.changed:
            self.left.add(tile)
            self.changed.notify_all()

    @contextmanager
    def released_on_failure(self) -> Iterator[None]:
        """Wake the other reader if this one fails."""
        try:
            yield
        except BaseException:
            with self.changed:
                self.failed = True
                self.changed.notify_all()
            raise


class Stream:
    """One strand of a few windows of equal length, [R, L, D], in float32 or float64."""

    def __init__(
        self, residual: Tensor, stop: threading.Event, tile: int, scratch: Scratch
    ) -> None:
        self.residual = residual
        self.dtype = residual.dtype
        self.stop = stop
        self.length = residual.shape[1]
        self.tile = min(tile, self.length)
        self.scratch = scratch

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return -(-self.length // self.tile)

    @torch.inference_mode()
    def run(self, layer: StreamLayer, helper: ThreadPoolExecutor | None) -> None:
        """Take the stream through a layer; with a helper, two readers at once."""
        shape = (*self.residual.shape[:2], layer.inner)
        self.mixed = self.scratch.take("mixed", shape, self.dtype)
        self.native = layer.native and self.dtype == torch.float32
        if self.tiles == 1:
            self._run_whole(layer)
            return
        self.inner = self.scratch.take("inner", shape, self.dtype)
        claims = _Claims(threading.Condition(), set(), set(), self.stop)
        if helper is None or len(layer.readers) == 1:
            for reader in reversed(layer.readers):
                self._walk(layer, reader, claims)
            return
        first, second = (partial(self._walk, layer, reader, claims) for reader in layer.readers)
        run_both(first, second, helper)

    def _run_whole(self, layer: StreamLayer) -> None:
        """Where one tile holds the stream: one norm and one product serve both readers."""
        if self.stop.is_set():
            raise StoppedError
        scratch, inner = self.scratch, layer.inner
        shape = (*self.residual.shape[:2], 2 * inner)
        both = scratch.take("both", shape, self.dtype)
        if self.native:
            for reader in reversed(layer.readers):
                first, last = reader is layer.readers[-1], reader is layer.readers[0]
                self._visits(layer, reader, both).visit(0, self.length, first=first, last=last)
            return
        normed = layer.norm(self.residual, scratch)
        projected, gate = layer.both.into(both, normed, scratch).split(inner, dim=-1)
        for reader in reversed(layer.readers):
            last = reader is layer.readers[0]
            state = reader.start(len(self.residual))
            reader.read(
                projected, 0, self.length, state, self.mixed,
                add=reader is not layer.readers[-1], gate=gate if last else None, scratch=scratch,
            )  # fmt: skip
        layer.outputs.add_to(self.residual, self.mixed, scratch)

    def _visits(self, layer: StreamLayer, reader: Reader, inner: Tensor) -> Visits:
        memory = (self.residual, inner, self.mixed)
        return Visits(layer, reader, *memory, tile=self.tile, scratch=self.scratch)

    def _walk(self, layer: StreamLayer, reader: Reader, claims: _Claims) -> None:
        with torch.inference_mode(), claims.released_on_failure():
            visit = self._visitor(layer, reader)
            alone = len(layer.readers) == 1
            order = range(self.tiles)
            for tile in reversed(order) if reader.reverse else order:
                first = claims.claim(tile)
                start = tile * self.tile
                end = min(start + self.tile, self.length)
                visit(start, end, first=first, last=alone or not first)
                claims.leave(tile)

    def _visitor(self, layer: StreamLayer, reader: Reader) -> Callable[..., None]:
        if self.native:
            return self._visits(layer, reader, self.inner).visit
        return partial(self._visit, layer, reader, reader.start(len(self.residual)))

    def _visit(
        self,
        layer: StreamLayer,
        reader: Reader,
        state: Tensor,
        start: int,
        end: int,
        *,
        first: bool,
        last: bool,
    ) -> None:
        """Do what `Visits.visit` does, step by step."""
        where, scratch = slice(start, end), self.scratch
        residual, mixed = self.residual[:, where], self.mixed[:, where]
        normed = layer.norm(residual, scratch)
        if first:
            layer.inputs.into(self.inner[:, where], normed, scratch)
        gate = None
        if last:
            room = scratch.take("gate", mixed.shape, self.dtype)
            gate = layer.gate.into(room, normed, scratch)
        reader.read(self.inner, start, end, state, mixed, add=not first, gate=gate, scratch=scratch)
        if last:
            layer.outputs.add_to(residual, mixed, scratch)

    def pool(self, norm: InputNorm, weights: Tensor) -> Tensor:
        """Return the weighted sum over the positions, [R, D]."""
        total: Tensor | float = 0.0
        for start in range(0, self.length, self.tile):
            where = slice(start, start + self.tile)
            normed = norm(self.residual[:, where], self.scratch)
            total = total + torch.einsum("rld,rl->rd", normed, weights[:, where].to(normed.dtype))
        assert isinstance(total, Tensor)
        return total
