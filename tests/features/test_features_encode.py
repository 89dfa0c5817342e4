"""What lands in the store is what the encoder says of each subject's own input."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from feature_files import BOLD, TinyBrain, TinyDna, tree, write_cohort

from encoders.errors import InputError
from multimodal.bold.bids import find_runs
from multimodal.bold.parcels import load_atlas
from multimodal.bold.segments import prepare_run
from multimodal.cohort.table import Cohort
from multimodal.features.encode import GenomeOptions, encode_brains, encode_genomes
from multimodal.features.read import (
    read_brain_features,
    read_dosage_variants,
    read_gene_features,
    read_genotype_calls,
    stored_participants,
)
from multimodal.features.store import read_fingerprint
from multimodal.genome.haplotypes import Genotypes
from multimodal.genome.regions import read_regions
from multimodal.genome.sequences import oriented
from multimodal.genome.windows import make_windows

WINDOWS = GenomeOptions(length_bp=150)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def dna(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    return encode_genomes(
        cohort, TinyDna(), WINDOWS, folder, False, batch_size=3, shard_sequences=5
    )


@pytest.fixture(scope="module")
def brain(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    return encode_brains(cohort, TinyBrain(), BOLD, folder, False, shard_subjects=6)


def test_gene_features_are_those_of_each_haplotype(cohort: Cohort, dna: Path) -> None:
    features = read_gene_features(dna)
    samples = cohort.participants["genotype_id"].dropna()
    assert features.participant_ids == samples.index.tolist()
    genotypes = Genotypes(cohort.paths.genotypes, cohort.paths.reference)
    windows = make_windows(read_regions(cohort.paths.regions), length_bp=150)
    assert features.windows == ["alpha:0", "alpha:1", "beta:0", "beta:1", "gamma:0"]
    encoder = TinyDna()

    def encode(sequence: str, strand: str) -> np.ndarray:
        with torch.inference_mode():
            return encoder(*encoder.tokenize([oriented(sequence, strand)]))[0].T.numpy()

    for column, window in enumerate(windows):
        found = genotypes.haplotypes(window, samples.tolist())
        for row, haplotype in np.ndindex(len(samples), 2):
            sequence = found.sequences[found.index[row, haplotype]]
            wanted = encode(sequence, window.strand) - encode(found.reference, window.strand)
            stored = features.distinct[features.index[row, column, haplotype]]
            np.testing.assert_allclose(stored, wanted, atol=3e-7)
            assert (features.index[row, column, haplotype] == 0) == (sequence == found.reference)


def test_reference_is_exactly_zero_and_shared(dna: Path) -> None:
    features = read_gene_features(dna)
    assert (features.distinct[0] == 0).all()
    assert (features.distinct[1:] != 0).any(axis=(1, 2)).all()
    assert (features.index[:, 4] == 0).all()


def test_each_distinct_sequence_is_encoded_once_in_batches_of_one_length(
    cohort: Cohort, dna: Path, tmp_path: Path
) -> None:
    encoder = TinyDna()
    store = encode_genomes(cohort, encoder, WINDOWS, tmp_path, False, batch_size=4)
    tables = [pq.read_table(path) for path in sorted((store / "windows").iterdir())]
    hashes = [name for table in tables for name in table["sequence_hash"].to_pylist()]
    assert len(hashes) == len(set(hashes)) == sum(batch for batch, _ in encoder.lengths)
    assert max(batch for batch, _ in encoder.lengths) == 4
    one, other = read_gene_features(store), read_gene_features(dna)
    np.testing.assert_allclose(
        one.distinct[one.index], other.distinct[other.index], rtol=1e-5, atol=3e-7
    )


def test_batches_hold_one_length_only(cohort: Cohort, tmp_path: Path) -> None:
    """Padding would change bits; the tokeniser of the fixture fails on unequal lengths."""
    encoder = TinyDna()
    with pytest.raises(ValueError, match="expected sequence of length"):
        encoder.tokenize(["ACG", "AC"])
    encode_genomes(cohort, encoder, WINDOWS, tmp_path, False, batch_size=100)


def test_participants_chosen_keep_their_order(dna: Path, brain: Path) -> None:
    everyone = read_gene_features(dna)
    ids = ["sub-007", "sub-002", "sub-011"]
    some = read_gene_features(dna, ids)
    rows = np.array([everyone.participant_ids.index(who) for who in ids])
    assert some.participant_ids == ids
    np.testing.assert_array_equal(
        some.distinct[some.index], everyone.distinct[everyone.index[rows]]
    )
    assert len(some.distinct) <= 1 + 3 * 2 * 5
    runs, all_runs = read_brain_features(brain, ids), read_brain_features(brain)
    rows = np.array([all_runs.participant_ids.index(who) for who in ids])
    taken = all_runs.take(rows)
    for name in ("values", "subject", "run", "mean_fd_mm"):
        np.testing.assert_array_equal(getattr(runs, name), getattr(taken, name))


def test_absent_participants_are_named(dna: Path, brain: Path) -> None:
    assert "sub-019" not in stored_participants(dna)
    assert "sub-000" not in stored_participants(brain)
    with pytest.raises(InputError, match="1 participants have no features here, sub-019"):
        read_gene_features(dna, ["sub-001", "sub-019"])
    with pytest.raises(InputError, match="sub-000"):
        read_brain_features(brain, ["sub-000", "sub-001"])


def test_brain_features_are_those_of_each_segment(cohort: Cohort, brain: Path) -> None:
    features = read_brain_features(brain)
    encoder = TinyBrain()
    atlas = load_atlas(cohort.paths.atlas)
    runs = find_runs(cohort.paths.bold, cohort.participant_ids)
    values, subject, number = [], [], []
    for run in runs:
        prepared = prepare_run(run, atlas, encoder.spec.input, BOLD)
        xyz = torch.from_numpy(np.repeat(prepared.xyz_mm[None], len(prepared.values), axis=0))
        with torch.inference_mode():
            values.append(encoder(torch.from_numpy(prepared.values), xyz).numpy())
        row = features.participant_ids.index(run.participant_id)
        subject += [row] * 3
        number += [int(run.run or 1) - 1] * 3
    np.testing.assert_allclose(features.values, np.concatenate(values), rtol=1e-5, atol=1e-6)
    assert features.subject.tolist() == subject
    assert features.run.tolist() == number
    assert features.participant_ids == cohort.participant_ids[1:]


def test_whole_runs_and_worker_processes(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path, subjects=6)
    alone = encode_brains(cohort, TinyBrain(None), BOLD, tmp_path / "a", False)
    with_workers = encode_brains(cohort, TinyBrain(None), BOLD, tmp_path / "b", False, workers=2)
    assert tree(alone) == tree(with_workers)
    assert len(read_brain_features(alone).values) == 7


def test_dosages_stand_side_by_side(cohort: Cohort, tmp_path: Path) -> None:
    store = encode_genomes(cohort, "dosage", None, tmp_path, False)
    features = read_gene_features(store)
    samples = cohort.participants["genotype_id"].dropna()
    genotypes = Genotypes(cohort.paths.genotypes, cohort.paths.reference)
    regions = read_regions(cohort.paths.regions)
    wanted = np.hstack([genotypes.dosages(region, samples.tolist())[0] for region in regions])
    names = [name for region in regions for name in genotypes.dosages(region, samples)[1]]
    assert read_dosage_variants(store) == names
    assert features.windows == ["dosage"]
    assert features.index.shape == (19, 1, 1)
    np.testing.assert_array_equal(features.distinct[features.index[:, 0, 0], 0], wanted)
    some = read_gene_features(store, ["sub-004", "sub-001"])
    np.testing.assert_array_equal(some.distinct[some.index[:, 0, 0], 0], wanted[[4, 1]])
    assert stored_participants(store) == samples.index.tolist()


def test_equal_dosages_share_a_row(cohort: Cohort, tmp_path: Path) -> None:
    people = cohort.participants.copy()
    people["genotype_id"] = ["G001"] * 5 + ["G002"] * 15
    twins = Cohort(people, cohort.kinship, cohort.paths)
    features = read_gene_features(encode_genomes(twins, "dosage", None, tmp_path, False))
    assert len(features.distinct) == 2
    assert len(set(features.index[:5, 0, 0])) == 1


def test_missing_calls_are_counted(cohort: Cohort, dna: Path) -> None:
    calls = read_genotype_calls(dna)
    text = pd.read_csv(cohort.paths.genotypes, sep="\t", comment=None, skiprows=3)
    wanted = (text.filter(like="G0") == ".|.").sum().tolist()
    assert calls["subject"].tolist() == stored_participants(dna)
    assert calls["missing"].tolist() == wanted
    assert set(calls["variants"]) == {len(text)}


def test_imbalance_between_sites_is_warned_about(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path, subjects=60)
    missing = read_genotype_calls(encode_genomes(cohort, "dosage", None, tmp_path / "a", False))
    rank = missing.set_index("subject")["missing"].rank(method="first")
    rank = rank.reindex(cohort.participants.index)
    people = cohort.participants.assign(site=np.where(rank <= 30, "low", "high"))
    with pytest.warns(UserWarning, match="missing calls differ between groups"):
        encode_genomes(replace(cohort, participants=people), "dosage", None, tmp_path / "b", False)


def test_fingerprint_says_what_made_the_store(dna: Path) -> None:
    made = read_fingerprint(dna)
    assert made["encoder"]["weights_sha256"] == TinyDna().spec.weights_sha256
    assert made["preprocessing"]["length_bp"] == 150
    assert made["genotypes"]["sha256"]
    assert made["dtype"] == "float32"


def test_a_complete_store_is_left_alone(cohort: Cohort, dna: Path, brain: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (*dna.rglob("*"), *brain.rglob("*"))}
    encode_genomes(cohort, TinyDna(), WINDOWS, dna.parents[1], False, shard_sequences=5)
    encode_brains(cohort, TinyBrain(), BOLD, brain.parents[1], False, shard_subjects=6)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("encoder", "options", "field"),
    [
        (TinyDna(seed=1), WINDOWS, "encoder.weights_sha256"),
        (TinyDna(), GenomeOptions(length_bp=100), "preprocessing.length_bp=150"),
        (TinyDna().double(), WINDOWS, 'dtype="float32"'),
        (TinyDna(max_length_bp=300), WINDOWS, "encoder.input.max_length_bp=400"),
    ],
)
def test_another_maker_is_refused(
    cohort: Cohort, dna: Path, encoder: TinyDna, options: GenomeOptions, field: str
) -> None:
    before = tree(dna)
    with pytest.raises(InputError, match="to another folder, or delete") as caught:
        encode_genomes(cohort, encoder, options, dna.parents[1], False)
    assert field in str(caught.value)
    assert caught.value.problems[0].code == "features-other-fingerprint"
    assert tree(dna) == before


def test_other_participants_are_refused(cohort: Cohort, dna: Path) -> None:
    fewer = cohort.take(cohort.participant_ids[:10])
    with pytest.raises(InputError, match=r"participants\.count=19.*participants\.count=10"):
        encode_genomes(fewer, TinyDna(), WINDOWS, dna.parents[1], False)


def test_same_weights_from_elsewhere_are_the_same(cohort: Cohort, dna: Path) -> None:
    moved = TinyDna()
    moved.spec = replace(moved.spec, weights_id="/another/folder")
    encode_genomes(cohort, moved, WINDOWS, dna.parents[1], False)


def test_bad_genotypes_leave_nothing_behind(cohort: Cohort, tmp_path: Path) -> None:
    features = tmp_path / "features"
    with pytest.raises(InputError, match=r"window alpha:0.*") as caught:
        encode_genomes(cohort, TinyDna(max_length_bp=151), WINDOWS, features, False)
    assert {problem.code for problem in caught.value.problems} == {"haplotype-too-long"}
    stranger = cohort.participants.assign(genotype_id="nobody")
    with pytest.raises(InputError, match="not among its 19"):
        encode_genomes(
            Cohort(stranger, cohort.kinship, cohort.paths), TinyDna(), None, features, False
        )
    assert not features.exists()


def test_bad_runs_are_all_named_and_mended_runs_are_taken_up(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path, subjects=8)
    features = tmp_path / "features"
    whole = encode_brains(cohort, TinyBrain(), BOLD, tmp_path / "w", False, shard_subjects=2)
    kept = {}
    for who in ("sub-002", "sub-006"):
        scan = next((tmp_path / "derivatives" / who / "func").glob("*run-1*"))
        kept[scan] = scan.read_bytes()
        scan.write_bytes(kept[scan][:600])
    with pytest.raises(InputError) as caught:
        encode_brains(cohort, TinyBrain(), BOLD, features, False, shard_subjects=2)
    assert [any(who in str(p) for p in caught.value.problems) for who in ("sub-002", "sub-006")]
    store = features / "brain" / "tiny_brain"
    with pytest.raises(InputError, match="did not end"):
        read_brain_features(store)
    for scan, data in kept.items():
        scan.write_bytes(data)
    encode_brains(cohort, TinyBrain(), BOLD, features, False, shard_subjects=2)
    assert tree(store) == tree(whole)


def test_all_runs_bad_leaves_nothing_behind(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        encode_brains(cohort, TinyBrain(frames=100), BOLD, tmp_path / "features", False)
    assert not (tmp_path / "features").exists()


def test_a_replaced_scan_is_encoded_again(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path, subjects=6)
    features = tmp_path / "features"
    store = encode_brains(cohort, TinyBrain(), BOLD, features, False, shard_subjects=2)
    before = read_brain_features(store)
    one, other = (
        next((tmp_path / "derivatives" / who / "func").glob("*run-1*"))
        for who in ("sub-001", "sub-004")
    )
    shutil.copy(other, one)
    encode_brains(cohort, TinyBrain(), BOLD, features, False, shard_subjects=2)
    after = read_brain_features(store)
    np.testing.assert_array_equal(
        after.values[after.subject == 0], after.values[(after.subject == 3) & (after.run == 0)]
    )
    np.testing.assert_array_equal(after.values[3:], before.values[3:])


def test_no_store_and_nobody(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no features here"):
        read_gene_features(tmp_path)
    nobody = Cohort(cohort.participants.assign(genotype_id=None), cohort.kinship, cohort.paths)
    with pytest.raises(InputError, match="no participant has a genotype"):
        encode_genomes(nobody, TinyDna(), None, tmp_path, False)
    unmapped = replace(cohort, paths=replace(cohort.paths, atlas=None))
    with pytest.raises(InputError, match=r"cohort\.atlas: no file"):
        encode_brains(unmapped, TinyBrain(), BOLD, tmp_path, False)
    with pytest.raises(InputError, match="batch_size: 0; at least 1"):
        encode_genomes(cohort, TinyDna(), None, tmp_path, False, batch_size=0)


def test_features_that_are_no_numbers_are_refused(cohort: Cohort, tmp_path: Path) -> None:
    encoder = TinyDna()
    with torch.no_grad():
        encoder.backbone.bias[0] = torch.nan
    with pytest.raises(InputError, match=r"window alpha:0: tiny_dna gives NaN"):
        encode_genomes(cohort, encoder, WINDOWS, tmp_path, False)
