"""Who takes part: the participants table, the kinship table and the files that belong to them."""

import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd

from encoders.errors import InputError, Problem
from multimodal.cohort.relatives import KINSHIP_COLUMNS, read_kinship
from multimodal.cohort.tsv import MISSING, TextTable, numbers, read_table

TEXT_COLUMNS = ("participant_id", "family_id", "genotype_id", "sex", "site", "ancestry")
"""Columns that stay text even where every value looks like a number (sex 1/2, site 11010)."""

# What other programs write where BIDS has n/a: R and pandas, Excel, SQL, Stata and SAS.
_MISSING_ELSEWHERE = ("na", "nan", "#n/a", "null", "none", ".")
# PLINK's family of those who have none.
_NO_FAMILY = "0"

STANDARD_NAMES = {
    "participants": ("participants.tsv",),
    "kinship": ("kinship.tsv", "kinship.kin0"),
    "genotypes": ("genotypes.vcf.gz", "genotypes.bcf"),
    "reference": ("reference.fa", "reference.fa.gz"),
    "regions": ("regions.bed",),
    "bold": ("derivatives",),
    "atlas": ("atlas.nii.gz", "atlas.nii"),
    "atlas_table": ("atlas.tsv",),
}
"""What a file is called in a cohort folder, by field of `CohortPaths`; the first that is there."""


@dataclass(frozen=True)
class CohortPaths:
    """Where a cohort's files lie; None for what it has not.

    Parameters
    ----------
    participants : Path or None
        BIDS ``participants.tsv``.
    kinship : Path or None
        ``kinship.tsv`` (id1, id2, kinship) or a KING ``.kin0`` file.
    genotypes : Path or None
        Indexed VCF or BCF.
    reference : Path or None
        Indexed FASTA.
    regions : Path or None
        BED6.
    bold : Path or None
        BIDS derivatives folder or a table of paths.
    atlas, atlas_table : Path or None
        Label image, and its table of index, name, x, y, z.
    """

    participants: Path | None = None
    kinship: Path | None = None
    genotypes: Path | None = None
    reference: Path | None = None
    regions: Path | None = None
    bold: Path | None = None
    atlas: Path | None = None
    atlas_table: Path | None = None

    @classmethod
    def from_dir(cls, folder: str | Path, **overrides: str | Path | None) -> "CohortPaths":
        """Find the standard names in a folder.

        Parameters
        ----------
        folder : path
            The cohort folder.
        **overrides : path or None
            Paths by field name that take the place of the standard name; None changes nothing.

        Raises
        ------
        InputError
            The folder does not exist.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(
                Problem(
                    "cohort-folder", str(folder), "no such folder", "a folder with participants.tsv"
                )
            )
        found = {
            field: next((folder / name for name in names if (folder / name).exists()), None)
            for field, names in STANDARD_NAMES.items()
        }
        return cls(**found).with_paths(**overrides)

    def with_paths(self, **overrides: str | Path | None) -> "CohortPaths":
        """Return the same paths with those given, by field name, in their place."""
        known = {field.name for field in fields(self)}
        unknown = sorted(set(overrides) - known)
        if unknown:
            raise TypeError(f"unknown cohort path {unknown[0]!r}; known are {sorted(known)}")
        given = {name: Path(path) for name, path in overrides.items() if path is not None}
        return replace(self, **given)


@dataclass(frozen=True)
class Cohort:
    """The participants, how they are related, and their files.

    Parameters
    ----------
    participants : DataFrame
        Index ``participant_id`` in file order. ``family_id`` and ``genotype_id`` are always there:
        a missing family (``n/a``, or PLINK's ``0``) is the participant's own id, with a tab behind
        it where a family has that name; a missing genotype is None. Numeric columns
        are float64 with NaN for ``n/a``; the others are text with None for ``n/a``.
    kinship : DataFrame
        Columns id1, id2 (participant ids) and kinship.
    paths : CohortPaths
    """

    participants: pd.DataFrame
    kinship: pd.DataFrame
    paths: CohortPaths

    @property
    def participant_ids(self) -> list[str]:
        """The participant ids in file order."""
        return [str(name) for name in self.participants.index]

    def take(self, participant_ids: Sequence[str]) -> "Cohort":
        """Return the cohort of some participants, in the order given.

        Kinship pairs that reach outside are left out: compute `components` before taking.
        """
        chosen = self.participants.loc[list(participant_ids)]
        inside = self.kinship["id1"].isin(chosen.index) & self.kinship["id2"].isin(chosen.index)
        return Cohort(chosen, self.kinship[inside].reset_index(drop=True), self.paths)


def read_cohort(paths: CohortPaths, *, required: Collection[str] = ()) -> Cohort:
    """Read the participants and kinship tables.

    Parameters
    ----------
    paths : CohortPaths
    required : collection of str
        Columns the table must have beside ``participant_id``.

    Raises
    ------
    InputError
        All the problems that `find_table_problems` finds.
    """
    problems = find_table_problems(paths, required=required)
    if problems:
        raise InputError(problems)
    assert paths.participants is not None
    table, _ = read_table(paths.participants, code="participants")
    assert table is not None
    participants = _typed(table)
    kinship = pd.DataFrame(columns=list(KINSHIP_COLUMNS)).astype({"kinship": float})
    if paths.kinship is not None:
        kinship, _ = read_kinship(paths.kinship, _genotype_ids(participants))
    return Cohort(participants, kinship, paths)


def find_table_problems(
    paths: CohortPaths,
    *,
    with_bold: Collection[str] | None = None,
    required: Collection[str] = (),
) -> list[Problem]:
    """List everything wrong with the participants and kinship tables.

    Parameters
    ----------
    paths : CohortPaths
    with_bold : collection of str, optional
        Participants that have a BOLD run. Given, a participant with neither a genotype nor a run
        is a problem; without it that is not looked at.
    required : collection of str
        Columns the table must have beside ``participant_id``.

    Returns
    -------
    list of Problem
        Empty when all is well.
    """
    if paths.participants is None:
        wanted = "a table of participants (participants.tsv)"
        return [Problem("participants-missing", "cohort.participants", "no file", wanted)]
    table, problems = read_table(paths.participants, code="participants")
    if table is None:
        return problems
    problems += _column_problems(table, required)
    if "participant_id" not in table.cells:
        return problems
    problems += _id_problems(table)
    problems += _number_problems(table)
    problems += _missing_word_problems(table)
    if with_bold is not None:
        problems += _modality_problems(table, with_bold)
    if paths.kinship is not None:
        _, found = read_kinship(paths.kinship, _genotype_ids(_typed(table)))
        problems += found
    return problems


def _typed(table: TextTable) -> pd.DataFrame:
    """Turn the text table into numbers and text, with families and genotype ids filled in."""
    columns: dict[str, pd.Series] = {}
    for name in table.columns:
        cells, missing = table.cells[name], table.missing(name)
        values = numbers(cells)
        numeric = name not in TEXT_COLUMNS and not np.isnan(values[~missing]).any()
        if _must_be_number(name) or (numeric and not missing.all()):
            columns[name] = pd.Series(values)
        else:
            columns[name] = cells.astype(object).mask(missing, None)
    ids = table.cells["participant_id"]
    families = columns.get("family_id", pd.Series([None] * len(ids), dtype=object))
    families = families.mask(families == _NO_FAMILY, None)
    # No cell of a table can hold a tab, so nobody's family has this name.
    own = ids.where(~ids.isin(families.dropna()), ids + "\t")
    columns["family_id"] = families.where(families.notna(), own)
    columns.setdefault("genotype_id", ids.astype(object))
    return pd.DataFrame(columns).set_index("participant_id")


def _genotype_ids(participants: pd.DataFrame) -> dict[str, str | None]:
    return {str(who): name for who, name in participants["genotype_id"].items()}


def _must_be_number(name: str) -> bool:
    return name == "age" or (name.startswith("PC") and name[2:].isdigit())


def _column_problems(table: TextTable, required: Collection[str]) -> Iterator[Problem]:
    for name in dict.fromkeys(["participant_id", *required]):
        if name not in table.cells:
            found = f"no column {name}; columns are {', '.join(table.columns)}"
            free = [column for column in table.columns if column not in required]
            near = [column for column in free if name.lower() in column.lower().split("_")]
            near = near or difflib.get_close_matches(name, free, n=1, cutoff=0.6)
            guess = f"is it {near[0]}? Else " if near else ""
            yield Problem(
                "participants-column", f"{table.path} line 1", found, f"a column {name}",
                f"{guess}add it, or take the name out of the settings that want it "
                "(covariates, evaluation.strata)",
            )  # fmt: skip
    if not len(table.cells):
        yield Problem("participants-empty", str(table.path), "no rows", "one row a participant")


def _id_problems(table: TextTable) -> Iterator[Problem]:
    absent = table.missing("participant_id")
    for row in np.flatnonzero(absent):
        yield Problem(
            "participants-empty-id", table.at(row), "no participant_id", "an id, e.g. sub-0001"
        )
    yield from _repeats(table, "participant_id", absent, "participants-duplicate")
    if "genotype_id" in table.cells:
        for row in np.flatnonzero(table.cells["genotype_id"] == ""):
            yield Problem(
                "participants-empty-id", table.at(row), "an empty genotype_id",
                "the sample's name in the VCF, or n/a for a participant without genotypes",
            )  # fmt: skip
        absent = table.missing("genotype_id")
        yield from _repeats(table, "genotype_id", absent, "participants-duplicate-genotype")


def _repeats(table: TextTable, column: str, absent: np.ndarray, code: str) -> Iterator[Problem]:
    """Name every repeated id once, with all the lines it stands on."""
    lines = pd.Series(table.lines).groupby(table.cells[column].mask(absent)).agg(list)
    for name, where in lines.items():
        if len(where) == 1:
            continue
        listed = " and ".join(str(line) for line in where)
        yield Problem(
            code, f"{table.path} lines {listed}", f"{column} {name} appears {len(where)} times",
            "one row each", "delete the repeated row or correct its id",
        )  # fmt: skip


def _number_problems(table: TextTable) -> Iterator[Problem]:
    for name in filter(_must_be_number, table.columns):
        values, missing = numbers(table.cells[name]), table.missing(name)
        for row in np.flatnonzero(np.isnan(values) & ~missing):
            found = f"{name} is {table.cells[name].iloc[row]!r}"
            yield Problem(
                "participants-not-a-number", table.at(row), found, "a number, or n/a if unknown"
            )


def _missing_word_problems(table: TextTable) -> Iterator[Problem]:
    """Name columns that another program's word for a missing value would make text of.

    A numeric covariate would become one indicator a value, and all without a family relatives.
    """
    for name in table.columns:
        if _must_be_number(name) or (name in TEXT_COLUMNS and name != "family_id"):
            continue
        cells = table.cells[name]
        words = cells.str.lower().isin(_MISSING_ELSEWHERE).to_numpy()
        others = cells[~words & ~table.missing(name)]
        numeric = len(others) > 0 and not np.isnan(numbers(others)).any()
        if words.any() and (numeric or name == "family_id"):
            first = int(np.flatnonzero(words)[0])
            more = int(words.sum()) - 1
            found = f"{name} is {cells.iloc[first]!r}" + (f", and {more} more so" if more else "")
            yield Problem(
                "participants-missing-word", table.at(first), found,
                f"{MISSING} where a value is missing",
                f"write {MISSING} (R: write.table(..., na = \"{MISSING}\"))",
            )  # fmt: skip


def _modality_problems(table: TextTable, with_bold: Collection[str]) -> Iterator[Problem]:
    if "genotype_id" not in table.cells:
        return
    neither = table.missing("genotype_id") & ~table.cells["participant_id"].isin(set(with_bold))
    for row in np.flatnonzero(neither):
        name = table.cells["participant_id"].iloc[row]
        yield Problem(
            "participants-no-modality", table.at(row),
            f"{name} has neither a genotype (genotype_id is {MISSING}) nor a BOLD run",
            "at least one of them", "add the data or delete the row",
        )  # fmt: skip
