"""The synthetic cohort, as a fixture."""

from collections.abc import Callable

import numpy as np
import pytest
from synthetic_world import World, make_world


@pytest.fixture(scope="session")
def world() -> World:
    """Return the maker of synthetic cohorts."""
    return make_world


@pytest.fixture
def split() -> Callable[..., np.ndarray]:
    """Return a maker of splits: the last sixth tests, the sixth before it validates."""

    def make(subjects: int = 120, validation: bool = True) -> np.ndarray:
        names = np.array(["train"] * subjects, dtype="U10")
        names[-subjects // 6 :] = "test"
        if validation:
            names[-2 * (subjects // 6) : -(subjects // 6)] = "validation"
        return names

    return make
