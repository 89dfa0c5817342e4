"""The permutation test: exact, uniform under the null, seeded, and of the right level."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, kstest

from multimodal.evaluate.permutation import (
    exact_null_sd,
    fold_coupling,
    histogram,
    permutation_test,
)
from multimodal.evaluate.replicates import NullCohort, null_replicates
from multimodal.evaluate.retrieval import doubled_credits, similarity


def random_credits(sizes: tuple[int, ...], rng: np.random.Generator, dim: int = 6) -> list:
    return [
        doubled_credits(
            similarity(rng.standard_normal((size, dim)), rng.standard_normal((size, dim)))
        )
        for size in sizes
    ]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(2, 23), min_size=1, max_size=6), st.integers(0, 1_000))
def test_reference_genome_control_is_exactly_chance(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    one_gene = rng.standard_normal(8)
    credits = [
        doubled_credits(similarity(np.tile(one_gene, (size, 1)), rng.standard_normal((size, 8))))
        for size in sizes
    ]
    test = permutation_test(credits, permutations=99, seed=seed, inflation=2**0.5)
    assert test.statistic == 0.5
    assert test.p == 1.0


def test_p_of_all_pairings_is_the_exact_p() -> None:
    credits = random_credits((6,), np.random.default_rng(3))
    table = credits[0]
    sums = np.array([table[range(6), order].sum() for order in itertools.permutations(range(6))])
    exact = (sums >= np.trace(table)).mean()
    test = permutation_test(credits, permutations=40_000, seed=1)
    assert test.p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 40_000))


def test_p_is_uniform_without_an_effect() -> None:
    rng = np.random.default_rng(11)
    p = [
        permutation_test(random_credits((7, 12), rng), permutations=199, seed=number).p
        for number in range(400)
    ]
    assert kstest(p, "uniform").pvalue > 0.01


def test_p_never_falls_below_one_in_b_plus_one() -> None:
    latents = np.eye(30)
    test = permutation_test([doubled_credits(latents)], permutations=999)
    assert test.statistic == 1.0
    assert test.p == 1 / 1_000


def test_null_spread_agrees_with_the_closed_form() -> None:
    credits = random_credits((8, 8, 15, 40), np.random.default_rng(5))
    test = permutation_test(credits, permutations=20_000, seed=2)
    assert test.null.mean() == pytest.approx(0.5, abs=0.002)
    assert test.null.std() == pytest.approx(exact_null_sd(credits), rel=0.03)
    wide = permutation_test(credits, permutations=20_000, seed=2, inflation=1.3)
    assert wide.null.std() == pytest.approx(1.3 * test.null.std())
    assert abs(wide.p - 0.5) <= abs(test.p - 0.5)


def test_seeded_and_independent_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    credits = random_credits((9, 14), np.random.default_rng(6))
    one = permutation_test(credits, permutations=500, seed=7)
    monkeypatch.setattr("multimodal.evaluate.permutation._CHUNK_ENTRIES", 100)
    np.testing.assert_array_equal(
        one.null, permutation_test(credits, permutations=500, seed=7).null
    )
    assert (one.null != permutation_test(credits, permutations=500, seed=8).null).any()


def test_histogram_counts_everything() -> None:
    found = histogram(np.random.default_rng(0).standard_normal(500), bins=20)
    assert sum(found["counts"]) == 500
    assert len(found["edges"]) == 21


def test_fast_enough_for_a_desk() -> None:
    credits = random_credits((60,) * 5, np.random.default_rng(9))
    started = time.process_time()
    permutation_test(credits)
    assert time.process_time() - started < 3.0


@pytest.mark.parametrize("credits", [[], [np.zeros((1, 1), dtype=int)]])
def test_nothing_to_permute(credits: list) -> None:
    with pytest.raises(ValueError, match="galler"):
        permutation_test(credits)


@pytest.mark.parametrize(
    ("sizes", "tested", "wanted"),
    [
        ([1] * 10, [True] * 10, 1.0),
        ([1] * 10, [True] * 4 + [False] * 6, 0.4),
        ([2] * 10, [True] * 10, 1.0),
        ([2] * 5 + [1] * 10, [True] * 15, 20**2 / (15 * 30)),
        ([1] * 10, [False] * 10, 0.0),
    ],
)
def test_coupling_of_folds(sizes: list[int], tested: list[bool], wanted: float) -> None:
    assert fold_coupling(np.array(sizes), np.array(tested)) == pytest.approx(wanted)


def test_small_galleries_test_less_than_folds_teach() -> None:
    sizes, tested = np.ones(12, dtype=int), np.ones(12, dtype=bool)
    assert fold_coupling(sizes, tested, [6, 6]) == pytest.approx(10 / 12)
    assert fold_coupling(sizes, tested, [12]) == pytest.approx(11 / 12)


def test_coupling_is_the_variance_that_linear_models_share() -> None:
    """Scores that are inner products of fold cross-covariances, each model the others' sum."""
    rng = np.random.default_rng(1)
    folds, dims = 5, 40
    kept, left_out = (rng.standard_normal((4_000, folds, dims)) for _ in range(2))
    taught = kept + left_out
    score = np.einsum("rfd,rfd->rf", taught.sum(axis=1, keepdims=True) - taught, kept)
    alone = score.var(axis=0).sum()
    share = fold_coupling(np.ones(10, dtype=int), np.arange(10) < 5)
    assert score.sum(axis=1).var() / alone == pytest.approx(1 + share, rel=0.08)


def test_cross_fitting_keeps_its_level() -> None:
    cohort = NullCohort(subjects=100, gene_dim=8, brain_dim=8, in_pairs=0.2, off_diagonal=0.0)
    common = {"replicates": 150, "seed": 4, "permutations": 99, "cohort": cohort}
    corrected = null_replicates(**common)
    naive = null_replicates(**common, inflate=False)
    rejected = round(corrected.rejection_rate() * 150)
    assert binomtest(rejected, 150, 0.05).pvalue > 0.01
    assert naive.rejection_rate() > corrected.rejection_rate()


@pytest.mark.slow
def test_a_thousand_null_cohorts_reject_at_the_nominal_rate() -> None:
    found = null_replicates(1_000, seed=2024, permutations=999)
    assert 0.036 <= found.rejection_rate() <= 0.064
    naive = null_replicates(500, seed=2024, permutations=499, inflate=False)
    assert naive.rejection_rate() > 0.07
