"""Every loss against its definition, whole and in chunks: values and gradients."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import loss_definitions as definition
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_definitions import family_matrix, latents, some_kinship, value_and_gradients
from parity_sets import parity_cases
from safetensors.torch import load_file
from torch import Tensor

from multimodal.align.losses import (
    Kinship,
    barlow_twins,
    debiased_info_nce,
    info_nce,
    nt_xent,
    siglip,
    soft_target_info_nce,
    vicreg,
)

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}
SCALE = 6.0

OURS = {
    "info_nce": info_nce,
    "siglip": lambda g, b, s, related, **how: siglip(g, b, s, -3.0, related, **how),
    "debiased": partial(debiased_info_nce, positive_share=0.3),
    "nt_xent": nt_xent,
}
PAPER = {name: getattr(definition, name) for name in OURS}


def agree(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("name", OURS)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(0, 7),
    families=st.integers(1, 7),
    chunk_rows=st.sampled_from([None, 1, 2, 3, 8, 100]),
)
@settings(deadline=None, max_examples=10)
def test_each_is_its_definition(
    name: str, seed: int, rows: int, families: int, chunk_rows: int | None
) -> None:
    gene, brain = latents(seed, rows)
    generator = torch.Generator().manual_seed(seed)
    component = torch.randint(0, families, (rows,), generator=generator)
    related = family_matrix(component)
    expected = value_and_gradients(PAPER[name], gene, brain, SCALE, related)
    for relatives in (component, related):
        how = {"chunk_rows": chunk_rows}
        agree(value_and_gradients(OURS[name], gene, brain, SCALE, relatives, **how), expected)


@pytest.mark.parametrize("name", OURS)
def test_pairs_that_are_named_one_way_only(name: str) -> None:
    gene, brain = latents(3, 7)
    related = torch.rand(7, 7, generator=torch.Generator().manual_seed(0)) < 0.3
    expected = value_and_gradients(PAPER[name], gene, brain, SCALE, related)
    for chunk_rows in (None, 3):
        found = value_and_gradients(OURS[name], gene, brain, SCALE, related, chunk_rows=chunk_rows)
        agree(found, expected)


@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 7),
    families=st.integers(1, 6),
    chunk_rows=st.sampled_from([None, 1, 3, 100]),
)
@settings(deadline=None, max_examples=10)
def test_soft_targets_are_their_definition(
    seed: int, rows: int, families: int, chunk_rows: int | None
) -> None:
    gene, brain = latents(seed, rows)
    component = torch.randint(0, families, (rows,), generator=torch.Generator().manual_seed(seed))
    kinship, related = some_kinship(seed, component), family_matrix(component)
    expected = value_and_gradients(definition.soft_target, gene, brain, SCALE, related, kinship)
    ours = partial(soft_target_info_nce, kinship_weight=0.5, chunk_rows=chunk_rows)
    for relatives in (component, related):
        agree(value_and_gradients(ours, gene, brain, SCALE, relatives, kinship), expected)


def test_without_known_kinship_soft_targets_are_info_nce() -> None:
    gene, brain = latents(0, 8)
    component = torch.arange(8) // 2
    soft = soft_target_info_nce(gene, brain, 5.0, component, Kinship.none(), kinship_weight=1.0)
    torch.testing.assert_close(soft, info_nce(gene, brain, 5.0, component), **EXACT)


def test_identical_twins_are_ties() -> None:
    gene, brain = latents(1, 6)
    component = torch.tensor([0, 0, 1, 2, 3, 4])
    twins = Kinship(torch.tensor([[0, 1]]), torch.tensor([0.49]))
    exchanged = brain[[1, 0, 2, 3, 4, 5]]
    for weight in (0.1, 1.0):
        loss = partial(soft_target_info_nce, kinship_weight=weight)
        before, after = (loss(gene, side, 5.0, component, twins) for side in (brain, exchanged))
        torch.testing.assert_close(before, after, **EXACT)


def test_nobody_to_debias_is_info_nce() -> None:
    gene, brain = latents(2, 8)
    component = torch.arange(8) // 2
    debiased = debiased_info_nce(gene, brain, 90.0, component, positive_share=0.0)
    torch.testing.assert_close(debiased, info_nce(gene, brain, 90.0, component), **EXACT)


@pytest.mark.parametrize("name", OURS)
def test_a_sharp_temperature_stays_finite_in_float32(name: str) -> None:
    gene, brain = (side.float() for side in latents(4, 12))
    component = torch.arange(12) // 2
    for chunk_rows in (None, 5):
        found = value_and_gradients(
            OURS[name], gene, brain, 1000.0, component, chunk_rows=chunk_rows
        )
        assert all(bool(part.isfinite().all()) for part in found)


def test_vicreg_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    expected = 25 * F.mse_loss(first, second)
    for side in (first, second):
        covariance = torch.cov(side.T)
        hinge = sum(max(0.0, 1 - float(v + 1e-4) ** 0.5) for v in covariance.diagonal())
        expected = expected + 25 * hinge / 4 / 2
        off = [covariance[i, j] ** 2 for i in range(4) for j in range(4) if i != j]
        expected = expected + torch.stack(off).sum() / 4
    torch.testing.assert_close(vicreg(first, second), expected, **EXACT)


def test_barlow_twins_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    sides = [F.batch_norm(side, None, None, training=True) for side in (first, second)]
    expected = 0.0
    for k in range(4):
        for other in range(4):
            c = float(sides[0][:, k] @ sides[1][:, other]) / 7
            expected += (1 - c) ** 2 if k == other else 0.005 * c**2
    assert float(barlow_twins(first, second)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("loss", [vicreg, barlow_twins])
def test_one_row_has_no_moments(loss: Any) -> None:
    for rows in (0, 1):
        first = torch.randn(rows, 4, requires_grad=True)
        value = loss(first, torch.randn(rows, 4))
        value.backward()
        assert value.item() == 0
        assert not first.grad.any()
    same = torch.ones(5, 4, requires_grad=True)
    loss(same, torch.ones(5, 4)).backward()
    assert bool(same.grad.isfinite().all())


def contrastive_cases() -> list[Any]:
    """Cases of upstream SwiFT's contrastive losses, known by their kind."""
    found = []
    for case in parity_cases("swift"):
        path = case / "config.json"
        facts = json.loads(path.read_text()) if path.is_file() else {}
        if facts.get("kind") == "losses":
            found.append(pytest.param(case, facts, id=case.name))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk_rows", [None, 3])
@pytest.mark.parametrize(("case", "facts"), contrastive_cases())
def test_nt_xent_is_upstream_swift_s(
    case: Path, facts: dict[str, Any], chunk_rows: int | None, dtype: torch.dtype
) -> None:
    wide = dtype == torch.float64
    limit = {"rtol": 0.0, **facts["tolerance"]["f64" if wide else "f32"]}
    stated = load_file(case / "expected.safetensors")
    inputs = {key: value.to(dtype) for key, value in load_file(case / "inputs.safetensors").items()}
    alone = torch.arange(len(inputs["zi"]))
    for temperature in facts["temperatures"]:
        for similarity in ("cosine", "dot"):
            for kind, ending in (("normalised", ""), ("unnormalised", "_unnormalised")):
                first = inputs[f"zi{ending}"].requires_grad_()
                second = inputs[f"zj{ending}"].requires_grad_()
                sides = (first, second)
                if similarity == "cosine":
                    sides = (F.normalize(first, dim=1), F.normalize(second, dim=1))
                value = nt_xent(*sides, 1 / temperature, alone, chunk_rows=chunk_rows)
                gradients = torch.autograd.grad(value, [first, second])
                key = f"t{temperature}.ntxent.{similarity}.{kind}"
                found = {key: value, f"{key}.grad_zi": gradients[0], f"{key}.grad_zj": gradients[1]}
                for name, ours in found.items():
                    theirs = stated[f"{name}_f64" if wide else name]
                    torch.testing.assert_close(ours.detach().reshape(theirs.shape), theirs, **limit)
