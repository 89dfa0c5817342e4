"""What the tables of confounds and relatives call readable, and told apart."""

import numpy as np
import pytest

from benchmarks.readings import likeness, readability, told_apart

FOLDS = np.repeat([0, 1], 60)
PAIRS = np.stack([np.arange(0, 40, 2), np.arange(1, 40, 2)], axis=1)


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_a_label_is_read_where_it_is() -> None:
    random = np.random.default_rng(0)
    labels = np.where(random.random(120) < 0.3, "site2", "site1")
    values = random.standard_normal((120, 8))
    read = readability(values, labels, FOLDS, np.arange(120))
    assert read == pytest.approx(0.5, abs=0.1)
    # Each fold has a space of its own: the label lies elsewhere in the second.
    at_second = labels == "site2"
    values[:, 0] += 4 * at_second * (FOLDS == 0)
    values[:, 1] -= 4 * at_second * (FOLDS == 1)
    assert readability(unit(values), labels, FOLDS, np.arange(120)) > 0.9


def test_families_are_not_learned_by_heart() -> None:
    """Twins with one latent and a label drawn by family tell nothing of other families."""
    random = np.random.default_rng(1)
    family = np.arange(120) // 2
    labels = random.permutation(np.repeat(["a", "b"], 30))[family]
    values = np.eye(60)[family]
    assert readability(values, labels, FOLDS, family) == pytest.approx(0.5, abs=0.15)


def test_siblings_told_apart() -> None:
    gene = unit(np.random.default_rng(2).standard_normal((40, 16)))
    assert told_apart(gene, gene, PAIRS) == 1
    swapped = gene.copy()
    swapped[PAIRS[:, 0]], swapped[PAIRS[:, 1]] = gene[PAIRS[:, 1]], gene[PAIRS[:, 0]]
    assert told_apart(gene, swapped, PAIRS) == 0
    assert told_apart(np.repeat(gene[::2], 2, axis=0), gene, PAIRS) == 0.5
    assert likeness(np.repeat(gene[::2], 2, axis=0), PAIRS) == pytest.approx(1)
