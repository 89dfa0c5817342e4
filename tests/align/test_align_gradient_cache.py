"""Gradient caching is the large batch; plain accumulation is not."""

from dataclasses import replace

import pytest
import torch
from distributed_training import make
from torch import Tensor, nn

from multimodal.align.data import EpochRows
from multimodal.align.fit import fit
from multimodal.align.gradient_cache import encode_cached, split_rows
from multimodal.align.losses import info_nce
from multimodal.align.options import LOSSES, AlignOptions, SideOptions

EXACT = {"rtol": 0.0, "atol": 1e-10}


def step(rows: int = 15, **case: object) -> tuple[Tensor, dict[str, Tensor]]:
    """One training step's loss and the gradients it leaves."""
    module, dataset = make({"batch_size": None, **case})
    loss = module.training_step(dataset[EpochRows(0, torch.arange(rows).numpy())], 0)
    loss.backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("parts", [2, 4, 20])
def test_parts_give_the_update_of_the_whole(loss: str, parts: int) -> None:
    whole, gradients = step(loss=loss)
    cached, found = step(loss=loss, accumulate=parts)
    torch.testing.assert_close(cached, whole, **EXACT)
    assert found.keys() == gradients.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(found[name], value, **EXACT)


@pytest.mark.parametrize("loss", ["info_nce", "soft_target", "barlow_twins"])
def test_plain_accumulation_does_not(loss: str) -> None:
    _, gradients = step(loss=loss)
    _, found = step(loss=loss, accumulate=3, accumulation="plain")
    name = "aligner.gene.head.layers.0.weight"
    difference = (found[name] - gradients[name]).norm() / gradients[name].norm()
    assert difference > 0.05


def test_plain_accumulation_is_the_mean_of_its_parts() -> None:
    module, dataset = make({"batch_size": None, "accumulate": 2, "accumulation": "plain"})
    everybody = dataset[EpochRows(0, torch.arange(15).numpy())]
    parts = [dataset[EpochRows(0, rows.numpy())] for rows in torch.arange(15).tensor_split(2)]
    alone = [module.gallery_figures(part)[0] * len(part.relatives) / 15 for part in parts]
    torch.testing.assert_close(module.training_step(everybody, 0), sum(alone), **EXACT)


def test_dropout_is_drawn_again_as_it_was() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 4)).double()
    rows = torch.randn(10, 6, dtype=torch.float64)
    relatives = torch.arange(10)

    def encode(table: Tensor) -> tuple[Tensor, Tensor]:
        return network(table), network(table)

    def gradients(latents: tuple[Tensor, Tensor]) -> list[Tensor]:
        # Whatever is drawn in between does not reach the second encoding.
        torch.rand(7)
        loss = info_nce(*latents, 2.0, relatives)
        return [loss.detach(), *torch.autograd.grad(loss, list(network.parameters()))]

    torch.manual_seed(5)
    encoded = [encode(piece) for (piece,) in split_rows([rows], 3)]
    whole = gradients((torch.cat([e[0] for e in encoded]), torch.cat([e[1] for e in encoded])))
    torch.manual_seed(5)
    first, second = encode_cached(encode, [rows], 3)
    assert not torch.equal(first, second)
    for found, expected in zip(gradients((first, second)), whole, strict=True):
        torch.testing.assert_close(found, expected, **EXACT)


def test_no_part_is_kept() -> None:
    calls: list[tuple[int, bool]] = []
    kept: list[int] = []
    network = nn.Sequential(nn.Linear(6, 64), nn.GELU(), nn.Linear(64, 4))

    def encode(table: Tensor) -> tuple[Tensor]:
        calls.append((len(table), torch.is_grad_enabled()))
        return (network(table),)

    rows = torch.randn(10, 6)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        (latents,) = encode_cached(encode, [rows], 5)
    assert max(kept, default=0) < 10 * 64
    latents.square().sum().backward()
    assert [rows for rows, _ in calls] == [2] * 10
    # No rows at all: every parameter has a gradient all the same, for other processes wait for it.
    network.zero_grad()
    encode_cached(encode, [rows[:0]], 5)[0].sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in network.parameters())


def test_a_fit_in_parts_is_the_fit(world, split) -> None:  # type: ignore[no-untyped-def]
    gene, brain = world()
    side = SideOptions(dropout=0.0)
    options = AlignOptions(epochs=3, hidden_dim=32, latent_dim=16, gene=side, brain=side)
    fits = [
        fit(gene, brain, split(), torch.arange(120).numpy(), None, how, progress=False)
        for how in (options, replace(options, accumulate=4))
    ]
    whole, parts = (result.aligner.state_dict() for result in fits)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)
