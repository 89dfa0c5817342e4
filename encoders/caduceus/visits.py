"""A reader's visits to the tiles of a stream by the native kernels, each in a single call.

Between two kernels nothing of Python runs, which the kernels have driven out of the cache by then.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from encoders.caduceus.products import is_native
from encoders.caduceus.scratch import Scratch
from encoders.selective_scan import library
from encoders.selective_scan.library import MAX_TAPS, SequenceView, address

if TYPE_CHECKING:
    from encoders.caduceus.stream_layers import Reader, StreamLayer


def can_visit(layer: "StreamLayer") -> bool:
    """Tell whether the kernels do all of a layer, of streams in float32."""
    products = (layer.outputs, layer.both, *(reader.projection for reader in layer.readers))
    dtypes = {product.weight.dtype for product in products}
    if len(dtypes) > 1 or not is_native(*dtypes):
        return False
    values = [layer.norm.weight, layer.norm.bias]
    values += [value for reader in layer.readers for value in reader.values]
    wide = all(value is None or value.dtype == torch.float32 for value in values)
    return wide and all(reader.taps.shape[1] <= MAX_TAPS for reader in layer.readers)


def described(layer: "StreamLayer", reader: "Reader", *, whole: bool) -> library.Visit:
    """Describe a reader to the kernels, without what belongs to a stream.

    Parameters
    ----------
    layer : StreamLayer
    reader : Reader
    whole : bool
        Whether one tile holds a stream: its first visit projects for the gate as well, then.
    """
    norm, inputs = layer.norm, layer.both if whole else layer.inputs
    channels = {"channels": layer.inner, "channel_end": layer.inner, "reverse": reader.reverse}
    return library.Visit(
        norm=library.Norm(
            width=len(norm.weight),
            centre=norm.centre,
            weight=address(norm.weight),
            bias=address(norm.bias),
            epsilon=norm.eps,
        ),
        inputs=inputs.arguments(),
        gate=library.Product() if whole else layer.gate.arguments(),
        projection=reader.projection.arguments(),
        outputs=layer.outputs.arguments(),
        convolution=library.Convolution(
            **channels,
            taps=reader.taps.shape[1],
            weight=address(reader.taps),
            bias=address(reader.taps_bias),
        ),
        scan=library.ScanForward(
            **channels,
            states=reader.states,
            rank=reader.parts[0],
            activate=True,
            weight=address(reader.steps_weight),
            bias=address(reader.steps_bias),
            a=address(reader.A),
            skip=address(reader.D),
        ),
    )


class Visits:
    """One reader's visits to one stream, all in one thread.

    Parameters
    ----------
    layer : StreamLayer
        One that the kernels can do (`can_visit`).
    reader : Reader
        One of its readers.
    residual, mixed : Tensor [R, L, D], [R, L, I]
        The stream, and where its readers' results go.
    inner : Tensor [R, L, I] or [R, L, 2 I]
        Where the inner input goes; the gate's beside it where one tile holds the stream.
    tile : int
        Positions of a tile; all of them if there is more than one row.
    scratch : Scratch
    """

    def __init__(
        self,
        layer: "StreamLayer",
        reader: "Reader",
        residual: Tensor,
        inner: Tensor,
        mixed: Tensor,
        *,
        tile: int,
        scratch: Scratch,
    ) -> None:
        rows, length, dim = residual.shape
        width, whole = layer.inner, inner.shape[2] > layer.inner

        def room(name: str, *last: int) -> Tensor:
            return scratch.take(name, (rows, tile, *last), torch.float32)

        normed, convolved = room("norm", dim), room("convolved", width)
        projected = room("projected", reader.width)
        gate = inner[..., width:] if whole else room("gate", width)
        state = scratch.take("state", (rows, reader.states, width), torch.float32).zero_()
        # Kept, since the kernels know no more than where it lies.
        self._held = (layer, residual, inner, mixed, normed, convolved, projected, gate, state)

        v = layer.visit_of(reader, whole=whole)
        v.norm.rows = v.convolution.row_end = v.scan.row_end = rows
        v.norm.x, v.norm.y = SequenceView.of(residual), SequenceView.of(normed)
        v.inputs.x, v.inputs.x_row = address(normed), dim
        v.inputs.y, v.inputs.y_row = address(inner), inner.shape[2]
        v.convolution.length = length
        v.convolution.x, v.convolution.y = SequenceView.of(inner), SequenceView.of(convolved)
        v.projection.x, v.projection.x_row = address(convolved), width
        v.projection.y, v.projection.y_row = address(projected), reader.width
        low, B, C = projected.split(reader.parts, dim=-1)
        v.scan.u, v.scan.y = SequenceView.of(convolved), SequenceView.of(mixed)
        v.scan.low, v.scan.b, v.scan.c = map(SequenceView.of, (low, B, C))
        v.scan.state, v.scan.gate = address(state), SequenceView.of(gate)
        if not whole:
            v.gate.x, v.gate.x_row = address(normed), dim
            v.gate.y, v.gate.y_row = address(gate), width
        v.outputs.accumulate = True
        v.outputs.x, v.outputs.x_row = address(mixed), width
        v.outputs.y, v.outputs.y_row = address(residual), dim
        self._visit = v

    def visit(self, start: int, end: int, *, first: bool, last: bool) -> None:
        """Visit positions `start` to `end`, the next that the reader comes to.

        Parameters
        ----------
        start, end : int
        first, last : bool
            Whether no reader was here before, and whether none comes after.
        """
        v = self._visit
        v.start, v.end, v.first, v.last = start, end, first, last
        library.call("visit", v)
