"""The fitted way from features to a head's input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from encoders.errors import InputError
from projectors.standardise import Standardiser, StandardiserOptions, principal_axes


def features(seed=0, subjects=40, windows=3, dim=5):
    random = np.random.default_rng(seed)
    scale = 10.0 ** random.uniform(-5, 0, (windows, 1))
    return torch.from_numpy(random.normal(size=(subjects, windows, dim)) * scale + 3 * scale)


def test_dimension_scale_is_a_z_score_of_training():
    train, other = features(0), features(1)
    options = StandardiserOptions(scale="dimension", components=None)
    fitted = Standardiser.fit(train, options)
    expected = (other - train.mean(0)) / train.std(0, correction=0)
    assert torch.allclose(fitted(other), expected.flatten(1), rtol=1e-9)


def test_window_scale_gives_windows_equal_variance_and_keeps_a_window_s_shape():
    train = features()
    fitted = Standardiser.fit(train, StandardiserOptions(components=None))
    standard = fitted(train).reshape(train.shape)
    totals = standard.var(dim=0, correction=0).sum(dim=1)
    assert torch.allclose(totals, totals[:1].expand(3))
    ratio = standard.std(0) / train.std(0)
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio))


@pytest.mark.parametrize("scale", ["window", "dimension", "none"])
def test_constant_dimensions_become_exact_zeros(scale):
    train = features().float().double()
    train[:, 1, 2] = 0.1234567
    train[:, 2] = 1e-4
    options = StandardiserOptions(scale=scale, components=None)
    fitted = Standardiser.fit(train, options)
    shifted = train.clone()
    shifted[:, 1, 2] += 1.0
    standard = fitted(shifted).reshape(train.shape)
    assert torch.count_nonzero(standard[:, 1, 2]) == 0
    assert torch.count_nonzero(standard[:, 2]) == 0
    assert bool(torch.isfinite(standard).all())


@pytest.mark.parametrize("joined", [True, False])
def test_nobody_differs(joined):
    same = torch.full((6, 2, 3), 0.25, dtype=torch.float64)
    fitted = Standardiser.fit(same, StandardiserOptions(), joined=joined)
    assert fitted.out_dim == 1
    assert torch.count_nonzero(fitted(same)) == 0


def test_pca_agrees_with_sklearn():
    train = features(subjects=30, windows=1, dim=12)
    options = StandardiserOptions(scale="none", components=5, whitening_shrinkage=0.0)
    ours = Standardiser.fit(train, options)(train).numpy()
    theirs = PCA(5, whiten=True, svd_solver="full").fit_transform(train[:, 0].numpy())
    theirs *= np.sqrt(30 / 29)
    assert np.allclose(np.abs(ours), np.abs(theirs), rtol=1e-8)


def test_shrunk_whitening_keeps_order_and_mean_variance():
    train = features(windows=1, dim=12)
    for shrinkage in (0.0, 0.5, 1.0):
        options = StandardiserOptions("none", 6, 1.0, shrinkage)
        variance = Standardiser.fit(train, options)(train).var(0, correction=0)
        if shrinkage == 0:
            assert torch.allclose(variance, torch.ones(6, dtype=torch.float64))
        else:
            assert bool((variance.diff() < 0).all())
        if shrinkage == 1:
            assert variance.mean() == pytest.approx(1)


def test_components_are_bounded_by_rank_and_explained_variance():
    random = np.random.default_rng(0)
    low_rank = torch.from_numpy(random.normal(size=(30, 4)) @ random.normal(size=(4, 50)))[:, None]
    assert Standardiser.fit(low_rank, StandardiserOptions(components=32)).out_dim == 4
    few = StandardiserOptions(components=32, explained_variance=0.5)
    assert Standardiser.fit(low_rank, few).out_dim < 4
    tiny = features(subjects=3)
    assert Standardiser.fit(tiny, StandardiserOptions()).out_dim == 2


def test_windows_apart_share_one_basis():
    train = features(windows=4, dim=6)
    fitted = Standardiser.fit(train, StandardiserOptions(components=3), joined=False)
    assert fitted(train).shape == (40, 4, 3)
    assert fitted.basis.shape == (6, 3)


@given(st.integers(0, 2**31))
@settings(deadline=None, max_examples=20)
def test_residuals_do_not_correlate_with_covariates(seed):
    random = np.random.default_rng(seed)
    covariates = torch.from_numpy(random.normal(size=(40, 3)))
    covariates[:, 2] = covariates[:, 0] - 2 * covariates[:, 1] + 5
    train = features(seed) + (covariates @ torch.ones(3, 15, dtype=torch.float64)).reshape(40, 3, 5)
    options = StandardiserOptions(scale="dimension", components=None)
    fitted = Standardiser.fit(train, options, covariates=covariates)
    centred = covariates - covariates.mean(0)
    correlation = centred.T @ fitted(train, covariates) / 40
    assert float(correlation.abs().max()) < 1e-8


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_covariates_must_leave_a_degree_of_freedom(spare):
    """As many as subjects less the intercept explain anything; repeats do not count."""
    independent = np.random.default_rng(0).normal(size=(12, 11 - spare))
    covariates = torch.from_numpy(np.hstack([independent, independent[:, :3], np.ones((12, 1))]))
    train = features(subjects=12)
    if spare:
        fitted = Standardiser.fit(train, StandardiserOptions(), covariates=covariates)
        assert torch.count_nonzero(fitted(train, covariates)) > 0
        return
    with pytest.raises(InputError, match=r"11 independent ones.*12 training subjects") as error:
        Standardiser.fit(train, StandardiserOptions(), covariates=covariates)
    assert error.value.problems[0].code == "too-many-covariates"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_covariates_must_be_finite(value):
    covariates = torch.randn(40, 2, dtype=torch.float64)
    fitted = Standardiser.fit(features(), StandardiserOptions(), covariates=covariates)
    covariates[7, 1] = value
    with pytest.raises(InputError, match=r"covariates, training rows \[7\]"):
        Standardiser.fit(features(), StandardiserOptions(), covariates=covariates)
    with pytest.raises(InputError, match=r"covariates, subjects \[7\]"):
        fitted(features(), covariates)


@pytest.mark.parametrize("components", [2.5, True, "8", 0])
def test_components_are_a_whole_number(components):
    with pytest.raises(InputError, match=r"standardiser\.components"):
        StandardiserOptions(components=components)


def test_a_feature_that_covariates_explain_wholly_becomes_zero():
    covariates = torch.randn(20, 2, dtype=torch.float64)
    train = (covariates @ torch.randn(2, 4, dtype=torch.float64))[:, None]
    fitted = Standardiser.fit(train, StandardiserOptions(), covariates=covariates)
    assert torch.count_nonzero(fitted(train, covariates)) == 0


def test_state_dict_is_complete():
    covariates = torch.randn(40, 2, dtype=torch.float64)
    fitted = Standardiser.fit(features(), StandardiserOptions(components=4), covariates=covariates)
    other = Standardiser(**fitted.sizes())
    other.load_state_dict(fitted.state_dict())
    assert torch.equal(other(features(2), covariates), fitted(features(2), covariates))


def test_signs_are_fixed_and_large_matrices_agree(monkeypatch):
    values = features(windows=1, dim=30)[:, 0].numpy()
    values = (values - values.mean(0)) @ np.diag(0.5 ** np.arange(30))
    vectors, singular = principal_axes(values, 3)
    assert (vectors[np.abs(vectors).argmax(0), range(3)] > 0).all()
    monkeypatch.setattr("projectors.standardise._EXACT_SVD_LIMIT", 10)
    approximate, approximate_singular = principal_axes(values, 3)
    assert np.allclose(singular, approximate_singular, rtol=1e-6)
    assert np.allclose(vectors, approximate, atol=1e-4)


def test_bad_input_is_told():
    with pytest.raises(InputError, match="at least 2"):
        Standardiser.fit(features(subjects=1), StandardiserOptions())
    broken = features()
    broken[3, 1, 1] = float("nan")
    with pytest.raises(InputError, match=r"rows \[3\]"):
        Standardiser.fit(broken, StandardiserOptions())
    fitted = Standardiser.fit(features(), StandardiserOptions())
    with pytest.raises(InputError, match="fitted on 3 windows of 5"):
        fitted(features(windows=2))
    with pytest.raises(InputError, match="leave them out"):
        fitted(features(), torch.zeros(40, 2))
    with pytest.raises(InputError) as caught:
        StandardiserOptions("cubes", 0, 0.0, 2.0)
    assert len(caught.value.problems) == 4
