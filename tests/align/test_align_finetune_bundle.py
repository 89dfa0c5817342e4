"""What fine-tuning learned, in a bundle: applied by whoever has it, refused where it is odd."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.feature_files import BOLD
from finetune_cohort import BRAINLM, SUBJECTS, Stored, align_options, encoder, split, store
from safetensors.torch import load_file, save_file

from encoders.errors import InputError
from multimodal.align.finetune.delta import apply_delta
from multimodal.align.fit import fit
from multimodal.bold.bids import find_runs
from multimodal.features.encode import GenomeOptions, encode_brains, encode_genomes
from multimodal.features.read import read_brain_features, read_gene_features
from multimodal.features.store import read_fingerprint
from multimodal.genome.regions import read_regions
from multimodal.latent import load_aligner
from multimodal.latent.bundle import CARD, Bundle, read_bundle, write_bundle
from multimodal.latent.delta import DELTA, changed_sides, file_sha256
from multimodal.latent.encoders import load_bundle_encoder
from multimodal.latent.push import find_forbidden, push_bundle
from multimodal.latent.scans import describe_scans


def manifest_of(stored: Stored) -> dict[str, Any]:
    prints = {side: read_fingerprint(path) for side, path in stored.stores.items()}
    paths = stored.cohort.paths
    common = {"weights": None, "seed": 0, "dtype": "float64"}
    dna, brain = (prints[side]["encoder"] for side in ("dna", "brain"))
    small = {"d_model": 8, "n_layer": 2}
    return {
        "versions": {},
        "dna": {"name": "caduceus_ps", "config": small, **common, "spec": dna},
        "brain": {"name": "brainlm_nystromformer", "config": BRAINLM, **common, "spec": brain},
        "genome": {**asdict(GenomeOptions()), "windows": prints["dna"]["windows"]},
        "bold": {**asdict(BOLD), "atlas": prints["brain"]["atlas"]},
        "regions": [asdict(region) for region in read_regions(paths.regions)],
        "scans": describe_scans(find_runs(paths.bold, stored.brain.participant_ids)),
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stored, Path, dict[str, Any]]:
    """A cohort, a bundle of a fit over it that tuned both encoders, and what they learned."""
    folder = tmp_path_factory.mktemp("bundle")
    stored = store(folder, "caduceus_ps", "brainlm_nystromformer")
    options = align_options(epochs=2, tuning={"method": "lora", "rank": 2, "learning_rate": 1e-2})
    encoders = stored.tuned(options.fine_tune)
    everybody = np.where(split() == "validation", "train", split())
    fitted = fit(
        stored.gene, stored.brain, everybody, np.arange(SUBJECTS), None, options,
        encoders=encoders, progress=False,
    )  # fmt: skip
    deltas = {side: part.delta() for side, part in encoders.items()}
    assert all(delta[n].any() for delta in deltas.values() for n in delta)
    bundle = write_bundle(folder / "bundle", fitted.aligner, manifest_of(stored), deltas)
    return stored, bundle.path, deltas


@pytest.fixture
def bundle(world: tuple[Stored, Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    return Path(shutil.copytree(world[1], tmp_path / "bundle"))


def test_embedding_applies_what_was_learned(
    world: tuple[Stored, Path, dict[str, Any]], tmp_path: Path
) -> None:
    stored, path, deltas = world
    loaded, paths = load_aligner(path), stored.cohort.paths
    ids = stored.gene.participant_ids
    genes = loaded.embed_genomes(
        paths.genotypes, paths.reference, participants=paths.participants, participant_ids=ids
    )
    brains = loaded.embed_brains(
        paths.bold, atlas=paths.atlas, participants=paths.participants, participant_ids=ids
    )
    tuned = {}
    for side, delta in deltas.items():
        tuned[side] = encoder(side, stored.kinds[side])
        apply_delta(tuned[side], delta, "test")
    aligner = read_bundle(path).load_aligner()
    dna = encode_genomes(stored.cohort, tuned["dna"], None, tmp_path, False)
    expected = aligner.embed_genes(read_gene_features(dna, ids))
    np.testing.assert_allclose(genes.values, expected, atol=1e-6)
    assert np.abs(genes.values - aligner.embed_genes(stored.gene)).max() > 1e-4
    brain = encode_brains(stored.cohort, tuned["brain"], BOLD, tmp_path, False)
    expected = aligner.embed_brains(read_brain_features(brain, ids))
    np.testing.assert_allclose(brains.values, expected, atol=1e-6)
    assert np.abs(brains.values - aligner.embed_brains(stored.brain)).max() > 1e-4
    # Features of tuned encoders do not mix with those of the published ones.
    with pytest.raises(InputError, match="weights_sha256"):
        encode_genomes(stored.cohort, tuned["dna"], None, stored.stores["dna"].parents[1], False)
    assert "fine-tuned with the towers" in (path / CARD).read_text()


def codes(bundle: Path) -> set[str]:
    with pytest.raises(InputError) as caught:
        read_bundle(bundle)
    return {problem.code for problem in caught.value.problems}


def change(bundle: Path, **said: Any) -> None:
    file = bundle / "bundle.json"
    manifest = json.loads(file.read_text())
    manifest["encoder_delta"] = {**manifest["encoder_delta"], **said}
    file.write_text(json.dumps(manifest))


def test_damaged_changes_are_refused_before_anything_is_loaded(bundle: Path) -> None:
    file = bundle / DELTA
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert codes(bundle) == {"bundle-broken"}
    file.unlink()
    assert codes(bundle) == {"bundle-broken"}
    file.write_bytes(content)
    read_bundle(bundle)
    for said in ({"sha256": "0" * 64}, {"sha256": "x"}, {"sides": []}, {"sides": ["genome"]}):
        before = (bundle / "bundle.json").read_text()
        change(bundle, **said)
        assert codes(bundle) == {"bundle-broken"}
        (bundle / "bundle.json").write_text(before)
    manifest = json.loads((bundle / "bundle.json").read_text())
    del manifest["encoder_delta"]
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    assert codes(bundle) == {"bundle-broken"}
    # Not a frozen one's either, with the file gone as well.
    file.unlink()
    manifest["align"] = {"fine_tune": {"sides": ["dna"]}}
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"align\.fine_tune says"):
        read_bundle(bundle)
    del manifest["align"]
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="as the format says"):
        read_bundle(bundle)


def test_readers_that_know_no_changes_refuse_them(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert manifest["format"] == 2
    # As the first of them were written.
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "format": 1}))
    assert changed_sides(read_bundle(bundle).manifest) == ["brain", "dna"]


@pytest.mark.parametrize("how", ["shape", "name", "side", "half", "nan", "kind"])
def test_changes_that_do_not_fit_change_nothing(how: str, bundle: Path) -> None:
    tensors = load_file(bundle / DELTA)
    name = next(name for name in tensors if name.startswith("dna/") and name.endswith(":down"))
    value = tensors[name]
    if how == "shape":
        tensors[name] = value[:, :-1].contiguous()
    elif how == "name":
        tensors["dna/caduceus.nowhere:full"] = value.clone()
    elif how == "side":
        tensors = {n: t for n, t in tensors.items() if n.startswith("brain/")}
    elif how == "half":
        del tensors[name]
    elif how == "nan":
        tensors[name] = value * float("nan")
    else:
        tensors[name.replace(":down", ":both")] = tensors.pop(name)
    save_file(tensors, bundle / DELTA)
    change(bundle, sha256=file_sha256(bundle / DELTA))
    with pytest.raises(InputError, match=DELTA):
        load_bundle_encoder(read_bundle(bundle), "dna")


def test_a_change_that_does_not_fit_leaves_the_encoder_alone() -> None:
    network = encoder("brain", "tiny")
    before = network.backbone.weight.detach().clone()
    record = network.spec
    good = torch.ones_like(before)
    with pytest.raises(InputError) as caught:
        apply_delta(network, {"weight:full": good, "bias:full": torch.ones(9)}, "test")
    assert [problem.code for problem in caught.value.problems] == ["delta-misfit"]
    # Small factors whose product no memory would hold.
    huge = {"weight:up": torch.ones(2**20, 1), "weight:down": torch.ones(1, 2**20)}
    with pytest.raises(InputError, match="weight: down"):
        apply_delta(network, huge, "test")
    assert torch.equal(network.backbone.weight, before)
    assert network.spec is record


def test_only_changes_of_weights_that_allow_it_are_pushed(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert find_forbidden(read_bundle(bundle)) == []
    # The published weights' own licence: their features may be used, changes not passed on.
    manifest["brain"]["spec"]["weight_license"] = "CC-BY-NC-ND-4.0"
    problems = find_forbidden(Bundle(bundle, manifest))
    assert [problem.code for problem in problems] == ["push-licence"]
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="changes to brain weights under CC-BY-NC-ND"):
        push_bundle(bundle, "somebody/towers")
    manifest["encoder_delta"]["sides"] = ["dna"]
    assert find_forbidden(Bundle(bundle, manifest)) == []
    manifest["dna"]["spec"]["weight_license"] = "CC-BY-NC-4.0"
    assert find_forbidden(Bundle(bundle, manifest)) == []
