"""The scan, the convolution and the norm tile by tile give what they give over the whole."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.selective_scan import convolve_silu, library, selective_scan
from encoders.selective_scan.tiles import convolve_tile, norm_tile, scan_tile

NATIVE = pytest.param(
    torch.float32,
    marks=pytest.mark.skipif(not library.is_built(), reason="the native kernels are not built"),
)
# float32 goes through the native kernels, float64 through torch.
over_dtypes = pytest.mark.parametrize("dtype", [NATIVE, torch.float64])
LIMIT = {torch.float32: 2e-6, torch.float64: 1e-13}
ROWS, LENGTH, CHANNELS, STATES, RANK = 2, 70, 37, 5, 3


def worst(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def cuts(length: int, sizes: list[int], reverse: bool) -> list[tuple[int, int]]:
    """Cut a length into tiles of these sizes, in the order of reading."""
    edges = [0]
    for size in sizes:
        edges.append(min(length, edges[-1] + size))
    tiles = list(zip(edges, [*edges[1:], length], strict=True))
    tiles = [(start, end) for start, end in tiles if start < end]
    return tiles[::-1] if reverse else tiles


@over_dtypes
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), max_size=6),
    reverse=st.booleans(),
    gated=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_scan_goes_on_where_the_tile_before_ended(dtype, sizes, reverse, gated, seed) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    u, gate, there = (normal(ROWS, LENGTH, CHANNELS) for _ in range(3))
    low, B, C = (normal(ROWS, LENGTH, size) for size in (RANK, STATES, STATES))
    A, D = -torch.exp(normal(CHANNELS, STATES)), normal(CHANNELS)
    steps = {"delta_weight": normal(CHANNELS, RANK), "delta_bias": normal(CHANNELS)}
    wanted = there + selective_scan(
        u, low, A, B, C, D, **steps, delta_softplus=True, reverse=reverse
    )
    wanted = wanted * F.silu(gate) if gated else wanted
    found, state = there.clone(), torch.zeros(ROWS, STATES, CHANNELS, dtype=dtype)
    for start, end in cuts(LENGTH, sizes, reverse):
        part = slice(start, end)
        scan_tile(
            u[:, part], low[:, part], A, B[:, part], C[:, part], D, state, **steps,
            reverse=reverse, into=found[:, part], add=True, gate=gate[:, part] if gated else None,
        )  # fmt: skip
    assert worst(found, wanted) < LIMIT[dtype]


@over_dtypes
@pytest.mark.parametrize("taps", [1, 2, 4, 8])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_convolution_reads_what_lies_before_its_tile(dtype, taps, biased, reverse) -> None:
    generator = torch.Generator().manual_seed(taps)
    x = torch.randn(ROWS, LENGTH, CHANNELS, generator=generator, dtype=dtype)
    weight = torch.randn(CHANNELS, taps, generator=generator, dtype=dtype)
    bias = torch.randn(CHANNELS, generator=generator, dtype=dtype) if biased else None
    wanted = convolve_silu(x, weight, bias, reverse=reverse)
    for start, end in cuts(LENGTH, [1, 1, 2, 33, 20], reverse):
        found = convolve_tile(x, start, end, weight, bias, reverse=reverse)
        assert found.shape == (ROWS, end - start, CHANNELS)
        assert worst(found, wanted[:, start:end]) < LIMIT[dtype]


@over_dtypes
@pytest.mark.parametrize("width", [1, 7, 16, 65])
@pytest.mark.parametrize("biased", [True, False])
def test_norms_are_torchs(dtype, width, biased) -> None:
    generator = torch.Generator().manual_seed(width)
    x = 3 + torch.randn(ROWS, 9, width, generator=generator, dtype=dtype)
    weight = torch.randn(width, generator=generator, dtype=dtype)
    bias = torch.randn(width, generator=generator, dtype=dtype) if biased else None
    offset = 0 if bias is None else bias
    found = norm_tile(x, weight, bias, 1e-5, centre=False)
    wanted = F.rms_norm(x, (width,), weight, 1e-5) + offset
    assert worst(found, wanted) < LIMIT[dtype]
    found = norm_tile(x, weight, bias, 1e-5, centre=True)
    wanted = F.layer_norm(x, (width,), weight, bias, 1e-5)
    assert float((found - wanted).abs().max()) < 3 * LIMIT[dtype]


def test_bfloat16_comes_back_as_bfloat16() -> None:
    x = torch.randn(1, 20, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = torch.ones(6, 3, dtype=torch.bfloat16)
    found = convolve_tile(x, 5, 15, weight, None)
    assert found.dtype == torch.bfloat16
    wanted = convolve_silu(x.float(), weight.float())[:, 5:15]
    assert worst(found.float(), wanted) < 2**-8
