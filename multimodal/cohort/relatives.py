"""Kinship tables: ours (id1, id2, kinship) and KING's ``.kin0``."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from encoders.errors import Problem
from multimodal.cohort.tsv import TextTable, numbers, read_table

KINSHIP_COLUMNS = ("id1", "id2", "kinship")

_LARGEST = 0.5
"""Kinship of a person with themselves or an identical twin, without inbreeding."""

_SMALLEST = -1.0

_HEADER_NAMES = {"id1": "id1", "iid1": "id1", "id2": "id2", "iid2": "id2", "kinship": "kinship"}


def read_kinship(
    path: Path, genotype_ids: Mapping[str, str | None]
) -> tuple[pd.DataFrame, list[Problem]]:
    """Read pairs of relatives.

    ``kinship.tsv`` names participants (or their genotype ids). A KING table (``.kin0``, ``.kin``;
    plink2's too) names genotype ids, and may hold people outside the cohort, because KING runs over
    a whole genotype file: their pairs are left out, unless nobody in it is known.

    Parameters
    ----------
    path : Path
    genotype_ids : mapping of str to (str or None)
        Genotype id of every participant.

    Returns
    -------
    pairs : DataFrame
        Columns id1, id2 (participant ids), kinship; only rows without a problem.
    problems : list of Problem

    References
    ----------
    Manichaikul et al. (2010), Robust relationship inference in genome-wide association studies,
    Bioinformatics 26:2867, doi:10.1093/bioinformatics/btq559.
    """
    empty = pd.DataFrame({"id1": [], "id2": [], "kinship": np.empty(0)})
    king = path.suffix.lower() in (".kin0", ".kin")
    table, problems = read_table(path, code="kinship", whitespace=king)
    if table is None:
        return empty, problems
    names = table.cells.columns.str.lstrip("#").str.lower().map(lambda n: _HEADER_NAMES.get(n, n))
    table.cells.columns = names
    absent = [name for name in KINSHIP_COLUMNS if name not in names]
    if absent:
        found = f"no column {', '.join(absent)}"
        where = f"{path} line 1"
        problems.append(Problem("kinship-column", where, found, "columns id1, id2 and kinship"))
        return empty, problems
    participants = _names_of(genotype_ids, genotypes_first=king)
    id1 = table.cells["id1"].map(participants)
    id2 = table.cells["id2"].map(participants)
    known = (id1.notna() & id2.notna()).to_numpy()
    coefficient = numbers(table.cells["kinship"])
    in_range = (coefficient <= _LARGEST) & (king | (coefficient >= _SMALLEST))
    self_pair = known & (id1 == id2).to_numpy()
    if king:
        problems += _stranger_problems(table, bool((id1.notna() | id2.notna()).any()))
    else:
        problems += _unknown_problems(table, id1, id2)
    problems += _value_problems(table, in_range, self_pair)
    good = known & in_range & ~self_pair
    pairs = pd.DataFrame({"id1": id1, "id2": id2, "kinship": coefficient})
    return pairs[good].reset_index(drop=True), problems


def _names_of(genotype_ids: Mapping[str, str | None], *, genotypes_first: bool) -> dict[str, str]:
    """Map every name a person may go by to the participant id."""
    by_genotype = {name: who for who, name in genotype_ids.items() if name is not None}
    by_participant = {who: who for who in genotype_ids}
    if genotypes_first:
        return {**by_participant, **by_genotype}
    return {**by_genotype, **by_participant}


def _unknown_problems(table: TextTable, id1: pd.Series, id2: pd.Series) -> Iterator[Problem]:
    for column, ids in (("id1", id1), ("id2", id2)):
        for row in np.flatnonzero(ids.isna()):
            yield Problem(
                "kinship-unknown-id", table.at(row),
                f"{column} {table.cells[column].iloc[row]!r} is nobody in participants.tsv",
                "a participant_id or a genotype_id", "correct the id or delete the row",
            )  # fmt: skip


def _stranger_problems(table: TextTable, anyone_known: bool) -> Iterator[Problem]:
    if len(table.cells) and not anyone_known:
        example = table.cells["id1"].iloc[0]
        yield Problem(
            "kinship-unknown-id", str(table.path),
            f"none of its ids (the first is {example!r}) is a genotype_id of participants.tsv",
            "the KING table of this cohort", "check that both use the same kind of id",
        )  # fmt: skip


def _value_problems(
    table: TextTable, in_range: np.ndarray, self_pair: np.ndarray
) -> Iterator[Problem]:
    for row in np.flatnonzero(~in_range):
        yield Problem(
            "kinship-range", table.at(row), f"kinship is {table.cells['kinship'].iloc[row]!r}",
            f"a kinship coefficient, at most {_LARGEST} (0.25 for siblings)",
        )  # fmt: skip
    for row in np.flatnonzero(self_pair):
        yield Problem(
            "kinship-self", table.at(row), f"{table.cells['id1'].iloc[row]!r} with themselves",
            "two different participants", "delete the row",
        )  # fmt: skip
