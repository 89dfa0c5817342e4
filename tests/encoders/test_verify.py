"""Verification tells right from wrong, and its fingerprint computations from machines."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_encoders import SMALL, draw, load

import encoders.registry
from encoders.errors import InputError
from encoders.verify import (
    made_up_segments,
    made_up_windows,
    report_keys,
    take_fingerprint,
    verify_encoder,
)

SHA = "0" * 64


def test_the_key_report_counts_what_is_used_and_what_is_set_aside(tmp_path: Path) -> None:
    encoder = load("brainlm_vitmae")
    tensors = {f"model.{key}": value for key, value in encoder.backbone.state_dict().items()}
    heads = {"decoder.mask_token": torch.zeros(3), "decoder.norm.bias": torch.zeros(2).half()}
    stored = {key: value.clone() for key, value in (tensors | heads).items()}
    save_file(stored, tmp_path / "x.safetensors")
    report = report_keys(encoder, tmp_path / "x.safetensors")
    assert (report.stored, report.used) == (len(tensors) + 2, len(tensors))
    assert report.set_aside == {"decoder": 2}
    assert report.dtypes == {"float32": len(tensors) + 1, "float16": 1}
    assert report.numbers == sum(tensor.numel() for tensor in tensors.values()) + 5


@pytest.mark.parametrize("name", ["caduceus_ps", "brainlm_nystromformer"])
def test_the_same_weights_have_one_fingerprint_in_every_format(name: str, tmp_path: Path) -> None:
    encoder = load(name, seed=3)
    tensors = {key: value.clone() for key, value in encoder.backbone.state_dict().items()}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "x.ckpt")
    found = [
        verify_encoder(name, tmp_path / file, config=encoder.spec.config)
        for file in ("x.safetensors", "x.ckpt")
    ]
    assert found[0].passed
    assert found[0].fingerprint == found[1].fingerprint
    norm = next(key for key in tensors if key.endswith(("norm_f.weight", "layernorm.weight")))
    tensors[norm] += 1e-3 * draw(1, *tensors[norm].shape)
    save_file(tensors, tmp_path / "y.safetensors")
    other = verify_encoder(name, tmp_path / "y.safetensors", config=encoder.spec.config)
    assert other.passed
    assert other.fingerprint.tensors != found[0].fingerprint.tensors
    assert other.fingerprint.features != found[0].fingerprint.features


def test_float32_has_numbers_to_compare_but_no_digest() -> None:
    single, double = (
        verify_encoder("caduceus", config=SMALL["caduceus"], dtype=dtype).fingerprint
        for dtype in ("float32", "float64")
    )
    assert (single.features, single.tensors) == (None, double.tensors)
    assert single.first == pytest.approx(double.first, rel=1e-3, abs=1e-4)
    with pytest.raises(InputError, match="bfloat16"):
        verify_encoder("caduceus", config=SMALL["caduceus"], dtype="bfloat16")


def test_rounding_of_another_machine_changes_no_fingerprint_but_a_few_in_ten_thousand() -> None:
    """What the documentation promises: 1e-12 of the largest, a thousand numbers."""
    apart = 0
    for trial in range(500):
        features = draw(trial, 1000).double()
        noise = 1e-12 * features.abs().max() * (2 * torch.rand(1000, dtype=torch.float64) - 1)
        here, there = (take_fingerprint(f, SHA, exact=True) for f in (features, features + noise))
        apart += here.features != there.features
    assert apart <= 2


class _Broken(torch.nn.Module):
    """Stands before an encoder's backbone and does something no encoder may."""

    def __init__(self, network: torch.nn.Module, fault: str) -> None:
        super().__init__()
        self.network, self.fault, self.calls = network, fault, 0

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        hidden = self.network(*inputs)
        if self.fault == "batch":
            return hidden - hidden.mean(0, keepdim=True) / 2
        if self.fault == "order":
            return hidden * torch.arange(1, len(hidden) + 1)[:, None, None]
        if self.fault == "chance":
            return hidden + self.calls
        return hidden * torch.nan

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)


@pytest.mark.parametrize("fault", ["batch", "order", "chance", "nan"])
def test_faults_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import encoders.verify as module

    def faulty(*words: object, **settings: object) -> object:
        encoder = encoders.registry.load_encoder(*words, **settings)  # type: ignore[arg-type]
        encoder.backbone = _Broken(encoder.backbone, fault)
        return encoder

    monkeypatch.setattr(module, "load_encoder", faulty)
    found = verify_encoder("brainlm_vitmae", config=SMALL["brainlm_vitmae"])
    assert not found.passed


def test_made_up_inputs_never_change() -> None:
    """They are half of the fingerprint: numbers of one machine, to be found on all."""
    spec = load("caduceus").spec
    first, second = made_up_windows(spec, 0)
    assert (len(first), len(second), second[-1]) == (1000, 750, "N")
    assert first[:24] == "TCACTGTCTCAAATCGGGACAAAT"
    segments, xyz = made_up_segments(load("brainlm_nystromformer").spec, 0)
    assert segments.dtype == torch.float64
    assert segments.flatten()[:3].tolist() == pytest.approx(
        [0.47444920226224196, -0.797482216676747, -1.5901143571236198]
    )
    assert xyz is not None
    assert xyz.shape == (1, 12, 3)
