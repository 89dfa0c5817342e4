"""What a report is made from: the files of a run, each of which may be missing."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoders.errors import InputError, Problem


@dataclass(frozen=True)
class ReportInputs:
    """Everything the page shows.

    Parameters
    ----------
    metrics : dict
        ``metrics.json``: ``retrieval``, ``permutation``, ``null``, ``controls``, ``galleries`` as
        `multimodal.evaluate.summary.evaluate_latents` gives them, ``cohort`` (counts) and
        ``stages`` (seconds). Empty when there is none.
    record : dict
        ``run.json``: ``versions``, ``encoders`` (specs), ``identity`` and the settings. Empty when
        there is none.
    history : dict of str to list of float
        Columns of ``history.csv``, NaN where a cell is empty: ``epoch``, ``train_loss``,
        ``val_loss``, ``val_percentile``. Empty when there is none.
    missing : tuple of str
        Names of the files that are not there.
    """

    metrics: dict[str, Any]
    record: dict[str, Any]
    history: dict[str, list[float]]
    missing: tuple[str, ...] = ()


def read_inputs(run_dir: Path) -> ReportInputs:
    """Read what a run left behind.

    Parameters
    ----------
    run_dir : Path
        Folder with ``metrics.json``, ``run.json`` and ``history.csv``.

    Raises
    ------
    InputError
        None of the files is there, or one of them cannot be read.
    """
    files = {name: run_dir / name for name in ("metrics.json", "run.json", "history.csv")}
    missing = tuple(name for name, file in files.items() if not file.is_file())
    if len(missing) == len(files):
        raise InputError(
            Problem(
                "nothing-to-report",
                str(run_dir),
                "none of metrics.json, run.json and history.csv",
                "the output_dir of a finished `genebold align` or `genebold evaluate`",
                "set output_dir (or run_dir), or align first",
            )
        )
    return ReportInputs(
        _read_json(files["metrics.json"]),
        _read_json(files["run.json"]),
        _read_history(files["history.csv"]),
        missing,
    )


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            Problem(
                "bad-json", str(file), str(error), "JSON", "run the command that wrote it again"
            )
        ) from error
    if not isinstance(values, dict):
        raise InputError(
            Problem("bad-json", str(file), type(values).__name__, "a JSON object at the top")
        )
    return values


def _read_history(file: Path) -> dict[str, list[float]]:
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines)
        columns: dict[str, list[float]] = {name: [] for name in rows.fieldnames or []}
        for number, row in enumerate(rows, start=2):
            for name, values in columns.items():
                values.append(_number(row[name], f"{file} line {number}", name))
    return columns


def _number(cell: str | None, where: str, column: str) -> float:
    if cell is None or cell == "":
        return math.nan
    try:
        return float(cell)
    except ValueError as error:
        raise InputError(
            Problem("bad-history", where, f"{column} is '{cell}'", "a number or an empty cell")
        ) from error
