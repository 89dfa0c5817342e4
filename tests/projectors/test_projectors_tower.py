"""Heads and towers."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from encoders.errors import InputError
from projectors.heads import Head
from projectors.standardise import StandardiserOptions
from projectors.tower import Tower, TowerOptions


def pooled(subjects=30, windows=4, dim=8):
    return torch.randn(subjects, windows, dim, dtype=torch.float64) * 1e-4


def test_default_head_is_the_published_one():
    layers = list(Head(20).layers)
    kinds = [nn.Linear, nn.GELU, nn.Dropout, nn.Linear, nn.LayerNorm]
    assert [type(layer) for layer in layers] == kinds
    assert layers[0].weight.shape == (1024, 20)
    assert layers[3].weight.shape == (512, 1024)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_heads_started_alike_reproduce_the_linear_cosines(kind):
    torch.manual_seed(0)
    gene, brain = Head(7, kind).double().eval(), Head(11, kind).double().eval()
    maps = torch.randn(7, 5).double(), torch.randn(11, 5).double()
    for head, linear_map in zip((gene, brain), maps, strict=True):
        head.start_from_linear_map(linear_map, torch.Generator().manual_seed(3))
    x, y = torch.randn(9, 7).double() * 5, torch.randn(9, 11).double() * 5
    expected = F.normalize(x @ maps[0], dim=1) @ F.normalize(y @ maps[1], dim=1).T
    assert torch.allclose(gene(x) @ brain(y).T, expected, atol=1e-4)


def test_started_head_gives_the_origin_a_direction():
    head = Head(4).eval()
    head.start_from_linear_map(torch.zeros(4, 3), torch.Generator().manual_seed(0))
    latents = head(torch.zeros(2, 4))
    assert torch.allclose(latents.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("pooling", ["concat", "mean", "attention"])
@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_tower_rebuilds_from_config_and_state(pooling, head):
    torch.manual_seed(0)
    features = pooled()
    covariates = torch.randn(30, 2)
    options = TowerOptions(
        pooling=pooling, head=head, standardiser=StandardiserOptions(components=5)
    )
    tower = Tower.fit(features, options, covariates).eval()
    latents = tower(features, covariates)
    assert latents.shape == (30, 512)
    assert torch.allclose(latents.norm(dim=1), torch.ones(30), atol=1e-6)
    again = Tower.from_config(json.loads(json.dumps(tower.config()))).eval()
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again(features, covariates), latents)


def test_bad_options_are_listed():
    with pytest.raises(InputError) as caught:
        TowerOptions(pooling="sum", head="deep", dropout=1.0)
    assert len(caught.value.problems) == 3
    with pytest.raises(InputError, match="mlp or linear"):
        Head(3, "deep")
