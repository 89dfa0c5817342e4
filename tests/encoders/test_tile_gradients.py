"""Gradients of scan, convolution and norm, tile by tile, are those over the whole."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import relative_rms

from encoders.selective_scan import convolve_silu, library, selective_scan
from encoders.selective_scan.library import KEPT_EVERY
from encoders.selective_scan.tile_gradients import (
    convolve_tile_back,
    gate_tile_back,
    keep_tile,
    norm_tile_back,
    scan_tile_back,
)

pytestmark = pytest.mark.skipif(not library.is_built(), reason="the native kernels are not built")
ROWS, CHANNELS, STATES, RANK = 2, 37, 5, 3
LIMIT = 3e-6


def cuts(length: int, size: int, reverse: bool) -> list[tuple[int, int]]:
    """Cut a length into tiles, in the order of reading."""
    tiles = [(start, min(start + size, length)) for start in range(0, length, size)]
    return tiles[::-1] if reverse else tiles


@pytest.fixture(params=["baseline", "avx2"])
def level(request, monkeypatch) -> None:
    monkeypatch.setenv(library.LEVEL_VARIABLE, request.param)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "tile"), [(1, 16), (50, 16), (97, 48), (64, 32), (70, 16)])
def test_a_scan_goes_back_over_its_tiles(length, tile, reverse) -> None:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u, low = normal(ROWS, length, CHANNELS), normal(ROWS, length, RANK)
    B, C = normal(ROWS, length, STATES), normal(ROWS, length, STATES)
    A, D = -torch.exp(normal(CHANNELS, STATES)), normal(CHANNELS)
    weight, bias, grad = normal(CHANNELS, RANK), normal(CHANNELS), normal(*u.shape)
    exact = [values.requires_grad_() for values in (u, low, A, B, C, D, weight, bias)]
    y = selective_scan(
        u, low, A, B, C, D, delta_weight=weight, delta_bias=bias, delta_softplus=True,
        reverse=reverse,
    )  # fmt: skip
    wanted = torch.autograd.grad(y, exact, grad)

    u, low, A, B, C, D, weight, bias = (values.detach().float() for values in exact)
    steps = {"delta_weight": weight, "delta_bias": bias, "reverse": reverse}
    found_y, state = torch.zeros_like(u), torch.zeros(ROWS, STATES, CHANNELS)
    kept = {}
    for start, end in cuts(length, tile, reverse):
        part = slice(start, end)
        kept[start] = torch.empty(ROWS, -(-(end - start) // KEPT_EVERY), STATES, CHANNELS)
        keep_tile(
            u[:, part], low[:, part], A, B[:, part], C[:, part], D, state, kept[start], **steps,
            into=found_y[:, part], add=True,
        )  # fmt: skip
    assert relative_rms(found_y, y.detach()) < LIMIT
    state.zero_()
    found = [torch.zeros_like(values) for values in (u, u, A, B, C, D)]
    for start, end in reversed(cuts(length, tile, reverse)):
        part = slice(start, end)
        given_back = scan_tile_back(
            grad[:, part].float(), u[:, part], low[:, part], A, B[:, part], C[:, part], D, state,
            kept[start], **steps,
        )  # fmt: skip
        found[0][:, part], found[1][:, part] = given_back.u, given_back.step
        found[2] += given_back.A
        found[3][:, part], found[4][:, part] = given_back.B, given_back.C
        found[5] += given_back.D
    step = found[1]
    of_low, of_weight = step @ weight, torch.einsum("blc,blr->cr", step, low)
    all_found = [found[0], of_low, *found[2:], of_weight, step.sum(dim=(0, 1))]
    for mine, theirs in zip(all_found, wanted, strict=True):
        assert relative_rms(mine, theirs) < LIMIT


@pytest.mark.usefixtures("level")
@settings(max_examples=40, deadline=None)
@given(
    taps=st.integers(1, 8),
    length=st.integers(1, 40),
    tile=st.integers(1, 40),
    channels=st.integers(1, 20),
    biased=st.booleans(),
    reverse=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_convolution_goes_back_over_its_tiles(
    taps, length, tile, channels, biased, reverse, seed
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, grad = torch.randn(2, ROWS, length, channels, generator=generator, dtype=torch.float64)
    weight = torch.randn(channels, taps, generator=generator, dtype=torch.float64)
    bias = torch.randn(channels, generator=generator, dtype=torch.float64) if biased else None
    exact = [v.requires_grad_() for v in (x.clone(), weight, bias) if v is not None]
    y = convolve_silu(*exact[:2], exact[2] if biased else None, reverse=reverse)
    wanted = torch.autograd.grad(y, exact, grad)

    x = x.float()
    there = torch.randn(x.shape, generator=generator)
    found, carry = there.clone(), torch.zeros(ROWS, taps - 1, channels)
    single = None if bias is None else bias.detach().float()
    of_weight, of_bias = torch.zeros(channels, taps), torch.zeros(channels)
    for start, end in reversed(cuts(length, tile, reverse)):
        part = slice(start, end)
        mine, own = convolve_tile_back(
            grad[:, part].float(), x, start, end, weight.detach().float(), single, carry,
            reverse=reverse, into=found[:, part], add=True,
        )  # fmt: skip
        of_weight += mine
        of_bias += own
    scale = float(wanted[0].abs().max())
    torch.testing.assert_close(found - there, wanted[0].float(), rtol=1e-5, atol=3e-6 * (1 + scale))
    torch.testing.assert_close(of_weight, wanted[1].float(), rtol=1e-4, atol=1e-4)
    if biased:
        torch.testing.assert_close(of_bias, wanted[2].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("width", [3, 7, 16, 65])
def test_norms_go_back_as_torchs(centre, width) -> None:
    generator = torch.Generator().manual_seed(width)
    x, grad, there = torch.randn(3, ROWS, 9, width, generator=generator, dtype=torch.float64)
    x = (x + 3).requires_grad_()
    weight = torch.randn(width, generator=generator, dtype=torch.float64).requires_grad_()
    norm = F.layer_norm if centre else F.rms_norm
    y = norm(x, (width,), weight, eps=1e-5)
    of_x, of_weight = torch.autograd.grad(y, (x, weight), grad)
    into = grad.float()
    found_weight, found_bias = norm_tile_back(
        into, x.detach().float(), weight.detach().float(), 1e-5,
        centre=centre, add=there.float(), into=into,
    )  # fmt: skip
    assert relative_rms(into - there, of_x) < 1e-5
    assert relative_rms(found_weight, of_weight) < LIMIT
    assert relative_rms(found_bias, grad.sum(dim=(0, 1))) < LIMIT


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("width", [1, 8, 37])
def test_gates_go_back_as_torchs(width) -> None:
    generator = torch.Generator().manual_seed(width)
    y, gate, grad = torch.randn(3, ROWS, 9, width, generator=generator, dtype=torch.float64)
    gate = 30 * gate
    exact = y.clone().requires_grad_(), gate.clone().requires_grad_()
    product = exact[0] * F.silu(exact[1])
    wanted = torch.autograd.grad(product, exact, grad)
    found = [values.float() for values in (y, gate, grad)]
    gate_tile_back(*found)
    for mine, theirs in zip(found, (*wanted, product.detach()), strict=True):
        assert relative_rms(mine, theirs) < LIMIT
