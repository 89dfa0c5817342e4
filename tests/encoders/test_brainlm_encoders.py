"""What BrainLM encoders promise beyond upstream's numbers."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoders import load_encoder
from encoders.base import BrainEncoder
from encoders.brainlm.autoencoder import load_nystromformer_autoencoder, load_vitmae_autoencoder
from encoders.brainlm.checkpoint import UNUSED_NYSTROMFORMER
from encoders.brainlm.config import (
    PUBLISHED_NYSTROMFORMER,
    PUBLISHED_VITMAE,
    PUBLISHED_VITMAE_650M,
    NystromformerConfig,
)
from encoders.brainlm.nystromformer_decoder import NystromformerAutoencoder
from encoders.brainlm.vitmae import Padding, find_last_columns
from encoders.brainlm.vitmae_decoder import ViTMAEAutoencoder
from encoders.errors import InputError

PARCELS, FRAMES = 14, 40
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 24,
}
NYSTROMFORMER = {
    **SMALL,
    "num_brain_voxels": PARCELS,
    "num_timepoints_per_voxel": FRAMES,
    "timepoint_patching_size": 10,
}
VITMAE = {**SMALL, "parcels": PARCELS, "frames": FRAMES}
LANDMARKS = {"num_landmarks": 3, "segment_means_seq_len": 1 + PARCELS * FRAMES // 10}
VARIANTS = [
    pytest.param("brainlm_nystromformer", NYSTROMFORMER, id="nystromformer"),
    pytest.param("brainlm_nystromformer", {**NYSTROMFORMER, **LANDMARKS}, id="landmarks"),
    pytest.param("brainlm_nystromformer", {**NYSTROMFORMER, "pooling": "mean"}, id="a_mean"),
    pytest.param("brainlm_vitmae", VITMAE, id="vitmae"),
    pytest.param("brainlm_vitmae", {**VITMAE, "patch_size": 14}, id="vitmae_14"),
    pytest.param("brainlm_vitmae", {**VITMAE, "pooling": "mean"}, id="vitmae_mean"),
]
every_variant = pytest.mark.parametrize(("name", "config"), VARIANTS)


def recordings(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.rand(PARCELS, 3, generator=generator) * 120 - 60
    return torch.randn(count, PARCELS, FRAMES, generator=generator), xyz.expand(count, -1, -1)


@torch.no_grad()
def encode(encoder: BrainEncoder, signal: Tensor, xyz: Tensor) -> Tensor:
    return encoder(signal, xyz)


@every_variant
@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-5), ("float64", 1e-12)])
def test_a_segment_does_not_depend_on_its_batch(
    name: str, config: dict[str, Any], dtype: str, limit: float
) -> None:
    encoder = load_encoder(name, config=config, dtype=dtype)
    signal, xyz = recordings(5)
    together = encode(encoder, signal, xyz)
    alone = torch.cat([encode(encoder, signal[[i]], xyz[[i]]) for i in range(5)])
    assert together.shape == (5, encoder.spec.feature_dim)
    assert (together - alone).abs().max() <= limit * alone.abs().max()


@every_variant
def test_random_weights_follow_the_seed_and_the_input(name: str, config: dict[str, Any]) -> None:
    signal, xyz = recordings(4)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = load_encoder(name, config=config, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state), "torch's own generator was used"
    torch.manual_seed(99)
    features = encode(first, signal, xyz)
    assert torch.equal(features, encode(load_encoder(name, config=config, seed=1), signal, xyz))
    other = load_encoder(name, config=config, seed=2)
    assert not torch.allclose(features, encode(other, signal, xyz))
    assert first.spec.weights_sha256 != other.spec.weights_sha256
    distance = torch.pdist(features.double()) / features.double().norm(dim=1).mean()
    assert distance.min() > 1e-3, "different recordings hardly differ"


def test_token_order_matters_to_the_first_family_alone() -> None:
    signal, xyz = recordings(2)
    shuffled = torch.randperm(PARCELS, generator=torch.Generator().manual_seed(1))
    first = load_encoder("brainlm_nystromformer", config=NYSTROMFORMER, dtype="float64")
    plain = {**NYSTROMFORMER, "conv_kernel_size": None}
    without = load_encoder("brainlm_nystromformer", config=plain, dtype="float64")
    for encoder, equal in ((first, False), (without, True)):
        features = encode(encoder, signal, xyz)
        moved = encode(encoder, signal[:, shuffled], xyz[:, shuffled])
        assert torch.allclose(features, moved, rtol=0, atol=1e-10) == equal
    second = load_encoder("brainlm_vitmae", config=VITMAE, dtype="float64").backbone
    pixels = signal[:, None].expand(-1, 3, -1, -1).double()
    noise = torch.rand(2, 729, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(
            second(pixels, noise)[:, 0], second(pixels)[:, 0], rtol=0, atol=1e-10
        )


@settings(deadline=None, max_examples=30)
@given(
    frames=st.integers(1, 200).map(lambda half: 2 * half),
    patch=st.sampled_from([14, 16]),
    ratio=st.floats(0, 0.99),
)
def test_predict_last_hides_the_last_frames(frames: int, patch: int, ratio: float) -> None:
    padding = Padding(4, ({16: 432, 14: 434}[patch] - frames) // 2)
    end = padding.columns + frames
    hidden = set(range(end - int(ratio * frames), end))
    whole = find_last_columns(frames, padding, patch, ratio, "predict_last")
    assert hidden <= set(range(whole.start * patch, whole.stop * patch))
    exact = find_last_columns(frames, padding, patch, ratio, "predict_last_pixel")
    tokens = set(range(exact.start * patch, exact.stop * patch))
    zeros = set(range(exact.zero_start, exact.zero_stop))
    assert not tokens & zeros
    assert hidden <= tokens | zeros
    assert {column for column in tokens | zeros if column < end} == hidden


def test_published_sizes() -> None:
    """Counts of the numbers stored in the published files."""
    with torch.device("meta"):
        old = NystromformerAutoencoder(PUBLISHED_NYSTROMFORMER)
        middle, big = ViTMAEAutoencoder(PUBLISHED_VITMAE), ViTMAEAutoencoder(PUBLISHED_VITMAE_650M)
    never_used = 768 * 512 + 768
    assert sum(p.numel() for p in old.parameters()) + never_used == 13_429_292
    assert sum(p.numel() for p in middle.parameters()) == 112_590_080
    assert sum(p.numel() for p in big.parameters()) == 658_337_868


@pytest.mark.parametrize(
    ("name", "load", "config"),
    [
        ("brainlm_nystromformer", load_nystromformer_autoencoder, NYSTROMFORMER),
        ("brainlm_vitmae", load_vitmae_autoencoder, VITMAE),
    ],
)
def test_checkpoints_load_completely_or_not_at_all(
    name: str, load: Any, config: dict[str, Any], tmp_path: Any
) -> None:
    state = load(config=config, seed=5).state_dict()
    path = tmp_path / "model.bin"
    torch.save(state, path)
    encoder = load_encoder(name, path, config=config)
    own = encoder.backbone.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in own.items())
    assert {key for key in state if key not in own} == {
        k for k in state if k.startswith("decoder.")
    }
    assert encoder.spec.weight_license == "CC-BY-NC-ND-4.0"
    assert encoder.spec.pretraining_cohorts == ("UK Biobank", "HCP")

    with pytest.raises(InputError, match=r"without config\.json"):
        load_encoder(name, path)
    torch.save({**state, "decoder.head.weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match=r"decoder\.head\.weight"):
        load_encoder(name, path, config=config)
    del state["vit.layernorm.bias"]
    torch.save(state, path)
    with pytest.raises(InputError, match=r"vit\.layernorm\.bias"):
        load_encoder(name, path, config=config)


def test_stored_but_unused_tensors_are_named() -> None:
    assert all(name.startswith("decoder.decoder_pred.") for name in UNUSED_NYSTROMFORMER)


@every_variant
def test_unfit_segments_are_refused(name: str, config: dict[str, Any]) -> None:
    encoder = load_encoder(name, config=config)
    signal, xyz = recordings(1)
    with pytest.raises(InputError) as error:
        encoder(signal[:, :-1, :-1], xyz[:, :-1])
    assert [problem.where.split(": ")[1] for problem in error.value.problems] == [
        "parcels",
        "frames",
    ]
    with pytest.raises(InputError, match="three: segments, parcels, frames"):
        encoder(signal[0], xyz)
    if encoder.spec.input.needs_xyz:
        with pytest.raises(InputError, match="coordinates"):
            encoder(signal)


def test_any_even_size_where_the_config_leaves_it_open() -> None:
    config = {**VITMAE, "parcels": None, "frames": None}
    encoder = load_encoder("brainlm_vitmae", config=config)
    with torch.no_grad():
        assert encoder(torch.zeros(1, 6, 30)).shape == (1, 16)
        assert encoder(torch.zeros(1, 432, 432)).shape == (1, 16)
    with pytest.raises(InputError, match="even number, at most 432"):
        encoder(torch.zeros(1, 7, 434))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("brainlm_vitmae", {"patch_size": 8}, "16 or 14"),
        ("brainlm_vitmae", {"parcels": 13}, "even and at most 432"),
        ("brainlm_vitmae", {"image_size": 224}, "432"),
        ("brainlm_vitmae", {"train_mode": "causal"}, "auto_encode"),
        ("brainlm_vitmae", {"hidden_size": 18}, "multiple of 4"),
        ("brainlm_vitmae", {"model_type": "brainlm_mae"}, "load it as brainlm_nystromformer"),
        ("brainlm_vitmae", {"num_heads": 2}, "num_heads"),
        ("brainlm_vitmae", {"pooling": "max"}, "cls or mean"),
        ("brainlm_vitmae", {"hidden_size": "16"}, "a whole number"),
        ("brainlm_vitmae", {"patch_size": [16, 16]}, "patch_size"),
        ("brainlm_vitmae", {"hidden_dropout_prob": 1.5}, "hidden_dropout_prob"),
        ("brainlm_nystromformer", {"attention_probs_dropout_prob": -0.1}, "at least 0"),
        ("brainlm_vitmae", {"layer_norm_eps": -1}, "a positive number"),
        ("brainlm_vitmae", {"layer_norm_eps": float("nan")}, "a positive number"),
        ("brainlm_nystromformer", {"conv_kernel_size": 64}, "odd"),
        ("brainlm_nystromformer", {"timepoint_patching_size": 7}, "divisor"),
        ("brainlm_nystromformer", {"inv_coeff_init_option": True}, "upstream fails"),
        ("brainlm_nystromformer", {"decoder_hidden_size": 8}, "hidden_size"),
        ("brainlm_nystromformer", {"num_attention_heads": 3}, "multiple of num_attention_heads"),
        ("brainlm_nystromformer", {"hidden_act": "mish"}, "gelu"),
        ("brainlm_nystromformer", {"num_hidden_layers": -1}, "at least 0"),
    ],
)
def test_impossible_arguments_are_refused(name: str, change: dict[str, Any], message: str) -> None:
    base = VITMAE if name == "brainlm_vitmae" else NYSTROMFORMER
    with pytest.raises(InputError, match=message):
        load_encoder(name, config={**base, **change})


def test_bookkeeping_of_the_transformers_library_is_passed_over() -> None:
    written = {"pad_token_id": 0, "eos_token_id": 2, "is_encoder_decoder": False, "_private": 1}
    assert NystromformerConfig.from_dict({**NYSTROMFORMER, **written}) == (
        NystromformerConfig.from_dict(NYSTROMFORMER)
    )


def test_all_wrong_arguments_are_named_at_once() -> None:
    config = {**NYSTROMFORMER, "conv_kernel_size": 2, "loss_fn": "huber", "num_brain_voxels": 0}
    with pytest.raises(InputError) as error:
        NystromformerConfig.from_dict(config)
    assert len(error.value.problems) == 3


def test_landmarks_want_their_own_sequence_length() -> None:
    config = {**NYSTROMFORMER, "num_landmarks": 5, "segment_means_seq_len": 25}
    encoder = load_encoder("brainlm_nystromformer", config=config)
    with pytest.raises(ValueError, match="segment_means_seq_len"):
        encoder(*recordings(1))


def test_masking_draws_noise_only_where_it_masks() -> None:
    backbone = load_encoder("brainlm_nystromformer", config=NYSTROMFORMER).backbone
    signal, xyz = recordings(2)
    with torch.no_grad():
        whole = backbone.encode(signal, xyz)
        masked = backbone.encode(signal, xyz, mask_ratio=0.9)
    assert torch.equal(whole.ids_restore, torch.arange(56).expand(2, -1))
    assert masked.last_hidden_state.shape[1] == 1 + int(56 * (1 - 0.9))
    assert masked.mask.sum(1).tolist() == [51, 51]
    assert not torch.equal(masked.ids_restore, whole.ids_restore)


@every_variant
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reduced_precision_stays_close(name: str, config: dict[str, Any], dtype: str) -> None:
    signal, xyz = recordings(2)
    full = encode(load_encoder(name, config=config), signal, xyz)
    reduced = encode(load_encoder(name, config=config, dtype=dtype), signal, xyz)
    assert reduced.dtype == getattr(torch, dtype)
    assert (reduced.float() - full).norm() < 0.1 * full.norm()


@pytest.mark.parametrize(
    ("name", "config"), [("brainlm_nystromformer", NYSTROMFORMER), ("brainlm_vitmae", VITMAE)]
)
def test_fresh_weights_claim_no_origin(name: str, config: dict[str, Any]) -> None:
    spec = load_encoder(name, config=config).spec
    assert (spec.weight_license, spec.pretraining_cohorts) == ("none", ())
    assert (spec.input.tr_s, spec.input.space, spec.input.atlas) == (None, None, None)
    assert spec.as_dict()["config"]["pooling"] == "cls"
    assert (spec.input.parcels, spec.input.frames) == (PARCELS, FRAMES)
