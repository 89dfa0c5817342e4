"""BrainMT's training recipe: groups, learning rates and split, exactly as upstream's come out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from brainmt_cases import RECIPES, parameters

from encoders.brainmt.config import BrainMTConfig
from encoders.brainmt.model import BrainMT
from encoders.brainmt.recipe import (
    CYCLE_EPOCHS,
    LAYER_DECAY,
    WARMUP_EPOCHS,
    learning_rate,
    make_optimiser,
    parameter_groups,
    split_subjects,
    task_loss,
)

every_case = pytest.mark.parametrize("case", parameters(RECIPES))


def stated(case: Path) -> dict[str, Any]:
    return json.loads((case / "expected.json").read_text())


def small(**config: Any) -> BrainMT:
    return BrainMT(BrainMTConfig.from_mapping({"embed_dim": 8, "num_frames": 2, **config}))


def without_tensors(groups: list[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    return [
        {
            "weight_decay": group["weight_decay"],
            "lr_scale": pytest.approx(group["lr_scale"], rel=1e-12),
            "params": [prefix + name for name in group["names"]],
        }
        for group in groups
    ]


@every_case
def test_groups(case: Path) -> None:
    expected = stated(case)
    network = small(depth=expected["depth"])
    as_run = without_tensors(parameter_groups(network), "module.")
    assert expected["groups_as_upstream_runs_them"] == as_run
    as_read = without_tensors(parameter_groups(network, by_layer=True), "")
    assert expected["groups_without_ddp_prefix"] == as_read
    assert as_run != as_read


@pytest.mark.parametrize("by_layer", [False, True])
def test_every_trainable_parameter_is_in_one_group(by_layer: bool) -> None:
    network = small(depth=[2, 2])
    network.temporal_pos_embedding.requires_grad_(False)
    groups = parameter_groups(network, by_layer=by_layer, weight_decay=0.3)
    named = dict(network.named_parameters())
    names = [name for group in groups for name in group["names"]]
    assert sorted([*names, "temporal_pos_embedding"]) == sorted(named)
    for group in groups:
        assert all(named[n] is p for n, p in zip(group["names"], group["params"], strict=True))
        assert group["weight_decay"] in (0.0, 0.3)


@every_case
def test_learning_rates(case: Path) -> None:
    expected = stated(case)
    for key, batches in (
        ("lr_used_in_epoch", expected["loader_len"]),
        ("lr_if_stepped_with_loader_len_1", 1),
    ):
        optimiser, schedule = make_optimiser(small(depth=[1, 1]), batches_per_epoch=batches)
        found = []
        for _ in expected[key]:
            found.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            schedule.step()
        assert found == pytest.approx(expected[key], abs=1e-12), key
        direct = [
            learning_rate(
                step, warmup_steps=WARMUP_EPOCHS * batches, cycle_steps=CYCLE_EPOCHS * batches
            )
            for step in range(len(found))
        ]
        assert direct == pytest.approx(expected[key], abs=1e-12), key


def test_later_cycles_are_longer_and_lower() -> None:
    def rate(step: int) -> float:
        return learning_rate(
            step,
            warmup_steps=2,
            cycle_steps=6,
            cycle_mult=2.0,
            gamma=0.5,
            maximum=1.0,
            minimum=0.0,
        )

    rates = [rate(step) for step in range(6 + 10 + 3)]
    assert rates[:6] == pytest.approx([0, 0.5, 1, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert rates[6:9] == pytest.approx([0, 0.25, 0.5])
    assert rates[16:] == pytest.approx([0, 0.125, 0.25])


@every_case
def test_split(case: Path) -> None:
    expected = stated(case)["split"]
    found = split_subjects(expected["n"], expected["seed"])
    assert found.train == expected["train"]
    assert found.validation == expected["val"]
    assert found.test == expected["test"]
    assert split_subjects(expected["n"], expected["seed"] + 1) != found


def test_losses_are_those_of_one_output() -> None:
    head, target = torch.tensor([[0.0], [2.0]]), torch.tensor([1, 0], dtype=torch.float16)
    assert task_loss(head, target, "regression").item() == pytest.approx(2.5)
    expected = (0.693147 + 2.126928) / 2
    assert task_loss(head, target, "classification").item() == pytest.approx(expected, abs=1e-5)


def test_layer_decay_reaches_the_stem() -> None:
    groups = parameter_groups(small(depth=[1, 2]), by_layer=True)
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scale["pos_embed"] == pytest.approx(LAYER_DECAY**4)
    assert scale["blocks.1.qkv.weight"] == pytest.approx(LAYER_DECAY**2)
    assert scale["layers.0.mixer.A_log"] == 1
