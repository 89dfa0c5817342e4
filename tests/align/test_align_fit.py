"""Fitting: it learns what is there, learns nothing from test subjects, and can be repeated."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from encoders.errors import InputError
from multimodal.align.controls import covariate_features, covariate_options
from multimodal.align.data import EpochSampler
from multimodal.align.fit import fit
from multimodal.align.keeping import Keeper
from multimodal.align.losses import rank_percentiles
from multimodal.align.options import AlignOptions, SideOptions

QUICK = AlignOptions(epochs=5, hidden_dim=64, latent_dim=32, patience=None)
ALONE = np.arange(120)


def percentile(aligner, gene, brain, rows):
    latents = [
        torch.from_numpy(aligner.embed_genes(gene.take(rows))),
        torch.from_numpy(aligner.embed_brains(brain.take(rows))),
    ]
    return float(rank_percentiles(*latents, torch.arange(len(rows))).mean())


def same_weights(first, second):
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("start", ["cca", "random"])
def test_signal_is_found_in_test_subjects(world, split, start):
    gene, brain = world(1, subjects=240)
    options = AlignOptions(epochs=30, hidden_dim=128, latent_dim=64, start=start)
    if start == "random":
        options = replace(options, learning_rate=1e-3)
    result = fit(gene, brain, split(240), np.arange(240), None, options, progress=False)
    assert percentile(result.aligner, gene, brain, np.arange(200, 240)) > 0.7


def test_no_signal_no_retrieval(world, split):
    scores = []
    for seed in range(3):
        gene, brain = world(seed, subjects=240, signal=False)
        result = fit(gene, brain, split(240), np.arange(240), None, QUICK, progress=False)
        scores.append(percentile(result.aligner, gene, brain, np.arange(200, 240)))
    # 120 rows of standard deviation 0.29 at most: four standard errors.
    assert abs(np.mean(scores) - 0.5) < 0.11


def test_test_subjects_teach_nothing(world, split):
    gene, brain = world()
    other = world(9)[1]
    changed = brain.values.copy()
    test_segments = brain.subject >= 100
    changed[test_segments] = other.values[test_segments] * 50
    first = fit(gene, brain, split(), ALONE, None, QUICK, progress=False)
    second = fit(gene, replace(brain, values=changed), split(), ALONE, None, QUICK, progress=False)
    assert same_weights(first.aligner, second.aligner)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 33, "augment_segments": True, "schedule": "constant"},
        {"region_pooling": "attention", "start": "random"},
        {"region_pooling": "mean", "strand_merge": "sum_absdiff"},
        {"gene": SideOptions(head="linear"), "brain": SideOptions(components=None)},
    ],
)
def test_equal_seeds_give_equal_weights_and_leave_the_generator_alone(world, split, changes):
    gene, brain = world()
    options = replace(QUICK, **changes)
    torch.manual_seed(5)
    expected_draw = torch.rand(1)
    torch.manual_seed(5)
    first = fit(gene, brain, split(), ALONE, None, options, progress=False)
    assert torch.equal(torch.rand(1), expected_draw)
    second = fit(gene, brain, split(), ALONE, None, options, progress=False)
    assert same_weights(first.aligner, second.aligner)


def test_another_seed_gives_other_weights(world, split):
    gene, brain = world()
    options = replace(QUICK, epochs=1)
    first = fit(gene, brain, split(), ALONE, None, options, progress=False)
    other = fit(gene, brain, split(), ALONE, None, replace(options, seed=1), progress=False)
    assert not same_weights(first.aligner, other.aligner)


def test_history_and_best_epoch(world, split):
    gene, brain = world()
    result = fit(gene, brain, split(), ALONE, None, QUICK, progress=False)
    assert result.history["epoch"].tolist() == list(range(6))
    assert result.best_epoch == int(result.history["val_loss"].idxmin())
    assert result.checkpoint is None
    assert not result.aligner.training
    without = fit(gene, brain, split(validation=False), ALONE, None, QUICK, progress=False)
    assert without.best_epoch == 5
    assert "val_loss" not in without.history


def test_early_stopping(world, split):
    gene, brain = world(signal=False)
    options = replace(QUICK, epochs=60, patience=3, learning_rate=3e-3)
    result = fit(gene, brain, split(), ALONE, None, options, progress=False)
    assert len(result.history) == result.best_epoch + 3 + 1 < 61


class Killed(BaseException):
    """Stands in for a power cut within one process."""


@pytest.mark.parametrize(
    ("saved", "changes"), [(False, {}), (True, {"batch_size": 40, "augment_segments": True})]
)
def test_interrupted_fit_resumes_to_the_same_weights(
    world, split, tmp_path, monkeypatch, saved, changes
):
    gene, brain = world()
    options = replace(QUICK, **changes)
    whole = fit(gene, brain, split(), ALONE, None, options, progress=False)
    keep = Keeper.on_train_epoch_end
    with monkeypatch.context() as patch:

        def cut(self, trainer, module):
            if saved:
                keep(self, trainer, module)
            if trainer.current_epoch == 2:
                raise Killed
            if not saved:
                keep(self, trainer, module)

        patch.setattr(Keeper, "on_train_epoch_end", cut)
        with pytest.raises(Killed):
            fit(gene, brain, split(), ALONE, None, options, out_dir=tmp_path, progress=False)
    resumed = fit(gene, brain, split(), ALONE, None, options, out_dir=tmp_path, progress=False)
    assert same_weights(whole.aligner, resumed.aligner)
    assert resumed.history.equals(whole.history)
    assert resumed.best_epoch == whole.best_epoch
    # Starting a finished fit again trains nothing and gives the same.
    again = fit(gene, brain, split(), ALONE, None, options, out_dir=tmp_path, progress=False)
    assert same_weights(whole.aligner, again.aligner)
    assert again.history.equals(whole.history)


def test_a_fit_that_stopped_early_stays_stopped(world, split, tmp_path):
    gene, brain = world(signal=False)
    options = replace(QUICK, epochs=40, patience=2, learning_rate=3e-3)
    first = fit(gene, brain, split(), ALONE, None, options, out_dir=tmp_path, progress=False)
    assert len(first.history) < 41
    again = fit(gene, brain, split(), ALONE, None, options, out_dir=tmp_path, progress=False)
    assert again.history.equals(first.history)
    assert same_weights(first.aligner, again.aligner)


def test_checkpoints_of_another_fit_are_refused(world, split, tmp_path):
    gene, brain = world()
    fit(gene, brain, split(), ALONE, None, QUICK, out_dir=tmp_path, progress=False)
    other = replace(QUICK, learning_rate=3e-4)
    with pytest.raises(InputError, match=r"other options;.*resume=false"):
        fit(gene, brain, split(), ALONE, None, other, out_dir=tmp_path, progress=False)
    with pytest.raises(InputError, match="other data"):
        fit(gene, world(3)[1], split(), ALONE, None, QUICK, out_dir=tmp_path, progress=False)
    fresh = fit(
        gene, brain, split(), ALONE, None, other, out_dir=tmp_path, resume=False, progress=False
    )
    assert len(fresh.history) == 6
    assert (tmp_path / "checkpoints.1" / "last.ckpt").exists()


def test_logs_and_plain_hyperparameters(world, split, tmp_path):
    gene, brain = world()
    result = fit(gene, brain, split(), ALONE, None, QUICK, out_dir=tmp_path, progress=True)
    assert result.checkpoint.parent == tmp_path / "checkpoints"
    assert (tmp_path / "logs" / "csv" / "version_0" / "metrics.csv").exists()
    assert list((tmp_path / "logs" / "tensorboard").rglob("events.*"))
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert json.loads(json.dumps(saved["hyper_parameters"]["align"])) == QUICK.as_dict()


def test_residualised_towers_ignore_what_covariates_say(world, split):
    gene, brain = world()
    random = np.random.default_rng(0)
    covariates = random.normal(size=(120, 2))
    values = brain.values + 30 * covariates[brain.subject, :1].astype(np.float32)
    options = replace(QUICK, residualise=True)
    confounded = replace(brain, values=values)
    result = fit(gene, confounded, split(), ALONE, covariates, options, progress=False)
    with_covariates = result.aligner.embed_brains(confounded, covariates)
    assert with_covariates.shape == (120, 32)
    with pytest.raises(InputError, match="fitted with 2"):
        result.aligner.embed_brains(confounded)
    with pytest.raises(InputError, match="no covariates"):
        fit(gene, brain, split(), ALONE, None, options, progress=False)


def test_covariates_only_control_finds_what_covariates_say(world, split):
    gene, brain = world()
    covariates = np.random.default_rng(0).normal(size=(120, 3)) * [1, 1000, 0.001]
    said = covariates[:, 1:] / covariates[:, 1:].std(axis=0)
    values = brain.values.copy()
    values[:, :2] += 8 * said[brain.subject].astype(np.float32)
    control = covariate_features(gene.participant_ids, covariates)
    told = replace(brain, values=values)
    options = covariate_options(QUICK)
    result = fit(control, told, split(), ALONE, covariates, options, progress=False)
    assert percentile(result.aligner, control, told, np.arange(100, 120)) > 0.75
    untold = fit(control, brain, split(), ALONE, None, options, progress=False)
    assert percentile(untold.aligner, control, brain, np.arange(100, 120)) < 0.75
    with pytest.raises(InputError, match="missing"):
        covariate_features(["a", "b"], np.array([[1.0], [np.nan]]))


def test_reference_genomes_tie_everywhere(world, split):
    gene, brain = world()
    reference = replace(gene, distinct=np.zeros_like(gene.distinct))
    for start in ("cca", "random"):
        options = replace(QUICK, start=start)
        result = fit(reference, brain, split(), ALONE, None, options, progress=False)
        latents = result.aligner.embed_genes(reference)
        assert (latents == latents[0]).all()
        assert np.linalg.norm(latents[0]) == pytest.approx(1, abs=1e-6)
        assert percentile(result.aligner, reference, brain, np.arange(100, 120)) == 0.5


def test_bad_input_is_told(world, split):
    gene, brain = world()
    with pytest.raises(InputError, match="same order"):
        fit(gene, brain.take(np.arange(119)), split(), ALONE, None, QUICK, progress=False)
    with pytest.raises(InputError, match="one a subject"):
        fit(gene, brain, split()[:5], ALONE, None, QUICK, progress=False)
    with pytest.raises(InputError, match="holdout"):
        fit(gene, brain, np.array(["holdout"] * 120), ALONE, None, QUICK, progress=False)
    with pytest.raises(InputError, match="split train: 80 subjects of 1 families"):
        fit(gene, brain, split(), np.zeros(120, int), None, QUICK, progress=False)


def test_batches_cover_each_row_once_and_follow_the_epoch():
    sampler = EpochSampler(np.arange(5, 28), 10, seed=3)
    first = [batch.rows for batch in sampler]
    assert [len(rows) for rows in first] == [8, 8, 7]
    assert sorted(np.concatenate(first)) == list(range(5, 28))
    sampler.set_epoch(1)
    second = [batch.rows for batch in sampler]
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    assert len(EpochSampler(np.arange(9), None, 0)) == 1
