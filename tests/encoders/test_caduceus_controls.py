"""Deliberate mistakes fail the fixtures' own comparison, so that passing it means something."""

from pathlib import Path
from typing import Any

import pytest
import torch
from caduceus_cases import assert_close, backbone, cases_of, over_cases, read_json
from caduceus_mistakes import MISTAKES, zero_order_hold_scan
from safetensors.torch import load_file

from encoders.caduceus.config import CaduceusConfig
from encoders.caduceus.model import CaduceusForMaskedLM


def assert_missed(
    case: Path, network: CaduceusForMaskedLM, mistake: str, *, scores_only: bool = False
) -> None:
    group = read_json(case / "case.json")["groups"][0]
    ids = load_file(case / "inputs.safetensors")[f"{group}.input_ids"]
    expected = load_file(case / "expected.safetensors")
    last = network(ids)
    wrong = {f"{group}.logits": network.score(last)}
    if scores_only:
        assert_close(case, "float32", {f"{group}.last_hidden_state": last}, expected)
    else:
        wrong[f"{group}.last_hidden_state"] = last
    stored = {name: value for name, value in wrong.items() if name in expected}
    for name, value in stored.items():
        with pytest.raises(AssertionError, match=name):
            assert_close(case, "float32", {name: value}, expected)
        miss = (value - expected[name]).abs().max()
        assert not miss <= 5e-3, f"{mistake}: {name} is missed by {float(miss):.1e} only"


def possible_mistakes() -> list[Any]:
    """Pair each case with the mistakes that its network leaves room for."""
    return [
        pytest.param(case, name, id=f"{case.name}-{name}")
        for case in cases_of("forward")
        for name, mistake in MISTAKES.items()
        if mistake.possible(CaduceusConfig.from_mapping(read_json(case / "config.json")))
    ]


@pytest.mark.parametrize(("case", "name"), possible_mistakes())
@torch.no_grad()
def test_mistakes_are_missed(case: Path, name: str) -> None:
    mistake = MISTAKES[name]
    network = backbone(case, "float32")
    mistake.make(network)
    assert_missed(case, network, name, scores_only=mistake.scores_only)


@over_cases("forward")
@torch.no_grad()
def test_another_discretisation_is_missed(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = backbone(case, "float32")
    monkeypatch.setattr("encoders.mamba.selective_scan", zero_order_hold_scan)
    assert_missed(case, network, "exact zero-order hold")
