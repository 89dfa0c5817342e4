"""Streamed pooling gives what running the network and pooling gives, however it is cut."""

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache

import pytest
import torch
from streamed_cases import INNER, VARIANTS, small_caduceus

from encoders.base import pool_bases
from encoders.caduceus import products, stream_layers, streamed, workers
from encoders.caduceus.products import Product, is_native
from encoders.caduceus.scratch import Scratch
from encoders.caduceus.stream_layers import Reader
from encoders.caduceus.streamed import can_stream, pool_streamed, streams
from encoders.mamba import LayerNorm, RMSNorm
from encoders.selective_scan import library

LIMIT = {"float32": 1e-5, "float64": 1e-12}


@cache
def small(variant: str, dtype: str):
    """Make an encoder that no test changes."""
    return small_caduceus(variant, dtype)


def windows(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw token ids of bases, N among them, and pooling weights."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(7, 12, (rows, length), generator=generator)
    return ids, torch.rand(rows, length, generator=generator, dtype=torch.float64)


def windows_of(encoder, rows: int, length: int) -> tuple[torch.Tensor, ...]:
    """Draw what `pool_streamed` takes after the network."""
    ids, weights = windows(rows, length)
    return ids, encoder.complement_map, weights


def plain(encoder, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        hidden = encoder.hidden(ids, torch.ones_like(ids, dtype=torch.bool))
        return pool_bases(hidden, torch.ones_like(ids, dtype=torch.bool), weights)


def worst(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (3, 2), (2, 33), (1, 100)])
def test_it_is_the_pooled_network(variant, dtype, rows, length, monkeypatch) -> None:
    monkeypatch.setattr(streamed, "TILE_NUMBERS", 16 * INNER)
    monkeypatch.setattr(streamed, "TOGETHER_NUMBERS", 16 * INNER)
    encoder = small(variant, dtype)
    assert streams(encoder.backbone)
    ids, weights = windows(rows, length)
    found = pool_streamed(encoder.backbone, ids, encoder.complement_map, weights)
    assert worst(found, plain(encoder, ids, weights)) < LIMIT[dtype]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("long", [1, 10**6])
def test_threads_change_no_bit(count, long, threads, monkeypatch) -> None:
    monkeypatch.setattr(streamed, "TILE_NUMBERS", 16 * INNER)
    monkeypatch.setattr(streamed, "TOGETHER_NUMBERS", 16 * INNER)
    encoder = small("ps", "float32")
    ids, weights = windows(2, 150)
    threads(1)
    wanted = pool_streamed(encoder.backbone, ids, encoder.complement_map, weights)
    monkeypatch.setattr(streamed, "LONG", long)
    threads(count)
    found = pool_streamed(encoder.backbone, ids, encoder.complement_map, weights)
    assert torch.equal(found, wanted)
    assert torch.get_num_threads() == count


def test_neighbours_in_a_batch_change_little() -> None:
    encoder = small("ps", "float32")
    ids, weights = windows(7, 40)
    together = pool_streamed(encoder.backbone, ids, encoder.complement_map, weights)
    alone = pool_streamed(encoder.backbone, ids[3:4], encoder.complement_map, weights[3:4])
    assert worst(together[3:4], alone) < 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tile", [16, 100])
def test_a_visit_in_one_call_is_its_steps(variant, dtype, tile, monkeypatch) -> None:
    monkeypatch.setattr(streamed, "TILE_NUMBERS", tile * INNER)
    monkeypatch.setattr(streamed, "TOGETHER_NUMBERS", tile * INNER)
    encoder = small_caduceus(variant, dtype)
    batch = windows_of(encoder, 5, 40)
    found = pool_streamed(encoder.backbone, *batch)
    monkeypatch.setattr(stream_layers, "can_visit", lambda _: False)
    assert torch.equal(pool_streamed(encoder.backbone, *batch), found)


def rounds_by_torch(monkeypatch, rounds: bool | None) -> None:
    """Have bfloat16 multiplied as such by torch, or not at all, whatever this CPU has.

    None leaves it to the native kernels, and skips the test where they cannot.
    """
    if rounds is None:
        if not is_native(torch.bfloat16):
            pytest.skip("no native products in bfloat16 here")
        return
    monkeypatch.setattr(products, "is_native", lambda of: of == torch.float32 and is_native(of))
    monkeypatch.setattr(products, "_torch_multiplies", lambda of: rounds and of == torch.bfloat16)


@pytest.mark.parametrize(
    ("dtype", "rounds"),
    [("bfloat16", None), ("bfloat16", True), ("bfloat16", False), ("float16", False)],
)
@pytest.mark.parametrize(
    "variant", ["ps", "ps_unfused", "ps_layer_norm", "ph", "ps_one_way_biased"]
)
@pytest.mark.parametrize("tile", [16, 100])
@pytest.mark.parametrize("in_fp32", [True, False])
def test_in_reduced_precision_products_alone_are_rounded(
    variant: str, dtype: str, rounds: bool | None, tile: int, in_fp32: bool, monkeypatch
) -> None:
    monkeypatch.setattr(streamed, "TILE_NUMBERS", tile * INNER)
    monkeypatch.setattr(streamed, "TOGETHER_NUMBERS", tile * INNER)
    rounds_by_torch(monkeypatch, rounds)
    ids, weights = windows(5, 40)  # tiles of some windows, or some windows together
    encoder = small_caduceus(variant, dtype, residual_in_fp32=in_fp32)
    exact = small_caduceus(variant, "float32")
    with torch.no_grad():  # the rounded weights, those that stay in float32 as they are
        for own, given in zip(
            exact.backbone.parameters(), encoder.backbone.parameters(), strict=True
        ):
            own.copy_(given)
    wanted = plain(exact, ids, weights)
    found = pool_streamed(encoder.backbone, ids, encoder.complement_map, weights)
    assert found.dtype == torch.float32
    error = worst(found, wanted)
    if rounds is None or rounds:
        assert LIMIT["float32"] < error < worst(plain(encoder, ids, weights), wanted)
    else:
        assert error < LIMIT["float32"]


@pytest.mark.parametrize("biased", [True, False])
def test_rounded_products_are_those_of_rounded_numbers(biased: bool, monkeypatch) -> None:
    rounds_by_torch(monkeypatch, True)
    generator = torch.Generator().manual_seed(1)
    x, before = torch.randn(2, 9, 12, generator=generator), torch.randn(2, 9, 7)
    weight = torch.randn(7, 12, generator=generator).bfloat16()
    bias = torch.randn(7, generator=generator) if biased else None
    product, scratch = Product(weight, bias), Scratch()
    wanted = torch.nn.functional.linear(x.bfloat16(), weight).float()
    wanted = wanted if bias is None else wanted + bias
    assert torch.equal(product.into(torch.empty(2, 9, 7), x, scratch), wanted)
    found = before.clone()
    product.add_to(found, x, scratch)
    torch.testing.assert_close(found, before + wanted)


@pytest.mark.parametrize("variant", ["ps", "ps_layer_norm"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("norms", [torch.float32, torch.float64])
def test_norms_may_be_of_another_type(variant, dtype, norms, monkeypatch) -> None:
    monkeypatch.setattr(streamed, "TILE_NUMBERS", 16 * INNER)
    encoder = small_caduceus(variant, dtype)
    batch = windows_of(encoder, 1, 40)
    wanted = pool_streamed(encoder.backbone, *batch)
    for module in encoder.backbone.modules():
        if isinstance(module, LayerNorm | RMSNorm):
            module.to(norms)
    assert worst(pool_streamed(encoder.backbone, *batch), wanted) < 1e-6


@pytest.mark.parametrize("count", [1, 2])
def test_a_failing_reader_stops_the_other(count, threads, monkeypatch) -> None:
    monkeypatch.setattr(streamed, "TILE_NUMBERS", 16 * INNER)
    monkeypatch.setattr(streamed, "TOGETHER_NUMBERS", 16 * INNER)
    read = Reader.read

    def fail(self, u, start, *others, **options) -> None:
        if self.reverse and start == 52:  # the fifth tile of eight
            raise ValueError("a fault half way")
        read(self, u, start, *others, **options)

    monkeypatch.setattr(Reader, "read", fail)
    threads(count)
    encoder = small("ph", "float64")
    with pytest.raises(ValueError, match="half way"):
        pool_streamed(
            encoder.backbone, *[windows(1, 100)[0], encoder.complement_map], torch.ones(1, 100)
        )
    assert torch.get_num_threads() == count


@pytest.mark.skipif(not library.is_built(), reason="the native kernels are not built")
def test_it_is_taken_where_it_gives_the_same() -> None:
    encoder = small_caduceus("ps", "float32")
    network = encoder.backbone
    with torch.no_grad():
        assert can_stream(network, 100)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not can_stream(network, 100)
        hook = network.caduceus.backbone.layers[1].register_forward_hook(lambda *_: None)
        assert not can_stream(network, 100)
        hook.remove()
        untied = small_caduceus("ph", "float32", bidirectional_weight_tie=False)
        assert not can_stream(untied.backbone, 100)
        assert can_stream(small_caduceus("ps", "float64").backbone, streamed.LONG)
        assert not can_stream(small_caduceus("ps", "float64").backbone, 100)
        assert can_stream(small_caduceus("ps_unfused", "bfloat16").backbone, 100)
        layer = network.caduceus.backbone.layers[0].mixer.submodule.mamba_fwd
        for name in ("in_proj", "x_proj", "out_proj"):
            own = getattr(layer, name)
            setattr(layer, name, torch.nn.Sequential(own))
            assert not can_stream(network, 100)
            setattr(layer, name, own)
        assert can_stream(network, 100)
    trained = small_caduceus("ps", "float32").requires_grad_(True)
    assert not can_stream(trained.backbone, 100)
    assert can_stream(trained.requires_grad_(False).backbone, 100)


def test_gradients_still_flow_through_the_encoder() -> None:
    encoder = small_caduceus("ps", "float32").requires_grad_(True)
    ids, _ = windows(1, 30)
    encoder(ids, torch.ones_like(ids, dtype=torch.bool)).sum().backward()
    assert all(value.grad is not None for value in encoder.backbone.caduceus.parameters())


def test_gradients_of_pooling_weights_are_not_lost() -> None:
    encoder = small("ps", "float32").requires_grad_(False)
    ids, weights = windows(1, 30)
    weights = weights.float().requires_grad_()
    encoder(ids, torch.ones_like(ids, dtype=torch.bool), weights).sum().backward()
    assert weights.grad is not None
    assert float(weights.grad.abs().max()) > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_torchs_default_type_changes_nothing(dtype) -> None:
    encoder = small("ps", "float32")
    batch = windows_of(encoder, 2, 100)
    wanted = pool_streamed(encoder.backbone, *batch)
    torch.set_default_dtype(dtype)
    try:
        found = pool_streamed(encoder.backbone, *batch)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, wanted)


def test_callers_in_several_threads_get_what_they_asked_for(threads) -> None:
    threads(2)
    encoder = small("ps", "float32")
    batches = [windows_of(encoder, rows, 90) for rows in (1, 2, 3, 4)]
    wanted = [pool_streamed(encoder.backbone, *batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: pool_streamed(encoder.backbone, *batch), batches))
    assert all(map(torch.equal, found, wanted))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_forked_child_streams_with_threads_of_its_own(meanwhile, threads) -> None:
    threads(2)
    encoder = small("ps", "float32")
    batch = windows_of(encoder, 2, 90)
    wanted = pool_streamed(encoder.backbone, *batch)

    def work() -> None:
        os._exit(0 if torch.equal(pool_streamed(encoder.backbone, *batch), wanted) else 1)

    child = multiprocessing.get_context("fork").Process(target=work)
    with workers._ALONE if meanwhile else nullcontext():
        child.start()
    child.join(timeout=60)  # where it waits for its parent's threads, it waits for ever
    child.kill()
    assert child.exitcode == 0


@pytest.mark.skipif(not library.is_built(), reason="the native kernels are not built")
def test_a_batch_streams_as_a_whole(monkeypatch) -> None:
    """Its windows share torch's threads, however few tokens the plain path takes at once."""
    encoder = small("ps", "float32")
    monkeypatch.setattr("encoders.caduceus.encoder._TOKENS_AT_ONCE", 1)
    calls = []

    def counted(network, ids, *others) -> torch.Tensor:
        calls.append(list(ids.shape))
        return pool_streamed(network, ids, *others)

    monkeypatch.setattr("encoders.caduceus.encoder.pool_streamed", counted)
    with torch.no_grad():
        encoder(*encoder.tokenize(["ACGTN", "GATTACA", "CCCCC"]))
    assert calls == [[2, 5], [1, 7]]
