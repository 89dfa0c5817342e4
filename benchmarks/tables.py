"""How the speed tables look: one head, aligned columns, verdicts, a dated file."""

import datetime
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from machine import describe_commit, describe_machine, describe_matrix_rates

RESULTS = Path(__file__).parent / "results"


def heading(title: str, notes: Sequence[str]) -> list[str]:
    """Return a table's head: what was run where, and how fast the machine multiplies matrices.

    Parameters
    ----------
    title : str
    notes : sequence of str
        Lines on what was measured and how.
    """
    import torch

    command = f"python benchmarks/{Path(sys.argv[0]).name}"
    command = " ".join([command, *map(shlex.quote, sys.argv[1:])])
    return [
        f"# {title}, {datetime.date.today().isoformat()}",
        "",
        f"`{command}` at {describe_commit()}, {describe_machine()},",
        f"torch {torch.__version__}; {describe_matrix_rates()}.",
        *notes,
        "",
    ]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table's lines, an empty one after them."""
    lines = [" | ".join(cells) for cells in (header, ["---"] * len(header), *rows)]
    return [*(f"| {line} |" for line in lines), ""]


def at_least(found: float, bound: float) -> str:
    """Say how many times faster, and whether that is as fast as asked for."""
    return f"{found:.1f} times (at least {bound:g}: {'met' if found >= bound else 'not met'})"


def at_most(found: float, bound: float, unit: str) -> str:
    """Say a cost with its unit, and whether it is within the bound."""
    return f"{found:,.2f} {unit} (at most {bound:g}: {'met' if found <= bound else 'not met'})"


def publish(name: str, lines: Iterable[str], *, write: bool) -> None:
    """Print a table and, if it is to last, write it to a dated file in results.

    Parameters
    ----------
    name : str
        Of the file, before the date.
    lines : iterable of str
    write : bool
        Whether to write; short runs are printed only.
    """
    text = "\n".join(lines)
    print(text)
    if write:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}-{datetime.date.today().isoformat()}.md"
        path.write_text(text, encoding="utf-8")
