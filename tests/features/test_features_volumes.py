"""Encoders of volumes go through the feature store as encoders of parcels do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_files import BOLD, TinyBrain, tree, write_cohort

from encoders.base import BrainEncoder, EncoderSpec, VolumeInput, WindowInput
from encoders.errors import InputError
from encoders.weights import tensors_sha256
from multimodal.bold.bids import find_runs
from multimodal.bold.volumes import prepare_volumes
from multimodal.cohort.table import Cohort
from multimodal.features.encode import encode_brains
from multimodal.features.read import read_brain_features
from multimodal.features.store import read_fingerprint


class TinyVolume(BrainEncoder):
    """A linear map of volumes averaged over time; notes how many segments came together."""

    def __init__(self, frames: int = 12, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = torch.nn.Linear(8 * 8 * 8, 4)
        self.batches: list[int] = []
        self.spec = EncoderSpec(
            name="tiny_volume",
            modality="brain",
            feature_dim=4,
            input=VolumeInput((8, 8, 8), frames, normalisation="swift_znorm"),
            parameters=1,
            weights_id=f"random(seed={seed})",
            weights_sha256=tensors_sha256(self.state_dict()),
            code_license="none",
            weight_license="none",
        )

    def forward(self, segments, xyz=None):
        assert segments.shape[1:5] == (1, 8, 8, 8)
        self.batches.append(len(segments))
        return torch.tanh(self.backbone(segments.mean(dim=-1).flatten(1)))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Six people with scans, and no atlas."""
    whole = write_cohort(tmp_path_factory.mktemp("cohort"), subjects=7)
    whole.paths.atlas.unlink()
    return replace(whole, paths=replace(whole.paths, atlas=None, atlas_table=None))


@pytest.fixture(scope="module")
def store(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode_brains(
        cohort, TinyVolume(), BOLD, tmp_path_factory.mktemp("store"), False, shard_subjects=4
    )


def test_the_store_holds_what_the_encoder_says_of_each_segment(cohort: Cohort, store: Path) -> None:
    encoder = TinyVolume()
    features = read_brain_features(store)
    runs = find_runs(cohort.paths.bold, cohort.participant_ids)
    wanted = []
    with torch.inference_mode():
        for run in runs:
            prepared = prepare_volumes(run, encoder.spec.input, BOLD)
            wanted.append(encoder(torch.from_numpy(np.asarray(prepared.values))).numpy())
    assert features.participant_ids == list(dict.fromkeys(run.participant_id for run in runs))
    np.testing.assert_allclose(features.values, np.concatenate(wanted), atol=1e-6)


def test_volumes_of_one_run_are_encoded_together(cohort: Cohort, tmp_path: Path) -> None:
    encoder = TinyVolume()
    encode_brains(cohort, encoder, BOLD, tmp_path, False, batch_size=2)
    runs = find_runs(cohort.paths.bold, cohort.participant_ids)
    assert encoder.batches == [2, 1] * len(runs)  # 36 frames: three segments of 12


def test_other_processes_prepare_the_same_bytes(
    cohort: Cohort, store: Path, tmp_path: Path
) -> None:
    found = encode_brains(cohort, TinyVolume(), BOLD, tmp_path, False, shard_subjects=4, workers=2)
    assert tree(found) == tree(store)


def test_the_fingerprint_knows_no_atlas_and_no_options_of_parcels(store: Path) -> None:
    fingerprint = read_fingerprint(store)
    assert fingerprint["atlas"] is None
    assert fingerprint["encoder"]["input"]["kind"] == "VolumeInput"
    assert "empty_parcels" not in fingerprint["preprocessing"]
    assert fingerprint["preprocessing"]["volume_clean"] is False


def test_options_that_do_nothing_to_volumes_do_not_part_stores(
    cohort: Cohort, store: Path, tmp_path: Path
) -> None:
    regressed = replace(BOLD, motion="full", empty_parcels="zero")
    assert (
        encode_brains(cohort, TinyVolume(), regressed, store.parents[1], False, shard_subjects=4)
        == store
    )
    with pytest.raises(InputError, match="volume_clean"):
        encode_brains(
            cohort,
            TinyVolume(),
            replace(BOLD, volume_clean=True),
            store.parents[1],
            False,
            shard_subjects=4,
        )


def test_all_bad_runs_are_told_at_once(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        encode_brains(cohort, TinyVolume(frames=40), BOLD, tmp_path, False)
    runs = find_runs(cohort.paths.bold, cohort.participant_ids)
    assert [problem.code for problem in caught.value.problems] == ["run-too-short"] * len(runs)


def test_parcels_still_want_an_atlas_and_other_inputs_are_refused(
    cohort: Cohort, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"cohort\.atlas"):
        encode_brains(cohort, TinyBrain(), BOLD, tmp_path, False)
    odd = TinyVolume()
    odd.spec = replace(odd.spec, input=WindowInput(10))
    with pytest.raises(InputError, match="takes WindowInput"):
        encode_brains(cohort, odd, BOLD, tmp_path, False)
