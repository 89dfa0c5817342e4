"""``genebold encoders``: what it prints, what it writes, how it fails."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from encoder_document import install
from safetensors.torch import save_file

from encoders import list_encoders, load_encoder
from encoders.errors import InputError
from multimodal.cli import main
from multimodal.verbs.pipeline import load_side
from multimodal.verbs.positional import spell_out

Command = Callable[..., tuple[int, str, str]]
TINY = {"d_model": 8, "n_layer": 1, "ssm_cfg": {"d_state": 4}}


@pytest.fixture
def encoders_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """The verb, run in an empty folder; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["encoders", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def site_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the encoder of docs/encoders.md is installed."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    install(folder)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    yield folder
    sys.modules.pop("my_encoder", None)


def small_checkpoint(folder: Path) -> Path:
    """A small Caduceus as transformers saves one."""
    folder.mkdir()
    encoder = load_encoder("caduceus_ps", config=TINY, seed=2)
    tensors = {key: value.clone() for key, value in encoder.backbone.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(encoder.spec.config))
    return folder


def test_the_list_has_every_encoder_and_leaves_nothing_behind(
    encoders_verb: Command, site_packages: Path, tmp_path: Path
) -> None:
    code, out, _ = encoders_verb()
    assert code == 0
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert set(list_encoders()) <= set(rows)
    assert all(word in rows["brainlm_vitmae"] for word in ("768", "85,647,360", "CC-BY-NC-ND-4.0"))
    assert rows["my_encoder"].endswith("my-encoder")
    assert "24 parcels, 32 frames" in rows["my_encoder"]
    assert {path.name for path in tmp_path.iterdir()} == {"site-packages"}


def test_an_encoder_that_does_not_import_is_named_and_hides_no_other(
    encoders_verb: Command, site_packages: Path
) -> None:
    (site_packages / "my_encoder.py").write_text("import a_package_that_is_not_there\n")
    code, out, _ = encoders_verb("list")
    assert code == 0
    assert "cannot be made" in next(line for line in out.splitlines() if "my_encoder" in line)
    assert "brainlm_vitmae" in out
    code, _, err = encoders_verb("show", "my_encoder")
    assert code == 2
    assert "a_package_that_is_not_there" in err


def test_json_of_the_list(encoders_verb: Command) -> None:
    code, out, _ = encoders_verb("list", "json=true")
    assert code == 0
    assert json.loads(out)["fc"]["modality"] == "brain"


def test_show_prints_the_spec_in_full(encoders_verb: Command) -> None:
    code, out, _ = encoders_verb(
        "show", "brainlm_nystromformer", "config={hidden_size: 16, intermediate_size: 24}"
    )
    assert code == 0
    for text in (
        *("divide_by = 41.44047", "subtract_mean_divide", "x, y, z of each parcel in mm"),
        *("CC-BY-NC-ND-4.0 (no commercial use;", "UK Biobank, HCP", "random(seed=0)"),
        *("hidden_size", "Ortega Caro"),
    ):
        assert text in out, text


def test_json_of_a_spec(encoders_verb: Command) -> None:
    code, out, _ = encoders_verb("show", "fc", "json=true")
    assert code == 0
    content = json.loads(out)
    assert content["spec"]["input"]["kind"] == "ParcelInput"
    assert content["published"]["code_license"] == "Apache-2.0"


def test_what_is_no_network_is_shown_too(encoders_verb: Command) -> None:
    code, out, _ = encoders_verb("show", "dosage")
    assert code == 0
    assert "VCF or BCF dosages" in out


def test_verify_prints_a_fingerprint(encoders_verb: Command, tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "published")
    code, out, _ = encoders_verb("verify", "caduceus_ps", str(folder))
    assert code == 0, out
    assert out.count("\n  ok") == 3
    assert "reverse complement exchanges the strands" in out
    assert "0 missing, 0 unexpected" in out
    content = json.loads(encoders_verb("verify", "caduceus_ps", str(folder), "json=true")[1])
    assert content["fingerprint"]["tensors"] in out
    assert content["fingerprint"]["features"] in out
    assert content["passed"] is True


def test_verify_lists_all_that_does_not_fit(encoders_verb: Command, tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "published")
    torch.save({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "x.bin")
    config = f"config={folder / 'config.json'}"
    code, _, err = encoders_verb("verify", "caduceus_ps", str(tmp_path / "x.bin"), config)
    assert code == 2
    assert "problems" in err
    assert "no tensor caduceus.backbone" in err
    assert "tensor a" in err


def test_convert_there_and_back(encoders_verb: Command, tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "published")
    target = "epoch=3-loss=0.2, the best"  # as Lightning names files, and a comma
    code, out, _ = encoders_verb("convert", str(folder), target)
    assert code == 0, out
    assert "all equal" in out
    assert (tmp_path / target / "genebold.json").is_file()
    code, _, err = encoders_verb("convert", str(folder), target)
    assert code == 2
    assert "there already" in err
    assert encoders_verb("convert", target, "back.bin")[0] == 0
    assert (tmp_path / "back.bin").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["verfy", "fc"], "did you mean 'verify'?"),
        (["caduceus_ps"], "genebold encoders show caduceus_ps"),
        (["show"], "genebold encoders show NAME"),
        (["show", "caduceus_pz"], "did you mean 'caduceus_ps'?"),
        (["show", "fc", "fc"], "encoders show NAME"),
        (["convert", "x.bin"], "genebold encoders convert SOURCE TARGET"),
        (["convert", "x.bin", "y"], "no such file or folder"),
        (["show", "fc", "config=nowhere.json"], "nowhere.json"),
        (["list", "json=maybe"], "true or false"),
    ],
)
def test_mistakes_are_bad_input(encoders_verb: Command, words: list[str], said: str) -> None:
    code, _, err = encoders_verb(*words)
    assert code == 2
    assert said in err


def test_build_without_a_compiler_says_what_to_install(
    encoders_verb: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    code, _, err = encoders_verb("build")
    assert code == 2
    assert "apt install g++" in err


def test_show_says_what_the_scan_runs_on(encoders_verb: Command) -> None:
    code, out, _ = encoders_verb("show", "caduceus_ph", "config={d_model: 8, n_layer: 1}")
    assert code == 0
    assert "selective scan" in out
    assert "selective scan" not in encoders_verb("show", "fc")[1]


def test_words_are_spelt_out_and_overrides_stay() -> None:
    words = ["verify", "swift", "out/epoch=3.ckpt", "seed=3", "--cfg", "job", "hydra.verbose=true"]
    assert spell_out(words, ["--cfg"]) == [
        *("seed=3", "--cfg", "job", "hydra.verbose=true"),
        *("action=verify", "name='swift'", "weights='out/epoch=3.ckpt'"),
    ]
    with pytest.raises(InputError, match="'b'"):
        spell_out(["show", "a", "b"], [])


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"_target_": "my_encoder.NoSuchEncoder"}, "PYTHONPATH"),
        ({"_target_": "my_encoder.MyEncoder", "no_such_argument": 1}, "no_such_argument"),
        ({"_target_": "my_encoder.MyEncoder", "weights": "nowhere.pt"}, "no such file"),
        ({"_target_": "builtins.dict"}, "BrainEncoder"),
    ],
)
def test_targets_that_make_no_encoder_are_bad_input(
    site_packages: Path, section: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        load_side(section, "brain")


def test_a_target_makes_an_encoder(site_packages: Path) -> None:
    section = {"_target_": "my_encoder.MyEncoder", "channels": 4, "batch_size": 2, "workers": 0}
    encoder = load_side(section, "brain")
    assert not isinstance(encoder, str)
    assert encoder.spec.feature_dim == 8
    assert not encoder.training
    with pytest.raises(InputError, match="encodes brain"):
        load_side(section, "dna")
