"""Small text tables read with the line number of every row, so that errors can point at it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from encoders.errors import Problem

MISSING = "n/a"
# A fault of the whole file, such as a tab behind every row, is not told once a row.
_MOST_NAMED = 5


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
    path: Path,
    *,
    code: str,
    whitespace: bool = False,
    columns: Callable[[str], bool] | None = None,
    unnamed: Sequence[str] = (),
) -> tuple[TextTable | None, list[Problem]]:
    """Read a table with a header line.

    Quotes around a field, as R and Excel write them, are taken off.

    Parameters
    ----------
    path : Path
    code : str
        First part of the codes of the problems found, e.g. ``"participants"``.
    whitespace : bool
        Fields are divided by any blanks rather than by tabs.
    columns : callable, optional
        Tells from its name whether to keep a column; all are kept by default.
    unnamed : sequence of str
        The columns' names where the first line holds as many numbers, and so is no header.

    Returns
    -------
    table : TextTable or None
        None where nothing could be read at all; rows of a wrong width are left out.
    problems : list of Problem
        ``-unreadable``, ``-empty``, ``-column`` (a repeated name) and ``-row-width``.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        wanted = "a tab-separated text table with a header line"
        return None, [Problem(f"{code}-unreadable", str(path), f"{error.strerror}", wanted)]
    except UnicodeDecodeError as error:
        found = f"byte {error.start} is not UTF-8"
        return None, [Problem(f"{code}-unreadable", str(path), found, "a text table in UTF-8")]
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    numbered = [(n, line.split() if whitespace else line.split("\t")) for n, line in lines]
    if not numbered:
        return None, [Problem(f"{code}-empty", str(path), "the file is empty", "a header line")]
    header_line, first = numbered[0]
    header = [_bare(name) for name in first]
    if len(header) == len(unnamed) and all(map(_is_number, header)):
        header = list(unnamed)
    else:
        numbered = numbered[1:]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        found = f"column {', '.join(name or '(no name)' for name in repeated)} appears more than "
        where = f"{path} line {header_line}"
        return None, [Problem(f"{code}-column", where, f"{found}once", "distinct column names")]
    whole = [(number, row) for number, row in numbered if len(row) == len(header)]
    uneven = [(number, len(row)) for number, row in numbered if len(row) != len(header)]
    kept = [i for i, name in enumerate(header) if columns is None or columns(name)]
    rows = [[_bare(row[i]) for i in kept] for _, row in whole]
    cells = pd.DataFrame(rows, columns=[header[i] for i in kept], index=range(len(rows)), dtype=str)
    at = np.array([number for number, _ in whole], dtype=np.int64)
    return TextTable(Path(path), cells, at), _width_problems(path, code, uneven, len(header))


def _width_problems(
    path: Path, code: str, uneven: Sequence[tuple[int, int]], width: int
) -> list[Problem]:
    """Name the first rows of a wrong width, and count the others."""
    problems = [
        Problem(
            f"{code}-row-width",
            f"{path} line {number}",
            f"{fields} fields",
            f"{width}, as the header has",
            "put n/a where a value is missing"
            if fields < width
            else "delete the surplus (a tab at the row's end begins one more field)",
        )
        for number, fields in uneven[:_MOST_NAMED]
    ]
    more = len(uneven) - len(problems)
    if more > 0:
        found = f"{more:,} more rows of another width than the header"
        problems.append(Problem(f"{code}-row-width", str(path), found, f"{width} fields each"))
    return problems


def _bare(field: str) -> str:
    field = field.strip()
    if len(field) > 1 and field[0] == field[-1] == '"':
        return field[1:-1].replace('""', '"').strip()
    return field


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def numbers(cells: pd.Series) -> np.ndarray:
    """Return a column as float64, NaN where a cell is missing or is no finite number."""
    values = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)
