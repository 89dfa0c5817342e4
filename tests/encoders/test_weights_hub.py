"""Hub ids: pinned, offline where the user says so, their licence said once."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import encoders.licences
from encoders.errors import InputError
from encoders.licences import (
    forbids_derivatives,
    is_non_commercial,
    read_card_licence,
    say_licence_once,
)
from encoders.weights import read_weights

MAIN, OLDER = "a" * 40, "b" * 40
CARD = "---\nlicense: cc-by-nc-4.0\ntags: [fmri]\n---\n# A model\n"


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders.licences, "_said", set())


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of the hub with two commits of one repository, as huggingface_hub lays it out."""
    repository = tmp_path / "hub" / "models--lab--model"
    for commit, value in ((MAIN, 1.0), (OLDER, 2.0)):
        folder = repository / "snapshots" / commit
        (folder / "small").mkdir(parents=True)
        (folder / "README.md").write_text(CARD)
        save_file({"a": torch.tensor([value])}, folder / "model.safetensors")
        torch.save({"state_dict": {"a": torch.tensor([10 * value])}}, folder / "small" / "x.ckpt")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(MAIN)
    (repository / "refs" / "v1").write_text(OLDER)
    return tmp_path / "hub"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """What ``HF_HUB_OFFLINE=1`` and ``HF_HUB_CACHE`` set, when huggingface_hub is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("revision", "commit", "value"),
    [(None, MAIN, 1.0), ("v1", OLDER, 2.0), (OLDER, OLDER, 2.0)],
    ids=["main", "tag", "commit"],
)
def test_offline_the_cache_alone_answers(
    revision: str | None, commit: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        weights = read_weights("lab/model", revision=revision)
        assert (weights.id, weights.tensors["a"].item()) == (f"lab/model@{commit}", value)
        inner = read_weights("lab/model/small", revision=revision)
        assert (inner.tensors["a"].item(), inner.license) == (10 * value, "cc-by-nc-4.0")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(set(said)) == 2, "once for each of the two weights"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("hub_id", "revision"), [("lab/other", None), ("lab/model", "v2"), ("lab/model/large", None)]
)
def test_offline_what_is_not_in_the_cache_is_refused(hub_id: str, revision: str | None) -> None:
    with pytest.raises(InputError, match=hub_id) as error:
        read_weights(hub_id, revision=revision)
    assert error.value.problems[0].code == "weights-hub"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """The main commit, given for any hub id."""
    folder = cache / "models--lab--model" / "snapshots" / MAIN
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    return folder


def test_a_non_commercial_licence_is_said_once(
    published: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert read_weights("lab/model").license == "cc-by-nc-4.0"
    say_licence_once("CC-BY-NC-4.0", f"lab/model@{MAIN}")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "no commercial use." in caplog.text
    say_licence_once("CC-BY-NC-ND-4.0", "brain.safetensors")
    assert "passing on changed weights" in caplog.text


def test_a_licence_for_every_use_is_not_said(
    published: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (published / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert read_weights("lab/model").license == "apache-2.0"
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: other\nlicense_name: lab-nc\n---\n", "lab-nc"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\nlicense: {\n---\n", None),
        ("---\ntags: []\n---\n", None),
        ("# A model\nlicense: mit\n", None),
        (None, None),
    ],
)
def test_licence_of_a_model_card(tmp_path: Path, card: str | None, licence: str | None) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert read_card_licence(tmp_path) == licence


@pytest.mark.parametrize("licence", ["CC-BY-NC-ND-4.0", "cc-by-nc-4.0", "lab-noncommercial"])
def test_non_commercial_licences_are_known(licence: str) -> None:
    assert is_non_commercial(licence)
    assert forbids_derivatives(licence) == ("ND" in licence)


@pytest.mark.parametrize("licence", ["none", "MIT", "Apache-2.0", "CC-BY-4.0", "NCSA", "BSD"])
def test_free_licences_are_known(licence: str) -> None:
    assert not is_non_commercial(licence)
    assert not forbids_derivatives(licence)


def test_a_revision_of_a_local_path_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="hub ids only") as error:
        read_weights(tmp_path, revision="v1")
    assert error.value.problems[0].code == "revision-of-a-path"
