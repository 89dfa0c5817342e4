"""The published files of Caduceus: read whole, and written back as they were."""

import json
from pathlib import Path

import pytest
import torch
from caduceus_cases import over_cases, read_json
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from encoders import load_encoder
from encoders.caduceus.checkpoint import PUBLISHED_CONFIG, find_ties, save_network
from encoders.caduceus.config import CaduceusConfig
from encoders.caduceus.model import CaduceusForMaskedLM

TYPES = {"F32": torch.float32, "I64": torch.int64}
# Bytes of the files on the hub.
BYTES = {"ps_131k": 30_937_760, "ph_1k": 7_746_792}
FOLDERS = {
    "ps_131k": "caduceus-ps_seqlen-131k_d_model-256_n_layer-16",
    "ph_1k": "caduceus-ph_seqlen-1k_d_model-256_n_layer-4_lr-8e-3",
}


def write_published(case: Path, variant: str, folder: Path) -> dict[str, torch.Tensor]:
    """Write a file of the published layout with small random numbers, and its config.json."""
    folder.mkdir()
    config = read_json(case / f"config_{variant}.json")
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    complement = torch.tensor([config["complement_map"][str(i)] for i in range(16)])
    tensors = {
        name: complement.clone()
        if kind == "I64"
        else torch.randn(shape, generator=generator, dtype=TYPES[kind])
        for name, (kind, shape) in read_json(case / f"keys_{variant}.json").items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


@over_cases("published_layout")
@pytest.mark.parametrize("variant", BYTES)
def test_published_files_load_and_save_back(case: Path, variant: str, tmp_path: Path) -> None:
    source = tmp_path / FOLDERS[variant]
    stored = write_published(case, variant, source)
    assert (source / "model.safetensors").stat().st_size == BYTES[variant]
    encoder = load_encoder(f"caduceus_{variant[:2]}", source)
    length_bp = {"ps_131k": 131_072, "ph_1k": 1_024}[variant]
    assert encoder.spec.input.max_length_bp == length_bp
    filled = encoder.backbone.state_dict()
    ties = find_ties(encoder.backbone.config)
    assert set(filled) == set(stored) | set(ties)
    for name, tensor in filled.items():
        assert torch.equal(tensor, stored[name if name in stored else ties[name]]), name

    saved = save_network(encoder.backbone, tmp_path / "saved" / FOLDERS[variant])
    assert (saved / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    published = read_json(case / f"config_{variant}.json")
    again = read_json(saved / "config.json")
    unlike = {name for name in published if again.get(name, name) != published[name]}
    # Neither upstream's own Python files nor its library's version come with ours.
    assert unlike - {"auto_map", "transformers_version"} == set()
    assert CaduceusConfig.from_mapping(again) == CaduceusConfig.from_mapping(published)
    assert load_encoder("caduceus", saved).spec.weights_sha256 == encoder.spec.weights_sha256


@over_cases("published_layout")
@pytest.mark.parametrize("variant", BYTES)
def test_names_and_shapes_of_the_network(case: Path, variant: str) -> None:
    config = CaduceusConfig.from_mapping(read_json(case / f"config_{variant}.json"))
    with torch.device("meta"):
        wanted = dict(CaduceusForMaskedLM(config).state_dict())
    for name, (kind, shape) in read_json(case / f"keys_{variant}.json").items():
        tensor = wanted.pop(name)
        assert list(tensor.shape) == shape
        assert TYPES[kind] == tensor.dtype
    assert set(wanted) <= set(find_ties(config)), "not stored and not tied"


@over_cases("published_layout")
def test_the_complement_map_is_read_by_key(case: Path) -> None:
    published = CaduceusConfig.from_mapping(read_json(case / "config_ps_131k.json"))
    values = read_json(case / "config_ps_131k_resaved.json")
    in_file_order = tuple(values["complement_map"].values())
    resaved = CaduceusConfig.from_mapping(values)
    assert resaved == published == CaduceusConfig.from_mapping(PUBLISHED_CONFIG)
    assert resaved.complement_map != in_file_order


@over_cases("mlm")
def test_upstreams_own_file_comes_back_byte_for_byte(case: Path, tmp_path: Path) -> None:
    published = case / "model_published_layout.safetensors"
    config = read_json(case / "config.json")
    encoder = load_encoder("caduceus", published, config=config)
    saved = save_network(encoder.backbone, tmp_path) / "model.safetensors"
    assert saved.read_bytes() == published.read_bytes()
    # The file with all names gives the same network, and so the same file.
    whole = load_encoder("caduceus", case)
    saved = save_network(whole.backbone, tmp_path) / "model.safetensors"
    assert saved.read_bytes() == published.read_bytes()
    with safe_open(saved, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@over_cases("mlm")
def test_either_name_of_a_tied_tensor_will_do(case: Path, tmp_path: Path) -> None:
    config = read_json(case / "config.json")
    tensors = load_file(case / "model_published_layout.safetensors")
    ties = find_ties(CaduceusConfig.from_mapping(config))
    other = dict(tensors)
    for name, origin in ties.items():
        if origin in other and "complement_map" not in name:
            other[name] = other.pop(origin)
    assert set(other) != set(tensors)
    save_file(other, tmp_path / "x.safetensors")
    found = load_encoder("caduceus", tmp_path / "x.safetensors", config=config)
    wanted = load_encoder("caduceus", case)
    assert all(map(torch.equal, found.parameters(), wanted.parameters()))
    del other[next(name for name in other if "mamba_rev.in_proj" in name)]
    save_file(other, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"mamba_fwd\.in_proj"):
        load_encoder("caduceus", tmp_path / "x.safetensors", config=config)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("rcps", [True, False])
def test_other_types_and_untied_networks_come_back(rcps: bool, dtype: str, tmp_path: Path) -> None:
    config = {"d_model": 8, "n_layer": 2, "rcps": rcps, "bidirectional_weight_tie": False}
    config["tie_word_embeddings"] = False
    encoder = load_encoder("caduceus", config=config, dtype=dtype)
    saved = save_network(encoder.backbone, tmp_path)
    assert read_json(saved / "config.json")["torch_dtype"] == dtype
    again = load_encoder("caduceus", saved, dtype=dtype)
    for name, tensor in encoder.backbone.state_dict().items():
        found = again.backbone.state_dict()[name]
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor), name
