"""Caduceus' pooled features, tile by tile: no hidden state of a whole layer is ever held.

Each strand of a window is a stream of its own, kept in one orientation from the first layer to the
last; a layer that sees it flipped has flipped weights instead (`encoders.caduceus.stream_layers`).
In a layer two readers walk the stream, one from either end. The first to come to a tile projects
it, convolves and scans; the second adds its own scan, gates, projects back and adds to the
residual, in place. So every product is taken once, and a stream needs its residual and two buffers
of the inner width.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules import module as modules

from encoders.caduceus.layers import BiMamba
from encoders.caduceus.model import CaduceusForMaskedLM
from encoders.caduceus.stream_layers import (
    InputNorm,
    Reader,
    Scratch,
    StreamLayer,
    embedding_of,
    prepare_layers,
)
from encoders.mamba import at_least_float32
from encoders.selective_scan import backend_for

Job = TypeVar("Job")
Result = TypeVar("Result")

# Numbers of the inner width in a tile: 512 positions at the published width, whose buffers stay in
# the second-level cache; narrow networks take longer tiles, since each costs some forty calls.
TILE_NUMBERS = 2**18
# Windows from here on are read by two threads from both ends, so that half as many are in memory.
LONG = 2**14


def can_stream(network: CaduceusForMaskedLM, length: int) -> bool:
    """Tell whether `pool_streamed` gives here and now what running the network would give.

    Not where gradients or autocast are on, something traces the network or listens to its layers,
    or layers were replaced; nor for the few options of which no weights were published: directions
    that share no projections or are multiplied, or a residual rounded after every layer. Without
    the native kernels it is the slower way, and taken for long windows only, for their memory.

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
    config = network.config
    dtype = next(network.parameters()).dtype
    added = all(
        block.added_once or block.mamba_rev is None
        for block in network.modules()
        if isinstance(block, BiMamba)
    )
    whole = torch.promote_types(dtype, torch.float32) == dtype
    return added and (whole or config.fused_add_norm)


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

    For inference. Calls from several threads wait for one another: each uses all of torch's
    threads. Memory is that of the longest streams in flight: 1,280 numbers a base and stream
    at published size, two threads to a stream where windows are long.

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
    tile = max(1, TILE_NUMBERS // layers[0].inner)
    rows = max(1, tile // length)
    jobs = []
    for first in range(0, len(input_ids), rows):
        ids = input_ids[first : first + rows]
        other = complement_map[ids].flip(1)
        share = weights[first : first + rows]
        pair = (other.flip(1), ids.flip(1)) if turned else (ids, other)
        for strand, tokens in enumerate(pair):
            jobs.append((tokens, share.flip(1) if strand else share))
    table = embedding_of(network).weight
    table = table.flip(-1) if turned else table
    wide = torch.promote_types(table.dtype, torch.float32)
    rounds = wide != table.dtype and not network.config.residual_in_fp32

    stop, scratch = threading.Event(), Scratch()

    @torch.inference_mode()
    def run(job: tuple[Tensor, Tensor], helper: ThreadPoolExecutor | None) -> Tensor:
        tokens, share = job
        embedded = scratch.take("residual", (*tokens.shape, table.shape[1]), wide)
        if table.dtype == wide:
            torch.index_select(table, 0, tokens.flatten(), out=embedded.view(-1, table.shape[1]))
        else:
            embedded.copy_(F.embedding(tokens, table))
        stream = Stream(embedded, table.dtype, stop, tile, scratch, rounds=rounds)
        for layer in layers:
            stream.run(layer, helper)
        return stream.pool(last_norm, share)

    two_way = len(layers[0].readers) == 2
    pooled = run_all(run, jobs, stop, threads, two_way=two_way, long=length >= LONG)
    strands = [torch.cat(pooled[strand::2]) for strand in range(2)]
    total = weights.to(strands[0].dtype).sum(dim=1)
    return torch.stack(strands, dim=-1) / total[:, None, None]


class StoppedError(Exception):
    """Something else failed: the other reader of a stream, another stream, or the caller."""


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
    """One strand of a few windows of equal length, [R, L, D].

    With `rounds` the residual is kept in `dtype`, but for its last summand: norms see the sum
    before it is rounded, as in upstream's fused kernels.
    """

    def __init__(
        self,
        residual: Tensor,
        dtype: torch.dtype,
        stop: threading.Event,
        tile: int,
        scratch: Scratch,
        *,
        rounds: bool,
    ) -> None:
        self.residual = residual
        self.rounds = rounds
        self.dtype = dtype
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
        if self.tiles == 1:
            self._run_whole(layer)
            return
        self.inner = self.scratch.take("inner", shape, self.dtype)
        claims = _Claims(threading.Condition(), set(), set(), self.stop)
        if helper is None or len(layer.readers) == 1:
            for reader in reversed(layer.readers):
                self._walk(layer, reader, claims)
            return
        other = helper.submit(self._walk, layer, layer.readers[1], claims)
        try:
            self._walk(layer, layer.readers[0], claims)
        except StoppedError:
            other.result()  # if that is why, its own error
            raise
        except BaseException:
            wait([other])
            raise
        other.result()

    def _run_whole(self, layer: StreamLayer) -> None:
        """Where one tile holds the stream: one norm and one product serve both readers."""
        if self.stop.is_set():
            raise StoppedError
        scratch, inner = self.scratch, layer.inner
        normed = layer.norm(self.residual, scratch)
        room = scratch.take("both", (*normed.shape[:2], 2 * inner), self.dtype)
        projected, gate = layer.both.into(room, normed).split(inner, dim=-1)
        for reader in reversed(layer.readers):
            last = reader is layer.readers[0]
            state = reader.start(len(self.residual))
            reader.read(
                projected, 0, self.length, state, self.mixed,
                add=reader is not layer.readers[-1], gate=gate if last else None, scratch=scratch,
            )  # fmt: skip
        self._add(layer, self.residual, self.mixed)

    def _add(self, layer: StreamLayer, residual: Tensor, mixed: Tensor) -> None:
        if self.rounds:
            residual.copy_(residual.to(self.dtype))
        layer.outputs.add_to(residual, mixed)

    def _walk(self, layer: StreamLayer, reader: Reader, claims: _Claims) -> None:
        with torch.inference_mode(), claims.released_on_failure():
            state = reader.start(len(self.residual))
            alone = len(layer.readers) == 1
            order = range(self.tiles)
            for tile in reversed(order) if reader.reverse else order:
                first = claims.claim(tile)
                self._visit(layer, reader, tile, state, first=first, last=alone or not first)
                claims.leave(tile)

    def _visit(
        self,
        layer: StreamLayer,
        reader: Reader,
        tile: int,
        state: Tensor,
        *,
        first: bool,
        last: bool,
    ) -> None:
        start = tile * self.tile
        end = min(start + self.tile, self.length)
        where, scratch = slice(start, end), self.scratch
        residual, mixed = self.residual[:, where], self.mixed[:, where]
        normed = layer.norm(residual, scratch)
        if first:
            layer.inputs.into(self.inner[:, where], normed)
        gate = None
        if last:
            gate = layer.gate.into(scratch.take("gate", mixed.shape, self.dtype), normed)
        reader.read(self.inner, start, end, state, mixed, add=not first, gate=gate, scratch=scratch)
        if last:
            self._add(layer, residual, mixed)

    def pool(self, norm: InputNorm, weights: Tensor) -> Tensor:
        """Return the weighted sum over the positions, [R, D]."""
        total: Tensor | float = 0.0
        for start in range(0, self.length, self.tile):
            where = slice(start, start + self.tile)
            normed = at_least_float32(norm(self.residual[:, where], self.scratch))
            total = total + torch.einsum("rld,rl->rd", normed, weights[:, where].to(normed.dtype))
        assert isinstance(total, Tensor)
        return total


# Held while workers run: they set the number of torch's threads, partly for the whole process.
_ALONE = threading.Lock()


@contextmanager
def alone() -> Iterator[int]:
    """Have the process' threads to oneself; gives their number, and leaves one to torch.

    Torch's own threads would wait beside the workers for the caller's next operation, each of them
    keeping a core busy. A Python thread that meets torch for the first time meanwhile keeps to the
    one thread it finds; set its number where that matters.
    """
    if torch.get_num_threads() == 1:
        yield 1
        return
    with _ALONE:
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            yield threads
        finally:
            torch.set_num_threads(threads)


@cache
def _workers(name: str, count: int) -> ThreadPoolExecutor:
    """Return threads that compute by themselves, kept from call to call.

    All of them have begun: torch's number that one sets may become the process', which `alone` puts
    back when it is done.
    """
    pool = ThreadPoolExecutor(count, f"genebold-{name}", lambda: torch.set_num_threads(1))
    begun = threading.Barrier(count)
    wait([pool.submit(begun.wait) for _ in range(count)])
    return pool


def _begin_child() -> None:
    """Forget what a forked child has no threads for, the one that held the lock among them."""
    global _ALONE
    _ALONE = threading.Lock()
    _workers.cache_clear()


os.register_at_fork(after_in_child=_begin_child)


def run_all(
    run: Callable[[Job, ThreadPoolExecutor | None], Result],
    jobs: Sequence[Job],
    stop: threading.Event,
    threads: int,
    *,
    two_way: bool,
    long: bool,
) -> list[Result]:
    """Run all jobs on so many threads; each of them computes by itself.

    Parameters
    ----------
    run : callable
        Takes a job, and where its second reader may run beside the first.
    jobs : sequence
    stop : threading.Event
        Set when one has failed.
    threads : int
        As `alone` gives them.
    two_way, long : bool
        Whether there are two readers, and whether a job's memory counts.

    Returns
    -------
    list
        What `run` returned, in the order of the jobs.
    """
    if threads == 1:
        return [run(job, None) for job in jobs]
    paired = two_way and (long or len(jobs) < threads)
    at_once = max(1, threads // 2) if paired else threads
    helpers = _workers("reader", at_once) if paired else None
    workers = _workers("stream", at_once)
    futures: list[Future[Result]] = []
    try:
        futures.extend(workers.submit(run, job, helpers) for job in jobs)
        return _results(futures)
    except BaseException:
        stop.set()
        for future in futures:
            future.cancel()
        wait(futures)
        raise


def _results(futures: list[Future[Result]]) -> list[Result]:
    """Return all results, or raise the first error without waiting for what still runs."""
    ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in ended:
        future.result()
    return [future.result() for future in futures]
