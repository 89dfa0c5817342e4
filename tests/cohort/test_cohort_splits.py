"""Splits and folds: no family divided, strata balanced, the order of rows without effect."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import InputError
from multimodal.cohort.kinship import components, kinship_pairs, kinship_table
from multimodal.cohort.splits import make_folds, make_split, read_split, write_split
from multimodal.cohort.table import Cohort, CohortPaths

SETTINGS = settings(max_examples=40, deadline=None)


def make_cohort(families: list[int], pairs: list[tuple[int, int, float]] | None = None) -> Cohort:
    ids = [f"sub-{row:04d}" for row in range(len(families))]
    people = pd.DataFrame(
        {"family_id": [f"F{family}" for family in families]},
        index=pd.Index(ids, name="participant_id"),
    )
    named = [(ids[a], ids[b], value) for a, b, value in pairs or []]
    return Cohort(people, pd.DataFrame(named, columns=["id1", "id2", "kinship"]), CohortPaths())


def test_components_join_families_and_relatives() -> None:
    cohort = make_cohort([1, 1, 2, 3, 4, 5], [(1, 2, 0.25), (3, 4, 0.0442), (4, 5, 0.0441)])
    assert components(cohort).tolist() == [0, 0, 0, 1, 1, 2]
    assert components(cohort, threshold=0.3).tolist() == [0, 0, 1, 2, 3, 4]
    assert kinship_pairs(cohort).tolist() == [[1, 2], [3, 4]]


def test_kinship_of_a_pair_named_twice_is_the_nearer() -> None:
    cohort = make_cohort([1, 1, 2, 3], [(1, 0, 0.25), (2, 3, 0.5), (0, 1, 0.26), (0, 3, 0.01)])
    pairs, coefficient = kinship_table(cohort)
    assert pairs.tolist() == [[0, 1], [2, 3]]
    assert coefficient.tolist() == [0.26, 0.5]
    pairs, coefficient = kinship_table(make_cohort([1, 2]))
    assert pairs.shape == (0, 2)
    assert coefficient.shape == (0,)


def test_family_named_like_a_participant_is_no_relation() -> None:
    cohort = make_cohort([1, 2])
    people = cohort.participants.assign(family_id=["sub-0001", "F2"])
    assert components(Cohort(people, cohort.kinship, cohort.paths)).tolist() == [0, 1]


cohorts = st.integers(12, 60).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, n), min_size=n, max_size=n),
        st.lists(st.sampled_from("abc"), min_size=n, max_size=n),
    )
)


@SETTINGS
@given(cohorts, st.integers(0, 5))
def test_no_component_is_divided(drawn: tuple[list[int], list[str]], seed: int) -> None:
    families, strata = drawn
    cohort = make_cohort(families)
    label = components(cohort)
    if label.max() + 1 < 5:
        return
    split = make_split(cohort, label, np.array(strata), (0.6, 0.2, 0.2), seed)
    folds = make_folds(label, np.array(strata), 5, seed)
    for inside in (label == family for family in np.unique(label)):
        assert split[inside].nunique() == 1
        assert len(set(folds[inside])) == 1
    assert set(split) == {"train", "validation", "test"}
    assert set(folds) == set(range(5))


@SETTINGS
@given(st.lists(st.integers(0, 7), min_size=20, max_size=200), st.integers(0, 5))
def test_unrelated_people_are_spread_evenly(strata: list[int], seed: int) -> None:
    label = np.arange(len(strata))
    folds = make_folds(label, np.array(strata).astype(str), 5, seed)
    sizes = np.bincount(folds, minlength=5)
    # Strata come first: each leaves a remainder of its own, and few of them fall on one fold.
    assert sizes.max() - sizes.min() <= max(2, len(set(strata)) // 2)
    for stratum in set(strata):
        counts = np.bincount(folds[np.array(strata) == stratum], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_families_spread_evenly_in_components_and_people() -> None:
    rng = np.random.default_rng(3)
    label = np.repeat(np.arange(150), rng.integers(1, 4, size=150))
    strata = np.array([f"s{value}" for value in rng.integers(0, 4, size=150)])[label]
    folds = make_folds(label, strata, 5, seed=1)
    _, first = np.unique(label, return_index=True)
    for stratum in np.unique(strata):
        people = np.bincount(folds[strata == stratum], minlength=5)
        groups = np.bincount(folds[first][strata[first] == stratum], minlength=5)
        assert np.ptp(people) <= 3
        assert np.ptp(groups) <= 2


def test_split_keeps_shares_in_every_stratum() -> None:
    cohort = make_cohort(list(range(400)))
    strata = np.array(["a"] * 300 + ["b"] * 80 + ["c"] * 20)
    split = make_split(cohort, components(cohort), strata, {"train": 0.5, "test": 0.5}, 2)
    for stratum, size in (("a", 300), ("b", 80), ("c", 20)):
        assert (split[strata == stratum] == "test").sum() == size / 2
    assert "validation" not in set(split)


@SETTINGS
@given(st.integers(0, 100), st.integers(0, 3))
def test_row_order_does_not_matter(order_seed: int, seed: int) -> None:
    families = [row // 2 if row < 30 else row for row in range(60)]
    cohort = make_cohort(families, [(0, 40, 0.1), (3, 50, 0.2)])
    strata = np.array([f"s{row % 3}" for row in range(60)])
    split = make_split(cohort, components(cohort), strata, seed=seed)
    order = np.random.default_rng(order_seed).permutation(60)
    turned = cohort.take([cohort.participant_ids[row] for row in order])
    label = components(turned)
    again = make_split(turned, label, strata[order], seed=seed)
    pd.testing.assert_series_equal(again.sort_index(), split.sort_index())
    ids = np.array(cohort.participant_ids)
    folds = make_folds(components(cohort), strata, seed=seed, participant_ids=ids)
    refolded = make_folds(label, strata[order], seed=seed, participant_ids=ids[order])
    assert (refolded == folds[order]).all()


def test_seed_changes_the_split() -> None:
    cohort = make_cohort(list(range(50)))
    strata = np.full(50, "all")
    one, other = (make_split(cohort, components(cohort), strata, seed=seed) for seed in (0, 1))
    assert (one != other).any()


def test_small_cohorts_fill_every_set_or_are_refused() -> None:
    three = make_cohort([0, 1, 2])
    split = make_split(three, components(three), np.full(3, "all"))
    assert sorted(split) == ["test", "train", "validation"]
    two = make_cohort([0, 0, 1])
    with pytest.raises(InputError, match="2 unrelated groups"):
        make_split(two, components(two), np.full(3, "all"))
    with pytest.raises(InputError, match="at least 5"):
        make_folds(np.arange(4), np.full(4, "all"), 5)
    with pytest.raises(InputError, match="at least 2"):
        make_folds(np.arange(4), np.full(4, "all"), 1)


@pytest.mark.parametrize(
    "fractions", [(0.5, 0.5), (0.5, 0.6, 0.1), (1.2, -0.1, -0.1), {"train": 0.5, "tset": 0.5}]
)
def test_bad_fractions(fractions: object) -> None:
    cohort = make_cohort([0, 1, 2, 3])
    with pytest.raises(InputError, match="sum to 1"):
        make_split(cohort, components(cohort), np.full(4, "all"), fractions)  # type: ignore[arg-type]


def test_split_file_round_trip(tmp_path: Path) -> None:
    cohort = make_cohort([0, 0, 1, 2, 3])
    label = components(cohort)
    split = make_split(cohort, label, np.full(5, "all"), seed=3)
    write_split(split, tmp_path / "run" / "split.tsv")
    read = read_split(tmp_path / "run" / "split.tsv", cohort, label)
    assert read.to_dict() == split.to_dict()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["split.tsv"]


def split_problems(folder: Path, rows: str, header: str = "participant_id\tsplit\n") -> list[str]:
    cohort = make_cohort([7, 7, 1])
    (folder / "split.tsv").write_text(header + rows)
    with pytest.raises(InputError) as caught:
        read_split(folder / "split.tsv", cohort, components(cohort))
    return [f"{problem.code}: {problem}" for problem in caught.value.problems]


def test_split_file_problems(tmp_path: Path) -> None:
    rows = "sub-0000\ttrain\nsub-0000\ttrain\nsub-0009\tdev\n"
    found = split_problems(tmp_path, rows)
    assert [line.split(":")[0] for line in found] == [
        "split-value",
        "split-unknown-id",
        "split-duplicate",
        "split-missing-id",
    ]
    assert "line 4" in found[0]
    assert "line 3" in found[2]
    assert split_problems(tmp_path, "", "who\tset\n")[0].startswith("split-column")


def test_divided_family_is_named(tmp_path: Path) -> None:
    rows = "sub-0000\ttrain\nsub-0001\ttest\nsub-0002\ttest\n"
    (line,) = split_problems(tmp_path, rows)
    assert line.startswith("split-leak")
    assert "family F7" in line
    assert "sub-0001 in test" in line


def test_ten_thousand_unrelated_people_in_forty_strata() -> None:
    label = np.arange(10_000)
    strata = (label % 40).astype(str)
    assert np.ptp(np.bincount(make_folds(label, strata))) <= 1
