"""What the verbs print: plain aligned tables and one line a stage."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Return an aligned text table; columns of numbers are set flush right.

    Parameters
    ----------
    rows : sequence of rows
        Cells are shown as `str`; floats with three decimals.
    header : sequence of str
    """
    cells = [[_show(cell) for cell in row] for row in rows]
    columns = list(zip(header, *cells, strict=True)) if cells else [(name,) for name in header]
    widths = [max(map(len, column)) for column in columns]
    right = [
        bool(rows) and all(_is_number(row[place]) for row in rows) for place in range(len(header))
    ]

    def line(values: Sequence[str]) -> str:
        shown = [
            value.rjust(width) if flush else value.ljust(width)
            for value, width, flush in zip(values, widths, right, strict=True)
        ]
        return "  ".join(shown).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(list(header)), rule, *(line(row) for row in cells)])


def _show(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _is_number(cell: object) -> bool:
    return cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))


def say(text: str = "") -> None:
    """Print one line at once, also when the output goes to a file."""
    print(text, flush=True)


def warn(text: str) -> None:
    """Print a warning to the error stream."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


class Stages:
    """Seconds of each named stage, said as they begin.

    Attributes
    ----------
    seconds : dict of str to float
        Wall-clock seconds a finished stage took.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Say what begins, and note how long it took."""
        say(f"{name:<10} {what}")
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)
