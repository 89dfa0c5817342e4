"""Ranks, ties, metrics and their chance."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from encoders.errors import InputError
from multimodal.evaluate.retrieval import (
    DIRECTIONS,
    QueryRanks,
    chance_metrics,
    doubled_credits,
    mean_percentile,
    pool_ranks,
    query_ranks,
    retrieval_metrics,
    similarity,
)

SIZES = st.integers(2, 12)


def tied_scores(size: int, seed: int) -> np.ndarray:
    """Scores from few values, so that ties are everywhere."""
    return np.random.default_rng(seed).integers(0, 4, size=(size, size)).astype(float)


@settings(deadline=None, max_examples=50)
@given(SIZES, st.integers(0, 10_000))
def test_ranks_are_scipys_midranks(size: int, seed: int) -> None:
    scores = tied_scores(size, seed)
    rows = np.arange(size)
    for direction, ours in zip(DIRECTIONS, (scores, scores.T), strict=True):
        wanted = np.diagonal(rankdata(-ours, method="average", axis=1))
        np.testing.assert_array_equal(query_ranks(scores, direction, rows).rank, wanted)


@settings(deadline=None, max_examples=50)
@given(SIZES, st.integers(0, 10_000))
def test_credits_of_the_true_pairing_are_the_mean_percentile(size: int, seed: int) -> None:
    scores = tied_scores(size, seed)
    credits = int(np.trace(doubled_credits(scores)))
    statistic = mean_percentile(np.array([credits]), np.array([size]), 2 * size)
    both = [
        retrieval_metrics(query_ranks(scores, direction, np.arange(size)))["mean_rank_percentile"]
        for direction in DIRECTIONS
    ]
    assert statistic == pytest.approx(np.mean(both), abs=1e-12)


def test_metrics_are_expectations_over_the_orders_of_ties() -> None:
    ahead, tied, size = 3, 4, 12
    ranks = QueryRanks(*(np.array([value]) for value in (0, ahead, tied, size)))
    orders = [order.index(0) for order in itertools.permutations(range(tied))]
    ranked = np.array([ahead + 1 + place for place in orders])
    metrics = retrieval_metrics(ranks)
    for k in (1, 5, 10):
        assert metrics[f"recall@{k}"] == pytest.approx((ranked <= k).mean())
    assert metrics["mrr"] == pytest.approx((1 / ranked).mean())
    assert metrics["median_rank"] == ranked.mean()
    assert metrics["mean_rank_percentile"] == pytest.approx((size - ranked.mean()) / (size - 1))


def test_perfect_retrieval() -> None:
    latents = np.eye(7)
    ranks = query_ranks(similarity(latents, latents), "gene_to_brain", np.arange(7))
    metrics = retrieval_metrics(ranks)
    assert metrics["median_rank"] == 1
    for name in ("recall@1", "recall@5", "mrr", "mean_rank_percentile"):
        assert metrics[name] == 1.0


def test_chance_is_what_random_pairings_give() -> None:
    sizes = (5, 9, 30)
    rng = np.random.default_rng(0)
    metrics: dict[str, list[float]] = {}
    for _ in range(1_000):
        pooled = pool_ranks(
            [
                QueryRanks(
                    np.arange(size),
                    rng.integers(0, size, size),
                    np.ones(size, dtype=int),
                    np.full(size, size),
                )
                for size in sizes
            ]
        )
        for name, value in retrieval_metrics(pooled).items():
            metrics.setdefault(name, []).append(value)
    chance = chance_metrics(sizes)
    assert set(chance) == set(metrics)
    # The median of a small sample from a skewed distribution is biased; the others are means.
    metrics.pop("median_rank")
    for name, values in metrics.items():
        error = np.std(values) / np.sqrt(len(values))
        assert chance[name] == pytest.approx(np.mean(values), abs=4 * error + 1e-12), name


@pytest.mark.parametrize(
    ("sizes", "median"), [((10,), 5.5), ((11, 11), 6.0), ((2, 9), 4.0), ((5, 9, 30), 9.0)]
)
def test_chance_of_the_median_rank(sizes: tuple[int, ...], median: float) -> None:
    assert chance_metrics(sizes)["median_rank"] == median


@pytest.mark.parametrize("size", [2, 3, 17, 50, 97])
def test_equal_latents_tie_exactly(size: int) -> None:
    rng = np.random.default_rng(size)
    gene = np.tile(rng.standard_normal(512).astype(np.float32), (size, 1))
    brain = rng.standard_normal((size, 512)).astype(np.float32)
    scores = similarity(gene, brain)
    assert (scores == scores[0]).all()
    for direction in DIRECTIONS:
        ranks = query_ranks(scores, direction, np.arange(size))
        assert retrieval_metrics(ranks)["mean_rank_percentile"] == 0.5


def test_negative_zero_equals_zero() -> None:
    scores = similarity(np.array([[0.0, 1.0], [-0.0, 1.0]]), np.eye(2))
    assert (scores[0] == scores[1]).all()


def test_latents_that_are_not_finite_are_refused() -> None:
    gene = np.ones((3, 4))
    gene[1, 2] = np.nan
    with pytest.raises(InputError, match="1 of 3 latents hold NaN"):
        similarity(gene, np.ones((3, 4)))
