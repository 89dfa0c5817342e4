"""Every registered encoder keeps the contract of `encoders.base`; a failure says how to mend it.

The encoder of docs/encoders.md is installed for these tests as a package of somebody else's would
be. `small_encoders.SMALL` says with which arguments each is tried.
"""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_document import install
from safetensors.torch import save_file
from small_encoders import brain_inputs, config_of, draw, load
from torch import Tensor

from encoders import list_encoders, load_encoder
from encoders.base import (
    BrainEncoder,
    DnaEncoder,
    Encoder,
    ParcelInput,
    VolumeInput,
    WindowInput,
)
from encoders.catalogue import CATALOGUE, find_entry
from encoders.errors import InputError
from encoders.registry import third_party
from encoders.verify import verify_encoder

THIRD_PARTY = "my_encoder"
LIMIT = {"float32": 1e-5, "float64": 1e-12}
WINDOWS = ["ACGTTGCAACNGT", "ACGTTGCTACNGT", "TTGACCA", "GGGATCCTTAACGATTACA"]
every_encoder = pytest.mark.parametrize("name", [*list_encoders(), THIRD_PARTY])


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install the document's encoder for the tests of this file."""
    folder = tmp_path_factory.mktemp("site-packages")
    install(folder)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield
    sys.path.remove(str(folder))
    sys.modules.pop(THIRD_PARTY, None)


def test_packages_bring_encoders_by_entry_point() -> None:
    assert THIRD_PARTY in list_encoders()
    assert THIRD_PARTY in third_party()
    encoder = load_encoder(THIRD_PARTY, config={"channels": 4})
    assert encoder.spec.feature_dim == 8


def features_of(encoder: Encoder, rows: list[int], dtype: str = "float32") -> Tensor:
    """Features of some of four fixed inputs, as one batch."""
    if isinstance(encoder, DnaEncoder):
        return encoder(*encoder.tokenize([WINDOWS[row] for row in rows]))
    assert isinstance(encoder, BrainEncoder), "derive from DnaEncoder or BrainEncoder"
    segments, xyz = brain_inputs(encoder, dtype)
    return encoder(segments[rows], xyz[rows] if xyz is not None else None)


@every_encoder
def test_spec_says_what_a_pipeline_must_know(name: str) -> None:
    encoder = load(name)
    spec = encoder.spec
    assert spec.name == name, "spec.name is the name it was loaded by"
    assert not any(module.training for module in encoder.modules()), "return it in eval mode"
    kinds = {
        "dna": (DnaEncoder, WindowInput),
        "brain": (BrainEncoder, ParcelInput | VolumeInput),
    }
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
    with pytest.raises(InputError, match="no_such_argument"):
        load_encoder(name, config={**(config_of(name) or {}), "no_such_argument": 1})


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


def refuses(encoder: BrainEncoder, segments: Tensor, xyz: Tensor | None) -> bool:
    try:
        encoder(segments, xyz)
    except InputError:
        return True
    return False


@every_encoder
def test_inputs_of_another_size_are_refused(name: str) -> None:
    encoder = load(name)
    if not isinstance(encoder, BrainEncoder):
        with pytest.raises(InputError):
            encoder.tokenize([""])
        return
    segments, xyz = brain_inputs(encoder)
    wanted = encoder.spec.input
    open_axes = {1: wanted.parcels is None} if isinstance(wanted, ParcelInput) else {}
    open_axes[segments.ndim - 1] = wanted.frames is None
    for axis in range(1, segments.ndim):
        if open_axes.get(axis):
            continue
        cut = torch.cat([segments, segments], axis).narrow(axis, 0, segments.shape[axis] + 1)
        assert refuses(encoder, cut, xyz), (
            f"a segment with one more along axis {axis} than spec.input says is taken: use "
            "encoders.segments.check_segments"
        )
    assert refuses(encoder, segments[0], xyz), "a segment without batch axis is taken"
    if isinstance(wanted, ParcelInput) and wanted.needs_xyz:
        with pytest.raises(InputError, match="coordinates"):
            encoder(segments)


@every_encoder
def test_verification_passes_and_its_fingerprint_follows_the_weights(name: str) -> None:
    found = [verify_encoder(name, config=config_of(name), seed=seed) for seed in (0, 0, 1)]
    for check in found[0].checks:
        assert check.passed, f"{check.what}: it differs by {check.apart:.1e}"
    assert found[0].fingerprint == found[1].fingerprint
    assert found[0].fingerprint.features != found[2].fingerprint.features


@every_encoder
def test_the_catalogue_describes_it_in_words(name: str) -> None:
    assert name in CATALOGUE or name in third_party(), f"give {name} an entry in encoders.catalogue"
    entry, spec = find_entry(name), load(name).spec
    assert (entry.modality, entry.code_license) == (spec.modality, spec.code_license)
    assert entry.takes, "say in words what it takes"
