"""Streamed training gives the gradients that running the layers gives, however it is cut."""

from typing import Any

import pytest
import torch
from scan_cases import relative_rms
from streamed_cases import INNER, SMALL, VARIANTS, small_caduceus
from torch import Tensor

from encoders.caduceus import streamed, streamed_back, streamed_training
from encoders.caduceus.streamed_training import can_train_streamed
from encoders.selective_scan import library

pytestmark = pytest.mark.skipif(not library.is_built(), reason="the native kernels are not built")


def trained(variant: str, dtype: str = "float32", **more: Any) -> Any:
    encoder = small_caduceus(variant, dtype, **more).requires_grad_(True)
    encoder.gradient_checkpointing(True)
    return encoder


def tokens(rows: int, length: int) -> Tensor:
    """Draw token ids of bases, N among them."""
    generator = torch.Generator().manual_seed(length)
    return torch.randint(7, 12, (rows, length), generator=generator)


def gradients(encoder: Any, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the last hidden states, and all gradients of a random weighting of them."""
    encoder.zero_grad()
    hidden = encoder.backbone(ids)
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(hidden.shape, generator=generator, dtype=torch.float64)
    (hidden * weights.to(hidden.dtype)).sum().backward()
    named = encoder.named_parameters()
    return hidden.detach(), {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.fixture(autouse=True)
def _short_tiles(monkeypatch) -> None:
    monkeypatch.setattr(streamed_training, "TILE_NUMBERS", 32 * INNER)
    monkeypatch.setattr(streamed, "TOGETHER_NUMBERS", 32 * INNER)


@pytest.fixture
def used(monkeypatch) -> list[int]:
    """Return a list that grows with every run of streamed layers."""
    calls: list[int] = []
    streamed = streamed_training.add_up_streamed

    def counted(layers, *others, **options) -> Tensor:
        calls.append(len(layers))
        return streamed(layers, *others, **options)

    monkeypatch.setattr(streamed_training, "add_up_streamed", counted)
    return calls


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (3, 2), (2, 33), (1, 100), (1, 257)])
def test_gradients_are_as_exact_as_the_layers_own(variant, rows, length, used, monkeypatch) -> None:
    ids = tokens(rows, length)
    hidden, found = gradients(trained(variant), ids)
    assert len(used) == 1
    exact_hidden, exact = gradients(trained(variant, "float64"), ids)
    assert len(used) == 1, "float64 takes the layers themselves"
    monkeypatch.setattr(streamed_training, "can_train_streamed", lambda *_: False)
    _, plain = gradients(trained(variant), ids)
    assert relative_rms(hidden, exact_hidden) < 5e-7
    assert found.keys() == exact.keys() == plain.keys()
    for name, wanted in exact.items():
        # Where terms cancel (one position above all) the error is a draw, as large for the layers
        # themselves: a few times theirs in a single draw, the same over many.
        bound = max(5e-6, 5 * relative_rms(plain[name], wanted))
        assert relative_rms(found[name], wanted) < bound, name


@pytest.mark.parametrize("variant", ["ps", "ph", "ps_one_way"])
@pytest.mark.parametrize(("rows", "length"), [(1, 200), (40, 9)])
def test_threads_change_no_bit(variant, rows, length, threads, monkeypatch) -> None:
    encoder, ids = trained(variant), tokens(rows, length)
    threads(1)
    wanted_hidden, wanted = gradients(encoder, ids)
    for count, long in ((2, 1), (2, 10**6), (3, 1), (5, 1), (5, 10**6)):
        monkeypatch.setattr(streamed_training, "LONG", long)
        threads(count)
        hidden, found = gradients(encoder, ids)
        assert torch.get_num_threads() == count
        assert torch.equal(hidden, wanted_hidden)
        for name, values in wanted.items():
            assert torch.equal(found[name], values), name


def test_tiles_change_little(monkeypatch) -> None:
    encoder, ids = trained("ps"), tokens(2, 150)
    _, wanted = gradients(encoder, ids)
    for positions in (16, 48, 1000):
        monkeypatch.setattr(streamed_training, "TILE_NUMBERS", positions * INNER)
        monkeypatch.setattr(streamed, "TOGETHER_NUMBERS", positions * INNER)
        _, found = gradients(encoder, ids)
        assert max(relative_rms(found[name], values) for name, values in wanted.items()) < 1e-5


def test_neighbours_in_a_batch_add_up() -> None:
    encoder = trained("ps")
    ids = tokens(5, 40)

    def sums(rows: Tensor) -> dict[str, Tensor]:
        encoder.zero_grad()
        encoder.backbone(rows).square().sum().backward()
        return {name: p.grad.clone() for name, p in encoder.named_parameters()}

    together, alone = sums(ids), [sums(ids[row : row + 1]) for row in range(5)]
    for name, values in together.items():
        assert relative_rms(sum(part[name] for part in alone), values) < 1e-5, name


def test_frozen_weights_get_no_gradient_and_change_no_other() -> None:
    encoder, ids = trained("ps"), tokens(1, 70)
    _, wanted = gradients(encoder, ids)
    parameters = dict(encoder.named_parameters())
    frozen = [name for number, name in enumerate(parameters) if number % 3 and "embed" not in name]
    for name in frozen:
        parameters[name].requires_grad_(False)
    _, found = gradients(encoder, ids)
    assert found.keys() == wanted.keys() - set(frozen)
    for name, values in found.items():
        assert torch.equal(values, wanted[name]), name


def test_lower_layers_that_are_frozen_are_not_gone_back_through(monkeypatch) -> None:
    encoder, ids = trained("ps"), tokens(1, 70)
    backbone = encoder.backbone.caduceus.backbone
    backbone.embeddings.requires_grad_(False)
    backbone.layers[:2].requires_grad_(False)
    layers = []
    backwards = streamed_training._backwards

    def counted(*arguments):
        layers.append(1)
        return backwards(*arguments)

    monkeypatch.setattr(streamed_training, "_backwards", counted)
    _, found = gradients(encoder, ids)
    assert len(layers) == 1
    assert any("layers.2" in name for name in found)


def test_it_is_taken_where_it_gives_the_same() -> None:
    encoder = trained("ps")
    layers = encoder.backbone.caduceus.backbone.layers
    total = torch.zeros(1, 20, 2 * SMALL["d_model"])
    assert can_train_streamed(layers, total)
    assert not can_train_streamed(layers, total.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not can_train_streamed(layers, total)
    for register in ("register_forward_hook", "register_full_backward_hook"):
        hook = getattr(layers[1].mixer, register)(lambda *_: None)
        assert not can_train_streamed(layers, total)
        hook.remove()
    assert can_train_streamed(layers, total)
    layers[0].mixer.submodule.mamba_fwd.x_proj = torch.nn.Sequential(torch.nn.Identity())
    assert not can_train_streamed(layers, total)
    for changed in (
        trained("ph", bidirectional_weight_tie=False),
        trained("ph", bidirectional_strategy="ew_multiply"),
        trained("ps", "float64"),
    ):
        own = changed.backbone.caduceus.backbone.layers
        assert not can_train_streamed(own, torch.zeros(1, 20, 12))


def test_without_checkpointing_the_layers_themselves_run(used) -> None:
    encoder = trained("ps")
    encoder.gradient_checkpointing(False)
    gradients(encoder, tokens(1, 20))
    assert not used
    encoder.gradient_checkpointing(True)
    with torch.no_grad():
        encoder.backbone(tokens(1, 20))
    assert not used


def test_weights_changed_in_between_are_noticed() -> None:
    encoder = trained("ps")
    total = encoder.backbone(tokens(1, 20)).sum()
    with torch.no_grad():
        encoder.backbone.caduceus.backbone.layers[1].mixer.submodule.mamba_fwd.A_log.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("long", [1, 10**6])
def test_a_failing_reader_stops_the_other(count, long, threads, monkeypatch) -> None:
    monkeypatch.setattr(streamed_training, "LONG", long)
    back = streamed_back.scan_tile_back

    def fail(*arguments, reverse: bool, **options):
        if reverse and len(arguments[0][0]) < 32:
            raise ValueError("a fault half way")
        return back(*arguments, reverse=reverse, **options)

    monkeypatch.setattr(streamed_back, "scan_tile_back", fail)
    threads(count)
    total = trained("ph")(tokens(1, 100), torch.ones(1, 100, dtype=torch.bool)).sum()
    with pytest.raises(ValueError, match="half way"):
        total.backward()
    assert torch.get_num_threads() == count


def test_gradients_of_gradients_are_refused() -> None:
    encoder = trained("ps")
    parameter = encoder.backbone.caduceus.backbone.layers[0].norm.weight
    total = encoder.backbone(tokens(1, 20)).square().sum()
    (grad,) = torch.autograd.grad(total, parameter, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_nothing_gives_no_gradient(threads) -> None:
    encoder = trained("ps")
    for count in (1, 2):
        threads(count)
        hidden, found = gradients(encoder, tokens(0, 20))
        assert hidden.shape == (0, 20, 2 * SMALL["d_model"])
        assert all(not values.any() for values in found.values())


@pytest.mark.parametrize("count", [1, 2])
def test_autocast_around_the_way_back_changes_no_bit(count, threads) -> None:
    threads(count)
    encoder, ids = trained("ps"), tokens(1, 50)
    _, wanted = gradients(encoder, ids)
    encoder.zero_grad()
    hidden = encoder.backbone(ids)
    weights = torch.randn(
        hidden.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    total = (hidden * weights.float()).sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total.backward()
    for name, parameter in encoder.named_parameters():
        assert torch.equal(parameter.grad, wanted[name]), name


def test_a_graph_that_is_kept_gives_the_same_again() -> None:
    encoder = trained("ps")
    weight = encoder.backbone.caduceus.backbone.layers[0].mixer.submodule.mamba_fwd.in_proj.weight
    total = encoder.backbone(tokens(2, 70)).square().sum()
    first, second = (torch.autograd.grad(total, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_parameters_may_lie_anyhow() -> None:
    encoder, ids = trained("ps_layer_norm"), tokens(2, 70)
    _, wanted = gradients(encoder, ids)
    for parameter in encoder.parameters():
        apart = torch.empty(*parameter.shape, 2)
        apart[..., 0] = parameter.detach()
        parameter.data = apart[..., 0]
    _, found = gradients(encoder, ids)
    for name, values in wanted.items():
        assert relative_rms(found[name], values) < 1e-6, name


def test_only_plain_tensors_are_taken() -> None:
    layers = trained("ps").backbone.caduceus.backbone.layers

    class Other(Tensor):
        pass

    total = torch.zeros(1, 20, 2 * SMALL["d_model"])
    assert not can_train_streamed(layers, total.as_subclass(Other))
    own = layers[0].norm.weight
    layers[0].norm.weight = torch.nn.Parameter(own.detach().as_subclass(Other))
    assert not can_train_streamed(layers, total)


def test_memory_of_the_way_back_is_given_back(monkeypatch) -> None:
    rooms = []
    room = streamed_training._Room

    class Seen(room):
        def __init__(self) -> None:
            super().__init__()
            rooms.append(self)

    monkeypatch.setattr(streamed_training, "_Room", Seen)
    encoder = trained("ps")
    total = encoder.backbone(tokens(1, 40)).sum()
    total.backward(retain_graph=True)
    assert [one._scratch for one in rooms] == [None]
    total.backward()
    assert [one._scratch for one in rooms] == [None]
    backbone = encoder.backbone.caduceus.backbone
    backbone.embeddings.requires_grad_(False)
    backbone.layers[:2].requires_grad_(False)
    total = encoder.backbone(tokens(1, 40)).sum()
    total.backward()
    assert [one._scratch for one in rooms] == [None, None]


def test_hooks_on_all_modules_are_seen() -> None:
    layers = trained("ps").backbone.caduceus.backbone.layers
    total = torch.zeros(1, 20, 2 * SMALL["d_model"])
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not can_train_streamed(layers, total)
    finally:
        hook.remove()
    assert can_train_streamed(layers, total)
