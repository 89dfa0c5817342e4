"""Covariates as a design matrix, coded by the training participants."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from encoders.errors import InputError, Problem
from multimodal.cohort.tsv import MISSING


@dataclass(frozen=True)
class NumberCoding:
    """How a numeric covariate becomes columns: centred, with an indicator of missing values.

    Parameters
    ----------
    name : str
    mean : float
        Mean over the training participants that have a value; missing values become it.
    indicator : bool
        Whether a second column marks missing values: only where training had some.
    """

    name: str
    mean: float
    indicator: bool

    def names(self) -> list[str]:
        """Names of the columns made."""
        return [self.name, f"{self.name}=n/a"] if self.indicator else [self.name]

    def columns(self, participants: pd.DataFrame) -> np.ndarray:
        """Return the columns [n, 1 or 2]."""
        try:
            values = participants[self.name].to_numpy(dtype=np.float64)
        except (TypeError, ValueError):
            found = "text where training had numbers"
            raise InputError(_problem(self.name, found, "numbers or n/a")) from None
        missing = np.isnan(values)
        centred = np.where(missing, 0.0, values - self.mean)
        columns = [centred, missing.astype(np.float64)] if self.indicator else [centred]
        return np.stack(columns, axis=1)


@dataclass(frozen=True)
class LevelCoding:
    """How a categorical covariate becomes columns: one for each level but the first.

    Parameters
    ----------
    name : str
    levels : tuple of str
        Levels of the training participants, sorted; ``n/a`` is a level like another.
    """

    name: str
    levels: tuple[str, ...]

    def names(self) -> list[str]:
        """Names of the columns made."""
        return [f"{self.name}={level}" for level in self.levels[1:]]

    def columns(self, participants: pd.DataFrame) -> np.ndarray:
        """Return the columns [n, levels - 1]."""
        values = _as_levels(participants[self.name])
        unseen = ~values.isin(self.levels)
        if unseen.any():
            who = participants.index[unseen.to_numpy()]
            found = (
                f"{', '.join(sorted(set(values[unseen])))} ({len(who)} participants, e.g. {who[0]})"
            )
            raise InputError(
                Problem(
                    "covariate-unseen-level",
                    f"participants.tsv column {self.name}",
                    f"value {found} was not among the training participants",
                    f"one of {', '.join(self.levels)}",
                    f"leave these participants out, or train without the covariate {self.name}",
                )
            )
        codes = values.map({level: code for code, level in enumerate(self.levels)}).to_numpy()
        return (codes[:, None] == np.arange(1, len(self.levels))).astype(np.float64)


@dataclass(frozen=True)
class CovariateCoding:
    """How covariates become a design matrix, fitted on training participants.

    Parameters
    ----------
    parts : tuple of NumberCoding or LevelCoding
        One for each covariate, in the order asked for.
    """

    parts: tuple[NumberCoding | LevelCoding, ...]

    @classmethod
    def fit(
        cls, participants: pd.DataFrame, names: Sequence[str], train_rows: np.ndarray
    ) -> "CovariateCoding":
        """Learn means and levels.

        Parameters
        ----------
        participants : DataFrame
            As in `Cohort`; numeric columns are covariates as they are, text is categorical.
        names : sequence of str
            Columns, e.g. ``["age", "sex", "site", "PC1"]``.
        train_rows : ndarray of int or bool

        Raises
        ------
        InputError
            A name is no column, or has no value among the training participants.
        """
        absent = [name for name in names if name not in participants]
        if absent:
            raise InputError(_problem(name, "no such column", "a column") for name in absent)
        training = participants.iloc[np.arange(len(participants))[train_rows]]
        empty = [name for name in names if not training[name].notna().any()]
        if empty:
            found = "no value among the training participants"
            raise InputError(_problem(name, found, "some values") for name in empty)
        return cls(tuple(_fit_one(training[name]) for name in names))

    def names(self) -> list[str]:
        """Names of the c columns."""
        return [name for part in self.parts for name in part.names()]

    def matrix(self, participants: pd.DataFrame) -> np.ndarray:
        """Return the design matrix [n, c] float64, without an intercept.

        Raises
        ------
        InputError
            A column is missing, or has a level that training had not.
        """
        absent = [part.name for part in self.parts if part.name not in participants]
        if absent:
            raise InputError(_problem(name, "no such column", "a column") for name in absent)
        columns = [part.columns(participants) for part in self.parts]
        return np.hstack([np.empty((len(participants), 0)), *columns])

    def as_dict(self) -> list[dict[str, Any]]:
        """Return plain values, for a bundle."""
        return [asdict(part) for part in self.parts]

    @classmethod
    def from_dict(cls, values: Sequence[Mapping[str, Any]]) -> "CovariateCoding":
        """Return what `as_dict` was made from."""
        return cls(
            tuple(
                LevelCoding(value["name"], tuple(value["levels"]))
                if "levels" in value
                else NumberCoding(value["name"], value["mean"], value["indicator"])
                for value in values
            )
        )


def covariate_matrix(
    participants: pd.DataFrame, names: Sequence[str], train_rows: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Code covariates by the training participants and return them for all.

    Numbers are centred by the training mean, missing ones set to it, with an indicator column
    where training has missing values; text becomes one column for each level but the first.

    Parameters
    ----------
    participants : DataFrame
    names : sequence of str
    train_rows : ndarray of int or bool

    Returns
    -------
    matrix : ndarray [n, c] float64
    names : list of str
        Names of the c columns.

    Raises
    ------
    InputError
        A name is no column, or a level (a site, say) is not among the training participants.
    """
    coding = CovariateCoding.fit(participants, names, train_rows)
    return coding.matrix(participants), coding.names()


def _fit_one(column: pd.Series) -> NumberCoding | LevelCoding:
    name = str(column.name)
    if pd.api.types.is_numeric_dtype(column):
        return NumberCoding(name, float(column.mean()), bool(column.isna().any()))
    return LevelCoding(name, tuple(sorted(set(_as_levels(column)))))


def _as_levels(column: pd.Series) -> pd.Series:
    return column.astype(object).where(column.notna(), MISSING).map(str)


def _problem(name: str, found: str, wanted: str) -> Problem:
    where = f"participants.tsv column {name}"
    fix = "change the table or the list of covariates"
    return Problem("covariate-column", where, found, wanted, fix)
