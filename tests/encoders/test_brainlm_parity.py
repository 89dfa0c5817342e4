"""BrainLM against upstream's own numbers, every stated run and key, float32 and float64."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity_sets import parity_cases
from safetensors.torch import load_file
from torch import Tensor, nn

from encoders import load_encoder
from encoders.brainlm.autoencoder import load_nystromformer_autoencoder, load_vitmae_autoencoder
from encoders.brainlm.encoder import VITMAE_DIVIDE_BY, to_pixels
from encoders.brainlm.initialise import make_grid_code
from encoders.brainlm.nystromformer import make_time_code
from multimodal.bold.normalise import normalise
from multimodal.bold.segments import parcel_order

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
ENCODER_KEYS = {
    "embeddings": "embeddings",
    "last_hidden_state": "last_hidden_state",
    "cls": "cls",
    "pre_layernorm_cls": "pre_layernorm_cls",
    "ids_restore": "ids_restore",
    "mask_tokens": "mask",
}
CASES = parity_cases("brainlm")
MODELS = [case for case in CASES if case.name[0] in "AB"]
RUNS = [
    pytest.param(case, run, id=f"{case.name}-{run['name']}")
    for case in MODELS
    for run in json.loads((case / "case.json").read_text())["runs"]
]
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@cache
def tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def expected_of(case: Path, run: dict[str, Any], dtype: str) -> dict[str, Tensor]:
    """Key -> value of one run; integers and float32-only keys count for float32."""
    prefix, suffix = f"{run['name']}/", "_f64" if dtype == "float64" else ""
    return {
        key.removeprefix(prefix).removesuffix("_f64"): value
        for key, value in tensors(case / "expected.safetensors").items()
        if key.startswith(prefix) and key.endswith("_f64") == bool(suffix)
    }


def split_slice(key: str) -> tuple[str, Any]:
    """``"logits[:, ::9]"`` -> ``("logits", (slice(None), slice(None, None, 9)))``."""
    name, bracket, text = key.partition("[")
    if not bracket:
        return name, ...
    parts = []
    for part in text.rstrip("]").split(","):
        numbers = [int(number) if number.strip() else None for number in part.split(":")]
        parts.append(slice(*numbers) if ":" in part else numbers[0])
    return name, tuple(parts)


def assert_agrees(found: Tensor, expected: Tensor, dtype: str, key: str) -> None:
    assert found.shape == expected.shape, key
    if not expected.is_floating_point():
        assert torch.equal(found, expected), key
        return
    scale = max(1.0, float(expected.nan_to_num().abs().max()))
    torch.testing.assert_close(
        found / scale,
        expected / scale,
        rtol=0,
        atol=TOLERANCE[dtype],
        equal_nan=True,
        check_dtype=False,
        msg=lambda text: f"{key}: {text}",
    )


def is_first_family(case: Path) -> bool:
    return case.name.startswith("A")


def arguments(case: Path, run: dict[str, Any], dtype: str) -> tuple[list[Tensor], Tensor | None]:
    inputs = tensors(case / "inputs.safetensors")
    noise = inputs[run["noise_key"]] if run["noise_key"] else None
    if is_first_family(case):
        given = [inputs["signal_vectors"], inputs["xyz_vectors"]]
    elif "pixel_values" in inputs:
        given = [inputs["pixel_values"]]
    else:
        given = [to_pixels(inputs["pixel_q"].float() / 64, 3)]
    return [tensor.to(getattr(torch, dtype)) for tensor in given], noise


@both_dtypes
@pytest.mark.parametrize(("case", "run"), RUNS)
@torch.no_grad()
def test_encoder_half(case: Path, run: dict[str, Any], dtype: str) -> None:
    name = "brainlm_nystromformer" if is_first_family(case) else "brainlm_vitmae"
    encoder = load_encoder(name, case, config=run["config_overrides"], dtype=dtype)
    given, noise = arguments(case, run, dtype)
    mode = {} if is_first_family(case) else {"train_mode": run["train_mode"]}
    ratio = encoder.backbone.config.mask_ratio
    output = encoder.backbone.encode(*given, noise, ratio, **mode)
    hidden = encoder.backbone(*given, noise, ratio, **mode)
    assert torch.equal(hidden, output.last_hidden_state)
    assert hidden.shape[1] == run["len_keep"] + 1
    for key, value in expected_of(case, run, dtype).items():
        field, index = split_slice(key)
        if field == "mask" and is_first_family(case):
            assert_agrees(output.mask, value.flatten(1), dtype, key)
        elif field in ENCODER_KEYS:
            assert_agrees(getattr(output, ENCODER_KEYS[field])[index], value, dtype, key)
        else:
            assert is_pretraining(run), f"{key} is compared nowhere"


def is_pretraining(run: dict[str, Any]) -> bool:
    """Tell whether a run went on to the decoder and the loss."""
    return not (run.get("encoder_only") or run.get("call", "").startswith("model.vit"))


PRETRAINING = [param for param in RUNS if is_pretraining(param.values[1])]


@both_dtypes
@pytest.mark.parametrize(("case", "run"), PRETRAINING)
def test_reconstruction_loss_and_gradients(case: Path, run: dict[str, Any], dtype: str) -> None:
    load = load_nystromformer_autoencoder if is_first_family(case) else load_vitmae_autoencoder
    network = load(case, config=run["config_overrides"], dtype=dtype)
    given, noise = arguments(case, run, dtype)
    mode = {} if is_first_family(case) else {"train_mode": run["train_mode"]}
    output = network.reconstruct(*given, noise, **mode)
    expected = expected_of(case, run, dtype)
    if any(key.startswith("grad.") for key in expected):
        output.loss.backward()
    for key, value in expected.items():
        assert_agrees(found_in(output, network, key, case), value, dtype, key)


def found_in(output: Any, network: nn.Module, key: str, case: Path) -> Tensor:
    if key.startswith("grad."):
        name, index = split_slice(key.removeprefix("grad."))
        gradient = network.get_parameter(name).grad
        assert gradient is not None
        return gradient[index]
    name, index = split_slice(key)
    if name == "decoder_logits_sub":
        facts = json.loads((case / "case.json").read_text())
        return output.patch_logits[:, facts["decoder_logits_sub_token_indices"]]
    if name == "logits_3ch":
        return output.channel_logits[index]
    if name in ENCODER_KEYS:
        return getattr(output.encoded, ENCODER_KEYS[name])[index]
    return getattr(output, name)[index]


@pytest.mark.parametrize("case", [case for case in MODELS if case.name[:2] in ("A1", "A3", "B1")])
def test_fresh_position_codes_are_upstreams(case: Path) -> None:
    """B1 stores the 2D code as upstream draws it up; B2's is altered, and so must be read."""
    stored = tensors(case / "model.safetensors")
    if is_first_family(case):
        code = stored["decoder.pos_embedding.pe"]
        found = make_time_code(code.shape[1])
    else:
        code = stored["decoder.decoder_pos_embed"]
        found = make_grid_code(code.shape[1] - 1, code.shape[2])
    # Upstream's angles of the last of 5000 positions are rounded to float32.
    torch.testing.assert_close(found, code, rtol=0, atol=3e-4, check_dtype=False)


@pytest.mark.parametrize("case", [case for case in CASES if case.name.startswith("C3")])
def test_model_inputs(case: Path) -> None:
    """Windowing, parcel order and scaling, as the specs of both families state them."""
    facts = json.loads((case / "case.json").read_text())
    inputs = tensors(case / "inputs.safetensors")
    expected = tensors(case / "expected.safetensors")
    xyz = inputs["xyz"].numpy()
    by_y = parcel_order(xyz, "y")
    np.testing.assert_array_equal(by_y, expected["vitmae/reorder_index_by_Y"].numpy())
    config = {"parcels": None, "frames": None, "hidden_size": 8, "num_attention_heads": 2}
    specs = {
        "nystrom": load_encoder("brainlm_nystromformer", config={"num_hidden_layers": 1}).spec,
        "vitmae": load_encoder("brainlm_vitmae", config={**config, "num_hidden_layers": 1}).spec,
    }
    for family, target in (("nystrom", "signal_vectors"), ("vitmae", "pixel_values")):
        order = parcel_order(xyz, specs[family].input.order)
        recordings = inputs["recordings_time_by_parcel"]
        for row, recording in enumerate(recordings.double().numpy()):
            start = int(inputs[f"{family}_start_idx"][row])
            window = recording[start : start + facts["window"], order].T
            if family == "vitmae":
                # The fixture's recordings are normalised already: only the scaling is left.
                assert specs[family].input.statistics == {"divide_by": VITMAE_DIVIDE_BY}
                window = normalise(window, "none", specs[family].input.statistics)
                window = to_pixels(torch.from_numpy(window)[None], 3)[0].numpy()
            np.testing.assert_allclose(
                window, expected[f"{family}/{target}"][row].numpy(), rtol=0, atol=1e-7
            )
        if family == "nystrom":
            assert specs[family].input.needs_xyz
            for xyz_vectors in expected["nystrom/xyz_vectors"].numpy():
                np.testing.assert_array_equal(xyz[order], xyz_vectors)
