"""Torch files: their weights and plain values come out, whatever else is in them stays shut."""

import argparse
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from encoders.errors import InputError
from encoders.torch_files import read_torch_file

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}
FIXTURES = Path(os.environ.get("GENEBOLD_PARITY", "/nowhere"))
CHECKPOINTS = sorted((FIXTURES / "swift").rglob("*.ckpt"))


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_torch_file(path)
    assert [problem.code for problem in error.value.problems] == ["weights-unsafe"]
    return str(error.value)


def test_plain_values_beside_the_weights_are_kept(tmp_path: Path) -> None:
    settings = {"depths": [2, 2], "img_size": (24, 4), "optimizer": "AdamW", "to_float": True}
    content = {
        "state_dict": TENSORS,
        "hyper_parameters": settings,
        "epoch": 3,
        "best": None,
        "moments": {"a": {0: torch.ones(1)}},
        "optimizer_states": [{"state": {0: {"step": 1}}}],
    }
    file = read_torch_file(save(tmp_path / "x.ckpt", content))
    assert set(file.tensors) == set(TENSORS)
    assert file.extra == {"hyper_parameters": settings, "epoch": 3, "best": None}
    assert read_torch_file(save(tmp_path / "y.ckpt", TENSORS)).extra == {}


def test_scores_that_a_trainer_keeps_are_not_taken_for_weights(tmp_path: Path) -> None:
    scores = {"ModelCheckpoint": {"best_k_models": {"epoch=0.ckpt": torch.tensor(3.3)}}}
    file = read_torch_file(save(tmp_path / "x.ckpt", {"state_dict": TENSORS, "callbacks": scores}))
    assert set(file.tensors) == set(TENSORS)


@pytest.mark.parametrize(
    "number",
    [
        *(np.float64(1.5), np.float32(-0.25), np.float16(2.0), np.int64(-7), np.uint8(200)),
        *(np.bool_(True), np.dtype(">f4").type(3.0)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numpy_numbers_come_out_as_python_numbers(
    tmp_path: Path, number: np.generic, module: bytes
) -> None:
    path = tmp_path / "x.pth"
    torch.save({"model_state_dict": TENSORS, "val_loss": number}, path)
    edit(path, b"numpy._core.multiarray", module)
    value = read_torch_file(path).extra["val_loss"]
    assert (value, type(value)) == (number.item(), type(number.item()))


def edit(path: Path, old: bytes, new: bytes) -> None:
    """Change the pickle in a torch file."""
    with zipfile.ZipFile(path) as stored:
        parts = {name: stored.read(name) for name in stored.namelist()}
    (pickled,) = (name for name in parts if name.endswith("data.pkl"))
    assert old in parts[pickled]
    parts[pickled] = parts[pickled].replace(old, new)
    with zipfile.ZipFile(path, "w") as changed:
        for name, content in parts.items():
            changed.writestr(name, content)


def test_other_numpy_values_are_refused(tmp_path: Path) -> None:
    for number, value in enumerate((np.str_("text"), np.datetime64("2024-01-01"), np.ones(2))):
        refused(save(tmp_path / f"{number}.pth", {"model": TENSORS, "extra": value}))


def test_a_numpy_number_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", {"model": TENSORS, "loss": np.float64(1.5)})
    edit(path, b"f8", b"f4")
    assert "8 bytes, not 4" in refused(path)


def test_a_namespace_is_refused_by_name(tmp_path: Path) -> None:
    content = {"state_dict": TENSORS, "hyper_parameters": argparse.Namespace(depth=2)}
    assert "argparse.Namespace" in refused(save(tmp_path / "x.ckpt", content))


class Sneaky:
    """Prints when it is unpickled unsafely."""

    def __reduce__(self) -> tuple:
        return (print, ("RAN",))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older-format"])
def test_code_is_refused_by_name_and_not_run(
    tmp_path: Path, zipped: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": TENSORS, "x": Sneaky()}, path, _use_new_zipfile_serialization=zipped)
    assert "print" in refused(path)
    assert "RAN" not in capfd.readouterr().out


def test_the_allow_list_ends_with_the_reading(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())  # torch gives them in no order
    read_torch_file(save(tmp_path / "x.pth", {"model": TENSORS, "loss": np.float64(1)}))
    refused(save(tmp_path / "y.pth", {"model": TENSORS, "extra": argparse.Namespace()}))
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.skipif(not CHECKPOINTS, reason="needs the full fixtures (GENEBOLD_PARITY)")
@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_published_layouts(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cases = json.loads((path.parent / "config.json").read_text())["files"]
    if cases[path.stem].get("must_be_refused"):
        refused(path)
        assert capfd.readouterr().out == ""
        return
    file = read_torch_file(path)
    wanted = load_file(path.parent / f"{path.stem}.state_dict.safetensors")
    assert set(file.tensors) == set(wanted)
    assert all(torch.equal(file.tensors[name], tensor) for name, tensor in wanted.items())
    stored = file.extra["hyper_parameters"]
    assert list(stored["depths"]) == cases[path.stem]["constructor"]["depths"]
    assert "optimizer" in stored
