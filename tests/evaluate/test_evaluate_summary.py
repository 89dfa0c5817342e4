"""The whole evaluation: structure, invariance, controls, intervals, cross-fitting."""

import json

import numpy as np
import pytest

from encoders.errors import InputError
from multimodal.evaluate.bootstrap import bootstrap_intervals
from multimodal.evaluate.cca import cca_fit_and_embed, fit_ridge_cca
from multimodal.evaluate.crossfit import cross_fit
from multimodal.evaluate.retrieval import QueryRanks, retrieval_metrics
from multimodal.evaluate.summary import Evaluated, EvaluateOptions, evaluate_latents

FAST = EvaluateOptions(permutations=199, bootstrap_replicates=200)
METRICS = {"recall@1", "recall@5", "recall@10", "mean_rank_percentile", "median_rank", "mrr"}


def paired_latents(signal: float, subjects: int = 120, seed: int = 0):
    rng = np.random.default_rng(seed)
    gene = rng.standard_normal((subjects, 16))
    brain = signal * gene + rng.standard_normal((subjects, 16))
    return gene.astype(np.float32), brain.astype(np.float32)


def whom(subjects: int = 120, folds: int = 3, seed: int = 0, method="crossfit") -> Evaluated:
    rng = np.random.default_rng(seed)
    family = np.arange(subjects) // 2
    return Evaluated(
        [f"sub-{row:04d}" for row in range(subjects)],
        (rng.permutation(subjects) % folds)[family],
        family,
        rng.choice(["F", "M"], subjects),
        method,
    )


def test_structure_is_complete_and_plain() -> None:
    gene, brain = paired_latents(0.5)
    nothing = np.ones_like(gene)
    report = evaluate_latents(
        gene, brain, whom(), controls={"covariates_only": (nothing, brain)}, options=FAST
    )
    assert json.loads(json.dumps(report)) == report
    assert report["gallery_size"] == 60
    assert report["folds"] == 3
    control = report["controls"]["covariates_only"]
    for block in (report, control):
        for kind in ("raw", "matched"):
            assert {"statistic", "p", "permutations", "null_mean", "null_sd"} <= set(
                block["permutation"][kind]
            )
            for direction in ("gene_to_brain", "brain_to_gene"):
                found = block["retrieval"][kind][direction]
                assert set(found) >= METRICS
                assert set(found["chance"]) == set(found["interval"]) == METRICS
                for name in METRICS:
                    low, high = found["interval"][name]
                    assert low <= found[name] <= high
    assert report["permutation"]["raw"]["p"] == 1 / 200
    assert control["permutation"]["raw"]["statistic"] == 0.5
    assert control["permutation"]["matched"]["p"] == 1.0


def test_no_matched_gallery_is_said_not_raised() -> None:
    gene, brain = paired_latents(0.5)
    who = whom()
    alone = Evaluated(who.ids, who.folds, who.components, np.array(who.ids), who.method)
    report = evaluate_latents(gene, brain, alone, options=FAST)
    matched = report["permutation"]["matched"]
    assert matched["p"] is None
    assert matched["n"] == 0
    assert "fewer than 5" in matched["reason"]
    assert report["retrieval"]["matched"]["gene_to_brain"]["n"] == 0
    assert report["galleries"]["matched"]["subjects_dropped"] == 60
    json.dumps(report)


@pytest.mark.parametrize("method", ["crossfit", "heldout"])
def test_order_of_subjects_does_not_matter(method: str) -> None:
    gene, brain = paired_latents(0.1)
    who = whom(method=method)
    order = np.random.default_rng(1).permutation(120)
    moved = Evaluated(
        [who.ids[row] for row in order],
        who.folds[order],
        who.components[order],
        who.strata[order],
        method,
    )
    here = evaluate_latents(gene, brain, who, options=FAST)
    there = evaluate_latents(gene[order], brain[order], moved, options=FAST)
    assert here["permutation"] == there["permutation"]
    assert here["null"] == there["null"]
    for kind in ("raw", "matched"):
        for direction in ("gene_to_brain", "brain_to_gene"):
            for name in METRICS:
                one = here["retrieval"][kind][direction][name]
                assert one == pytest.approx(there["retrieval"][kind][direction][name], abs=1e-12)


def test_only_cross_fitting_widens_the_null() -> None:
    gene, brain = paired_latents(0.0)
    crossed = evaluate_latents(gene, brain, whom(), options=FAST)["permutation"]
    held = evaluate_latents(gene, brain, whom(method="heldout"), options=FAST)["permutation"]
    assert held["raw"]["null_inflation"] == 1.0
    # Sixty families in three galleries: each gallery of m tests m - 1 of what it teaches.
    assert crossed["raw"]["null_inflation"] == pytest.approx((1 + 57 / 60) ** 0.5)
    assert 1.0 < crossed["matched"]["null_inflation"] <= 2**0.5


def test_untested_rows_are_not_looked_at() -> None:
    gene, brain = paired_latents(0.3)
    who = whom(folds=4, method="heldout")
    split = Evaluated(
        who.ids, np.where(who.folds == 0, 0, -1), who.components, who.strata, "heldout"
    )
    blank = np.where((split.folds >= 0)[:, None], gene, np.nan)
    one = evaluate_latents(gene, brain, split, options=FAST)
    assert one == evaluate_latents(blank, brain, split, options=FAST)
    assert one["folds"] == 1


def test_duplicate_ids_and_wrong_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="occur more than once"):
        Evaluated(["a", "a"], np.zeros(2, int), np.arange(2), np.array(["x", "x"]))
    with pytest.raises(ValueError, match="one entry a subject"):
        Evaluated(["a", "b"], np.zeros(3, int), np.arange(2), np.array(["x", "x"]))


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for number in range(200):
        ahead = rng.integers(0, 20, 80)
        ranks = QueryRanks(np.arange(80), ahead, np.ones(80, int), np.full(80, 20))
        low, high = bootstrap_intervals(ranks, np.arange(80), replicates=300, seed=number)[
            "mean_rank_percentile"
        ]
        hits += low <= 0.5 <= high
    assert 0.89 <= hits / 200 <= 0.99


def test_families_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    ahead = np.repeat(rng.integers(0, 20, 20), 5)
    ranks = QueryRanks(np.arange(100), ahead, np.ones(100, int), np.full(100, 20))
    width = {}
    for name, components in (("alone", np.arange(100)), ("families", np.arange(100) // 5)):
        for metric, (low, high) in bootstrap_intervals(ranks, components).items():
            width[name, metric] = high - low
    assert width["families", "mrr"] > 1.6 * width["alone", "mrr"]
    assert width["families", "median_rank"] > width["alone", "median_rank"]


def test_bootstrap_medians_are_those_of_the_repeated_ranks(monkeypatch) -> None:
    """A sample in which every component is drawn once gives the plain metrics."""
    ahead = np.array([0, 3, 3, 7, 9, 11])
    ranks = QueryRanks(np.arange(6), ahead, np.ones(6, int), np.full(6, 12))

    class Once:
        def multinomial(self, n: int, p: np.ndarray, size: int) -> np.ndarray:
            return np.ones((size, n), dtype=int)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Once())
    found = bootstrap_intervals(ranks, np.arange(6), replicates=3)
    for name, value in retrieval_metrics(ranks).items():
        assert found[name] == pytest.approx([value, value]), name


def test_cross_fit_never_trains_on_the_tested_or_their_relatives() -> None:
    who = whom(folds=4)
    folds = np.where(np.arange(120) < 6, -1, who.folds)
    steps = []

    def fit_and_embed(train_rows, test_rows, fold):
        assert not set(who.components[train_rows]) & set(who.components[test_rows])
        assert (folds[train_rows] >= 0).all()
        return np.stack([test_rows, test_rows + 0.5], 1), np.full((len(test_rows), 2), fold)

    latents = cross_fit(
        fit_and_embed,
        folds,
        components=who.components,
        progress=lambda done, total: steps.append((done, total)),
    )
    rows = np.flatnonzero(folds >= 0)
    np.testing.assert_array_equal(latents.gene[rows, 0], rows)
    np.testing.assert_array_equal(latents.brain[rows, 0], folds[rows])
    assert steps == [(done, 4) for done in range(5)]


def test_cross_fit_refuses_leaks_and_wrong_shapes() -> None:
    def empty(train_rows, test_rows, fold):
        return np.zeros((1, 2)), np.zeros((1, 2))

    with pytest.raises(InputError, match="more than one fold"):
        cross_fit(empty, np.array([0, 1, 0, 1]), components=np.array([0, 0, 1, 2]))
    with pytest.raises(InputError, match="at least two"):
        cross_fit(empty, np.zeros(4, int))
    with pytest.raises(ValueError, match="wanted"):
        cross_fit(empty, np.array([0, 0, 1, 1]))


def test_cca_equals_the_textbook() -> None:
    rng = np.random.default_rng(2)
    gene = rng.standard_normal((200, 5))
    brain = gene[:, :3] @ rng.standard_normal((3, 4)) + rng.standard_normal((200, 4))
    model = fit_ridge_cca(gene, brain, dims=4, ridge=0.0)
    x, y = gene - gene.mean(0), brain - brain.mean(0)
    product = np.linalg.inv(x.T @ x) @ x.T @ y @ np.linalg.inv(y.T @ y) @ y.T @ x
    wanted = np.sqrt(np.sort(np.linalg.eigvals(product).real)[::-1][:4])
    np.testing.assert_allclose(model.correlations, wanted, rtol=1e-8)
    scores = x @ model.gene_weights, y @ model.brain_weights
    for k in range(4):
        assert np.corrcoef(scores[0][:, k], scores[1][:, k])[0, 1] == pytest.approx(wanted[k])


def test_cca_takes_more_variables_than_subjects_and_constant_sides() -> None:
    rng = np.random.default_rng(3)
    gene, brain = rng.standard_normal((40, 300)), rng.standard_normal((40, 90))
    folds = np.arange(40) % 4
    latents = cross_fit(cca_fit_and_embed(gene, brain, dims=64), folds)
    assert latents.gene.shape == (40, 64)
    np.testing.assert_allclose(np.linalg.norm(latents.gene, axis=1), 1.0)
    constant = cross_fit(cca_fit_and_embed(np.ones((40, 3)), brain), folds)
    assert (constant.gene == 0).all()


def test_cca_finds_a_planted_effect() -> None:
    rng = np.random.default_rng(4)
    gene = rng.standard_normal((200, 10))
    brain = 0.8 * gene @ rng.standard_normal((10, 12)) + 2 * rng.standard_normal((200, 12))
    folds = np.arange(200) % 5
    latents = cross_fit(cca_fit_and_embed(gene, brain), folds)
    who = Evaluated([*map(str, range(200))], folds, np.arange(200), np.full(200, "all"))
    report = evaluate_latents(latents.gene, latents.brain, who, options=FAST)
    assert report["permutation"]["matched"]["p"] == 1 / 200
