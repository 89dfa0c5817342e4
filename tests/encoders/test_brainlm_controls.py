"""Deliberate mistakes in BrainLM fail the fixtures' own comparison."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_brainlm_parity import (
    PRETRAINING,
    arguments,
    assert_agrees,
    expected_of,
    is_first_family,
)
from torch import Tensor, nn

from encoders.brainlm import masking, nystromformer, vitmae
from encoders.brainlm.autoencoder import load_nystromformer_autoencoder, load_vitmae_autoencoder

Mistake = Callable[[nn.Module, pytest.MonkeyPatch], None]


def natural_order(network: nn.Module, patch: pytest.MonkeyPatch) -> None:
    """Keep the right tokens, in the order of the recording rather than of the noise."""
    right = masking.keep_tokens

    def wrong(tokens: Tensor, noise: Tensor, kept: int) -> Any:
        _, mask, ids_restore = right(tokens, noise, kept)
        rows = [row[chosen == 0] for row, chosen in zip(tokens, mask, strict=True)]
        return torch.stack(rows), mask, ids_restore

    patch.setattr(masking, "keep_tokens", wrong)


def no_convolution(network: nn.Module, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(nystromformer, "_convolve", lambda value, weight: torch.zeros_like(value))


def convolution_without_cls(network: nn.Module, patch: pytest.MonkeyPatch) -> None:
    right = nystromformer._convolve

    def wrong(value: Tensor, weight: Tensor) -> Tensor:
        mixed = right(value[:, :, 1:], weight)
        return torch.cat([torch.zeros_like(value[:, :, :1]), mixed], dim=2)

    patch.setattr(nystromformer, "_convolve", wrong)


def tanh_gelu(network: nn.Module, patch: pytest.MonkeyPatch) -> None:
    for module in network.modules():
        if hasattr(module, "activation"):
            module.activation = "gelu_new"


def no_time_code(network: nn.Module, patch: pytest.MonkeyPatch) -> None:
    network.vit.embeddings.pos_embedding.pe.zero_()


def padded_with_zeros(network: nn.Module, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(vitmae, "PADDING_VALUE", 0.0)


def cls_at_the_first_patch(network: nn.Module, patch: pytest.MonkeyPatch) -> None:
    positions = network.vit.embeddings.position_embeddings.data
    positions[:, 0] = positions[:, 1]


def final_norm_left_out(network: nn.Module, patch: pytest.MonkeyPatch) -> None:
    network.vit.layernorm = nn.Identity()


MISTAKES: dict[str, dict[Mistake, str]] = {
    "A": {
        natural_order: "last_hidden_state",
        no_convolution: "last_hidden_state",
        convolution_without_cls: "cls",
        tanh_gelu: "cls",
        no_time_code: "cls",
        final_norm_left_out: "cls",
    },
    "B": {
        padded_with_zeros: "logits",
        cls_at_the_first_patch: "logits",
        tanh_gelu: "logits",
        final_norm_left_out: "logits",
    },
}


def first_run(family: str, key: str) -> tuple[Path, dict[str, Any]]:
    for param in PRETRAINING:
        case, run = param.values
        if case.name.startswith(family) and key in expected_of(case, run, "float32"):
            return case, run
    raise AssertionError(f"no run of family {family} has {key}")


def reconstruct(
    case: Path, run: dict[str, Any], mistake: tuple[Mistake, pytest.MonkeyPatch] | None = None
) -> Any:
    load = load_nystromformer_autoencoder if is_first_family(case) else load_vitmae_autoencoder
    network = load(case, config=run["config_overrides"])
    if mistake is not None:
        mistake[0](network, mistake[1])
    given, noise = arguments(case, run, "float32")
    mode = {} if is_first_family(case) else {"train_mode": run["train_mode"]}
    return network.reconstruct(*given, noise, **mode)


@pytest.mark.parametrize(
    ("family", "mistake", "key"),
    [
        pytest.param(family, mistake, key, id=f"{family}-{mistake.__name__}")
        for family, mistakes in MISTAKES.items()
        for mistake, key in mistakes.items()
    ],
)
@torch.no_grad()
def test_mistakes_are_missed(
    family: str, mistake: Mistake, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, run = first_run(family, key)
    expected = expected_of(case, run, "float32")[key]
    right = reconstruct(case, run)
    assert_agrees(_named(right, key), expected, "float32", key)
    wrong = _named(reconstruct(case, run, (mistake, monkeypatch)), key)
    with pytest.raises(AssertionError):
        assert_agrees(wrong, expected, "float32", key)


def _named(output: Any, key: str) -> Tensor:
    return output.logits if key == "logits" else getattr(output.encoded, key)


@pytest.mark.parametrize(
    ("setting", "other"),
    [({"loss_fn": "mae"}, {"loss_fn": "mse"}), ({"norm_pix_loss": True}, {"norm_pix_loss": False})],
    ids=["mae", "norm_pix"],
)
@torch.no_grad()
def test_another_loss_is_missed(setting: dict[str, Any], other: dict[str, Any]) -> None:
    chosen = [
        p.values for p in PRETRAINING if setting.items() <= p.values[1]["config_overrides"].items()
    ]
    assert chosen
    case, run = chosen[0]
    expected = expected_of(case, run, "float32")["loss"]
    assert_agrees(reconstruct(case, run).loss, expected, "float32", "loss")
    changed = {**run, "config_overrides": {**run["config_overrides"], **other}}
    with pytest.raises(AssertionError):
        assert_agrees(reconstruct(case, changed).loss, expected, "float32", "loss")
