"""Products by the native kernels, at every instruction set this CPU has."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from encoders.caduceus import products
from encoders.caduceus.products import Product
from encoders.caduceus.scratch import Scratch
from encoders.selective_scan import library
from encoders.selective_scan.products import Packed, multiplies, multiply, pack

pytestmark = pytest.mark.skipif(not library.is_built(), reason="the native kernels are not built")
DTYPES = [torch.float32, torch.bfloat16]
# Rows, depth and width around what the kernels take at once.
SHAPES = [
    (1, 1, 1), (5, 3, 17), (6, 64, 64), (7, 65, 63), (13, 128, 48), (191, 31, 33), (193, 130, 112),
    (400, 256, 100), (3, 512, 15), (0, 8, 8),
]  # fmt: skip


@pytest.fixture(params=library.LEVELS, autouse=True)
def level(request, monkeypatch) -> str:
    """Each level in turn."""
    monkeypatch.delenv(library.LEVEL_VARIABLE, raising=False)
    if library.LEVELS.index(request.param) > library.LEVELS.index(library.level()):
        pytest.skip(f"this CPU has no {request.param}")
    monkeypatch.setenv(library.LEVEL_VARIABLE, request.param)
    return request.param


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "depth", "width"), SHAPES)
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_against_float64(rows: int, depth: int, width: int, dtype, add: bool, biased: bool) -> None:
    if not multiplies(dtype):
        pytest.skip(f"no products in {dtype} here")
    x, weight = draw(rows, depth), draw(width, depth).to(dtype)
    bias = draw(width) if biased else None
    # Rows of a wider matrix: what lies behind them must stay as it is.
    around = draw(rows, width + 3)
    out = around[:, :width]
    wanted = x.to(dtype).double() @ weight.double().T
    wanted = wanted + (out.double() if add else 0.0) + (0.0 if bias is None else bias.double())
    behind = around[:, width:].clone()
    multiply(x, pack(weight), out, bias=bias, add=add)
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=2e-6 * (depth + 1) ** 0.5)
    assert torch.equal(around[:, width:], behind)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_others(dtype) -> None:
    if not multiplies(dtype):
        pytest.skip(f"no products in {dtype} here")
    x, packed = draw(230, 150), pack(draw(70, 150).to(dtype))
    whole = torch.empty(230, 70)
    multiply(x, packed, whole)
    for first, end in ((0, 1), (3, 9), (100, 230), (190, 195)):
        part = torch.empty(end - first, 70)
        multiply(x[first:end], packed, part)
        assert torch.equal(part, whole[first:end])


def test_views_are_packed_as_they_are_read() -> None:
    weight = draw(40, 30)
    assert torch.equal(pack(weight.T).values, pack(weight.T.contiguous()).values)
    assert torch.equal(pack(weight[1::2]).values, pack(weight[1::2].contiguous()).values)
    narrow = weight.bfloat16()
    assert torch.equal(pack(narrow.T).values, pack(narrow.T.contiguous()).values)


@pytest.mark.parametrize("add", [False, True])
def test_backwards_is_the_transposed_product(add: bool) -> None:
    weight, grad, before = draw(24, 36), draw(2, 5, 24), draw(2, 5, 36)
    found = before.clone()
    Product(weight).back_into(found, grad, add=add)
    wanted = grad.double() @ weight.double() + (before.double() if add else 0.0)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-5)


def test_weights_are_laid_out_once_for_all_threads(monkeypatch) -> None:
    """Kernels are told where they lie: a second layout would take the place of the first."""

    def slowly(weight: Tensor) -> Packed:
        time.sleep(0.05)
        return pack(weight)

    monkeypatch.setattr(products, "pack", slowly)
    product = Product(draw(24, 36))
    with ThreadPoolExecutor(4) as pool:
        found = {pool.submit(lambda: product.arguments().weight) for _ in range(4)}
        assert len({address.result() for address in found}) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("biased", [False, True])
def test_product_of_any_precision(dtype, biased: bool) -> None:
    weight, x, before = draw(24, 36).to(dtype), draw(2, 5, 36).to(dtype), draw(2, 5, 24).to(dtype)
    bias = draw(24).to(dtype) if biased else None
    product, scratch = Product(weight, bias), Scratch()
    wanted = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(product.into(torch.empty_like(before), x, scratch), wanted)
    found = before.clone()
    product.add_to(found, x, scratch)
    torch.testing.assert_close(found, before + wanted)
