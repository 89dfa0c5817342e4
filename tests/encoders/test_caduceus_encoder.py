"""What the Caduceus encoders promise: RC symmetry, independence of padding and batch, errors."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from encoders import load_encoder
from encoders.base import DnaEncoder, WindowInput
from encoders.caduceus.character_tokenizer import CaduceusTokenizer
from encoders.caduceus.config import CaduceusConfig
from encoders.caduceus.tokenizer import encode_bases, reverse_complement, tokenize_windows
from encoders.errors import InputError

SMALL = {"d_model": 8, "n_layer": 3, "ssm_cfg": {"d_state": 4}}
VARIANTS = {
    "ps_fused": {"rcps": True},
    "ps_fused_even": {"rcps": True, "n_layer": 2},
    "ps_unfused": {"rcps": True, "fused_add_norm": False, "rms_norm": False},
    "ps_one_way": {"rcps": True, "bidirectional": False},
    "ph": {"rcps": False},
    "ph_untied": {
        "rcps": False,
        "bidirectional_strategy": "ew_multiply",
        "bidirectional_weight_tie": False,
        "tie_word_embeddings": False,
    },
    "ph_one_way": {"rcps": False, "bidirectional": False, "rms_norm": False},
}
LIMIT = {"float32": 1e-5, "float64": 1e-12}
DNA = st.text("ACGTNacgtn", min_size=1, max_size=70)

_ENCODERS: dict[tuple[str, str], torch.nn.Module] = {}


def encoder_for(variant: str, dtype: str = "float64"):
    """Build each small encoder once, with weights spread widely enough to tell letters apart."""
    key = (variant, dtype)
    if key not in _ENCODERS:
        config = {**SMALL, **VARIANTS[variant], "initializer_cfg": {"initializer_range": 1.0}}
        _ENCODERS[key] = load_encoder("caduceus", config=config, dtype=dtype, seed=5)
    return _ENCODERS[key]


def worst(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


over_variants = pytest.mark.parametrize("variant", VARIANTS)
over_dtypes = pytest.mark.parametrize("dtype", LIMIT)


@over_variants
@over_dtypes
@settings(max_examples=4, deadline=None)
@given(sequence=DNA)
@torch.no_grad()
def test_reverse_complement_exchanges_strands(variant: str, dtype: str, sequence: str) -> None:
    encoder = encoder_for(variant, dtype)
    hidden = encoder.hidden(*encoder.tokenize([sequence]))
    mirrored = encoder.hidden(*encoder.tokenize([reverse_complement(sequence)]))
    assert worst(mirrored, hidden.flip(1, 3)) <= LIMIT[dtype]
    pooled = encoder(*encoder.tokenize([sequence, reverse_complement(sequence)]))
    assert worst(pooled[1], pooled[0].flip(-1)) <= LIMIT[dtype]


@over_variants
@over_dtypes
@settings(max_examples=4, deadline=None)
@given(sequences=st.lists(DNA, min_size=1, max_size=5))
@torch.no_grad()
def test_windows_do_not_depend_on_batch_or_padding(
    variant: str, dtype: str, sequences: list[str]
) -> None:
    encoder = encoder_for(variant, dtype)
    batch = encoder.tokenize([*sequences, "ACGT" * 20])
    hidden, pooled = encoder.hidden(*batch), encoder(*batch)
    assert not hidden[~batch.mask].any()
    for row, sequence in enumerate(sequences):
        alone = encoder.tokenize([sequence])
        assert worst(hidden[row, : len(sequence)], encoder.hidden(*alone)[0]) <= LIMIT[dtype]
        assert worst(pooled[row], encoder(*alone)[0]) <= LIMIT[dtype]


@over_variants
@torch.no_grad()
def test_pooling_weights_pick_bases(variant: str) -> None:
    encoder = encoder_for(variant)
    ids, mask = encoder.tokenize(["ACGTTGCA", "ACG"])
    weights = torch.zeros(2, 8)
    weights[0, 3] = weights[1, 1] = 2.0
    hidden = encoder.hidden(ids, mask)
    wanted = torch.stack([hidden[0, 3], hidden[1, 1]])
    torch.testing.assert_close(encoder(ids, mask, weights), wanted)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@torch.no_grad()
def test_narrow_types_pool_long_windows_in_float32(dtype: str, monkeypatch) -> None:
    """70,000 ones are no float16, and 1,002 ones no bfloat16: the mean must not know."""
    monkeypatch.setattr("encoders.caduceus.encoder.can_stream", lambda *_: False)
    encoder = load_encoder("caduceus_ps", config=SMALL, dtype=dtype)
    hidden = torch.ones(1, 70_002, 8, 2, dtype=getattr(torch, dtype))
    encoder._run = lambda ids: hidden[:, : ids.shape[1]]
    for length in (1_002, 70_002):
        features = encoder(*encoder.tokenize(["A" * length]))
        assert features.dtype == torch.float32
        torch.testing.assert_close(features, torch.ones(1, 8, 2), rtol=1e-6, atol=0)


@over_variants
@torch.no_grad()
def test_pooling_holds_one_run_at_a_time(variant: str, monkeypatch) -> None:
    encoder = encoder_for(variant, "float32")
    ids, mask = encoder.tokenize(["ACGTTGCANNACGTT", "GGATACAACGTTTCA", "TTTTACGACGATTAC"])
    weights = torch.rand(3, 15, generator=torch.Generator().manual_seed(0))
    whole = [DnaEncoder.forward(encoder, ids, mask, w) for w in (None, weights)]
    monkeypatch.setattr("encoders.caduceus.encoder._TOKENS_AT_ONCE", 30)
    monkeypatch.setattr(encoder, "hidden", None)
    assert worst(encoder(ids, mask), whole[0]) < 1e-6
    assert worst(encoder(ids, mask, weights), whole[1]) < 1e-6


def test_weights_of_no_base_are_refused() -> None:
    encoder = encoder_for("ph")
    ids, mask = encoder.tokenize(["ACGT", "ACG"])
    weights = torch.ones(2, 4)
    weights[1, :3] = 0
    with pytest.raises(ValueError, match="sum to zero"):
        encoder(ids, mask, weights)


@over_variants
def test_one_base_changes_features_and_repeats_exactly(variant: str) -> None:
    encoder = encoder_for(variant, "float32")
    generator = torch.Generator().manual_seed(1)
    window = "".join("ACGT"[int(i)] for i in torch.randint(4, (200,), generator=generator))
    other = window[:100] + ("A" if window[100] != "A" else "C") + window[101:]
    with torch.no_grad():
        first, second = encoder(*encoder.tokenize([window, other]))
        again = encoder(*encoder.tokenize([window, other]))
    assert torch.equal(again, torch.stack([first, second]))
    assert (first - second).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["caduceus_ps", "caduceus_ph"])
@torch.no_grad()
def test_default_initialisation_answers_to_a_variant(name: str) -> None:
    """Upstream's initial weights, not widened: differences far above float32's rounding."""
    encoder = load_encoder(name, config={"d_model": 32, "n_layer": 4})
    window = "ACGTTGCATGACCTGATTACAGGC" * 10
    reference, variant = encoder(*encoder.tokenize([window, window[:99] + "N" + window[100:]]))
    assert (reference - variant).abs().max() > 1e-3


def test_random_weights_are_seeded_and_leave_the_generator_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    one, same, other = (load_encoder("caduceus_ps", config=SMALL, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(4), wanted)
    assert one.spec.weights_sha256 == same.spec.weights_sha256 != other.spec.weights_sha256
    assert one.spec.weights_id == "random(seed=1)"


def test_spec() -> None:
    encoder = load_encoder("caduceus_ph", config=SMALL)
    spec = encoder.spec
    assert (spec.name, spec.modality, spec.feature_dim) == ("caduceus_ph", "dna", 8)
    assert spec.parameters == sum(p.numel() for p in encoder.parameters())
    assert spec.config["rcps"] is False
    json.dumps(spec.as_dict())
    assert CaduceusConfig.from_mapping(spec.config) == encoder.backbone.config


@pytest.mark.slow
def test_published_architecture_is_the_default() -> None:
    spec = load_encoder("caduceus_ps").spec
    assert (spec.feature_dim, spec.config["n_layer"]) == (256, 16)
    assert spec.input == WindowInput(max_length_bp=131_072)


def test_reloading_gives_the_same_features(tmp_path: Path) -> None:
    for variant in VARIANTS:
        encoder = encoder_for(variant, "float32")
        folder = tmp_path / f"caduceus-ps_seqlen-1k_{variant}"
        folder.mkdir()
        tensors = {k: v.clone() for k, v in encoder.backbone.state_dict().items()}
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(encoder.spec.config))
        again = load_encoder("caduceus", folder)
        batch = again.tokenize(["ACGTNACC", "ACG"])
        assert torch.equal(again(*batch), encoder(*batch))
        assert again.spec.input == WindowInput(max_length_bp=1024)
        assert again.spec.weight_license == "Apache-2.0"
        with pytest.raises(InputError, match="1,025 bases"):
            again.tokenize(["A" * 1025])


def test_both_prefixes_and_the_bare_network(tmp_path: Path) -> None:
    encoder = encoder_for("ps_fused", "float32")
    tensors = {k: v.clone() for k, v in encoder.backbone.state_dict().items()}
    bare = {k.removeprefix("caduceus."): v for k, v in tensors.items() if "lm_head" not in k}
    training = {f"model.{k}": v for k, v in tensors.items()}
    batch = encoder.tokenize(["ACGTNACC"])
    for file, content in (("bare", bare), ("training", training)):
        save_file(content, tmp_path / f"{file}.safetensors")
        again = load_encoder(
            "caduceus_ps", tmp_path / f"{file}.safetensors", config=encoder.spec.config
        )
        assert torch.equal(again(*batch), encoder(*batch))
    assert torch.equal(again.backbone.logits(batch.input_ids), encoder.backbone.logits(batch[0]))


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("names", ["backbone.", "caduceus.backbone."])
def test_an_untied_network_without_a_head_loads(tmp_path: Path, prefix: str, names: str) -> None:
    encoder = encoder_for("ph_untied", "float32")
    tensors = {
        f"{prefix}{names}{key.removeprefix('caduceus.backbone.')}": tensor.clone()
        for key, tensor in encoder.backbone.state_dict().items()
        if not key.startswith("lm_head")
    }
    save_file(tensors, tmp_path / "x.safetensors")
    again = load_encoder("caduceus_ph", tmp_path / "x.safetensors", config=encoder.spec.config)
    batch = encoder.tokenize(["ACGTNACC", "ACG"])
    assert torch.equal(again(*batch), encoder(*batch))
    with pytest.raises(ValueError, match="no language-model head"):
        again.backbone.logits(batch.input_ids)


@pytest.mark.parametrize("variant", ["ps_fused", "ph"])
def test_a_float64_checkpoint_keeps_all_its_digits(tmp_path: Path, variant: str) -> None:
    encoder = encoder_for(variant, "float64")
    noise = torch.Generator().manual_seed(0)
    tensors = {}
    for key, tensor in encoder.backbone.caduceus.state_dict().items():
        finer = torch.rand(tensor.shape, generator=noise, dtype=torch.float64) * 1e-10
        tensors[key] = tensor * (1 + finer) if tensor.is_floating_point() else tensor.clone()
    for key in tensors:
        if "mamba_rev" in key and ("in_proj" in key or "out_proj" in key):
            tensors[key] = tensors[key.replace("mamba_rev", "mamba_fwd")].clone()
    save_file(tensors, tmp_path / "x.safetensors")
    again = load_encoder(
        "caduceus", tmp_path / "x.safetensors", config=encoder.spec.config, dtype="float64"
    )
    loaded = again.backbone.caduceus.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize(("named", "length_bp"), [("1k", 1024), ("131k", 131_072), ("9k", None)])
def test_the_longest_window_is_the_published_one(
    tmp_path: Path, named: str, length_bp: int | None
) -> None:
    encoder = encoder_for("ph", "float32")
    folder = tmp_path / f"caduceus-ph_seqlen-{named}_d_model-8_n_layer-3"
    folder.mkdir()
    tensors = {k: v.clone() for k, v in encoder.backbone.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(encoder.spec.config))
    assert load_encoder("caduceus", folder).spec.input == WindowInput(max_length_bp=length_bp)


def test_misfits_of_a_checkpoint_are_all_listed(tmp_path: Path) -> None:
    encoder = encoder_for("ps_fused", "float32")
    tensors = {k: v.clone() for k, v in encoder.backbone.state_dict().items()}
    tensors["score.weight"] = torch.zeros(1)
    layer = "caduceus.backbone.layers.1.mixer.submodule"
    del tensors[f"{layer}.mamba_fwd.D"]
    tensors[f"{layer}.mamba_rev.in_proj.weight"] += 1
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError) as error:
        load_encoder("caduceus", tmp_path / "x.safetensors", config=encoder.spec.config)
    found = {problem.code for problem in error.value.problems}
    assert found == {"tensor-unexpected", "tensor-missing", "tensor-tie"}


def test_another_complement_map_is_refused(tmp_path: Path) -> None:
    encoder = encoder_for("ps_fused", "float32")
    tensors = {k: v.clone() for k, v in encoder.backbone.state_dict().items()}
    for name in tensors:
        if name.endswith("complement_map"):
            tensors[name] = torch.arange(16)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="complement_map"):
        load_encoder("caduceus", tmp_path / "x.safetensors", config=encoder.spec.config)


def test_weights_want_a_configuration_and_the_right_name(tmp_path: Path) -> None:
    encoder = encoder_for("ph", "float32")
    tensors = {k: v.clone() for k, v in encoder.backbone.state_dict().items()}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="without a configuration"):
        load_encoder("caduceus", tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="load it as caduceus_ph"):
        load_encoder("caduceus_ps", tmp_path / "x.safetensors", config=encoder.spec.config)


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"n_layers": 3}, "n_layers"),
        ({"ssm_cfg": {"d_stat": 3}}, "d_stat"),
        ({"ssm_cfg": {"layer": "Mamba2"}}, "layer"),
        ({"bidirectional_strategy": "concat"}, "bidirectional_strategy"),
        ({"rcps": "yes"}, "rcps"),
        ({"d_model": 0}, "d_model"),
        ({"vocab_size": 4}, "vocab_size"),
        ({"complement_map": {"7": 8}}, "complement_map"),
        ({"norm_epsilon": -1}, "norm_epsilon"),
    ],
)
def test_configuration_errors_name_the_key(values: dict, where: str) -> None:
    with pytest.raises(InputError) as error:
        CaduceusConfig.from_mapping({**SMALL, **values})
    assert len(error.value.problems) == 1
    assert where in error.value.problems[0].where


def test_null_strategy_and_private_keys_are_read_as_upstream_does() -> None:
    plain = CaduceusConfig.from_mapping(SMALL)
    private = {"_attn_implementation_autoset": True, "_name_or_path": "x", "is_decoder": False}
    assert CaduceusConfig.from_mapping({**SMALL, **private}) == plain
    assert CaduceusConfig.from_mapping({**SMALL, "bidirectional_strategy": None}) == plain
    values = {**SMALL, "bidirectional": False, "bidirectional_strategy": None}
    assert not CaduceusConfig.from_mapping(values).bidirectional


def test_configuration_errors_come_together() -> None:
    with pytest.raises(InputError) as error:
        CaduceusConfig.from_mapping({"rcps": 1, "colour": "red"})
    assert len(error.value.problems) == 4


@settings(max_examples=25, deadline=None)
@given(sequence=st.text("ACGTN", max_size=200))
def test_tokens_round_trip(sequence: str) -> None:
    tokenizer = CaduceusTokenizer()
    ids = tokenizer.encode(sequence, add_special_tokens=False)
    assert tokenizer.decode(ids) == sequence
    assert encode_bases(sequence).tolist() == ids == encode_bases(sequence.lower()).tolist()


@settings(max_examples=25, deadline=None)
@given(sequence=st.text(max_size=50))
def test_any_text_gives_one_id_a_character(sequence: str) -> None:
    ids = encode_bases(sequence)
    assert len(ids) == len(sequence)
    assert all((i == 6) == (c not in "ACGTNacgtn") for i, c in zip(ids, sequence, strict=True))


def test_windows_are_padded_on_the_right() -> None:
    ids, mask = tokenize_windows(["ACG", "tNxAC"])
    assert ids.tolist() == [[7, 8, 9, 4, 4], [10, 11, 6, 7, 8]]
    assert mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    with pytest.raises(InputError) as error:
        tokenize_windows(["", "ACGT", "A"], max_length_bp=3)
    assert [p.code for p in error.value.problems] == ["window-empty", "window-too-long"]
    with pytest.raises(InputError, match="at least one"):
        tokenize_windows([])


@pytest.mark.parametrize(
    "row", [[False] * 4, [False, True, True, True], [True, False, True, False]]
)
def test_other_masks_are_refused(row: list[bool]) -> None:
    encoder = encoder_for("ph")
    ids, _ = encoder.tokenize(["ACGT", "ACGT"])
    with pytest.raises(ValueError, match="padded on the right"):
        encoder.hidden(ids, torch.tensor([[True] * 4, row]))
    with pytest.raises(ValueError, match="one shape"):
        encoder.hidden(ids, torch.ones(2, 3, dtype=torch.bool))


@over_variants
def test_gradients_reach_every_backbone_weight(variant: str) -> None:
    encoder = encoder_for(variant, "float32")
    encoder.zero_grad()
    encoder(*encoder.tokenize(["ACGTTGCATTNACG", "ACGGT"])).square().sum().backward()
    for name, parameter in encoder.backbone.caduceus.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_bfloat16_stays_near() -> None:
    exact = encoder_for("ps_fused", "float64")
    config = {**SMALL, "rcps": True, "initializer_cfg": {"initializer_range": 1.0}}
    rounded = load_encoder("caduceus", config=config, dtype="bfloat16", seed=5)
    batch = exact.tokenize(["ACGTTGCATTNACG" * 5, "ACGGT"])
    with torch.no_grad():
        assert worst(rounded(*batch).double(), exact(*batch)) < 0.05
