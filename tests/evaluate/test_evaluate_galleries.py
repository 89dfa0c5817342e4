"""Galleries: one member a family, strata large enough, the same whatever the row order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import InputError
from multimodal.evaluate.galleries import matched_galleries, one_per_component, raw_galleries


def cohort(seed: int, subjects: int = 60, folds: int = 3) -> dict:
    rng = np.random.default_rng(seed)
    family = np.sort(rng.integers(0, subjects // 2, subjects))
    by_family = rng.permutation(subjects // 2) % folds
    return {
        "components": family,
        "folds": by_family[family],
        "strata": rng.choice(["F|a", "M|a", "F|b"], subjects),
        "ids": [f"sub-{row:04d}" for row in range(subjects)],
    }


def members(galleries) -> list[set[int]]:
    return [set(gallery.rows.tolist()) for gallery in galleries.galleries]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1_000))
def test_every_gallery_holds_one_member_a_component_of_one_fold_and_stratum(seed: int) -> None:
    who = cohort(seed)
    strata = who.pop("strata")
    raw = raw_galleries(**who)
    matched = matched_galleries(strata=strata, **who)
    families = [who["components"][row] for gallery in members(raw) for row in gallery]
    assert len(families) == len(set(families)) == len(set(who["components"]))
    assert raw.subjects + raw.relatives_left_out == 60
    for gallery in matched.galleries:
        assert len(gallery.rows) >= 5
        assert len(set(strata[gallery.rows])) == 1
        assert set(who["folds"][gallery.rows]) == {gallery.fold}
    assert set().union(*members(matched)) <= set().union(*members(raw))
    assert matched.subjects + matched.subjects_dropped == raw.subjects


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1_000))
def test_the_same_subjects_are_chosen_whatever_their_order(seed: int) -> None:
    who = cohort(seed)
    who.pop("strata")
    order = np.random.default_rng(seed).permutation(60)
    moved = {
        "components": who["components"][order],
        "folds": who["folds"][order],
        "ids": [who["ids"][row] for row in order],
    }
    here = [who["ids"][row] for row in one_per_component(**who)]
    there = [moved["ids"][row] for row in one_per_component(**moved)]
    assert here == there


def test_seed_decides_who_represents_a_family() -> None:
    who = {"components": np.zeros(40, int), "folds": np.zeros(40, int)}
    ids = [f"sub-{row}" for row in range(40)]
    chosen = {int(one_per_component(**who, ids=ids, seed=seed)[0]) for seed in range(20)}
    assert len(chosen) > 5


def test_small_strata_are_dropped_and_counted() -> None:
    strata = np.array(["a"] * 6 + ["b"] * 4 + ["c"] * 2)
    found = matched_galleries(np.arange(12), np.zeros(12, int), strata, ids=[*map(str, range(12))])
    assert found.sizes == [6]
    assert (found.strata_dropped, found.subjects_dropped) == (2, 6)
    none = matched_galleries(
        np.arange(12), np.zeros(12, int), strata, ids=[*map(str, range(12))], smallest=7
    )
    assert none.galleries == ()
    assert "all 3 strata have fewer than 7" in none.reason


def test_untested_subjects_are_in_no_gallery() -> None:
    folds = np.array([0, 0, 0, -1, -1])
    found = raw_galleries(np.array([0, 1, 2, 2, 3]), folds, ids=list("abcde"))
    assert found.subjects == 3


def test_large_folds_are_divided() -> None:
    found = raw_galleries(np.arange(25), np.zeros(25, int), ids=[*map(str, range(25))], largest=10)
    assert found.sizes == [9, 8, 8]


def test_a_fold_of_one_family_is_refused() -> None:
    with pytest.raises(InputError, match="test fold 2: 1 unrelated subject"):
        raw_galleries(np.array([0, 1, 2, 2]), np.array([0, 0, 1, 1]), ids=list("abcd"))
    with pytest.raises(InputError, match="no subject is to be tested"):
        raw_galleries(np.arange(3), np.full(3, -1), ids=list("abc"))


def test_relatives_in_two_folds_are_refused() -> None:
    with pytest.raises(InputError, match="members in more than one fold"):
        raw_galleries(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), ids=list("abcd"))
