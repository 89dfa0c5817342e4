"""SwiFT's heads and contrastive losses against upstream's own numbers."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_sets import parity_cases
from safetensors.torch import load_file
from torch import Tensor, nn

from encoders.swift.contrastive import (
    contrastive_loss,
    global_local_temporal,
    local_local,
    nt_xent,
)
from encoders.swift.heads import head_like, make_head
from encoders.swift.model import pool

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@cache
def tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def facts_of(case: Path) -> dict[str, Any]:
    path = case / "config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def of_kind(kind: str) -> list[Any]:
    found = [case for case in parity_cases("swift") if facts_of(case).get("kind") == kind]
    return [pytest.param(case, id=case.name) for case in found]


def inputs_of(case: Path, dtype: str) -> dict[str, Tensor]:
    """Leaves of their own, so that gradients of one test are not another's."""
    values = tensors(case / "inputs.safetensors").items()
    wide = {key: value.to(getattr(torch, dtype), copy=True) for key, value in values}
    return {key: value.requires_grad_() for key, value in wide.items()}


def assert_all_agree(found: dict[str, Tensor], case: Path, dtype: str) -> None:
    """Compare every key that the case states for a dtype."""
    limits = facts_of(case)["tolerance"]
    wide = dtype == "float64"
    expected = tensors(case / "expected.safetensors")
    names = [key for key in expected if key.endswith("_f64") == wide]
    assert {name.removesuffix("_f64") for name in names} <= set(found)
    for name in names:
        key, value = name.removesuffix("_f64"), expected[name]
        if not value.is_floating_point():
            assert torch.equal(found[key], value), key
            continue
        if wide:
            limit = {"rtol": 0.0, **limits["f64"]}
        elif "grad" in key and "gradients_f32" in limits:
            largest = float(value.abs().max())
            limit = {"rtol": 0.0, "atol": limits["gradients_f32"]["atol_rel_to_max"] * largest}
        else:
            limit = limits.get("forward_f32") or limits["f32"]
        torch.testing.assert_close(
            found[key].detach().reshape(value.shape), value, check_dtype=False, **limit
        )


def load_head(case: Path, name: str, dtype: str) -> nn.Module:
    facts = facts_of(case)
    arguments = facts["heads"][name]
    kind = "clf_mlp_v1" if name.endswith("_classes") else name
    size = arguments.get("final_embedding_size", 128)
    classes = arguments.get("num_classes", 2)
    head = make_head(kind, facts["num_tokens"], classes=classes, size=size)
    stored = tensors(case / "model.safetensors").items()
    prefix = f"{name}."
    state = {key.removeprefix(prefix): v for key, v in stored if key.startswith(prefix)}
    like = head_like(state, facts["num_tokens"])
    assert type(like) is type(head)
    assert {k: v.shape for k, v in head.state_dict().items()} == {
        k: v.shape for k, v in like.state_dict().items()
    }
    head.load_state_dict(state)
    return head.to(getattr(torch, dtype)).eval()


def binary_classification(head: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    logits = head(given["features"])
    target = given["target_binary"].detach()
    loss = F.binary_cross_entropy_with_logits(logits[:, 0], target)
    loss.backward()
    accuracy = ((logits[:, 0] >= 0) == target.bool()).to(logits.dtype).mean()
    gradient = head.head.weight.grad  # type: ignore[union-attr]
    return {"out": logits, "bce": loss, "accuracy": accuracy, "bce_grad.head.weight": gradient}


def regression(head: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    values, target = head(given["features"]), given["target_regression"].detach()
    return {
        "out": values,
        "mse": F.mse_loss(values[:, 0], target),
        "l1": F.l1_loss(values[:, 0], target),
    }


def embedding(head: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    still = head(given["features"])
    moving = head.train()(given["features"])
    (moving * given["cotangent_embedding"].detach()).sum().backward()
    gradients = {
        f"train_grad.{name}": parameter.grad for name, parameter in head.named_parameters()
    }
    assert given["features"].grad is not None
    after = {f"{name.removeprefix('bn1.')}_after": value for name, value in head.named_buffers()}
    return {
        "eval_g": still,
        "eval_l": still,
        "train_g": moving,
        **gradients,
        "train_grad.features_first_token": given["features"].grad[..., 0, 0, 0, 0],
        **after,
    }


@both_dtypes
@pytest.mark.parametrize("case", of_kind("heads"))
def test_every_head(case: Path, dtype: str) -> None:
    found = {"pooled": pool(inputs_of(case, dtype)["features"])}
    for name, arguments in facts_of(case)["heads"].items():
        head, given = load_head(case, name, dtype), inputs_of(case, dtype)
        if name == "emb_mlp":
            values = embedding(head, given)
        elif name == "reg_mlp":
            values = regression(head, given)
        elif arguments["num_classes"] == 2:
            values = binary_classification(head, given)
        else:
            values = {"out": head(given["features"])}
        found |= {f"{name}.{key}": value for key, value in values.items()}
    assert_all_agree(found, case, dtype)


@pytest.mark.parametrize("case", of_kind("heads"))
def test_a_nonlinear_hidden_layer_would_be_seen(case: Path) -> None:
    head = load_head(case, "clf_mlp_v2", "float32")
    features = tensors(case / "inputs.safetensors")["features"]
    wrong = head.head(F.gelu(head.hidden(pool(features))))  # type: ignore[operator]
    right = tensors(case / "expected.safetensors")["clf_mlp_v2.out"]
    assert (wrong - right).abs().max() > 1e-2


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(ValueError, match="clf_mlp_v3"):
        make_head("clf_mlp_v3", 4)  # type: ignore[arg-type]


def losses(case: Path, dtype: str, temperature: float) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for similarity in ("cosine", "dot"):
        for kind, suffix in (("normalised", ""), ("unnormalised", "_unnormalised")):
            given = inputs_of(case, dtype)
            pair = given[f"zi{suffix}"], given[f"zj{suffix}"]
            loss = nt_xent(*pair, temperature=temperature, similarity=similarity)
            loss.backward()
            key = f"ntxent.{similarity}.{kind}"
            found |= {key: loss, f"{key}.grad_zi": pair[0].grad, f"{key}.grad_zj": pair[1].grad}
    given = inputs_of(case, dtype)
    names = ("y_view1", "y_view2", "other_view1", "other_view2")
    clips = tuple(given[f"local.{name}"] for name in names)
    per_sample = local_local(*clips, temperature=temperature)
    per_sample.sum().backward()
    pair = given["zi"], given["zj"]
    return found | {
        "local_local.per_sample": per_sample,
        "local_local.sum": contrastive_loss(None, clips, temperature),
        "local_local.grad_y_view1": clips[0].grad,
        "type3_total": contrastive_loss(pair, clips, temperature),
        "global_local_temporal": global_local_temporal(
            given["glt.lsr"], given["glt.gdr"], temperature
        ),
    }


@both_dtypes
@pytest.mark.parametrize("case", of_kind("losses"))
def test_every_loss(case: Path, dtype: str) -> None:
    found: dict[str, Tensor] = {}
    for temperature in facts_of(case)["temperatures"]:
        values = losses(case, dtype, temperature)
        found |= {f"t{temperature}.{key}": value for key, value in values.items()}
    assert_all_agree(found, case, dtype)


@pytest.mark.parametrize("case", of_kind("losses"))
def test_averaged_clips_would_be_seen(case: Path) -> None:
    """Upstream adds the local losses up; their mean is another weighting of the two terms."""
    expected = tensors(case / "expected.safetensors")
    for temperature in facts_of(case)["temperatures"]:
        each = expected[f"t{temperature}.local_local.per_sample"]
        assert abs(each.mean() - expected[f"t{temperature}.local_local.sum"]) > 1e-2


def test_a_loss_needs_something_to_compare() -> None:
    with pytest.raises(ValueError, match="type 1"):
        contrastive_loss(None, None)


@settings(max_examples=20, deadline=None)
@given(pairs=st.integers(2, 6), dim=st.integers(2, 9), seed=st.integers(0, 2**31 - 1))
def test_nt_xent_is_a_mean_of_cross_entropies(pairs: int, dim: int, seed: int) -> None:
    """Written out, one vector at a time; and neither side nor order matters."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, pairs, dim, generator=generator, dtype=torch.float64)
    vectors = F.normalize(torch.cat([first, second]), dim=1)
    terms = []
    for row in range(2 * pairs):
        others = [column for column in range(2 * pairs) if column != row]
        scores = vectors[others] @ vectors[row] / 0.3
        partner = others.index((row + pairs) % (2 * pairs))
        terms.append(scores.logsumexp(0) - scores[partner])
    loss = nt_xent(first, second, 0.3)
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    torch.testing.assert_close(nt_xent(second, first, 0.3), loss)
    order = torch.randperm(pairs, generator=generator)
    torch.testing.assert_close(nt_xent(first[order], second[order], 0.3), loss)
