"""Bundles: what is refused before anything is used, the card, the hub, and the way from Python."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_bundle import METRICS

from encoders.errors import InputError
from multimodal.latent import load_aligner
from multimodal.latent.bundle import CARD, read_bundle, record_metrics
from multimodal.latent.delta import file_sha256
from multimodal.latent.push import hub_card, push_bundle
from multimodal.latent.scans import describe_scans


def codes(bundle: Path | str, **keys: str) -> set[str]:
    with pytest.raises(InputError) as caught:
        read_bundle(bundle, **keys)
    return {problem.code for problem in caught.value.problems}


def change(bundle: Path, **values: object) -> None:
    file = bundle / "bundle.json"
    manifest = json.loads(file.read_text())
    for place, value in values.items():
        *above, last = place.split("__")
        section = manifest
        for name in above:
            section = section[int(name) if name.isdigit() else name]
        section[last] = value
    file.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"towers_sha256": "0" * 64}, "bundle-broken"),
        ({"towers_sha256": "short"}, "bundle-broken"),
        ({"format": 99}, "bundle-broken"),
        ({"dna": []}, "bundle-broken"),
        ({"brain__name": "nobody_has_it"}, "bundle-encoder"),
        ({"brain___target_": "os.system"}, "bundle-code"),
        ({"brain__config": {"deep": [{"_target_": "os.system"}]}}, "bundle-code"),
        ({"brain__weights": "../../secret.safetensors"}, "bundle-path"),
        ({"brain__weights": "/etc/passwd"}, "bundle-path"),
        ({"brain__local_weights": "../weights"}, "bundle-path"),
        ({"genome__surprise": 1}, "bundle-broken"),
        ({"bold__surprise": 1}, "bundle-broken"),
        ({"regions": []}, "bundle-broken"),
        ({"regions__0__name": "a\tb"}, "bundle-broken"),
        ({"regions__0__start_bp": "0"}, "bundle-broken"),
    ],
)
def test_bad_manifests_are_refused(copied: Path, changes: dict[str, object], code: str) -> None:
    change(copied / "bundle", **changes)
    assert codes(copied / "bundle") == {code}


def test_damaged_files_are_refused(copied: Path, tmp_path: Path) -> None:
    bundle = copied / "bundle"
    towers = bundle / "towers.safetensors"
    content = towers.read_bytes()
    towers.write_bytes(content[:-10])
    assert codes(bundle) == {"bundle-broken"}
    towers.unlink()
    assert codes(bundle) == {"bundle-broken"}
    (tmp_path / "elsewhere").write_bytes(content)
    towers.symlink_to(tmp_path / "elsewhere")
    assert codes(bundle) == {"bundle-path"}
    (bundle / "bundle.json").write_text('{"format": 1, ')
    assert "bundle-broken" in codes(bundle) | {"bundle-broken"}
    (bundle / "bundle.json").unlink()
    assert codes(bundle) == {"bundle-missing"}
    assert codes(copied / "nowhere") == {"bundle-missing"}


def test_towers_that_cannot_be_built_are_worded(copied: Path) -> None:
    change(copied / "bundle", towers__gene={"surprise": 1})
    with pytest.raises(InputError, match="towers"):
        read_bundle(copied / "bundle").load_aligner()


def test_the_card_says_what_one_must_know(copied: Path) -> None:
    card = (copied / "bundle" / CARD).read_text()
    for words in (
        "0.610 (0.520 to 0.700)",
        "95% bootstrap intervals",
        "not tested (no stratum of 5)",
        "covariates in place of the genome",
        "train 12, test 0",
        "repetition time: 2 s",
        "## Licences of the weights inside",
        "## Intended use",
        "## Limits",
        "identifiable personal data",
    ):
        assert words in card
    assert not re.search(r"sub-\d|G\d{3}", card)
    assert not re.search(r"sub-\d|\bG\d{3}\b", (copied / "bundle" / "bundle.json").read_text())
    change(copied / "bundle", metrics={})
    record_metrics(copied / "bundle", {})
    assert "Not evaluated." in (copied / "bundle" / CARD).read_text()
    record_metrics(copied / "bundle", {**METRICS, "cohort": {"secret": "sub-001"}, "null": {}})
    assert (copied / "bundle" / CARD).read_text() == card
    assert "secret" not in (copied / "bundle" / "bundle.json").read_text()


def test_non_commercial_weights_are_called_out(copied: Path) -> None:
    change(copied / "bundle", brain__spec__weight_license="CC-BY-NC-ND-4.0")
    record_metrics(copied / "bundle", METRICS)
    card = (copied / "bundle" / CARD).read_text()
    assert "CC-BY-NC-ND-4.0; no commercial use; changed weights may not be passed on" in card
    assert "non-commercial" in hub_card(read_bundle(copied / "bundle"))
    delta = copied / "bundle" / "encoder_delta.safetensors"
    delta.write_bytes(b"")
    change(copied / "bundle", encoder_delta={"sides": ["brain"], "sha256": file_sha256(delta)})
    with pytest.raises(InputError, match="forbids derivatives"):
        push_bundle(copied / "bundle", "somebody/towers")


def test_scans_are_described_without_ids(world: Path) -> None:
    from multimodal.bold.bids import find_runs

    runs = find_runs(world / "cohort" / "derivatives", ["sub-001", "sub-002"])
    assert describe_scans(runs) == {"tr_s": [2.0], "spaces": []}


class FakeHub:
    """What of the hub is used, kept in a folder a commit."""

    def __init__(self, root: Path) -> None:
        self.root, self.made = root, {}

    def create_repo(self, repo_id: str, **keys: object) -> None:
        self.made[repo_id] = keys

    def create_branch(self, repo_id: str, **keys: object) -> None:
        self.made[repo_id]["branch"] = keys["branch"]

    def create_commit(self, repo_id: str, operations: list, **keys: object) -> SimpleNamespace:
        oid = "c0ffee"
        for operation in operations:
            file = self.root / repo_id / oid / operation.path_in_repo
            if not hasattr(operation, "as_file"):
                file.unlink()
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            with operation.as_file() as content:
                file.write_bytes(content.read())
        return SimpleNamespace(oid=oid)

    def file_exists(self, repo_id: str, name: str, **_: object) -> bool:
        return (self.root / repo_id / "c0ffee" / name).is_file()

    def snapshot_download(self, repo_id: str, *, revision: str | None, allow_patterns: list) -> str:
        folder = self.root / repo_id / (revision or "c0ffee")
        if not folder.is_dir():
            raise FileNotFoundError(f"no revision {revision} of {repo_id}")
        return str(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    import huggingface_hub

    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return fake


def test_pushed_and_read_back(
    copied: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    from multimodal.cli import main

    (copied / "bundle" / "private_notes.txt").write_text("sub-001")
    assert main(["push", str(copied / "bundle"), "somebody/towers"]) == 0
    assert "embed bundle=somebody/towers revision=c0ffee" in capsys.readouterr().out
    assert hub.made["somebody/towers"]["private"] is True
    pushed = {path.name for path in (hub.root / "somebody/towers/c0ffee").iterdir()}
    assert pushed == {"bundle.json", "towers.safetensors", "MODEL_CARD.md", "README.md"}
    readme = (hub.root / "somebody/towers/c0ffee/README.md").read_text()
    assert readme.startswith("---\n")
    assert "library_name" in readme
    here = read_bundle(copied / "bundle")
    for revision in (None, "c0ffee"):
        there = read_bundle("somebody/towers", revision=revision)
        assert there.manifest == here.manifest
    assert codes("somebody/towers", revision="other") == {"weights-hub"}
    assert codes(copied / "bundle", revision="c0ffee") == {"bundle-revision"}
    push_bundle(copied / "bundle", "somebody/towers", private=False, revision="next")
    assert hub.made["somebody/towers"] == {
        "repo_type": "model", "private": False, "exist_ok": True, "branch": "next",
    }  # fmt: skip


def test_what_an_earlier_bundle_had_is_no_part_of_this_one(copied: Path, hub: FakeHub) -> None:
    left = hub.root / "somebody/towers/c0ffee/encoder_delta.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of a fine-tuned one")
    push_bundle(copied / "bundle", "somebody/towers")
    assert not left.exists()
    read_bundle("somebody/towers")


def test_pushing_wants_a_network_an_id_and_a_bundle(
    copied: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    with pytest.raises(InputError, match="OWNER/NAME"):
        push_bundle(copied / "bundle", "no-owner")
    with pytest.raises(InputError, match=r"no bundle\.json"):
        push_bundle(copied, "somebody/towers")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("403 Forbidden")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(InputError, match="403"):
        push_bundle(copied / "bundle", "somebody/towers")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        push_bundle(copied / "bundle", "somebody/towers")


def test_the_readme_runs(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    found = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (snippet,) = [text for text in found if "load_aligner" in text]
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (copied / "bundle").rename(tmp_path / "runs" / "first" / "bundle")
    (copied / "cohort").rename(tmp_path / "NEW")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(snippet, names)
    cosines = names["cosines"]
    assert isinstance(cosines, np.ndarray)
    assert cosines.shape == (11, 11)
    assert np.abs(cosines).max() <= 1


def test_chosen_participants_in_their_order(world: Path) -> None:
    aligner = load_aligner(world / "bundle")
    cohort = world / "cohort"
    files = (cohort / "genotypes.vcf.gz", cohort / "reference.fa")
    everybody = aligner.embed_genomes(*files)
    two = aligner.embed_genomes(*files, participant_ids=["G005", "G002"])
    assert list(two.participant_ids) == ["G005", "G002"]
    rows = [list(everybody.participant_ids).index(who) for who in two.participant_ids]
    np.testing.assert_allclose(two.values, everybody.values[rows], atol=1e-6)
    np.testing.assert_allclose(np.diag(aligner.similarity(two, two)), 1, atol=1e-6)
    with pytest.raises(InputError, match="unknown"):
        aligner.embed_genomes(*files, participant_ids=["nobody"])
    with pytest.raises(ValueError, match="go together"):
        aligner.similarity(two, np.ones((2, 3)))
