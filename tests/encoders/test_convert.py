"""Checkpoints in other layouts: the same bits, the same features, and the way back."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_encoders import SMALL, load, with_weights

from encoders import list_encoders, load_encoder
from encoders.canonical import convert
from encoders.errors import InputError
from encoders.record import RECORD_NAME, read_record
from encoders.torch_files import read_torch_file
from encoders.weights import read_weights

every_encoder = pytest.mark.parametrize("name", with_weights())
FIXTURES = Path(os.environ.get("GENEBOLD_PARITY", "/nowhere"))
# Checkpoints as upstream's training scripts write them.
UPSTREAM = [
    *((path, "swift") for path in sorted((FIXTURES / "swift").rglob("*_current*.ckpt"))),
    *((path, "swift") for path in sorted((FIXTURES / "swift").rglob("*_with_model_head.ckpt"))),
    *((path, "brainmt") for path in sorted((FIXTURES / "brainmt").rglob("checkpoint*.pth"))),
]


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def stored(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and constructor arguments of a small encoder."""
    encoder = load(name, seed=5)
    tensors = {key: value.clone() for key, value in encoder.backbone.state_dict().items()}
    return tensors, encoder.spec.config


@every_encoder
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_to_a_canonical_folder_and_back(name: str, suffix: str, tmp_path: Path) -> None:
    tensors, config = stored(name)
    source, folder = tmp_path / f"model{suffix}", tmp_path / "new" / "canonical"
    (torch.save if suffix == ".bin" else save_file)(tensors, source)
    done = convert(source, folder, name=name, config=config)
    assert (done.encoder, done.tensors) == (name, len(tensors))
    assert {path.name for path in folder.iterdir()} == {
        *("model.safetensors", "config.json", RECORD_NAME),
    }
    assert_equal(load_file(folder / "model.safetensors"), tensors)
    ours, theirs = load_encoder(name, folder), load_encoder(name, source, config=config)
    assert ours.spec == theirs.spec
    assert_equal(ours.backbone.state_dict(), theirs.backbone.state_dict())
    back = tmp_path / f"back{suffix}"
    assert convert(folder, back).encoder == name
    assert_equal(read_weights(back).tensors, tensors)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []


@pytest.mark.skipif(not UPSTREAM, reason="needs the full fixtures (GENEBOLD_PARITY)")
@pytest.mark.parametrize(
    ("path", "name"), UPSTREAM, ids=lambda value: getattr(value, "stem", value)
)
def test_upstreams_own_checkpoints_go_there_and_back(path: Path, name: str, tmp_path: Path) -> None:
    if name not in list_encoders():
        pytest.skip(f"{name} is not installed")
    before = read_torch_file(path)
    done = convert(path, tmp_path / "folder")
    assert done.encoder == name, "told from the tensors' names"
    assert_equal(load_file(tmp_path / "folder" / "model.safetensors"), before.tensors)
    assert load_encoder(name, tmp_path / "folder").spec == load_encoder(name, path).spec
    back = tmp_path / f"back{path.suffix}"
    convert(tmp_path / "folder", back)
    after = read_torch_file(back)
    assert_equal(after.tensors, before.tensors)
    assert (after.extra, after.nesting) == (before.extra, before.nesting)


def test_a_folder_keeps_upstreams_config_and_the_tokenizers_files(tmp_path: Path) -> None:
    tensors, config = stored("caduceus_ps")
    source = tmp_path / "caduceus-ps_seqlen-131k_d_model-256_n_layer-16"
    source.mkdir()
    given = {**config, "architectures": ["CaduceusForMaskedLM"], "model_type": "caduceus"}
    (source / "config.json").write_text(json.dumps(given))
    (source / "special_tokens_map.json").write_text("{}")
    (source / "modeling_caduceus.py").write_text("print('code')")
    save_file(tensors, source / "model.safetensors")
    assert convert(source, tmp_path / "folder").encoder == "caduceus"
    assert json.loads((tmp_path / "folder" / "config.json").read_text()) == given
    assert (tmp_path / "folder" / "special_tokens_map.json").exists()
    assert not (tmp_path / "folder" / "modeling_caduceus.py").exists()
    spec = load_encoder("caduceus_ps", tmp_path / "folder").spec
    assert spec.weights_id == source.name, "where the weights came from is not forgotten"
    assert spec == load_encoder("caduceus_ps", source).spec
    again = convert(tmp_path / "folder", tmp_path / "again")
    assert again.source == source.name


def test_what_lay_beside_the_weights_comes_back_as_it_was(tmp_path: Path) -> None:
    tensors, config = stored("brainlm_vitmae")
    extra = {"epoch": 3, "sizes": (2, [3, (4,)]), "names": {0: "a", "b": None}, "loss": np.inf}
    outer = {"run": "x", "net": {"version": 2, "weights": tensors}}
    source = tmp_path / "x.pt"
    torch.save({**extra, "model": outer, "optimizer": {"state": {}}}, source)
    convert(source, tmp_path / "folder", config=config)
    convert(tmp_path / "folder", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert_equal(back["model"]["net"].pop("weights"), tensors)
    assert back == {**extra, "model": {"run": "x", "net": {"version": 2}}}


def test_tied_and_strided_tensors_are_stored_in_full(tmp_path: Path) -> None:
    tensors, config = stored("brainlm_vitmae")
    name = "vit.embeddings.cls_token"
    wide = torch.zeros(*tensors[name].shape[:-1], 2 * tensors[name].shape[-1])
    tensors[name] = wide[..., ::2]
    tensors["vit.layernorm.bias"] = tensors["vit.layernorm.weight"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    convert(tmp_path / "pytorch_model.bin", tmp_path / "folder", config=config)
    assert_equal(read_weights(tmp_path / "folder").tensors, tensors)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    tensors, config = stored("caduceus")
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("folder", "file.bin"):
        target = tmp_path / name
        target.mkdir() if name == "folder" else target.write_text("mine")
        with pytest.raises(InputError) as error:
            convert(tmp_path / "model.safetensors", target, config=config)
        assert error.value.problems[0].code == "target-exists"
    assert (tmp_path / "file.bin").read_text() == "mine"
    assert list((tmp_path / "folder").iterdir()) == []


def test_weights_that_do_not_fit_leave_nothing_behind(tmp_path: Path) -> None:
    tensors, config = stored("caduceus")
    first = next(iter(tensors))
    save_file({**tensors, "extra": torch.ones(1)}, tmp_path / "model.safetensors")
    before = set(tmp_path.iterdir())
    with pytest.raises(InputError, match="extra"):
        convert(tmp_path / "model.safetensors", tmp_path / "folder", config=config)
    save_file({first: tensors[first] * torch.nan}, tmp_path / "model.safetensors")
    with pytest.raises(InputError):
        convert(tmp_path / "model.safetensors", tmp_path / "folder", name="caduceus", config=config)
    assert set(tmp_path.iterdir()) == before


def test_an_unknown_checkpoint_asks_for_its_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="name=") as error:
        convert(tmp_path / "model.safetensors", tmp_path / "folder")
    assert error.value.problems[0].code == "encoder-not-recognised"


@every_encoder
def test_encoders_are_told_from_their_tensors(name: str, tmp_path: Path) -> None:
    tensors, config = stored(name)
    save_file(tensors, tmp_path / "model.safetensors")
    found = convert(tmp_path / "model.safetensors", tmp_path / "folder", config=config).encoder
    assert found == name.removesuffix("_ps").removesuffix("_ph")


def test_a_changed_canonical_folder_is_refused(tmp_path: Path) -> None:
    tensors, config = stored("caduceus")
    save_file(tensors, tmp_path / "model.safetensors")
    folder = tmp_path / "folder"
    convert(tmp_path / "model.safetensors", folder, config=config)
    (norm,) = (name for name in tensors if name.endswith("norm_f.weight"))
    tensors[norm] = tensors[norm] + 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match="other tensors") as error:
        load_encoder("caduceus", folder)
    assert error.value.problems[0].code == "weights-changed"
    (folder / RECORD_NAME).unlink()
    assert load_encoder("caduceus", folder).spec.weights_id == "folder"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"extra": {}, "nesting": 3}'])
def test_a_record_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD_NAME).write_text(text)
    with pytest.raises(InputError) as error:
        read_record(tmp_path)
    assert error.value.problems[0].code == "record-unreadable"


def test_the_small_configurations_are_of_encoders() -> None:
    assert SMALL, "the tests above walk it"
