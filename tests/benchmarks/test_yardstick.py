"""What speed is measured against is upstream's network: its numbers, and the scan's definition."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity_sets import parity_cases
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.yardstick import TwoStrandBlock, YardstickCaduceus, reference_scan
from encoders import load_encoder
from encoders.caduceus.model import CaduceusForMaskedLM
from encoders.selective_scan import selective_scan


def description(case: Path) -> dict[str, Any]:
    return json.loads((case / "case.json").read_text(encoding="utf-8"))


def over_shared_strands(kind: str) -> pytest.MarkDecorator:
    """Run over all fixtures of a kind whose network shares parameters between strands."""
    folders = [case for case in parity_cases("caduceus") if (case / "case.json").is_file()]
    cases = [
        case
        for case in folders
        if description(case)["kind"] == kind
        and json.loads((case / "config.json").read_text(encoding="utf-8")).get("rcps")
    ]
    assert cases, f"no fixture of kind {kind} with RC parameter sharing"
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def network_of(case: Path, dtype: str) -> CaduceusForMaskedLM:
    network = load_encoder("caduceus", case, dtype=dtype).backbone
    assert isinstance(network, CaduceusForMaskedLM)
    return network


def suffix_of(dtype: str) -> str:
    return "_f64" if dtype == "float64" else ""


@over_shared_strands("forward")
@both_dtypes
@torch.no_grad()
def test_gives_upstreams_last_hidden_state(case: Path, dtype: str) -> None:
    told = description(case)
    inputs, expected = (load_file(case / f"{name}.safetensors") for name in ("inputs", "expected"))
    yardstick = YardstickCaduceus(network_of(case, dtype))
    for group in told["groups"]:
        # A long sequence's numbers are stored in float32 only; they bound float64 as well.
        stored = f"{group}.last_hidden_state"
        kept = stored + suffix_of(dtype) in expected
        wanted = expected[stored + suffix_of(dtype) if kept else stored]
        found = yardstick(inputs[f"{group}.input_ids"]).to(wanted.dtype)
        torch.testing.assert_close(found, wanted, **told["tolerance"][dtype if kept else "float32"])


@over_shared_strands("forward")
@torch.no_grad()
def test_a_block_gives_what_ours_gives(case: Path) -> None:
    layers = network_of(case, "float64").caduceus.backbone.layers
    width = 2 * layers[0].mixer.submodule.mamba_fwd.in_proj.in_features
    hidden, residual = torch.randn(2, 1, 21, width, dtype=torch.float64)
    for layer in layers:
        found, wanted = TwoStrandBlock(layer)(hidden, residual), layer(hidden, residual)
        torch.testing.assert_close(found, wanted, atol=1e-11, rtol=1e-11)


@over_shared_strands("grad")
@both_dtypes
def test_gives_upstreams_gradients(case: Path, dtype: str) -> None:
    network = network_of(case, dtype)
    inputs, expected = (load_file(case / f"{name}.safetensors") for name in ("inputs", "expected"))
    yardstick = YardstickCaduceus(network)
    weights = inputs["output_weights"].to(next(network.parameters()).dtype)
    embeds = yardstick.embed(inputs["input_ids"]).detach().requires_grad_()
    (given,) = torch.autograd.grad((yardstick(inputs_embeds=embeds) * weights).sum(), embeds)
    found = {"grad_inputs_embeds": given}
    named = dict(network.named_parameters())
    objective = (yardstick(inputs["input_ids"]) * weights).sum()
    gradients = torch.autograd.grad(objective, list(named.values()), allow_unused=True)
    found |= {f"grad.{name}": g for name, g in zip(named, gradients, strict=True) if g is not None}
    suffix, limit = (
        suffix_of(dtype),
        description(case)["tolerance"][dtype]["relative_to_tensor_max"],
    )
    compared = {name for name in found if name + suffix in expected}
    assert len(compared) > len(named) / 2
    for name in compared:
        wanted = expected[name + suffix]
        assert (found[name] - wanted).abs().max() <= limit * wanted.abs().max(), name


def scan_inputs(length: int) -> dict[str, Tensor]:
    """Draw float64 inputs in our layout (B, L, D), time steps to be from about 1e-4 to 24."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "u": normal(2, length, 6),
        "delta": normal(2, length, 6) * 8,
        "A": -torch.exp(normal(6, 4)),
        "B": normal(2, length, 4),
        "C": normal(2, length, 4),
        "D": normal(6),
        "delta_bias": normal(6),
    }


def run_ours(inputs: dict[str, Tensor], gate: Tensor) -> Tensor:
    y = selective_scan(**inputs, delta_softplus=True, backend="reference")
    return y * F.silu(gate)


def run_yardstick(inputs: dict[str, Tensor], gate: Tensor) -> Tensor:
    turned = {
        name: values.transpose(1, 2) if name in ("u", "delta", "B", "C") else values
        for name, values in inputs.items()
    }
    return reference_scan(**turned, z=gate.transpose(1, 2), delta_softplus=True).transpose(1, 2)


@pytest.mark.parametrize("length", [1, 2, 33])
def test_scan_equals_the_definition_and_its_gradients(length: int) -> None:
    inputs = {name: values.requires_grad_() for name, values in scan_inputs(length).items()}
    gate = torch.randn(2, length, 6, dtype=torch.float64, requires_grad=True)
    leaves = [*inputs.values(), gate]
    ours, yardstick = run_ours(inputs, gate), run_yardstick(inputs, gate)
    torch.testing.assert_close(yardstick, ours, atol=1e-12, rtol=1e-12)
    weights = torch.randn_like(ours)
    wanted = torch.autograd.grad((ours * weights).sum(), leaves)
    found = torch.autograd.grad((yardstick * weights).sum(), leaves)
    for given, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(given, right, atol=1e-10, rtol=1e-10)


def test_scan_keeps_the_type_of_its_input_and_takes_no_position_at_all() -> None:
    inputs = {name: values.float() for name, values in scan_inputs(5).items()}
    inputs["u"] = inputs["u"].bfloat16()
    assert run_yardstick(inputs, torch.ones(2, 5, 6)).dtype == torch.bfloat16
    empty = scan_inputs(0)
    assert run_yardstick(empty, torch.ones(2, 0, 6)).shape == (2, 0, 6)
