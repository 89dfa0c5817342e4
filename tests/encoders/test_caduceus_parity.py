"""Caduceus against numbers made with upstream's own code (see the README of each case)."""

from pathlib import Path

import pytest
import torch
from caduceus_cases import (
    DTYPES,
    assert_close,
    backbone,
    both_dtypes,
    keys_of,
    over_cases,
    read_json,
)
from safetensors.torch import load_file

from encoders import load_encoder
from encoders.caduceus.checkpoint import find_ties
from encoders.caduceus.config import CaduceusConfig
from encoders.caduceus.model import CaduceusForMaskedLM, count_weights, masked_lm_loss
from encoders.weights import read_weights


@over_cases("forward")
@both_dtypes
@torch.no_grad()
def test_forward(case: Path, dtype: str) -> None:
    network = backbone(case, dtype)
    inputs = load_file(case / "inputs.safetensors")
    expected = load_file(case / "expected.safetensors")
    compared: set[str] = set()
    for group in read_json(case / "case.json")["groups"]:
        ids = inputs[f"{group}.input_ids"]
        trace = network.trace(ids)
        found = {f"{group}.last_hidden_state": network(ids), f"{group}.logits": network.logits(ids)}
        assert torch.equal(trace.last_hidden_state, found[f"{group}.last_hidden_state"])
        for kind, states in (("hidden_states", trace.hidden_states), ("residual", trace.residuals)):
            stored = [key for key in expected if key.startswith(f"{group}.{kind}.")]
            stored = [key for key in stored if not key.endswith("_f64")]
            assert len(stored) in (0, len(states))
            found |= {f"{group}.{kind}.{i}": state for i, state in enumerate(states)}
        compared |= assert_close(case, dtype, found, expected)
    assert compared == keys_of(expected, dtype)


@over_cases("forward")
@torch.no_grad()
def test_negative_controls_are_missed(case: Path) -> None:
    """A fused checkpoint run along the unfused path gives other numbers: we must not match them."""
    path = case / "negative_controls.safetensors"
    if not path.is_file():
        assert "negative_controls" not in read_json(case / "case.json")
        return
    network = backbone(case, "float32")
    inputs = load_file(case / "inputs.safetensors")
    for key, wrong in load_file(path).items():
        group = key.split(".")[0]
        found = {key: network(inputs[f"{group}.input_ids"])}
        with pytest.raises(AssertionError, match="unfused"):
            assert_close(case, "float32", found, {key: wrong})
        # The control itself is understood: it is these weights without the swap.
        for layer in network.caduceus.backbone.layers:
            layer.swaps = False
        found = {key: network(inputs[f"{group}.input_ids"])}
        assert_close(case, "float32", found, {key: wrong})
        for layer in network.caduceus.backbone.layers:
            layer.swaps = True


@over_cases("forward_bf16")
@torch.no_grad()
def test_bfloat16(case: Path) -> None:
    inputs = load_file(case / "inputs.safetensors")
    expected = load_file(case / "expected.safetensors")
    tolerance = read_json(case / "case.json")["tolerance"]
    ids = inputs["main.input_ids"]
    for dtype in DTYPES:
        network = backbone(case, dtype)
        found = {"last_hidden_state": network(ids), "logits": network.logits(ids)}
        for name, value in found.items():
            wanted = expected[f"main.{name}_f64"].to(value.dtype)
            torch.testing.assert_close(value, wanted, **tolerance[dtype])
    for group, residual_in_fp32 in (("main", True), ("main.residual_bf16", False)):
        config = {"residual_in_fp32": residual_in_fp32}
        network = load_encoder("caduceus", case, config=config, dtype="bfloat16").backbone
        mixer = network.caduceus.backbone.layers[0].mixer.submodule.mamba_fwd
        assert mixer.A_log.dtype == torch.float32
        assert mixer.in_proj.weight.dtype == torch.bfloat16
        found = {"last_hidden_state": network(ids), "logits": network.logits(ids)}
        for name, value in found.items():
            error = (value.float() - expected[f"{group}.{name}"]).abs().max()
            assert error <= tolerance["bfloat16"][f"{name}_atol"]


@over_cases("mlm")
@both_dtypes
@pytest.mark.parametrize("file", ["model.safetensors", "model_published_layout.safetensors"])
@torch.no_grad()
def test_masked_lm(case: Path, dtype: str, file: str) -> None:
    config = read_json(case / "config.json")
    network = load_encoder("caduceus", case / file, config=config, dtype=dtype).backbone
    inputs = load_file(case / "inputs.safetensors")
    ids, weights = inputs["input_ids"], inputs["loss_weights"]
    logits = network.logits(ids)
    pad4 = {"labels": inputs["labels_pad4"], "ignore_index": 4}
    found = {
        "last_hidden_state": network(ids),
        "logits": logits,
        "loss": masked_lm_loss(logits, inputs["labels"]),
        "loss_weighted": masked_lm_loss(logits, inputs["labels"], weights=weights),
        "loss_pad4": masked_lm_loss(logits, **pad4),
        "loss_pad4_weighted": masked_lm_loss(logits, **pad4, weights=weights),
        "loss_pad4_on_minus100_free_labels": masked_lm_loss(
            logits, inputs["labels_all"], ignore_index=4
        ),
    }
    expected = load_file(case / "expected.safetensors")
    assert_close(case, dtype, found, expected)
    counted = count_weights(inputs["labels"], weights)
    assert torch.equal(counted, expected["loss_weights_after_call"])
    assert keys_of(expected, dtype) - {"loss_weights_after_call"} == {
        name + ("_f64" if dtype == "float64" else "") for name in found
    }
    assert torch.equal(weights, load_file(case / "inputs.safetensors")["loss_weights"])


@over_cases("grad")
@both_dtypes
def test_gradients(case: Path, dtype: str) -> None:
    network = backbone(case, dtype)
    inputs = load_file(case / "inputs.safetensors")
    expected = load_file(case / "expected.safetensors")
    named = dict(network.named_parameters())
    ids = inputs["input_ids"]
    output_weights = inputs["output_weights"].to(next(network.parameters()).dtype)
    objective = (network(ids) * output_weights).sum()
    gradients = torch.autograd.grad(objective, list(named.values()), allow_unused=True)
    found = {f"grad.{name}": g for name, g in zip(named, gradients, strict=True) if g is not None}
    embeds = network.embed(ids).detach().requires_grad_()
    again = (network(inputs_embeds=embeds) * output_weights).sum()
    (found["grad_inputs_embeds"],) = torch.autograd.grad(again, embeds)
    loss = masked_lm_loss(network.logits(ids), inputs["labels"])
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    found |= {f"mlm_grad.{n}": g for n, g in zip(named, gradients, strict=True)}
    found |= {"objective": objective.detach(), "mlm_loss": loss.detach()}
    limit, suffix = (1e-8, "_f64") if dtype == "float64" else (1e-3, "")
    wanted = {k.removesuffix("_f64") for k in expected}
    assert wanted <= set(found)
    for name in wanted:
        reference = expected[name + suffix]
        assert (found[name] - reference).abs().max() <= limit * reference.abs().max(), name


@over_cases("rc")
@both_dtypes
@torch.no_grad()
def test_reverse_complement_inputs(case: Path, dtype: str) -> None:
    description = read_json(case / "case.json")
    inputs = load_file(case / "inputs.safetensors")
    expected = load_file(case / "expected.safetensors")
    tolerance = description["tolerance"]["float32"]
    for name, folder in description["models"].items():
        if not (case / folder).is_dir():
            continue
        network = backbone(case / folder, dtype)
        complement = torch.tensor(network.config.complement_map)
        for key in [k for k in inputs if k.startswith(name) and k.endswith(".input_ids")]:
            group = key.removesuffix(".input_ids")
            if group.endswith("rc"):
                continue
            rc_ids = inputs[f"{group}.rc_input_ids"]
            assert torch.equal(complement[inputs[key]].flip(1), rc_ids)
            found = {"rc_last_hidden_state": network(rc_ids), "rc_logits": network.logits(rc_ids)}
            for kind, value in found.items():
                wanted = expected[f"{group}.{kind}"].to(value.dtype)
                torch.testing.assert_close(value, wanted, **tolerance)
            if network.config.rcps:
                limit = {"float32": 1e-4, "float64": 1e-11}[dtype]
                mirrored = network(inputs[key]).flip(1, 2)
                assert (found["rc_last_hidden_state"] - mirrored).abs().max() < limit
                mirrored = network.logits(inputs[key])[..., complement].flip(1)
                assert (found["rc_logits"] - mirrored).abs().max() < limit


@over_cases("dna_embedding")
@both_dtypes
@torch.no_grad()
def test_strand_embeddings(case: Path, dtype: str) -> None:
    network = backbone(case, dtype)
    stacked = network.strand_embeddings(load_file(case / "inputs.safetensors")["input_ids"])
    found = {
        "stacked": stacked,
        "collapsed": stacked.mean(dim=-1),
        "mean_pooled": stacked.mean(dim=1),
    }
    expected = load_file(case / "expected.safetensors")
    assert assert_close(case, dtype, found, expected) == keys_of(expected, dtype)


@over_cases("dna_embedding")
@torch.no_grad()
def test_adapter_lays_the_other_strand_over_the_first(case: Path) -> None:
    encoder = load_encoder("caduceus", case, dtype="float64")
    ids = load_file(case / "inputs.safetensors")["input_ids"]
    if ids.ndim == 3:
        ids = ids[..., 0]
    expected = load_file(case / "expected.safetensors")["stacked_f64"]
    hidden = encoder.hidden(ids, torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(hidden[..., 0], expected[..., 0], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(hidden[..., 1], expected[..., 1].flip(1), atol=1e-9, rtol=1e-9)


@over_cases("forward", "mlm")
def test_tied_tensors_are_found(case: Path) -> None:
    tied = dict(read_json(case / "case.json")["tied"])
    config = CaduceusConfig.from_mapping(read_json(case / "config.json"))
    ours = {a: b for a, b in find_ties(config).items() if "complement_map" not in a}
    assert ours == tied
    weights = read_weights(case)
    model = CaduceusForMaskedLM(config)
    assert {name for name, _ in model.named_parameters()} == {
        name for name in weights.tensors if name not in tied and "complement_map" not in name
    }
