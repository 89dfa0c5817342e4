"""fMRIPrep's confounds table: what is regressed out, which frames stay, how much the head moved."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from encoders.errors import InputError, Problem
from multimodal.bold.options import BoldOptions, Expansion
from multimodal.cohort.tsv import TextTable, numbers, read_table

HEAD_RADIUS_MM = 50.0
TRANSLATIONS = ("trans_x", "trans_y", "trans_z")
ROTATIONS = ("rot_x", "rot_y", "rot_z")
_SUFFIXES: dict[Expansion, tuple[str, ...]] = {
    "none": (),
    "basic": ("",),
    "power2": ("", "_power2"),
    "derivatives": ("", "_derivative1"),
    "full": ("", "_derivative1", "_power2", "_derivative1_power2"),
}
# What the first frame may hold, where a difference has no value: BIDS' n/a, and what R, pandas
# and Excel make of it.
_MISSING = ("", "n/a", "na", "nan")
_USED = re.compile(
    r"((trans|rot)_[xyz]|csf|white_matter|global_signal)(_derivative1)?(_power2)?"
    r"|framewise_displacement|std_dvars|cosine\d+|a_comp_cor_\d+|non_steady_state_outlier.*"
)


@dataclass(frozen=True)
class Confounds:
    """What the cleaning of one run needs.

    Parameters
    ----------
    regressors : ndarray [T, C] float64
        Nuisance time series, C possibly 0.
    names : list of str
        Of the regressors.
    keep : ndarray [T] bool
        False on censored frames.
    fd_mm : ndarray [T] float64
        Framewise displacement in mm; NaN where unknown (always on the first frame).
    dropped : dict of str to int
        Frames censored, by reason, each counted under its first reason.
    """

    regressors: Float64[np.ndarray, "frame confound"]
    names: list[str]
    keep: Bool[np.ndarray, " frame"]
    fd_mm: Float64[np.ndarray, " frame"]
    dropped: dict[str, int]


def read_confounds(path: Path | None, frames: int, options: BoldOptions, where: str) -> Confounds:
    """Read a run's confounds as the options want them.

    Parameters
    ----------
    path : Path or None
        fMRIPrep's ``*_desc-confounds_timeseries.tsv``.
    frames : int
        T, frames of the scan.
    options : BoldOptions
    where : str
        Name of the scan, for messages when there is no file.

    Raises
    ------
    InputError
        File or columns missing, another number of rows than frames, entries that are no numbers.
    """
    if path is None or not path.is_file():
        if options.needs_confounds or path is not None:
            found = "no confounds file" if path is None else f"no such file: {path}"
            wanted = "a confounds table as fMRIPrep writes it (*_desc-confounds_timeseries.tsv)"
            fix = "give it, or set bold.motion=none, bold.wm_csf=none and "
            fix += "bold.fd_threshold_mm=null"
            raise InputError(Problem("confounds-missing", where, found, wanted, fix))
        table = TextTable(Path(where), pd.DataFrame(index=range(frames)), np.arange(frames))
    else:
        table = _read_table(path, frames)
    where = where if path is None else str(path)
    fd_mm, problems = _displacement(table, options, where)
    names, missing = _regressor_names(list(table.columns), path, options)
    problems += [_missing_column(where, name) for name in missing]
    regressors, bad = _regressors(table, names)
    problems += bad
    keep, dropped, bad = _censor(table, fd_mm, options, where)
    problems += bad
    if problems:
        raise InputError(problems)
    return Confounds(regressors, names, keep, fd_mm, dropped)


def framewise_displacement(
    motion: Float64[np.ndarray, "frame 6"], radius_mm: float = HEAD_RADIUS_MM
) -> Float64[np.ndarray, " frame"]:
    """Power's framewise displacement: summed absolute change of the six motion parameters.

    Rotations count as arcs on a sphere. J. D. Power et al., NeuroImage 59 (2012) 2142.

    Parameters
    ----------
    motion : ndarray [T, 6]
        Translations x, y, z in mm, rotations x, y, z in radians.
    radius_mm : float
        Radius of the sphere in mm.

    Returns
    -------
    ndarray [T] float64
        In mm; NaN on the first frame, which has nothing before it.
    """
    change = np.abs(np.diff(motion, axis=0))
    moved = change[:, :3].sum(axis=1) + radius_mm * change[:, 3:].sum(axis=1)
    return np.concatenate([[np.nan], moved])


def _read_table(path: Path, frames: int) -> TextTable:
    table, problems = read_table(
        path, code="confounds", columns=lambda name: _USED.fullmatch(name) is not None
    )
    if table is None or problems:
        raise InputError(problems)
    if len(table.lines) != frames:
        found = f"{len(table.lines)} rows"
        wanted = f"one row a frame: the scan has {frames} frames"
        raise InputError(Problem("confounds-length", str(path), found, wanted))
    return table


def _displacement(
    table: TextTable, options: BoldOptions, where: str
) -> tuple[np.ndarray, list[Problem]]:
    """Displacement of the column, else from the motion parameters, else unknown."""
    needed = options.fd_threshold_mm is not None
    motion = [*TRANSLATIONS, *ROTATIONS]
    if "framewise_displacement" in table.cells:
        fd, problems = _numbers(table, "framewise_displacement")
        fd[0] = np.nan
        return fd, problems
    absent = [name for name in motion if name not in table.cells]
    if absent:
        unknown = np.full(len(table.lines), np.nan)
        name = "framewise_displacement"
        return unknown, [_missing_column(where, name)] if needed else []
    columns, found = zip(*(_numbers(table, name) for name in motion), strict=True)
    problems = [problem for some in found for problem in some] if needed else []
    return framewise_displacement(np.stack(columns, axis=1)), problems


def _regressor_names(
    columns: list[str], path: Path | None, options: BoldOptions
) -> tuple[list[str], list[str]]:
    """Columns wanted, in a fixed order, and those of them that cannot be had."""
    groups: list[tuple[tuple[str, ...], Expansion]] = [
        ((*TRANSLATIONS, *ROTATIONS), options.motion),
        (("csf", "white_matter"), options.wm_csf),
        (("global_signal",), options.global_signal),
    ]
    names = [base + end for bases, how in groups for base in bases for end in _SUFFIXES[how]]
    missing = sorted({_base(name) for name in names if _base(name) not in columns})
    if options.compcor:
        components = _combined_compcor(columns, path)[: options.compcor]
        names += components
        missing += [f"a_comp_cor_{i:02d}" for i in range(len(components), options.compcor)]
    if options.filter == "confound_cosines":
        cosines = sorted(name for name in columns if re.fullmatch(r"cosine\d+", name))
        names += cosines
        missing += [] if cosines else ["cosine00"]
    return names, missing


def _base(name: str) -> str:
    return re.sub(r"(_derivative1)?(_power2)?$", "", name)


def _combined_compcor(columns: list[str], path: Path | None) -> list[str]:
    """Components of the combined white-matter and CSF mask, those of most variance first.

    fMRIPrep numbers the components of all anatomical masks on; its JSON tells them apart.
    """
    names = sorted(name for name in columns if re.fullmatch(r"a_comp_cor_\d+", name))
    described = path.with_suffix(".json") if path is not None else None
    if described is None or not described.is_file():
        return names
    try:
        fields = json.loads(described.read_text(encoding="utf-8"))
        return [n for n in names if fields.get(n, {}).get("Mask", "combined") == "combined"]
    except (ValueError, AttributeError) as error:
        found = f"cannot be read ({error})"
        raise InputError(
            Problem("confounds-unreadable", str(described), found, "a JSON object")
        ) from error


def _regressors(table: TextTable, names: list[str]) -> tuple[np.ndarray, list[Problem]]:
    columns: list[np.ndarray] = []
    problems: list[Problem] = []
    for name in names:
        stored = name if name in table.cells else _base(name)
        if stored not in table.cells:
            continue
        values, bad = _numbers(table, stored)
        problems += [problem for problem in bad if problem not in problems]
        columns.append(values if stored == name else _expanded(values, name))
    if not columns:
        return np.zeros((len(table.lines), 0)), problems
    # Differences have no first value; nilearn's load_confounds takes the second one there too.
    filled = np.stack(columns, axis=1)
    filled[0] = np.where(np.isnan(filled[0]), filled[min(1, len(filled) - 1)], filled[0])
    return np.nan_to_num(filled), problems


def _expanded(values: np.ndarray, name: str) -> np.ndarray:
    """Backward difference, square, or square of the difference, as fMRIPrep defines them."""
    if "_derivative1" in name:
        values = np.concatenate([[np.nan], np.diff(values)])
    return values**2 if name.endswith("_power2") else values


def _numbers(table: TextTable, name: str) -> tuple[np.ndarray, list[Problem]]:
    """Read a column as float64; only its first entry may be missing, and comes out as NaN."""
    cells = table.cells[name]
    values = numbers(cells)
    wrong = np.isnan(values)
    wrong[:1] &= ~cells[:1].str.lower().isin(_MISSING).to_numpy()
    bad = np.flatnonzero(wrong)
    if len(bad) == 0:
        return values, []
    found = f"{name} is {cells.iloc[bad[0]] or 'empty'} ({len(bad)} such entries)"
    wanted = "a number on every frame"
    return values, [Problem("confounds-not-finite", table.at(bad[0]), found, wanted)]


def _censor(
    table: TextTable, fd_mm: np.ndarray, options: BoldOptions, where: str
) -> tuple[np.ndarray, dict[str, int], list[Problem]]:
    frames = len(table.lines)
    problems: list[Problem] = []
    reasons = {"skipped at the start": np.arange(frames) < options.skip_frames}
    if options.drop_non_steady:
        flags = [n for n in table.columns if n.startswith("non_steady_state_outlier")]
        read = [_numbers(table, name) for name in flags]
        problems += [problem for _, bad in read for problem in bad]
        reasons["not in steady state"] = np.any(
            [np.zeros(frames, dtype=bool), *(values == 1 for values, _ in read)], axis=0
        )
    if options.fd_threshold_mm is not None:
        moved = np.nan_to_num(fd_mm) > options.fd_threshold_mm
        reasons[f"moved over {options.fd_threshold_mm:g} mm"] = moved
    if options.std_dvars_threshold is not None:
        if "std_dvars" not in table.cells:
            problems.append(_missing_column(where, "std_dvars"))
        else:
            jumped, bad = _numbers(table, "std_dvars")
            problems += bad
            above = np.nan_to_num(jumped) > options.std_dvars_threshold
            reasons["over the DVARS threshold"] = above
    keep = np.ones(frames, dtype=bool)
    dropped = {}
    for reason, flagged in reasons.items():
        dropped[reason] = int((keep & flagged).sum())
        keep &= ~flagged
    isolated = keep & ~_in_long_stretch(keep, options.min_stretch_frames)
    dropped["between censored frames"] = int(isolated.sum())
    return keep & ~isolated, {reason: n for reason, n in dropped.items() if n}, problems


def _in_long_stretch(keep: np.ndarray, shortest: int) -> np.ndarray:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]]).astype(np.int8)))
    long = np.zeros(len(keep), dtype=bool)
    for start, stop in edges.reshape(-1, 2):
        long[start:stop] = stop - start >= shortest
    return long


def _missing_column(where: str, name: str) -> Problem:
    wanted = "the columns that bold.motion, wm_csf, global_signal, compcor, filter and the "
    wanted += "censoring thresholds ask for"
    return Problem("confounds-missing-column", where, f"no column {name}", wanted)
