"""The cases of BrainMT's published numbers by kind, and every state of a run under its name."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity_sets import parity_cases
from safetensors.torch import load_file
from torch import Tensor, nn

from encoders.brainmt.encoder import BrainMTEncoder, load_brainmt
from encoders.brainmt.model import BrainMT

TOLERANCE = {"float32": 2e-4, "float64": 1e-9}
STEM = ("patch_embed", "conv_block0", "downsample0", "conv_block1", "downsample1")
CASES = parity_cases("brainmt")


@cache
def settings(case: Path) -> dict[str, Any]:
    path = case / "config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def holds(case: Path, file: str, mode: str) -> bool:
    return (case / file).is_file() and settings(case).get("mode") == mode


def parameters(cases: list[Path]) -> list[Any]:
    return [pytest.param(case, id=case.name) for case in cases]


EVAL = [case for case in CASES if holds(case, "model.safetensors", "eval")]
TRAIN = [case for case in CASES if holds(case, "model.safetensors", "train")]
STORED = [case for case in EVAL if list(case.glob("*.pth"))]
FULL = [case for case in CASES if (case / "recipe.json").is_file()]
RECIPES = [case for case in CASES if (case / "expected.json").is_file()]
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@cache
def tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def expected_of(case: Path, dtype: str) -> dict[str, Tensor]:
    """Key -> value in one precision."""
    return {
        key.removesuffix("_f64"): value
        for key, value in tensors(case / "expected.safetensors").items()
        if key.endswith("_f64") == (dtype == "float64")
    }


def load(case: Path, dtype: str, **more: Any) -> BrainMTEncoder:
    """The case's network, from the file without a configuration and the stated arguments."""
    config = {**settings(case)["constructor"], **more}
    return load_brainmt(case / "model.safetensors", config=config, dtype=dtype)


def volumes_of(case: Path, dtype: str) -> Tensor:
    return tensors(case / "inputs.safetensors")["x"].to(getattr(torch, dtype))


def loss_of(case: Path, head: Tensor) -> Tensor:
    inputs, kind = tensors(case / "inputs.safetensors"), settings(case)["loss"]
    if kind == "weighted_sum":
        return (head * inputs["coef"].to(head.dtype)).sum()
    target = inputs["target"].to(head.dtype)
    if kind == "mse":
        return F.mse_loss(head.squeeze(1), target)
    assert kind == "bce_with_logits", kind
    return F.binary_cross_entropy_with_logits(head.squeeze(1), target)


def trace(backbone: BrainMT, volumes: Tensor) -> dict[str, Tensor]:
    """Run the network and return its states under the names that the cases use."""
    found: dict[str, Tensor] = {}
    entering: list[Tensor] = []

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            # The stem takes the frames of a large segment in several calls.
            found[name] = torch.cat([found[name], output]) if name in found else output

        return hook

    def keep_layer(index: int) -> Any:
        def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
            found.setdefault("seq_before_mamba", inputs[0])
            found[f"layers.{index}.hidden_states"], found[f"layers.{index}.residual"] = output

        return hook

    handles = [getattr(backbone, name).register_forward_hook(keep(name)) for name in STEM]
    handles += [m.register_forward_hook(keep_layer(i)) for i, m in enumerate(backbone.layers)]
    handles.append(backbone.norm_f.register_forward_hook(keep("after_norm_f")))
    # The norm that all blocks share sees the stream before attention and before the MLP of each.
    handles.append(backbone.norm.register_forward_pre_hook(lambda _m, x: entering.append(x[0])))
    try:
        hidden = backbone(volumes)
    finally:
        for handle in handles:
            handle.remove()
    for index in range(len(backbone.blocks)):
        found[f"blocks.{index}.after_attn"] = entering[2 * index + 1]
        found[f"blocks.{index}.after_mlp"] = [*entering, hidden][2 * index + 2]
    found["features"] = hidden[:, 0]
    found["head"] = backbone.head(backbone.head_drop(found["features"]))
    return found


def apart(found: Tensor, expected: Tensor, key: str) -> float:
    assert found.shape == expected.shape, f"{key}: {list(found.shape)}, {list(expected.shape)}"
    return float((found.detach().double() - expected.double()).abs().max())


def largest_apart(case: Path, found: dict[str, Tensor], dtype: str) -> float:
    """The largest deviation over all states that the case states; gradients are looked at apart."""
    wanted = {k: v for k, v in expected_of(case, dtype).items() if not k.startswith("grad.")}
    assert {"features", "head"} <= set(wanted)
    return max(apart(found[key], value, key) for key, value in wanted.items())
