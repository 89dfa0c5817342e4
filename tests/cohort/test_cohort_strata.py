"""Strata and covariates: fitted on training participants, applied to all."""

import numpy as np
import pandas as pd
import pytest

from encoders.errors import InputError
from multimodal.cohort.covariates import CovariateCoding, covariate_matrix
from multimodal.cohort.strata import ancestry_clusters, strata_labels


def people(**columns: object) -> pd.DataFrame:
    size = len(next(iter(columns.values())))  # type: ignore[arg-type]
    index = pd.Index([f"sub-{row}" for row in range(size)], name="participant_id")
    return pd.DataFrame(columns, index=index)


def two_ancestries(size: int = 200, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, size)
    noise = rng.normal(0, 1, (size, 4))
    noise[:, 0] = np.where(group, 2.0, -2.0) + rng.normal(0, 0.3, size)
    return people(**{f"PC{axis + 1}": noise[:, axis] for axis in range(4)}), group


def test_labels_cross_the_keys() -> None:
    table = people(sex=["F", None, "F"], site=["1", "1", "2"])
    labels = strata_labels(table, ["sex", "site"], np.arange(3))
    assert labels.tolist() == ["sex=F site=1", "sex=n/a site=1", "sex=F site=2"]
    assert strata_labels(table, [], np.arange(3)).tolist() == ["all"] * 3


def test_ancestry_column_goes_before_components() -> None:
    table, _ = two_ancestries(6)
    table["ancestry"] = ["EUR", "EUR", "AFR", "AFR", None, "EUR"]
    labels = strata_labels(table, ["ancestry"], np.arange(6))
    assert labels[3:5].tolist() == ["ancestry=AFR", "ancestry=n/a"]


def test_clusters_find_two_ancestries() -> None:
    table, group = two_ancestries()
    labels = ancestry_clusters(table, np.arange(150), clusters=2)
    assert (labels == np.where(group, "cluster1", "cluster0")).all()
    # Chosen automatically there may be more clusters, but none mixes the two ancestries.
    chosen = ancestry_clusters(table, np.arange(150))
    assert max(len(set(group[chosen == label])) for label in set(chosen)) == 1


def test_clusters_are_fitted_on_training_rows_only() -> None:
    table, _ = two_ancestries()
    train = np.arange(200) < 120
    before = ancestry_clusters(table, train)
    moved = table.copy()
    moved.iloc[150:] += 100.0
    assert (ancestry_clusters(moved, train)[:150] == before[:150]).all()


def test_clusters_do_not_depend_on_row_order() -> None:
    table, _ = two_ancestries(80)
    order = np.random.default_rng(1).permutation(80)
    turned = ancestry_clusters(table.iloc[order], np.arange(80))
    assert (turned == ancestry_clusters(table, np.arange(80))[order]).all()


def test_missing_components_and_too_few() -> None:
    table, _ = two_ancestries(30)
    table.loc["sub-3", "PC2"] = np.nan
    assert ancestry_clusters(table, np.arange(30))[3] == "n/a"
    with pytest.raises(InputError, match="0 distinct"):
        ancestry_clusters(table, np.array([3]))
    with pytest.raises(InputError, match="neither a column ancestry nor PC1"):
        strata_labels(people(sex=["F"]), ["ancestry"], np.arange(1))
    with pytest.raises(InputError, match="no column scanner"):
        strata_labels(table, ["scanner"], np.arange(30))


def test_matrix_is_centred_and_coded_by_training() -> None:
    table = people(
        age=[10.0, 20.0, np.nan, 60.0], sex=["F", "M", "F", "M"], site=["b", "a", "c", "a"]
    )
    matrix, names = covariate_matrix(table, ["age", "sex", "site"], np.array([0, 1, 2]))
    assert names == ["age", "age=n/a", "sex=M", "site=b", "site=c"]
    expected = [[-5, 0, 0, 1, 0], [5, 0, 1, 0, 0], [0, 1, 0, 0, 1], [45, 0, 1, 0, 0]]
    assert matrix.tolist() == expected


def test_no_names_give_no_columns() -> None:
    matrix, names = covariate_matrix(people(age=[1.0, 2.0]), [], np.arange(2))
    assert matrix.shape == (2, 0)
    assert names == []


def test_unseen_site_is_refused() -> None:
    table = people(site=["a", "b", "z"])
    with pytest.raises(InputError, match=r"column site: value z .*sub-2.* one of a, b"):
        covariate_matrix(table, ["site"], np.array([0, 1]))


def test_unknown_and_empty_columns() -> None:
    table = people(age=[np.nan, np.nan, 3.0])
    with pytest.raises(InputError, match="column height: no such column"):
        covariate_matrix(table, ["height"], np.arange(3))
    with pytest.raises(InputError, match="no value among the training"):
        covariate_matrix(table, ["age"], np.arange(2))


def test_coding_survives_a_bundle() -> None:
    table = people(age=[10.0, np.nan, 30.0], site=["a", "b", "a"])
    coding = CovariateCoding.fit(table, ["site", "age"], np.arange(3))
    again = CovariateCoding.from_dict(coding.as_dict())
    new = people(age=[np.nan, 50.0], site=["b", "a"])
    assert again == coding
    assert again.matrix(new).tolist() == [[1, 0, 1], [0, 30, 0]]
    with pytest.raises(InputError, match="text where training had numbers"):
        again.matrix(people(age=["old"], site=["a"]))
