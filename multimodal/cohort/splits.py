"""Training, validation and test sets, and folds, that never divide a family."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from encoders.atomic import write_text
from encoders.errors import InputError, Problem
from multimodal.cohort.table import Cohort
from multimodal.cohort.tsv import TextTable, read_table

SPLITS = ("train", "validation", "test")


def make_split(
    cohort: Cohort,
    components: np.ndarray,
    strata: np.ndarray,
    fractions: Mapping[str, float] | Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> pd.Series:
    """Divide a cohort into training, validation and test sets by whole components.

    Parameters
    ----------
    cohort : Cohort
    components : ndarray [n] int
        As `multimodal.cohort.kinship.components` gives them.
    strata : ndarray [n] str
        As `multimodal.cohort.strata.strata_labels` gives them; balanced across the sets.
    fractions : mapping or sequence of float
        Shares of train, validation and test; they sum to 1, and a share may be 0.
    seed : int

    Returns
    -------
    Series
        Index participant_id, values ``"train"``, ``"validation"``, ``"test"``. Equal for equal
        people, whatever their order in the file.

    Raises
    ------
    InputError
        The fractions are no shares, or there are fewer components than sets.
    """
    if isinstance(fractions, Mapping):
        unknown = sorted(set(fractions) - set(SPLITS))
        shares = np.array([float(fractions.get(name, 0.0)) for name in SPLITS])
    else:
        unknown = [] if len(fractions) == len(SPLITS) else [f"{len(fractions)} numbers"]
        shares = np.array([float(share) for share in fractions])
    if unknown or (shares < 0).any() or not np.isclose(shares.sum(), 1):
        raise InputError(
            Problem(
                "split-fractions",
                "fractions",
                f"{fractions}",
                "shares of train, validation and test that are not negative and sum to 1",
            )
        )
    used = np.flatnonzero(shares)
    place = _allocate(components, strata, shares[used], seed, cohort.participant_ids)
    values = np.array(SPLITS, dtype=object)[used][place]
    return pd.Series(values, index=cohort.participants.index, name="split")


def make_folds(
    components: np.ndarray,
    strata: np.ndarray,
    folds: int = 5,
    seed: int = 0,
    *,
    participant_ids: Sequence[str] | None = None,
) -> np.ndarray:
    """Divide people into folds by whole components, each stratum spread evenly.

    Parameters
    ----------
    components : ndarray [n] int
    strata : ndarray [n] str
    folds : int
    seed : int
    participant_ids : sequence of str, optional
        Given, the folds do not depend on the order of the rows.

    Returns
    -------
    ndarray [n] int64
        Fold of each person, from 0.

    Raises
    ------
    InputError
        There are fewer components than folds, or fewer than two folds.
    """
    if folds < 2:
        raise InputError(Problem("folds", "folds", f"{folds}", "at least 2"))
    return _allocate(components, strata, np.full(folds, 1 / folds), seed, participant_ids)


def _allocate(
    components: np.ndarray,
    strata: np.ndarray,
    shares: np.ndarray,
    seed: int,
    participant_ids: Sequence[str] | None,
) -> np.ndarray:
    """Give every component a part, the largest first, each where it is most wanted.

    Wanted means: the sum of squared deviations from the shares grows least, taken over the people
    and the components of each stratum and over all of them, each relative to its total.
    """
    names = np.asarray(participant_ids) if participant_ids is not None else np.arange(len(strata))
    _, component = np.unique(components, return_inverse=True)
    order = _component_order(component, names, seed)
    if len(order) < len(shares):
        raise InputError(
            Problem(
                "split-too-small",
                "participants.tsv",
                f"{len(order)} unrelated groups of participants",
                f"at least {len(shares)}, one for each part",
            )
        )
    demand = _demand(component, strata, len(order))
    total = demand.sum(axis=0)
    deviation = -shares[:, None] * total
    part = np.empty(len(order), dtype=np.int64)
    for group in order:
        cost = ((2 * deviation + demand[group]) * (demand[group] / total)).sum(axis=1)
        # Rounded, so that ties fall to the first part and not to the last bit.
        part[group] = int(np.argmin(np.round(cost, 9)))
        deviation[part[group]] += demand[group]
    _fill_empty(part, order, len(shares))
    return part[component]


def _component_order(component: np.ndarray, names: np.ndarray, seed: int) -> np.ndarray:
    """Shuffle components by seed, then put the large ones first; the order of rows is nothing."""
    by_name = np.argsort(names, kind="stable")
    _, first = np.unique(component[by_name], return_index=True)
    canonical = np.argsort(first)
    shuffled = np.random.default_rng(seed).permutation(canonical)
    return shuffled[np.argsort(-np.bincount(component)[shuffled], kind="stable")]


def _demand(component: np.ndarray, strata: np.ndarray, count: int) -> np.ndarray:
    """Count per component: people and share of the component in each stratum, and both in all."""
    levels, stratum = np.unique(strata, return_inverse=True)
    people = np.zeros((count, len(levels)))
    np.add.at(people, (component, stratum), 1.0)
    size = people.sum(axis=1, keepdims=True)
    return np.hstack([people, people / size, size, np.ones_like(size)])


def _fill_empty(part: np.ndarray, order: np.ndarray, parts: int) -> None:
    """Give a part that got nothing the last component of the part that has most of them."""
    for empty in np.flatnonzero(np.bincount(part, minlength=parts) == 0):
        richest = int(np.argmax(np.bincount(part, minlength=parts)))
        part[order[part[order] == richest][-1]] = empty


def write_split(split: pd.Series, path: str | Path) -> None:
    """Write a split as TSV with the columns participant_id and split."""
    rows = "".join(f"{name}\t{value}\n" for name, value in split.items())
    write_text(Path(path), "participant_id\tsplit\n" + rows)


def read_split(path: str | Path, cohort: Cohort, components: np.ndarray) -> pd.Series:
    """Read a split and hold it against the cohort.

    Parameters
    ----------
    path : path
        TSV with the columns participant_id and split (train, validation or test).
    cohort : Cohort
    components : ndarray [n] int
        As `multimodal.cohort.kinship.components` gives them.

    Returns
    -------
    Series
        Index participant_id in the cohort's order.

    Raises
    ------
    InputError
        Unknown, missing or repeated ids, other values, or relatives in different sets.
    """
    table, problems = read_table(Path(path), code="split")
    if table is None:
        raise InputError(problems)
    absent = [name for name in ("participant_id", "split") if name not in table.cells]
    if absent:
        found, wanted = f"no column {', '.join(absent)}", "columns participant_id and split"
        raise InputError([*problems, Problem("split-column", f"{path} line 1", found, wanted)])
    problems += _split_row_problems(table, cohort)
    if problems:
        raise InputError(problems)
    split = table.cells.set_index("participant_id")["split"]
    split = split.reindex(cohort.participants.index)
    leaks = _leaks(split, cohort, components, str(path))
    if leaks:
        raise InputError(leaks)
    return split


def _split_row_problems(table: TextTable, cohort: Cohort) -> list[Problem]:
    ids, values = table.cells["participant_id"], table.cells["split"]
    problems = []
    for row in np.flatnonzero(~values.isin(SPLITS)):
        found, wanted = f"split is {values.iloc[row]!r}", f"one of {', '.join(SPLITS)}"
        problems.append(Problem("split-value", table.at(row), found, wanted))
    for row in np.flatnonzero(~ids.isin(cohort.participants.index)):
        found = f"{ids.iloc[row]!r} is nobody in the cohort"
        problems.append(Problem("split-unknown-id", table.at(row), found, "a participant_id"))
    for row in np.flatnonzero(ids.duplicated()):
        found = f"{ids.iloc[row]} was named before"
        problems.append(Problem("split-duplicate", table.at(row), found, "each participant once"))
    missing = cohort.participants.index.difference(pd.Index(ids), sort=False)
    if len(missing):
        found = f"{len(missing)} participants are not in it, {', '.join(missing[:5])}"
        found += " ..." if len(missing) > 5 else ""
        wanted = "every participant of the cohort"
        problems.append(Problem("split-missing-id", str(table.path), found, wanted))
    return problems


def _leaks(split: pd.Series, cohort: Cohort, components: np.ndarray, where: str) -> list[Problem]:
    """Name the families, or the groups of related people, that lie in more than one set."""
    sets = split.groupby(components).nunique()
    problems = []
    for label in sets.index[sets > 1]:
        inside = components == label
        people, values = split.index[inside], split[inside]
        families = cohort.participants["family_id"][inside].unique()
        named = f"family {families[0]}" if len(families) == 1 else (
            f"related families {', '.join(map(str, families[:5]))}"
        )  # fmt: skip
        listed = ", ".join(f"{who} in {value}" for who, value in zip(people, values, strict=True))
        problems.append(
            Problem(
                "split-leak",
                where,
                f"{named} is in more than one set ({listed})",
                "relatives in the same set",
                "move them together, or let the split be made",
            )
        )
    return problems
