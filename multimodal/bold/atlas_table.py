"""The table that names an atlas' labels, gives their order and, where it has them, coordinates."""

from pathlib import Path

import numpy as np
import pandas as pd

from encoders.errors import InputError, Problem
from multimodal.cohort.tsv import TextTable, numbers, read_table

_COORDINATES = ("x", "y", "z")


def read_atlas_table(path: Path) -> pd.DataFrame:
    """Read the table of an atlas, one row a label.

    Parameters
    ----------
    path : Path
        Tab-separated with a header: ``index`` and any of ``name``, ``x``, ``y``, ``z`` (mm), or
        four columns of numbers without header (index, X, Y, Z), as published with A424.

    Returns
    -------
    DataFrame
        In file order: ``index`` int64, ``x``, ``y``, ``z`` float64, other columns text.

    Raises
    ------
    InputError
        ``atlas-table`` or a code that begins with it: unreadable or empty, rows of another width
        than the header, no ``index``, entries that are no numbers, labels that are no whole
        numbers above 0, or a label twice.
    """
    table, problems = read_table(path, code="atlas-table", unnamed=("index", *_COORDINATES))
    if table is None:
        raise InputError(problems)
    if "index" not in table.cells:
        found = f"columns {', '.join(table.columns)}"
        wanted = "tab-separated columns index and any of name, x, y, z"
        raise InputError(Problem("atlas-table", f"{path} line 1", found, wanted))
    rows = table.cells.copy()
    for name in ("index", *_COORDINATES):
        if name in rows:
            values = numbers(rows[name])
            problems += _number_problems(table, name, values)
            rows[name] = values
    if problems:
        raise InputError(problems)
    rows["index"] = rows["index"].astype(np.int64)
    twice = np.flatnonzero(rows["index"].duplicated())
    if len(twice):
        found = f"index {rows['index'].iloc[twice[0]]} twice"
        raise InputError(Problem("atlas-table", table.at(twice[0]), found, "each label once"))
    return rows


def _number_problems(table: TextTable, name: str, values: np.ndarray) -> list[Problem]:
    """Name the first entry of a column that cannot be."""
    is_label = name == "index"
    wrong = np.isnan(values)
    if is_label:
        wrong |= (values != np.round(values)) | (values < 1)
    bad = np.flatnonzero(wrong)
    if len(bad) == 0:
        return []
    found = f"{name} {table.cells[name].iloc[bad[0]]!r}"
    wanted = "a whole number above 0" if is_label else "a number"
    return [Problem("atlas-table", table.at(bad[0]), found, wanted)]
