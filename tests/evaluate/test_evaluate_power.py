"""The power calculator against simulation."""

import numpy as np
import pytest

from encoders.errors import InputError
from multimodal.evaluate.permutation import exact_null_sd, permutation_test
from multimodal.evaluate.power import (
    PowerOptions,
    expected_percentile,
    format_plan,
    gallery_sd,
    layouts,
    plan,
    power_of,
    subjects_needed,
)
from multimodal.evaluate.retrieval import doubled_credits
from multimodal.evaluate.summary import Evaluated


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def correlated(rng: np.random.Generator, size: int, dims: int, r: float) -> np.ndarray:
    gene = rng.standard_normal((size, dims))
    brain = r * gene + np.sqrt(1 - r * r) * rng.standard_normal((size, dims))
    return doubled_credits(unit(gene) @ unit(brain).T)


def heldout(size: int, strata: int = 1) -> Evaluated:
    rows = np.arange(size)
    names = np.array([f"s{row % strata}" for row in rows])
    return Evaluated([f"{row}" for row in rows], np.zeros(size, int), rows, names, "heldout")


@pytest.mark.parametrize("dims", [1, 4, 16])
@pytest.mark.parametrize("r", [0.0, 0.3, 0.7])
def test_expected_percentile_is_that_of_simulated_galleries(dims: int, r: float) -> None:
    rng = np.random.default_rng(dims)
    size = 60
    found = [np.trace(correlated(rng, size, dims, r)) / (4 * size * (size - 1)) for _ in range(80)]
    assert expected_percentile(r, dims) == pytest.approx(np.mean(found), abs=0.015)


@pytest.mark.parametrize("size", [2, 6, 40, 400])
def test_gallery_sd_is_that_of_random_galleries(size: int) -> None:
    rng = np.random.default_rng(size)
    variances = [
        exact_null_sd([correlated(rng, size, 4, 0.0)]) ** 2 for _ in range(max(5, 600 // size))
    ]
    assert gallery_sd(size, 4) == pytest.approx(np.sqrt(np.mean(variances)), rel=0.1)


@pytest.mark.parametrize(("size", "r"), [(40, 0.25), (80, 0.2)])
def test_power_is_the_share_of_simulated_cohorts_that_reject(size: int, r: float) -> None:
    rng = np.random.default_rng(7)
    options = PowerOptions(dims=4)
    rejected = [
        permutation_test([correlated(rng, size, 4, r)], permutations=199, seed=number).p <= 0.05
        for number in range(200)
    ]
    layout = layouts(heldout(size))["raw"]
    assert power_of(r, layout, options) == pytest.approx(np.mean(rejected), abs=0.09)


def test_detectable_effect_has_the_wanted_power_and_needs_this_cohort() -> None:
    who = heldout(160)
    options = PowerOptions(power=0.9, alpha=0.01)
    found = plan(who, options=options)["raw"]["detectable"]
    layout = layouts(who)["raw"]
    assert power_of(found["correlation"], layout, options) == pytest.approx(0.9, abs=0.005)
    needed = subjects_needed(found["correlation"], layout, options)
    assert needed == pytest.approx(160, abs=3)


def test_more_subjects_smaller_effects_and_matching_costs() -> None:
    small, large = plan(heldout(60, 6)), plan(heldout(600, 6))
    for kind in ("raw", "matched"):
        one, other = (part[kind]["detectable"]["correlation"] for part in (small, large))
        assert other < one / 2
    needed = [row["subjects"] for row in small["raw"]["needed"]]
    assert needed == sorted(needed, reverse=True)
    assert small["matched"]["null_sd"] >= small["raw"]["null_sd"] * 0.99


def test_cross_fitting_tests_everybody_but_widens_the_null() -> None:
    rows = np.arange(100)
    crossed = Evaluated([f"{row}" for row in rows], rows % 5, rows, np.full(100, "all"), "crossfit")
    layout = layouts(crossed)["raw"]
    assert layout.sizes().tolist() == [20] * 5
    # Five independent galleries of 20, averaged; each tests 19 of the 20 that it teaches.
    wanted = gallery_sd(20, 4) / np.sqrt(5) * np.sqrt(1 + 19 / 20)
    assert layout.null_sd(4) == pytest.approx(wanted)


def test_table_says_what_it_must() -> None:
    text = format_plan(plan(heldout(100, 5)))
    assert "Raw galleries: 100 unrelated subjects tested in 1 galleries of 100 to 100" in text
    assert "Matched galleries: 100 unrelated subjects tested in 5 galleries" in text
    assert "detects a mean rank percentile of 0." in text
    nothing = plan(heldout(8, 8))
    assert nothing["matched"]["detectable"] is None
    assert "none large enough" in format_plan(nothing)


def test_options_outside_their_range_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        PowerOptions(alpha=1.5, dims=0, effects=(0.2, -1.0))
    assert [problem.where for problem in caught.value.problems] == [
        "evaluate.alpha",
        "evaluate.effects",
        "evaluate.dims",
    ]
