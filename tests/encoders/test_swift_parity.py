"""SwiFT's backbone against upstream's own numbers: every stated key, float32 and float64."""

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity_sets import parity_cases
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from encoders import load_encoder
from encoders.errors import InputError
from encoders.recompute import set_gradient_checkpointing
from encoders.swift import layers
from encoders.swift.encoder import load_swift_with_head
from encoders.swift.heads import make_head
from encoders.swift.model import SwiFTBackbone, pool
from encoders.swift.windows import Windows

CASES = parity_cases("swift")
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@cache
def tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


@cache
def facts_of(case: Path) -> dict[str, Any]:
    path = case / "config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def of_kind(kind: str) -> list[Any]:
    return [
        pytest.param(case, id=case.name) for case in CASES if facts_of(case).get("kind") == kind
    ]


def expected_of(case: Path, dtype: str, prefix: str = "") -> dict[str, Tensor]:
    """Key -> value for one dtype, of the keys that begin with `prefix`."""
    wide = dtype == "float64"
    return {
        key.removeprefix(prefix).removesuffix("_f64"): value
        for key, value in tensors(case / "expected.safetensors").items()
        if key.startswith(prefix) and key.endswith("_f64") == wide
    }


def assert_agrees(found: Tensor, expected: Tensor, case: Path, dtype: str, key: str) -> None:
    limits = facts_of(case)["tolerance"]
    if dtype == "float64":
        limit = {"rtol": 0.0, **limits["f64"]}
    elif "grad" in key:
        largest = float(expected.abs().max())
        limit = {"rtol": 0.0, "atol": limits["gradients_f32"]["atol_rel_to_max"] * largest}
    else:
        limit = limits["forward_f32"]
    assert found.dtype == getattr(torch, dtype), key
    torch.testing.assert_close(
        found.detach(), expected, check_dtype=False, msg=lambda text: f"{key}: {text}", **limit
    )


def keep_outputs(network: nn.Module) -> dict[str, Tensor]:
    """Collect what every module of the backbone gives, under the fixtures' names."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, arguments, output: kept.__setitem__(name, output)

    network.patch_embed.register_forward_hook(keep("patch_embed"))
    for stage, layer in enumerate(network.layers):
        layer.register_forward_hook(keep(f"stage{stage}"))
        for index, block in enumerate(layer.blocks):
            block.register_forward_hook(keep(f"stage{stage}.block{index}"))
    return kept


def run(case: Path, dtype: str, prefix: str = "", checkpointing: bool = False) -> dict[str, Tensor]:
    """All that a case's fixtures can ask for, under their keys."""
    arguments = facts_of(case)["constructor"]
    path = case / "model.safetensors"
    network = load_swift_with_head(path, config=arguments, dtype=dtype)
    set_gradient_checkpointing(network.model, checkpointing)
    kept = keep_outputs(network.model)
    given = {
        key.removeprefix(prefix): value
        for key, value in tensors(case / "inputs.safetensors").items()
        if key.startswith(prefix)
    }
    volumes = given["x"].to(getattr(torch, dtype), copy=True).requires_grad_()
    features = network.model(volumes)
    found = {**kept, "features": features, "pooled": pool(features)}
    head = network.output_head(features)
    found |= {"head": head, "head_g_eval": head, "head_l_eval": head}
    (features * given["cotangent"].to(features)).sum().backward(retain_graph=True)
    assert volumes.grad is not None
    found |= gradients(network, "grad.") | {"grad.x": volumes.grad.clone()}
    if "target" in given:
        network.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(
            head[:, 0], given["target"].to(features)
        )
        loss.backward()
        found |= gradients(network, "bce_grad.") | {"bce_loss": loss[None]}
    return found


def gradients(network: nn.Module, prefix: str) -> dict[str, Tensor]:
    named = network.named_parameters()
    return {prefix + name: p.grad.clone() for name, p in named if p.grad is not None}


@both_dtypes
@pytest.mark.parametrize("case", of_kind("encoder"))
def test_every_stage_head_and_gradient(case: Path, dtype: str) -> None:
    expected = expected_of(case, dtype)
    found = run(case, dtype)
    assert set(expected) <= set(found)
    for key, value in expected.items():
        assert_agrees(found[key], value, case, dtype, key)


@pytest.mark.parametrize("case", of_kind("encoder"))
def test_half_precision_volumes_become_the_weights_type(case: Path) -> None:
    backbone = load_backbone(case)
    volumes = tensors(case / "inputs.safetensors")["x"]
    with torch.no_grad():
        assert torch.equal(backbone(volumes.half()), backbone(volumes.half().float()))


def load_backbone(case: Path, dtype: str = "float32", **changes: Any) -> SwiFTBackbone:
    arguments = {**facts_of(case)["constructor"], **changes}
    path = case / "model.safetensors"
    backbone = load_encoder("swift", path, config=arguments, dtype=dtype).backbone
    assert isinstance(backbone, SwiFTBackbone)
    return backbone


LENGTHS = [
    pytest.param(*param.values, length, id=f"{param.id}-{length}")
    for param in of_kind("encoder_time_lengths")
    for length in facts_of(param.values[0])["lengths"]
]


@both_dtypes
@pytest.mark.parametrize(("case", "length"), LENGTHS)
def test_sequences_of_any_length(case: Path, length: int, dtype: str) -> None:
    prefix = f"t{length}."
    found = run(case, dtype, prefix)
    for key, value in expected_of(case, dtype, prefix).items():
        assert_agrees(found[key], value, case, dtype, key)
    assert not found["grad.model.pos_embeds.0.time_embed"][..., length:].any()


@pytest.mark.parametrize("case", of_kind("encoder_time_lengths"))
def test_longer_sequences_are_refused(case: Path) -> None:
    frames = facts_of(case)["too_long"]["T"]
    arguments = facts_of(case)["constructor"]
    shape = arguments["img_size"][:3]
    with pytest.raises(InputError, match="frames"):
        load_backbone(case)(torch.zeros(1, arguments["in_chans"], *shape, frames))


@pytest.mark.parametrize("case", of_kind("encoder"))
def test_checkpointing_gives_the_same_gradients(case: Path) -> None:
    plain, again = run(case, "float64"), run(case, "float64", checkpointing=True)
    names = [key for key in plain if key.startswith("grad.")]
    assert len(names) > 20
    for key in names:
        torch.testing.assert_close(again[key], plain[key], rtol=1e-12, atol=1e-14)


def mistake_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Windows, "find_strangers", lambda self, device: None)


def mistake_padding_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the zeros at the far ends, as most implementations would."""
    right = layers.WindowAttention.forward

    def hide(self: Any, windows: Tensor, strangers: Tensor | None = None) -> Tensor:
        empty = (windows == 0).all(-1)[:, 0]
        hidden = empty[:, None, :].expand(-1, windows.shape[2], -1)
        return right(self, windows, hidden if strangers is None else strangers | hidden)

    monkeypatch.setattr(layers.WindowAttention, "forward", hide)


def mistake_padding_before_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    right = layers.Block.forward

    def pad_first(self: Any, hidden: Tensor, windows: Windows, *rest: Any) -> Tensor:
        grid = windows.grid
        missing = [full - size for full, size in zip(windows.padded, grid, strict=True)]
        sides = (0, 0, *(n for m in reversed(missing) for n in (0, m)))
        whole = Windows(windows.padded, windows.window, windows.shift)
        filled = right(self, nn.functional.pad(hidden, sides), whole, *rest)
        return filled[:, : grid[0], : grid[1], : grid[2], : grid[3]]

    monkeypatch.setattr(layers.Block, "forward", pad_first)


def mistake_final_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    right = SwiFTBackbone.forward

    def normed(self: Any, volumes: Tensor) -> Tensor:
        return self.norm(right(self, volumes).movedim(1, -1)).movedim(-1, 1)

    monkeypatch.setattr(SwiFTBackbone, "forward", normed)


def mistake_channel_first_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    right = layers.rearrange
    slow = "b nh nw nd t (h w d c)"

    def swapped(values: Tensor, pattern: str, **sizes: int) -> Tensor:
        return right(values, pattern.replace(slow, "b nh nw nd t (c h w d)"), **sizes)

    monkeypatch.setattr(layers, "rearrange", swapped)


def mistake_transposed_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    right = layers.rearrange

    def swapped(values: Tensor, pattern: str, **sizes: int) -> Tensor:
        return right(values, pattern.replace("(i j k c)", "(k j i c)"), **sizes)

    monkeypatch.setattr(layers, "rearrange", swapped)


MISTAKES = [
    mistake_no_mask,
    mistake_padding_hidden,
    mistake_padding_before_norm,
    mistake_final_norm,
    mistake_channel_first_patches,
    mistake_transposed_neighbours,
]


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize(
    "case", [p for p in of_kind("encoder") if facts_of(p.values[0])["constructor"]["in_chans"] > 1]
)
def test_the_comparison_sees_a_mistake(
    case: Path, mistake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a case with padding, shifts and channels each of these is another function."""
    expected = expected_of(case, "float32")["features"]
    backbone = load_backbone(case)
    mistake(monkeypatch)
    with torch.no_grad():
        features = backbone(tensors(case / "inputs.safetensors")["x"])
    with pytest.raises(AssertionError):
        assert_agrees(features, expected, case, "float32", "features")


@pytest.mark.parametrize("case", [*of_kind("encoder"), *of_kind("encoder_time_lengths")])
def test_the_other_setting_of_the_last_stage_is_another_function(case: Path) -> None:
    """The weights load either way, so that only the configuration can tell."""
    full = facts_of(case)["constructor"]["last_layer_full_MSA"]
    other = load_backbone(case, last_layer_full_MSA=not full)
    names = tensors(case / "inputs.safetensors")
    prefix = "" if "x" in names else f"t{facts_of(case)['lengths'][-1]}."
    with torch.no_grad():
        features = other(names[f"{prefix}x"])
    expected = expected_of(case, "float32", prefix)["features"]
    with pytest.raises(AssertionError):
        assert_agrees(features, expected, case, "float32", "features")


def formula(name: str, shape: list[int], seed: int) -> Tensor:
    """Numbers of the published-size case; the rule is in its README."""
    count = int(np.prod(shape))
    start = np.uint64(((zlib.crc32(name.encode()) ^ seed) << 32) & (2**64 - 1))
    with np.errstate(over="ignore"):
        z = (start + np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    uniform = (z >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5
    shift, scale = formula_scale(name, shape)
    return torch.from_numpy((shift + scale * uniform).astype(np.float32).reshape(shape))


def formula_scale(name: str, shape: list[int]) -> tuple[float, float]:
    *_, parent, last = ["", "", *name.split(".")]
    if name == "x":
        return 0.0, 12**0.5
    if last in ("pos_embed", "time_embed"):
        return 0.0, 2.0
    if (last == "weight" and parent.startswith(("norm", "bn"))) or last == "running_var":
        return 1.0, 1.0
    if last == "running_mean":
        return 0.0, 1.0
    if last == "num_batches_tracked":
        return 0.0, 0.0
    if last == "bias":
        return 0.0, 0.8
    return 0.0, (1.6 if parent == "qkv" else 1.0) * (12 / shape[-1]) ** 0.5


@pytest.mark.slow
@both_dtypes
@pytest.mark.parametrize("case", of_kind("full_size_formula"))
def test_published_size(case: Path, dtype: str, tmp_path: Path) -> None:
    facts = facts_of(case)
    layout = json.loads((case / "layout.json").read_text())["layout"]
    backbone = {name: shape for name, shape in layout.items() if name.startswith("model.")}
    weights = {name: formula(name, shape, facts["seed"]) for name, shape in backbone.items()}
    volumes = formula("x", facts["input_shape"], facts["seed"])
    for name, values in facts["first_four_values"].items():
        known = {"x": volumes, **weights}.get(name)
        if known is not None:
            assert known.flatten()[:4].tolist() == values
    total = sum(float(weight.double().sum()) for weight in weights.values())
    assert total == pytest.approx(facts["sums"]["all_model_weights_sum_f64"], abs=1e-6)
    assert float(volumes.double().sum()) == pytest.approx(facts["sums"]["x_sum_f64"], abs=1e-6)
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    encoder = load_encoder("swift", path, config=facts["constructor"], dtype=dtype)
    assert encoder.spec.parameters == facts["backbone_parameters"]
    kept = keep_outputs(encoder.backbone)
    with torch.no_grad():
        features = encoder.backbone(volumes.to(getattr(torch, dtype)))
        found = {**kept, "features": features, "pooled": pool(features)}
        for name in ("clf_mlp_v1", "emb_mlp"):
            head = make_head(name, features.shape[1])
            state = {
                key: formula(f"output_head.{key}", list(value.shape), facts["seed"])
                for key, value in head.state_dict().items()
            }
            head.load_state_dict(state)
            found[f"head.{name}"] = head.eval().to(features.dtype)(features)
    for key, value in expected_of(case, dtype).items():
        name, _, what = key.rpartition(".")
        if what == "mean_std_absmax":
            stage = found[name].double()
            assert_agrees(
                torch.stack([stage.mean(), stage.std(), stage.abs().max()]).to(features.dtype),
                value,
                case,
                dtype,
                key,
            )
        else:
            whole = found[name][:, :, 0:2, 1:3, -2:, -3:] if what == "slice" else found[key]
            assert_agrees(whole, value, case, dtype, key)
