"""Reading checkpoints safely, and filling modules completely or not at all."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from encoders.errors import InputError
from encoders.weights import load_strict, read_weights, tensors_sha256

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


def codes(error: pytest.ExceptionInfo[InputError]) -> list[str]:
    return [problem.code for problem in error.value.problems]


def assert_same(found: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(TENSORS)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        {"state_dict": TENSORS, "epoch": 3, "optimizer_states": [{"state": {}}]},
        {"model": TENSORS, "optimizer": {"state": {0: {"m": torch.ones(1)}}}},
        {"model": {"state_dict": TENSORS}, "callbacks": {"stop": {"best": torch.ones(1), "n": 1}}},
    ],
    ids=["plain", "lightning", "optimizer", "nested"],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_torch_files(tmp_path: Path, content: dict, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(content, path)
    weights = read_weights(path)
    assert_same(weights.tensors)
    assert weights.id == path.name
    assert weights.config is None


def test_equal_tensors_have_one_digest(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    torch.save(dict(reversed(TENSORS.items())), tmp_path / "x.pt")
    digests = {read_weights(tmp_path / f"x.{s}").sha256 for s in ("safetensors", "pt")}
    assert digests == {tensors_sha256(TENSORS)}


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.zeros(2, 2), "c": torch.zeros(1)},
        {"a": torch.zeros(4), "b": torch.zeros(1)},
        {"a": torch.zeros(2, 2, dtype=torch.int32), "b": torch.zeros(1)},
        {"a": torch.tensor([[0.0, 0.0], [0.0, -0.0]]), "b": torch.zeros(1)},
    ],
    ids=["name", "shape", "dtype", "bytes"],
)
def test_digest_tells_tensors_apart(other: dict[str, torch.Tensor]) -> None:
    tensors = {"a": torch.zeros(2, 2), "b": torch.zeros(1)}
    assert tensors_sha256(tensors) != tensors_sha256(other)


def test_digest_takes_every_kind_of_tensor() -> None:
    kinds = {
        "scalar": torch.tensor(1.0),
        "empty": torch.zeros(0, 3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "strided": torch.arange(6.0).reshape(2, 3).T,
        "flag": torch.tensor([True, False]),
    }
    again = kinds | {"strided": kinds["strided"].contiguous()}
    assert tensors_sha256(kinds) == tensors_sha256(again)


def test_folders(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"d_model": 3}))
    torch.save({"wrong": torch.zeros(1)}, folder / "pytorch_model.bin")
    save_file(TENSORS, folder / "model.safetensors")
    weights = read_weights(str(folder))
    assert_same(weights.tensors)
    assert (weights.config, weights.id) == ({"d_model": 3}, "published")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path: Path, kind: str) -> None:
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = {name: f"{stem}-{i}.{kind}" for i, name in enumerate(TENSORS)}
    for name, file in names.items():
        save = save_file if kind == "safetensors" else torch.save
        save({name: TENSORS[name]}, tmp_path / file)
    index = tmp_path / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert_same(read_weights(tmp_path).tensors)
    (tmp_path / names["b"]).unlink()
    with pytest.raises(InputError, match="no such file") as error:
        read_weights(tmp_path)
    assert codes(error) == ["weights-missing"]


def test_only_weights_file_of_a_folder_is_taken_and_two_are_refused(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "best.ckpt")
    assert_same(read_weights(tmp_path).tensors)
    torch.save(TENSORS, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"best\.ckpt, last\.ckpt"):
        read_weights(tmp_path)


def test_ambiguous_state_dicts_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "ema": TENSORS}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"'model', 'ema'") as error:
        read_weights(tmp_path / "x.pt")
    assert codes(error) == ["weights-ambiguous"]


def test_what_is_called_a_state_dict_is_meant(tmp_path: Path) -> None:
    content = {"state_dict": TENSORS, "hyper_parameters": {"class_weights": TENSORS}}
    torch.save(content, tmp_path / "x.ckpt")
    assert_same(read_weights(tmp_path / "x.ckpt").tensors)


@pytest.mark.parametrize("odd", [torch.eye(3).to_sparse(), torch.empty(2, device="meta")])
def test_tensors_without_dense_numbers_are_refused(tmp_path: Path, odd: torch.Tensor) -> None:
    torch.save({"a": torch.ones(2), "b": odd}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="b "):
        read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize("content", ['{"weight_map": {"a": 3}}', '{"weight_map": ["x"]}'])
def test_an_index_that_names_no_files_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError) as error:
        read_weights(tmp_path)
    assert codes(error) == ["weights-index"]


def test_a_configuration_without_end_is_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"config\.json"):
        read_weights(tmp_path)


class Sneaky:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("ran.txt"),))


def test_pickled_code_is_refused_and_not_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(1), "b": Sneaky()}, "x.pt")
    Path("y.pt").write_bytes(pickle.dumps(Sneaky()))
    for file in ("x.pt", "y.pt"):
        with pytest.raises(InputError, match="save_file") as error:
            read_weights(file)
        assert codes(error) == ["weights-unsafe"]
    assert not Path("ran.txt").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".pt":
        torch.save(TENSORS, path)
    else:
        save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError) as error:
        read_weights(path)
    assert codes(error) == ["weights-damaged"]
    assert str(path) in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_cut_off_anywhere_are_input_errors(tmp_path: Path, zipped: bool) -> None:
    """The older format is a row of pickles: cut off, each place fails in its own way."""
    path = tmp_path / "x.pt"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for size in range(0, len(content), 1 if not zipped else 97):
        path.write_bytes(content[:size])
        with pytest.raises(InputError) as error:
            read_weights(path)
        assert codes(error)[0] in ("weights-damaged", "weights-unsafe"), size


@pytest.mark.parametrize("name", ["nowhere.safetensors", "/no/such/folder", "./here"])
def test_missing_paths(name: str) -> None:
    with pytest.raises(InputError, match="no such file or folder") as error:
        read_weights(name)
    assert codes(error) == ["weights-missing"]


def test_hub_ids_resolve_through_the_cache(tmp_path: Path, monkeypatch) -> None:
    import huggingface_hub

    calls = []

    def fake(repo: str, revision: str | None = None, allow_patterns=None) -> str:
        calls.append((repo, revision))
        snapshot = tmp_path / "abc123"
        (snapshot / "small").mkdir(parents=True, exist_ok=True)
        save_file(TENSORS, snapshot / "small" / "model.safetensors")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    weights = read_weights("owner/name/small", revision="v1")
    assert_same(weights.tensors)
    assert weights.id == "owner/name/small@abc123"
    assert calls == [("owner/name", "v1")]


def test_unreachable_hub_id_is_an_input_error(monkeypatch) -> None:
    import huggingface_hub

    def fail(*args, **kwargs) -> str:
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match="owner/name") as error:
        read_weights("owner/name")
    assert codes(error) == ["weights-hub"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2)
        self.two = nn.Linear(2, 2, bias=False)
        self.register_buffer("table", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)


def good() -> dict[str, torch.Tensor]:
    return {
        "one.weight": torch.full((2, 2), 3.0),
        "one.bias": torch.ones(2),
        "two.weight": torch.full((2, 2), 3.0),
        "table": torch.tensor([2, 1, 0]),
    }


def test_load_strict_fills_parameters_and_persistent_buffers() -> None:
    net = Net().double()
    load_strict(net, good(), source="x")
    assert torch.equal(net.table, torch.tensor([2, 1, 0]))
    assert torch.equal(net.one.weight, torch.full((2, 2), 3.0, dtype=torch.float64))
    assert net.one.weight.requires_grad


def test_load_strict_lists_everything_and_changes_nothing() -> None:
    tensors = good() | {"extra": torch.ones(1), "one.bias": torch.tensor([1.0, float("nan")])}
    tensors["two.weight"] = torch.zeros(3, 2)
    del tensors["one.weight"]
    tensors["table"] = torch.zeros(3)
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_strict(net, tensors, source="file.safetensors")
    assert sorted(codes(error)) == [
        "tensor-dtype",
        "tensor-missing",
        "tensor-not-finite",
        "tensor-shape",
        "tensor-unexpected",
    ]
    assert all("file.safetensors" in problem.where for problem in error.value.problems)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_numbers_beyond_the_networks_type_are_refused() -> None:
    tensors = good() | {"one.bias": torch.tensor([1.0, 1e5])}
    load_strict(Net(), tensors, source="x")
    with pytest.raises(InputError, match="float16") as error:
        load_strict(Net().half(), tensors, source="x")
    assert codes(error) == ["tensor-not-finite"]


def test_ties_fill_and_are_checked() -> None:
    ties = {"two.weight": "one.weight", "head.weight": "one.weight"}
    absent = good()
    del absent["two.weight"]
    net = Net()
    load_strict(net, absent, source="x", ties=ties)
    assert torch.equal(net.two.weight, net.one.weight)
    load_strict(net, good() | {"head.weight": torch.full((2, 2), 3.0)}, source="x", ties=ties)
    with pytest.raises(InputError) as error:
        load_strict(net, good() | {"two.weight": torch.zeros(2, 2)}, source="x", ties=ties)
    assert codes(error) == ["tensor-tie"]


def test_ignored_names_are_left_alone() -> None:
    load_strict(Net(), good() | {"decoder": torch.ones(1)}, source="x", ignore=["decoder"])
