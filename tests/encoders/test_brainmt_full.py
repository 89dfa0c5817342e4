"""BrainMT at its published size: weights from a recipe, gradients by their norms."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from brainmt_cases import FULL, STEM, apart, expected_of, parameters, settings, trace
from torch import Tensor

from encoders.brainmt.config import BrainMTConfig
from encoders.brainmt.initialise import make_network
from encoders.brainmt.layers import DropPath
from encoders.brainmt.model import BrainMT

TOLERANCE = {"float32": 1e-3, "float64": 1e-8}
every_case = pytest.mark.parametrize("case", parameters(FULL))


def read(case: Path, name: str) -> dict[str, Any]:
    return json.loads((case / name).read_text())


def drawn(entry: dict[str, Any]) -> Tensor:
    """The values of one tensor, by the rule that the case's README states."""
    uniform = np.random.RandomState(entry["seed"]).random_sample(entry["shape"])
    values = (entry["centre"] + entry["amplitude"] * (2 * uniform - 1)).astype(np.float32)
    check = entry["check"]
    assert values.flat[0] == np.float32(check["first"]), entry["name"]
    assert values.flat[-1] == np.float32(check["last"]), entry["name"]
    assert values.sum(dtype=np.float64) == pytest.approx(check["sum_float64"], abs=1e-6)
    return torch.from_numpy(values)


def build(case: Path, dtype: str) -> tuple[BrainMT, Tensor, Tensor]:
    """The network, the volumes and the target."""
    recipe, stated = read(case, "recipe.json"), settings(case)
    entries = {entry["name"]: entry for entry in recipe["tensors"]}
    with torch.device("meta"):
        network = BrainMT(BrainMTConfig.from_mapping(stated["constructor"]))
    names = list(network.state_dict())
    network.load_state_dict({name: drawn(entries[name]) for name in names}, assign=True)
    kind = getattr(torch, dtype)
    volumes = drawn(recipe["input"]).half().to(kind)
    return network.to(kind).eval(), volumes, torch.tensor(recipe["target"], dtype=kind)


def selected(key: str, value: Tensor, rows: list[int]) -> Tensor:
    """The part of a state that the case keeps."""
    if key in STEM:
        steps = [1, max(1, value.shape[1] // 8), *(max(1, n // 3) for n in value.shape[2:])]
        return value[tuple(slice(None, None, step) for step in steps)]
    return value[:, rows] if value.ndim == 3 else value


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_case
@torch.no_grad()
def test_every_state(case: Path, dtype: str) -> None:
    network, volumes, target = build(case, dtype)
    assert sum(p.numel() for p in network.parameters()) == settings(case)["parameter_count"]
    found = trace(network, volumes)
    found["loss"] = F.mse_loss(found["head"].squeeze(1), target.reshape(-1))[None]
    for key, value in expected_of(case, dtype).items():
        kept = selected(key, found[key], settings(case)["rows"])
        assert apart(kept, value, key) <= TOLERANCE[dtype], key


@pytest.mark.slow
@every_case
def test_gradient_norms(case: Path) -> None:
    network, volumes, target = build(case, "float64")
    network.recompute_layers = True
    volumes.requires_grad_(True)
    F.mse_loss(network.predict(volumes).squeeze(1), target.reshape(-1)).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    gradients["INPUT_x"] = volumes.grad
    norms = read(case, "grad_norms_f64.json")
    assert set(norms) <= set(gradients)
    for name, wanted in norms.items():
        gradient = gradients[name]
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(wanted["l2"], rel=1e-6), name


@every_case
def test_names_and_shapes_of_both_variants(case: Path) -> None:
    published = read(case, "published_parameters.json")
    for variant, bidirectional in (("uni", False), ("bimamba", True)):
        with torch.device("meta"):
            network = BrainMT(BrainMTConfig(bidirectional=bidirectional))
        found = {name: list(p.shape) for name, p in network.named_parameters()}
        assert found == published[variant]["parameters"]
        if variant == "uni":
            assert list(found) == list(published[variant]["parameters"])
        assert sum(p.numel() for p in network.parameters()) == published[variant]["total"]
        assert not list(network.buffers())


@every_case
def test_rates_of_stochastic_depth(case: Path) -> None:
    published = read(case, "published_parameters.json")["uni"]
    with torch.device("meta"):
        network = BrainMT(BrainMTConfig())
    rates = {name: m.rate for name, m in network.named_modules() if isinstance(m, DropPath)}
    for key, pattern in (
        ("drop_path_rates_layers", "layers.{}.drop_path"),
        ("drop_path_rates_blocks", "drop_path_attn.{}"),
    ):
        found = [rates[pattern.format(index)] for index in range(len(published[key]))]
        assert found == published[key]


@pytest.mark.slow
@every_case
def test_first_weights_are_drawn_as_upstream_draws_them(case: Path) -> None:
    stated = read(case, "published_parameters.json")["uni"]["initial_mean_std_min_max"]
    network = make_network(BrainMTConfig(), seed=0)
    for name, parameter in network.named_parameters():
        mean, std, low, high = stated[name]
        deviation = 0.0 if parameter.numel() == 1 else parameter.std().item()
        off = 4 * max(std, 1e-6) / parameter.numel() ** 0.5
        assert parameter.mean().item() == pytest.approx(mean, abs=2 * off), name
        if std == 0 or name.endswith("A_log"):
            assert deviation == pytest.approx(std, rel=1e-5, abs=1e-7), name
            assert parameter.min().item() == pytest.approx(low, abs=1e-6), name
            assert parameter.max().item() == pytest.approx(high, abs=1e-6), name
        else:
            spread = 6 / parameter.numel() ** 0.5
            assert deviation == pytest.approx(std, rel=max(0.03, spread)), name
