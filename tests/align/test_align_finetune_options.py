"""What fine-tuning can be told: plain, checked, and all of it at once."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from encoders.errors import InputError
from multimodal.align.finetune.batches import equal_batches
from multimodal.align.finetune.options import FineTuneOptions
from multimodal.align.finetune.rates import encoder_groups, layer_depths
from multimodal.align.options import AlignOptions

NETWORKS: dict[str, tuple[dict[str, Any] | None, int]] = {
    "caduceus_ps": ({"d_model": 8, "n_layer": 3}, 3),
    "caduceus_ph": ({"d_model": 8, "n_layer": 2, "rcps": False}, 2),
    "brainlm_vitmae": (
        {
            "parcels": 4, "frames": 32, "pooling": "mean", "patch_size": 16, "hidden_size": 8,
            "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
        },
        3,
    ),
    "swift": (
        {
            "img_size": [8, 8, 8, 4], "voxel_mm": None, "patch_size": [4, 4, 4, 1],
            "first_window_size": [2, 2, 2, 4], "window_size": [2, 2, 2, 4], "embed_dim": 8,
            "depths": [2, 1], "num_heads": [2, 4], "last_layer_full_MSA": True,
        },
        3,
    ),
}  # fmt: skip


def test_frozen_is_the_default_and_leaves_fingerprints_alone() -> None:
    options = AlignOptions()
    assert options.fine_tune.sides == ()
    told = AlignOptions.from_dict({"fine_tune": {"brain": {"rank": 2}}})
    assert told.fingerprint() == options.fingerprint()
    tuned = AlignOptions.from_dict({"fine_tune": {"sides": ["brain"]}})
    assert tuned.fingerprint() != options.fingerprint()
    beside = {"sides": ["brain"], "dna": {"rank": 2}}
    assert AlignOptions.from_dict({"fine_tune": beside}).fingerprint() == tuned.fingerprint()
    within = {"sides": ["brain"], "brain": {"rank": 2}}
    assert AlignOptions.from_dict({"fine_tune": within}).fingerprint() != tuned.fingerprint()


def test_round_trip_through_json() -> None:
    given = {"sides": ["dna"], "dna": {"targets": ["in_proj"], "rank": 4}, "bf16": True}
    options = AlignOptions.from_dict({"fine_tune": given})
    assert options.fine_tune.dna.targets == ("in_proj",)
    assert AlignOptions.from_dict(json.loads(json.dumps(options.as_dict()))) == options


@pytest.mark.parametrize(
    ("told", "where"),
    [
        ({"side": ["dna"]}, ["align.fine_tune.side"]),
        ({"sides": ["genome"]}, ["align.fine_tune.sides"]),
        ({"sides": ["dna", "dna"]}, ["align.fine_tune.sides"]),
        ({"dna": {"ranks": 3}}, ["align.fine_tune.dna.ranks"]),
        (
            {"sides": ["dna"], "dna": {"learning_rate": 0, "layer_decay": 1.5, "rank": 0}},
            [f"align.fine_tune.dna.{name}" for name in ("learning_rate", "layer_decay", "rank")],
        ),
        (
            {"sides": ["brain"], "brain": {"frozen_epochs": 60}},
            ["align.fine_tune.brain.frozen_epochs"],
        ),
        (
            {"sides": ["brain"], "brain": {"method": "full", "rank": 2}},
            ["align.fine_tune.brain.rank"],
        ),
    ],
)
def test_bad_values_are_listed(told: dict[str, Any], where: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        AlignOptions.from_dict({"fine_tune": told})
    assert [problem.where for problem in caught.value.problems] == where


def test_nothing_is_tuned_in_no_epoch() -> None:
    with pytest.raises(InputError, match="with encoders to fine-tune"):
        AlignOptions(epochs=0, fine_tune=FineTuneOptions(("dna",)))


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_learn_ever_faster_towards_the_end(name: str) -> None:
    from encoders import load_encoder

    config, layers = NETWORKS[name]
    network = load_encoder(name, config=config).backbone
    depths = layer_depths(network)
    named = dict(network.named_parameters())
    assert depths.keys() == named.keys()
    assert sorted(set(depths.values())) == list(range(layers + 1))
    groups = encoder_groups(network, named, 0.1, 0.5, 0.01)
    assert sum(len(group["params"]) for group in groups) == len(named)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for parameter, depth in depths.items():
        assert rates[id(named[parameter])] == pytest.approx(0.1 * 0.5 ** (layers - depth))
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == 0 or parameter.dim() >= 2
    states = [p for n, p in named.items() if n.endswith("A_log")]
    undecayed = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    assert all(id(parameter) in undecayed for parameter in states)


def test_shares_are_those_of_timm() -> None:
    from timm.optim import param_groups_layer_decay

    torch.manual_seed(0)
    network = nn.Module()
    network.stem = nn.Linear(3, 3)
    network.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
    depths = layer_depths(network)
    # timm wants to be told the layers; its shares then stand in a key of their own.
    network.group_matcher = lambda coarse: lambda name: depths[name]  # type: ignore[assignment]
    theirs = {
        id(p): group["lr_scale"]
        for group in param_groups_layer_decay(network, layer_decay=0.7)
        for p in group["params"]
    }
    ours = encoder_groups(network, dict(network.named_parameters()), 1.0, 0.7, 0.05)
    for group in ours:
        for parameter in group["params"]:
            assert group["lr"] == pytest.approx(theirs[id(parameter)])


def test_batches_are_of_one_size_and_not_read_ahead() -> None:
    read: list[str] = []

    def items() -> Any:
        for text in ("a", "b", "c", "dd", "ee", "f"):
            read.append(text)
            yield text

    batches = equal_batches(items(), len, 2)
    assert next(batches) == ["a", "b"]
    assert read == ["a", "b"]
    assert list(batches) == [["c"], ["dd", "ee"], ["f"]]
