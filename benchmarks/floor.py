"""What Caduceus-PS cannot do without on this machine: a floor under the seconds it takes.

Its matrix products and its scans by the kernels it takes itself (torch's products for the gradients
of weights), on as many threads, a tile at a time in memory that is in the cache already; no norm,
no convolution, no gate, and nothing that is read or written in between. Other kernels would have
another floor, and so has every minute on a machine whose cores others use as well: it is measured
beside what stands on it.
"""

import math
import threading
import time

import torch
from torch import Tensor, nn

from encoders.base import DnaEncoder
from encoders.caduceus import streamed, streamed_training
from encoders.caduceus.layers import BiMamba
from encoders.caduceus.products import Product
from encoders.caduceus.scratch import Scratch
from encoders.caduceus.stream_layers import Reader
from encoders.caduceus.streamed import tile_of, windows_together
from encoders.caduceus.workers import alone, run_all
from encoders.selective_scan.library import KEPT_EVERY
from encoders.selective_scan.tile_gradients import keep_tile, scan_tile_back
from encoders.selective_scan.tiles import scan_tile

STRANDS = 2
# The first layer has no residual yet.
LAYER = 1


def layer_of(encoder: DnaEncoder) -> nn.Module:
    """Return one layer out of a Caduceus encoder."""
    layer: nn.Module = encoder.backbone.caduceus.backbone.layers[LAYER]
    return layer


def layers_in(encoder: DnaEncoder) -> int:
    """Return how many layers it has."""
    return len(encoder.backbone.caduceus.backbone.layers)


class Bare:
    """A tile of one strand in one layer, in both directions and in float32, as large as ours are.

    Parameters
    ----------
    encoder : DnaEncoder
        A Caduceus-PS.
    length_bp : int
        Of a window; the tile is one of those that it is cut into, or several windows together.
    training : bool
        Whether it is cut as in training.

    Attributes
    ----------
    bases : int
        Of the tile.
    """

    def __init__(self, encoder: DnaEncoder, length_bp: int, *, training: bool = False) -> None:
        mixer: BiMamba = layer_of(encoder).mixer.submodule  # type: ignore[union-attr, assignment]
        first, last = mixer.mamba_fwd, mixer.mamba_rev
        assert last is not None
        inner = first.out_proj.in_features
        rows = windows_together(inner, length_bp)
        most = streamed_training.TILE_NUMBERS if training else streamed.TILE_NUMBERS
        tile = tile_of(inner, length_bp, most)
        self.bases = rows * tile
        generator = torch.Generator().manual_seed(length_bp)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self._linears = []
        for linear in (first.in_proj, first.x_proj, last.x_proj, first.out_proj):
            x, y = draw(1, self.bases, linear.in_features), draw(1, self.bases, linear.out_features)
            weight = linear.weight.detach()
            into = torch.empty_like(x), torch.empty_like(weight)
            self._linears.append((x, Product(weight), y, *into))
        self._scratch = Scratch()
        self._readers = [
            Reader(first.readings[0], reverse=False),
            Reader(last.readings[0], reverse=True),
        ]
        self._u, self._into, self._grad = draw(3, rows, tile, inner)
        self._projected = draw(rows, tile, self._readers[0].width)
        self._state = self._readers[0].start(rows)
        self._kept = torch.empty(rows, -(-tile // KEPT_EVERY), *self._state.shape[1:])

    def multiply(self, *, again: bool = False) -> None:
        """Take the products; `again`, on the way back, the last one's result is not wanted."""
        for x, product, y, *_ in self._linears[:-1] if again else self._linears:
            product.into(y, x, self._scratch)

    def multiply_back(self) -> None:
        """Take the products for the gradients of inputs and weights."""
        for x, product, y, into_x, into_weight in self._linears:
            torch.mm(y[0].T, x[0], out=into_weight)
            product.back_into(into_x, y)

    def scan(self) -> None:
        """Run the scans."""
        for reader in self._readers:
            scan_tile(
                self._u, *self._read(reader), self._state, into=self._into,
                delta_weight=reader.steps_weight, delta_bias=reader.steps_bias,
                reverse=reader.reverse,
            )  # fmt: skip

    def scan_back(self) -> None:
        """Run the scans, keep their states, and go back."""
        for reader in self._readers:
            read, steps = self._read(reader), reader.steps_weight
            keep_tile(
                self._u, *read, self._state.zero_(), self._kept, into=self._into, add=False,
                delta_weight=steps, delta_bias=reader.steps_bias, reverse=reader.reverse,
            )  # fmt: skip
            scan_tile_back(
                self._grad, self._u, *read, self._state.zero_(), self._kept, into=self._into,
                delta_weight=steps, delta_bias=reader.steps_bias, reverse=reader.reverse,
            )  # fmt: skip

    def _read(self, reader: Reader) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        low, B, C = self._projected.split(reader.parts, dim=-1)
        return low, reader.A, B, C, reader.D


def floor_seconds(
    encoder: DnaEncoder, length_bp: int, *, windows: int = 1, training: bool = False
) -> float:
    """Measure the floor under windows of one length, on as many threads as torch has.

    Measured on one layer and multiplied by their number.

    Parameters
    ----------
    encoder : DnaEncoder
        A Caduceus-PS.
    length_bp : int
    windows : int
    training : bool
        Forwards, forwards again (what is inside of all layers takes more memory than there is),
        and backwards; else forwards only.
    """

    @torch.inference_mode()
    def run(job: tuple[Bare, int], _: object) -> None:
        bare, times = job
        for _ in range(times):
            bare.multiply()
            bare.scan()
            if training:
                bare.multiply(again=True)
                bare.scan_back()
                bare.multiply_back()

    with alone() as threads, torch.inference_mode():
        parts = [Bare(encoder, length_bp, training=training) for _ in range(threads)]
        tiles = windows * STRANDS * length_bp / parts[0].bases
        stop = threading.Event()

        def seconds(times: int) -> float:
            jobs = [(part, times) for part in parts]
            start = time.perf_counter()
            run_all(run, jobs, stop, threads, two_way=False, long=False)
            return time.perf_counter() - start

        seconds(1)
        times = math.ceil(tiles / threads)
        return seconds(times) * tiles / (times * threads) * layers_in(encoder)
