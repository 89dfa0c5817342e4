"""Every registered encoder keeps the contract of `encoders.base`; a failure says how to mend it.

An encoder of your own joins this test by an entry in `SMALL`: a configuration that is quick on one
core, and the input it is tried on where its spec leaves the size open.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from encoders import list_encoders, load_encoder
from encoders.base import BrainEncoder, DnaEncoder, Encoder, ParcelInput, WindowInput
from encoders.errors import InputError

PARCELS, FRAMES = 12, 40
_CADUCEUS = {"d_model": 8, "n_layer": 2, "ssm_cfg": {"d_state": 4}}
_BRAINLM = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
SMALL: dict[str, dict[str, Any] | None] = {
    "caduceus": _CADUCEUS,
    "caduceus_ps": _CADUCEUS,
    "caduceus_ph": _CADUCEUS,
    "brainlm_nystromformer": {
        **_BRAINLM,
        "num_brain_voxels": PARCELS,
        "num_timepoints_per_voxel": FRAMES,
        "timepoint_patching_size": 10,
    },
    "brainlm_vitmae": {**_BRAINLM, "parcels": PARCELS, "frames": FRAMES},
    "fc": None,
}
LIMIT = {"float32": 1e-5, "float64": 1e-12}
WINDOWS = ["ACGTTGCAACNGT", "ACGTTGCTACNGT", "TTGACCA", "GGGATCCTTAACGATTACA"]
every_encoder = pytest.mark.parametrize("name", list_encoders())


def load(name: str, dtype: str = "float32", seed: int = 0) -> Encoder:
    assert name in SMALL, f"{name} is registered but not tried: give it a small config in SMALL"
    return load_encoder(name, config=SMALL[name], dtype=dtype, seed=seed)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features_of(encoder: Encoder, rows: list[int], dtype: str = "float32") -> Tensor:
    """Features of some of four fixed inputs, as one batch."""
    if isinstance(encoder, DnaEncoder):
        return encoder(*encoder.tokenize([WINDOWS[row] for row in rows]))
    assert isinstance(encoder, BrainEncoder), "derive from DnaEncoder or BrainEncoder"
    segments, xyz = brain_inputs(encoder, dtype)
    return encoder(segments[rows], xyz[rows] if xyz is not None else None)


def brain_inputs(encoder: BrainEncoder, dtype: str = "float32") -> tuple[Tensor, Tensor | None]:
    wanted = encoder.spec.input
    if isinstance(wanted, ParcelInput):
        parcels, frames = wanted.parcels or PARCELS, wanted.frames or FRAMES
        xyz = (40 * draw(1, parcels, 3)).expand(4, -1, -1) if wanted.needs_xyz else None
        segments = draw(2, 4, parcels, frames).to(getattr(torch, dtype))
        return segments, xyz
    return draw(2, 4, 1, *wanted.shape, wanted.frames).to(getattr(torch, dtype)), None


@every_encoder
def test_spec_says_what_a_pipeline_must_know(name: str) -> None:
    encoder = load(name)
    spec = encoder.spec
    assert spec.name == name, "spec.name is the name it was loaded by"
    assert not any(module.training for module in encoder.modules()), "return it in eval mode"
    kinds = {"dna": (DnaEncoder, WindowInput), "brain": (BrainEncoder, object)}
    assert isinstance(encoder, kinds[spec.modality][0]), "spec.modality and the base class differ"
    assert isinstance(spec.input, kinds[spec.modality][1]), "spec.input does not fit the modality"
    assert json.loads(json.dumps(spec.as_dict())), "spec.config must hold plain values"
    assert spec.code_license, "name the licence of the code by its SPDX identifier"
    assert spec.weight_license == "none", "fresh weights have no licence: 'none'"
    assert spec.pretraining_cohorts == (), "fresh weights have seen no cohort"
    assert spec.paper, "name the paper"
    assert len(spec.weights_sha256) == 64, "weights_sha256 is encoders.weights.tensors_sha256"
    trainable = [p.numel() for p in encoder.parameters() if p.requires_grad]
    assert spec.parameters == sum(trainable), "spec.parameters counts the trainable numbers"
    if spec.parameters:
        assert spec.weights_id == "random(seed=0)", "fresh weights are called random(seed=N)"


@every_encoder
def test_features_have_the_stated_shape(name: str) -> None:
    encoder = load(name)
    with torch.no_grad():
        features = features_of(encoder, [0, 1, 2, 3])
    strands = (2,) if isinstance(encoder, DnaEncoder) else ()
    dim = encoder.spec.feature_dim or features.shape[1]
    assert features.shape == (4, dim, *strands), "features are [B, D], of DNA [B, D, 2]"
    assert torch.isfinite(features).all()
    flat = features.flatten(1).double()
    apart = torch.pdist(flat).min() / flat.norm(dim=1).mean()
    assert apart > 1e-6, "different inputs give the same feature: check the fresh weights"


@every_encoder
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_features_do_not_depend_on_the_batch(name: str, dtype: str) -> None:
    encoder = load(name, dtype)
    with torch.no_grad():
        together = features_of(encoder, [0, 1, 2, 3], dtype)
        alone = torch.cat([features_of(encoder, [row], dtype) for row in range(4)])
        again = features_of(encoder, [0, 1, 2, 3], dtype)
    assert together.dtype == getattr(torch, dtype), "dtype is that of parameters and features"
    assert torch.equal(together, again), "the same input must give the same bits"
    apart = (together - alone).abs().max() / alone.abs().max()
    assert apart <= LIMIT[dtype], (
        "an input's feature depends on its neighbours in the batch or on padding: mask what is "
        "padded, and normalise nothing over the batch"
    )


@every_encoder
def test_fresh_weights_follow_the_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one = load(name, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state), (
        "loading draws from torch's global generator: use a generator of your own or fork_rng"
    )
    torch.manual_seed(2)
    same, other = load(name, seed=3), load(name, seed=4)
    assert one.spec.weights_sha256 == same.spec.weights_sha256, "equal seeds, equal weights"
    if one.spec.parameters:
        assert one.spec.weights_sha256 != other.spec.weights_sha256, "the seed changes nothing"


@every_encoder
def test_what_is_saved_loads_again(name: str, tmp_path: Path) -> None:
    encoder = load(name, seed=6)
    if not encoder.spec.parameters:
        pytest.skip("has no weights")
    path = tmp_path / "model.safetensors"
    tensors = {key: value.clone() for key, value in encoder.backbone.state_dict().items()}
    save_file(tensors, path)
    stored = load_encoder(name, path, config=encoder.spec.config)
    with torch.no_grad():
        assert torch.equal(features_of(stored, [0, 1]), features_of(encoder, [0, 1])), (
            "spec.config and backbone.state_dict() do not give the same encoder back"
        )
    assert stored.spec.weights_id == path.name, "name the file the weights came from"
    save_file({**tensors, "not.a.parameter": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"not\.a\.parameter"):
        load_encoder(name, path, config=encoder.spec.config)


@every_encoder
def test_unknown_arguments_are_refused(name: str) -> None:
    load(name)
    with pytest.raises(InputError, match="no_such_argument"):
        load_encoder(name, config={**(SMALL[name] or {}), "no_such_argument": 1})


@pytest.mark.parametrize("device", ["gpu", "", "cuda:4000", 3.5])
def test_devices_that_are_not_there_are_refused(device: Any) -> None:
    with pytest.raises(InputError, match="device that torch finds") as error:
        load_encoder("fc", device=device)
    assert error.value.problems[0].code == "bad-device"


@every_encoder
def test_gradients_reach_the_first_and_the_last_parameters(name: str) -> None:
    encoder = load(name)
    if not encoder.spec.parameters:
        pytest.skip("has no weights")
    features = features_of(encoder, [0, 2])
    (features * draw(5, *features.shape)).sum().backward()
    trainable = {key: p for key, p in encoder.named_parameters() if p.requires_grad}
    with_gradient = [key for key, p in trainable.items() if p.grad is not None]
    assert with_gradient, "no gradient: forward must not run under no_grad"
    for key in with_gradient:
        assert torch.isfinite(trainable[key].grad).all(), f"{key}: gradient is not finite"
    reached = len(with_gradient) / len(trainable)
    assert reached > 0.8, f"only {reached:.0%} of the parameters have a gradient"


def reverse_complement(sequence: str) -> str:
    return sequence.translate(str.maketrans("ACGTN", "TGCAN"))[::-1]


@every_encoder
def test_strands_exchange_under_reverse_complement(name: str) -> None:
    encoder = load(name, "float64")
    if not isinstance(encoder, DnaEncoder):
        pytest.skip("reads no DNA")
    with torch.no_grad():
        forward = encoder(*encoder.tokenize(WINDOWS))
        other = encoder(*encoder.tokenize([reverse_complement(window) for window in WINDOWS]))
    apart = (forward - other.flip(-1)).abs().max() / forward.abs().max()
    assert apart <= LIMIT["float64"], (
        "the strands of a reverse-complemented window must be the window's, exchanged"
    )


def _one_parcel_less(segments: Tensor) -> Tensor:
    return segments[:, :-1]


def _one_frame_less(segments: Tensor) -> Tensor:
    return segments[..., :-1]


@every_encoder
@pytest.mark.parametrize("cut", [_one_parcel_less, _one_frame_less])
def test_inputs_of_another_size_are_refused(name: str, cut: Callable[[Tensor], Tensor]) -> None:
    encoder = load(name)
    if not isinstance(encoder, BrainEncoder):
        with pytest.raises(InputError):
            encoder.tokenize([""])
        return
    wanted = encoder.spec.input
    fixed = wanted.parcels if cut is _one_parcel_less else wanted.frames
    if fixed is None:
        pytest.skip("takes any size")
    segments, xyz = brain_inputs(encoder)
    with pytest.raises(InputError):
        encoder(cut(segments), xyz)
    if isinstance(wanted, ParcelInput) and wanted.needs_xyz:
        with pytest.raises(InputError, match="coordinates"):
            encoder(segments)
