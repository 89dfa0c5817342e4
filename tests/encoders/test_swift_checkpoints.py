"""Lightning checkpoints as upstream saves them, of 2023 and today, and those that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_sets import parity_cases
from safetensors.torch import load_file, save_file

from encoders import load_encoder
from encoders.errors import InputError
from encoders.swift.checkpoint import REQUIRED, RETIRED_TENSORS, read_hyper_parameters
from encoders.swift.config import SwiFTConfig
from encoders.swift.encoder import load_swift_with_head
from encoders.swift.model import pool

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def facts_of(case: Path) -> dict[str, Any]:
    path = case / "config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


FILES = [
    pytest.param(case / f"{name}.ckpt", facts, id=name)
    for case in parity_cases("swift")
    if facts_of(case).get("kind") == "lightning_checkpoints"
    for name, facts in facts_of(case)["files"].items()
    # Our own copy leaves some of the files out.
    if (case / f"{name}.ckpt").is_file()
]
GOOD = [param for param in FILES if not param.values[1].get("must_be_refused")]
BAD = [param for param in FILES if param.values[1].get("must_be_refused")]
GOOD_PATHS = [pytest.param(param.values[0], id=param.id) for param in GOOD]


@both_dtypes
@pytest.mark.parametrize(("path", "facts"), GOOD)
@torch.no_grad()
def test_features_and_head(path: Path, facts: dict[str, Any], dtype: str) -> None:
    network = load_swift_with_head(path, dtype=dtype)
    encoder = load_encoder("swift", path, dtype=dtype)
    volumes = load_file(path.parent / "inputs.safetensors")["x"].to(getattr(torch, dtype))
    features = encoder.backbone(volumes)
    found = {
        "features": features,
        "pooled": encoder(volumes),
        "head": network.output_head(network.model(volumes)),
    }
    assert torch.equal(found["pooled"], pool(features))
    limits = facts_of(path.parent)["tolerance"]
    limit = {"rtol": 0.0, **limits["f64"]} if dtype == "float64" else limits["forward_f32"]
    suffix = "_f64" if dtype == "float64" else ""
    expected = load_file(path.parent / "expected.safetensors")
    for key, value in found.items():
        torch.testing.assert_close(value, expected[f"{path.stem}.{key}{suffix}"], **limit)


@pytest.mark.parametrize(("path", "facts"), GOOD)
def test_arguments_come_from_the_hyper_parameters(path: Path, facts: dict[str, Any]) -> None:
    found = load_encoder("swift", path).spec.config
    assert {name: found[name] for name in facts["constructor"]} == facts["constructor"]


def copies() -> list[Any]:
    return [p for p in GOOD_PATHS if p.values[0].with_suffix(".state_dict.safetensors").is_file()]


@pytest.mark.parametrize("path", copies())
def test_tensors_are_the_files_own(path: Path) -> None:
    stored = load_file(path.with_suffix(".state_dict.safetensors"))
    found = load_swift_with_head(path).state_dict()
    assert set(stored) - set(found) <= set(RETIRED_TENSORS)
    assert set(found) <= set(stored)
    for name, tensor in found.items():
        assert torch.equal(tensor, stored[name]), name


@pytest.mark.parametrize("path", GOOD_PATHS)
def test_the_record_says_what_the_weights_have_seen(path: Path) -> None:
    spec = load_encoder("swift", path).spec
    assert spec.weights_id == path.name
    assert spec.weight_license == "Apache-2.0"
    # These were fitted as if to the data of the Human Connectome Project.
    assert spec.pretraining_cohorts == ("HCP",)
    assert spec.input.tr_s == 0.72
    assert spec.input.voxel_mm == 2.0
    assert spec.input.orientation == "LAS"


@pytest.mark.parametrize(("path", "facts"), BAD)
def test_files_with_code_are_refused(
    path: Path, facts: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    for load in (load_swift_with_head, lambda weights: load_encoder("swift", weights)):
        with pytest.raises(InputError) as error:
            load(path)
        assert error.value.problems[0].code == "weights-unsafe"
    out, err = capfd.readouterr()
    assert not out
    assert not err


def bare(path: Path, folder: Path, **changes: Any) -> Path:
    """The tensors of a checkpoint as safetensors; None takes one away."""
    tensors = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    tensors = {key: value.clone() for key, value in {**tensors, **changes}.items()}
    target = folder / "model.safetensors"
    save_file(tensors, target)
    return target


ONE_GOOD = pytest.mark.parametrize(("path", "facts"), GOOD[:1])


@ONE_GOOD
@pytest.mark.parametrize("missing", REQUIRED)
def test_nothing_is_guessed(
    path: Path, facts: dict[str, Any], missing: str, tmp_path: Path
) -> None:
    target = bare(path, tmp_path)
    arguments = {key: value for key, value in facts["constructor"].items() if key != missing}
    with pytest.raises(InputError, match=missing) as error:
        load_encoder("swift", target, config=arguments)
    assert error.value.problems[0].code == "config-missing"


@ONE_GOOD
def test_arguments_can_lie_beside_the_weights(
    path: Path, facts: dict[str, Any], tmp_path: Path
) -> None:
    expected = load_encoder("swift", path).backbone.state_dict()
    bare(path, tmp_path)
    hyper_parameters = torch.load(path, map_location="cpu", weights_only=True)["hyper_parameters"]
    layouts = (
        facts["constructor"],
        {"case": "a test", "constructor": facts["constructor"]},
        {"hyper_parameters": hyper_parameters},
    )
    for content in layouts:
        (tmp_path / "config.json").write_text(json.dumps(content))
        found = load_encoder("swift", tmp_path)
        assert found.spec.config["last_layer_full_MSA"] is True
        assert all(
            torch.equal(tensor, expected[name])
            for name, tensor in found.backbone.state_dict().items()
        )


@ONE_GOOD
def test_config_goes_before_the_file(path: Path, facts: dict[str, Any]) -> None:
    full = facts["constructor"]["last_layer_full_MSA"]
    found = load_encoder("swift", path, config={"last_layer_full_MSA": not full})
    assert found.spec.config["last_layer_full_MSA"] is not full


@ONE_GOOD
@pytest.mark.parametrize(
    "name", ["model.head.scale", "head.weight", "output_head.more.weight", "model.norm.scale"]
)
def test_only_the_retired_layer_is_dropped(
    path: Path, facts: dict[str, Any], name: str, tmp_path: Path
) -> None:
    target = bare(path, tmp_path, **{name: torch.zeros(1)})
    for load in (load_swift_with_head, lambda *a, **k: load_encoder("swift", *a, **k)):
        with pytest.raises(InputError, match=name) as error:
            load(target, config=facts["constructor"])
        assert [problem.code for problem in error.value.problems] == ["tensor-unexpected"]


@ONE_GOOD
def test_all_that_is_wrong_is_said_at_once(
    path: Path, facts: dict[str, Any], tmp_path: Path
) -> None:
    tensors = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    changes = {
        "model.norm.weight": torch.full_like(tensors["model.norm.weight"], torch.nan),
        "model.patch_embed.fc.bias": torch.zeros(1),
        "model.surplus": torch.zeros(1),
    }
    kept = {key: value.clone() for key, value in {**tensors, **changes}.items()}
    del kept["model.norm.bias"]
    target = tmp_path / "model.safetensors"
    save_file(kept, target)
    with pytest.raises(InputError) as error:
        load_encoder("swift", target, config=facts["constructor"])
    assert sorted(problem.code for problem in error.value.problems) == [
        "tensor-missing",
        "tensor-not-finite",
        "tensor-shape",
        "tensor-unexpected",
    ]


@ONE_GOOD
def test_a_checkpoint_without_head(path: Path, facts: dict[str, Any], tmp_path: Path) -> None:
    encoder = load_encoder("swift", path)
    target = tmp_path / "model.safetensors"
    state = encoder.backbone.state_dict()
    for prefix in ("", "model."):
        save_file({prefix + key: value.clone() for key, value in state.items()}, target)
        found = load_encoder("swift", target, config=facts["constructor"])
        for name, tensor in found.backbone.state_dict().items():
            assert torch.equal(tensor, state[name])
        with pytest.raises(InputError, match="no tensors output_head"):
            load_swift_with_head(target, config=facts["constructor"])


@pytest.mark.parametrize(
    ("precision", "to_float"), [(32, True), ("32-true", True), (16, False), ("16-mixed", False)]
)
def test_upstreams_command_line(precision: Any, to_float: bool) -> None:
    found = read_hyper_parameters(
        {
            "precision": precision,
            "attn_drop_rate": 0.25,
            "dataset_name": "UKB",
            "load_model_path": "elsewhere.ckpt",
            "learning_rate": 1e-3,
        }
    )
    assert found["to_float"] is to_float
    rates = {"drop_rate": 0.25, "attn_drop_rate": 0.25, "drop_path_rate": 0.25}
    assert found == {"to_float": to_float, **rates, "tr_s": 0.735}
    assert SwiFTConfig.from_dict(found).drop_path_rates[-1][-1] == 0.25


def test_what_fine_tuned_weights_started_from_is_not_forgotten() -> None:
    fresh = read_hyper_parameters({"dataset_name": "ABCD", "load_model_path": None})
    tuned = read_hyper_parameters({"dataset_name": "ABCD", "load_model_path": "ukb.ckpt"})
    assert fresh["pretraining_cohorts"] == ["ABCD"]
    assert "pretraining_cohorts" not in tuned
