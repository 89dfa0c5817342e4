"""Small text tables read with the line number of every row, so that errors can point at it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from encoders.errors import Problem

MISSING = "n/a"


@dataclass(frozen=True)
class TextTable:
    """A table of strings and where each row stood in its file.

    Parameters
    ----------
    path : Path
    cells : DataFrame
        Stripped strings, one row a record, columns in file order.
    lines : ndarray [rows] int64
        1-based line of each row, as an editor shows it.
    """

    path: Path
    cells: pd.DataFrame
    lines: np.ndarray

    @property
    def columns(self) -> list[str]:
        """The column names in file order."""
        return [str(name) for name in self.cells.columns]

    def at(self, row: int | np.integer) -> str:
        """Return "file line N" for a row."""
        return f"{self.path} line {self.lines[row]}"

    def missing(self, column: str) -> np.ndarray:
        """Return which cells of a column are empty or the BIDS ``n/a``."""
        return self.cells[column].str.lower().isin(["", MISSING]).to_numpy()


def read_table(
    path: Path, *, code: str, whitespace: bool = False
) -> tuple[TextTable | None, list[Problem]]:
    """Read a table with a header line.

    Parameters
    ----------
    path : Path
    code : str
        First part of the codes of the problems found, e.g. ``"participants"``.
    whitespace : bool
        Fields are divided by any blanks rather than by tabs.

    Returns
    -------
    table : TextTable or None
        None where nothing could be read at all; rows of a wrong width are left out.
    problems : list of Problem
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        wanted = "a tab-separated text table with a header line"
        return None, [Problem(f"{code}-unreadable", str(path), f"{error.strerror}", wanted)]
    except UnicodeDecodeError as error:
        found = f"byte {error.start} is not UTF-8"
        return None, [Problem(f"{code}-unreadable", str(path), found, "a text table in UTF-8")]
    split = str.split if whitespace else _split_tabs
    numbered = [
        (number, split(line))
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not numbered:
        return None, [Problem(f"{code}-empty", str(path), "the file is empty", "a header line")]
    header_line, header = numbered[0]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        found = f"column {', '.join(repeated)} appears more than once"
        where = f"{path} line {header_line}"
        return None, [Problem(f"{code}-column", where, found, "distinct column names")]
    whole = [(number, row) for number, row in numbered[1:] if len(row) == len(header)]
    problems = [
        Problem(
            f"{code}-row-width",
            f"{path} line {number}",
            f"{len(row)} fields",
            f"{len(header)}, as the header has",
            "put n/a where a value is missing",
        )
        for number, row in numbered[1:]
        if len(row) != len(header)
    ]
    cells = pd.DataFrame([row for _, row in whole], columns=header, dtype=object)
    lines = np.array([number for number, _ in whole], dtype=np.int64)
    return TextTable(Path(path), cells.astype(str), lines), problems


def _split_tabs(line: str) -> list[str]:
    return [cell.strip() for cell in line.rstrip("\r").split("\t")]


def numbers(cells: pd.Series) -> np.ndarray:
    """Return a column as float64, NaN where a cell is missing or is no finite number."""
    values = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)
