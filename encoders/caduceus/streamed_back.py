"""Backwards through one of Caduceus' layers, tile by tile; see `streamed_training`."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from encoders.caduceus.scratch import Scratch
from encoders.caduceus.stream_layers import Reader, StreamLayer
from encoders.caduceus.workers import StoppedError, run_both
from encoders.selective_scan.library import KEPT_EVERY
from encoders.selective_scan.tile_gradients import (
    convolve_tile_back,
    gate_tile_back,
    keep_tile,
    norm_tile_back,
    scan_tile_back,
)
from encoders.selective_scan.tiles import convolve_tile


class Sums:
    """Gradients of a layer's weights, summed over tiles.

    Parameters
    ----------
    wanted : dict of str to bool
        Which of them; the others are not computed.
    """

    def __init__(self, wanted: dict[str, bool]) -> None:
        self.wanted = wanted
        self.found: dict[str, Tensor] = {}

    def wants(self, name: str) -> bool:
        """Tell whether there is such a parameter that wants a gradient."""
        return self.wanted.get(name, False)

    def add(self, name: str, values: Tensor) -> None:
        """Add a gradient if it is wanted."""
        if not self.wants(name):
            return
        if name in self.found:
            self.found[name] += values
        else:
            self.found[name] = values.clone(memory_format=torch.contiguous_format)

    def multiply(self, name: str, grad: Tensor, x: Tensor, *, half: int | None = None) -> None:
        """Add the gradient of the weights of a product of `x` [.., I] that gave [.., O].

        Parameters
        ----------
        name : str
        grad, x : Tensor
        half : int, optional
            Which half of the outputs the product gave, if not all of them.
        """
        if not self.wants(name):
            return
        grad, x = grad.flatten(0, 1), x.flatten(0, 1)
        width = grad.shape[1]
        if name not in self.found:
            rows = width if half is None else 2 * width
            self.found[name] = grad.new_zeros(rows, x.shape[1])
        into = self.found[name]
        if half is not None:
            into = into[half * width : (half + 1) * width]
        if x.shape[1] < width:  # products turn the first side round: the narrow one
            into.T.addmm_(x.T, grad)
        else:
            into.addmm_(grad.T, x)

    def add_bias(self, name: str, grad: Tensor, *, half: int | None = None) -> None:
        """Add the gradient of the bias of a product that gave [.., O]."""
        if not self.wants(name):
            return
        total = grad.sum(dim=(0, 1))
        if half is not None:
            whole = total.new_zeros(2, len(total))
            whole[half] = total
            total = whole.flatten()
        self.add(name, total)


@dataclass
class _Meeting:
    """Which tiles their first visitor has left, for the second one to wait for."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    left: set[int] = field(default_factory=set)
    failed: bool = False

    def leave(self, tile: int) -> None:
        """Let the second visitor in."""
        with self.changed:
            self.left.add(tile)
            self.changed.notify_all()

    def wait(self, tile: int) -> None:
        """Wait for the first visitor to leave."""
        with self.changed:
            self.changed.wait_for(lambda: tile in self.left or self.failed)
        if self.failed:
            raise StoppedError

    def fail(self) -> None:
        """Let nobody wait any longer."""
        with self.changed:
            self.failed = True
            self.changed.notify_all()


@dataclass
class _Way:
    """One reader's way through a layer, and what it carries along."""

    number: int
    reader: Reader
    sums: Sums
    projected: Tensor  # [R, L, rank + 2 N]
    kept: Tensor  # [tiles, R, parts, N, I]
    state: Tensor  # [R, N, I], of the states forwards, of their gradients backwards
    before_silu: Tensor  # [R, taps - 1, I]

    def clear(self) -> None:
        """Begin at the end of a sequence."""
        self.state.zero_()
        self.before_silu.zero_()


# Takes a way, a tile, and whether this is the tile's first visit and whether its last.
Visit = Callable[[_Way, int, bool, bool], None]


class Back:
    """Backwards through a layer, for a few streams [R, L, D].

    Parameters
    ----------
    layer : StreamLayer
    sums : list of Sums
        One for each of its readers.
    x, grad, found : Tensor [R, L, D]
        The streams before the layer, gradients behind it, and where those before it go.
    tile : int
        Positions of a tile, a multiple of `KEPT_EVERY`.
    scratch : Scratch
    stop : threading.Event
        Set from outside to give up.
    """

    def __init__(
        self,
        layer: StreamLayer,
        sums: Sequence[Sums],
        x: Tensor,
        grad: Tensor,
        found: Tensor,
        *,
        tile: int,
        scratch: Scratch,
        stop: threading.Event,
    ) -> None:
        self.layer, self.scratch, self.stop = layer, scratch, stop
        self.x, self.grad, self.found = x, grad, found
        rows, self.length, _ = x.shape
        self.tile = min(tile, -(-self.length // KEPT_EVERY) * KEPT_EVERY)
        self.tiles = -(-self.length // self.tile)
        inner, parts = layer.inner, self.tile // KEPT_EVERY
        self.u = self._take("inner", rows, self.length, inner)
        self.grad_u = self._take("inner, gradient", rows, self.length, inner)
        # What the readers gave, until the first visitor has put its gradient there.
        self.mixed = self._take("mixed", rows, self.length, inner)
        self.ways = [
            _Way(
                number,
                reader,
                mine,
                self._take(f"projected {number}", rows, self.length, reader.width),
                self._take(f"kept {number}", self.tiles, rows, parts, reader.states, inner),
                self._take(f"state {number}", rows, reader.states, inner),
                self._take(f"before silu {number}", rows, reader.taps.shape[1] - 1, inner),
            )
            for number, (reader, mine) in enumerate(zip(layer.readers, sums, strict=True))
        ]

    def _take(self, name: str, *shape: int) -> Tensor:
        return self.scratch.take(name, shape, torch.float32)

    def go(self, helper: ThreadPoolExecutor | None) -> None:
        """Read the layer again and leave it again; with a helper, two readers at once."""
        for visit, backwards in ((self._read, False), (self._go_back, True)):
            for way in self.ways:
                way.clear()
            self._meet(visit, helper, backwards=backwards)

    def _meet(
        self,
        visit: Visit,
        helper: ThreadPoolExecutor | None,
        *,
        backwards: bool,
    ) -> None:
        """Have every reader visit all tiles, from its beginning or, backwards, from its end."""
        if len(self.ways) == 1:
            way = self.ways[0]
            for step in range(self.tiles):
                self._check()
                side = int(way.reader.reverse != backwards)
                visit(way, self._place(step, side), True, True)
            return
        # The one that comes from the left, then the one from the right.
        ways = sorted(self.ways, key=lambda way: way.reader.reverse != backwards)
        if helper is None:
            for step in range(self.tiles):
                self._check()
                for side, way in enumerate(ways):
                    first = self._is_first(step, side)
                    visit(way, self._place(step, side), first, not first)
            return
        meeting = _Meeting()
        left, right = (
            partial(self._walk, visit, way, side, meeting) for side, way in enumerate(ways)
        )
        run_both(left, right, helper)

    def _place(self, step: int, side: int) -> int:
        """Return the tile that is reached from the left (side 0) or from the right (side 1)."""
        return self.tiles - 1 - step if side else step

    def _is_first(self, step: int, side: int) -> bool:
        """Tell whether nobody came there before; in the middle that is who comes from the left."""
        return 2 * step + side < self.tiles

    def _check(self) -> None:
        if self.stop.is_set():
            raise StoppedError

    @torch.no_grad()
    def _walk(self, visit: Visit, way: _Way, side: int, meeting: _Meeting) -> None:
        try:
            for step in range(self.tiles):
                self._check()
                tile, first = self._place(step, side), self._is_first(step, side)
                if not first:
                    meeting.wait(tile)
                visit(way, tile, first, not first)
                if first:
                    meeting.leave(tile)
        except BaseException:
            meeting.fail()
            raise

    def _where(self, tile: int) -> tuple[int, int]:
        start = tile * self.tile
        return start, min(start + self.tile, self.length)

    def _kept(self, way: _Way, tile: int) -> Tensor:
        """Return where a tile's states are kept."""
        start, end = self._where(tile)
        return way.kept[tile][:, : -(-(end - start) // KEPT_EVERY)]

    def _read(self, way: _Way, tile: int, first: bool, last: bool) -> None:
        """Read a tile again; the last visit is as any other."""
        start, end = self._where(tile)
        where, reader = slice(start, end), way.reader
        if first:
            normed = self.layer.norm(self.x[:, where], self.scratch)
            self.layer.inputs.into(self.u[:, where], normed, self.scratch)
        u = self._convolve(way, start, end)
        reader.projection.into(way.projected[:, where], u, self.scratch)
        low, B, C = self._projected(way, where)
        keep_tile(
            u, low, reader.A, B, C, reader.D, way.state, self._kept(way, tile),
            delta_weight=reader.steps_weight, delta_bias=reader.steps_bias,
            reverse=reader.reverse, into=self.mixed[:, where], add=not first,
        )  # fmt: skip

    def _convolve(self, way: _Way, start: int, end: int) -> Tensor:
        out = self._take("convolved", len(self.u), end - start, self.u.shape[2])
        reverse = way.reader.reverse
        return convolve_tile(
            self.u, start, end, way.reader.taps, way.reader.taps_bias, reverse=reverse, out=out
        )

    def _projected(self, way: _Way, where: slice) -> tuple[Tensor, ...]:
        return way.projected[:, where].split(way.reader.parts, dim=-1)

    def _go_back(self, way: _Way, tile: int, first: bool, last: bool) -> None:
        """Take the gradient back through a tile."""
        start, end = self._where(tile)
        where = slice(start, end)
        normed = self.layer.norm(self.x[:, where], self.scratch)
        if first:
            self._leave_gate(way.sums, where, normed)
        self._leave_reader(way, tile, start, end, add=not first)
        if last:
            self._leave_norm(way.sums, where, normed)

    def _leave_gate(self, sums: Sums, where: slice, normed: Tensor) -> None:
        """Through the output projection and the gate, and through the gate's projection."""
        layer, grad, mixed = self.layer, self.grad[:, where], self.mixed[:, where]
        gate = layer.gate.into(self._take("gate", *mixed.shape), normed, self.scratch)
        gated = self._take("gated", *mixed.shape)
        layer.outputs.back_into(gated, grad)
        gate_tile_back(mixed, gate, gated)
        sums.multiply("outputs", grad, gated)
        sums.add_bias("outputs_bias", grad)
        sums.multiply("inputs", gate, normed, half=1)
        sums.add_bias("inputs_bias", gate, half=1)
        layer.gate.back_into(self.found[:, where], gate)

    def _leave_reader(self, way: _Way, tile: int, start: int, end: int, *, add: bool) -> None:
        """Through one scan and its convolution."""
        where, reader, number, sums = slice(start, end), way.reader, way.number, way.sums
        u = self._convolve(way, start, end)
        low, B, C = self._projected(way, where)
        found = scan_tile_back(
            self.mixed[:, where], u, low, reader.A, B, C, reader.D,
            way.state, self._kept(way, tile),
            delta_weight=reader.steps_weight, delta_bias=reader.steps_bias, reverse=reader.reverse,
            into=self._take("gate", *u.shape), into_step=self._take("gated", *u.shape),
        )  # fmt: skip
        sums.add(f"A{number}", found.A)
        sums.add(f"D{number}", found.D)
        sums.multiply(f"steps{number}", found.step, low)
        sums.add_bias(f"steps_bias{number}", found.step)
        grad = torch.cat([found.step @ reader.steps_weight, found.B, found.C], dim=-1)
        sums.multiply(f"projection{number}", grad, u)
        reader.projection.back_into(found.u, grad, add=True)
        taps, taps_bias = convolve_tile_back(
            found.u, self.u, start, end, reader.taps, reader.taps_bias, way.before_silu,
            reverse=reader.reverse, into=self.grad_u[:, where], add=add,
        )  # fmt: skip
        sums.add(f"taps{number}", taps)
        sums.add(f"taps_bias{number}", taps_bias)

    def _leave_norm(self, sums: Sums, where: slice, normed: Tensor) -> None:
        """Through the input projection and the norm."""
        grad_u, found = self.grad_u[:, where], self.found[:, where]
        sums.multiply("inputs", grad_u, normed, half=0)
        sums.add_bias("inputs_bias", grad_u, half=0)
        self.layer.inputs.back_into(found, grad_u, add=True)
        norm = self.layer.norm
        weight, bias = norm_tile_back(
            found, self.x[:, where], norm.weight, norm.eps,
            centre=norm.centre, add=self.grad[:, where], into=found,
        )  # fmt: skip
        sums.add("norm", weight)
        sums.add("norm_bias", bias)
