"""What a start is made blind to: how groups differ, and nothing else."""

import numpy as np
import pytest

from multimodal.align.erasure import erasing_map, within_groups

RIDGE = 0.1


def table(seed: int = 0, rows: int = 200, size: int = 12) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, size)) @ random.standard_normal((size, size))
    return values - values.mean(axis=0)


def differing(values: np.ndarray, group: np.ndarray, shift: float, seed: int = 1) -> np.ndarray:
    """Move each group by some standard deviations, along a direction of its own."""
    random = np.random.default_rng(seed)
    moved = values + shift * values.std() * random.standard_normal((5, values.shape[1]))[group]
    return moved - moved.mean(axis=0)


def gaps(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    found = np.stack([values[group == label].mean(axis=0) for label in np.unique(group)])
    return found - found[0]


@pytest.mark.parametrize("groups", [2, 3])
def test_groups_differ_no_more(groups: int) -> None:
    group = np.random.default_rng(2).integers(0, groups, 200)
    values = differing(table(), group, 2.0)
    erased = erasing_map(values, group[:, None], ridge=RIDGE, seed=0)
    assert np.abs(gaps(values @ erased, group)).max() < 1e-9 * np.abs(values).max()
    np.testing.assert_allclose(erased @ erased, erased, atol=1e-9)
    assert np.linalg.matrix_rank(erased) == 12 - (groups - 1)


def test_several_confounds_one_of_them_known_of_some() -> None:
    random = np.random.default_rng(3)
    site, ancestry = random.integers(0, 2, (2, 200))
    values = differing(differing(table(), site, 2.0), ancestry, 2.0, seed=5)
    told = np.where(random.random(200) < 0.2, -1, ancestry)
    erased = erasing_map(values, np.stack([site, told], axis=1), ridge=RIDGE, seed=0)
    rest = values @ erased
    # Unlearning ancestry may bring nothing of site back.
    assert np.abs(gaps(rest, site)).max() < 1e-9 * np.abs(values).max()
    known = told >= 0
    assert np.abs(gaps(rest[known], told[known])).max() < 1e-9 * np.abs(values).max()
    nothing = np.full((200, 1), -1)
    assert np.array_equal(erasing_map(values, nothing, ridge=RIDGE, seed=0), np.eye(12))


def test_groups_that_do_not_differ_cost_little() -> None:
    """Of forty groups drawn at random, a start does not go blind."""
    kept = []
    for seed in range(20):
        group = np.random.default_rng(seed).integers(0, 40, 200)
        erased = erasing_map(table(seed), group[:, None], ridge=RIDGE, seed=0)
        kept.append(round(np.trace(erased)))
    assert np.mean(kept) > 11.5
    assert np.array_equal(
        erasing_map(np.zeros((6, 3)), np.zeros((6, 1), int), ridge=RIDGE, seed=0), np.eye(3)
    )


def test_within_groups() -> None:
    values = table()
    site = np.arange(200) % 2
    ancestry = np.arange(200) % 3
    within = within_groups(values, np.stack([site, ancestry], axis=1))
    cell = 3 * site + ancestry
    for label in range(6):
        np.testing.assert_allclose(within[cell == label].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(gaps(values - within, cell), gaps(values, cell), atol=1e-12)
