"""Finds participants' BOLD runs: in a derivatives folder as fMRIPrep writes it, or a table."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from encoders.errors import InputError, Problem
from multimodal.bold.nifti import read_sidecar_tr_s, sidecar_path
from multimodal.cohort.tsv import TextTable, read_table

TABLE_COLUMNS = ("participant_id", "session", "run", "bold", "mask", "confounds", "tr_s")
_SUFFIX = re.compile(r"_desc-preproc_bold\.nii(\.gz)?$")
# These choose between versions of one recording; every other entity tells recordings apart.
_VERSION_ENTITIES = ("space", "res", "den", "cohort", "echo")
_MISSING = {"", "n/a", "nan", "na"}


@dataclass(frozen=True)
class BoldRun:
    """One recording and the files that belong to it.

    Parameters
    ----------
    participant_id : str
        As in participants.tsv.
    session : str
        BIDS session label, ``""`` where there is none.
    run : str
        Tells the recordings of a session apart: the BIDS run label, or all entities that do
        (``"dir-AP_run-1"``); ``""`` where there is one recording only.
    bold : Path
        4D image.
    mask : Path or None
        Brain mask on the same grid.
    confounds : Path or None
        fMRIPrep's confounds TSV.
    tr_s : float or None
        Repetition time of the sidecar or the table, in seconds.
    """

    participant_id: str
    session: str
    run: str
    bold: Path
    mask: Path | None
    confounds: Path | None
    tr_s: float | None


def find_runs(
    derivatives_or_table: str | Path,
    participant_ids: Iterable[str],
    *,
    space: str | None = None,
    task: str | None = None,
) -> list[BoldRun]:
    """Find all runs of the given participants.

    Parameters
    ----------
    derivatives_or_table : str or Path
        A folder with ``sub-*/[ses-*/]func/*_desc-preproc_bold.nii.gz`` (``sub-*`` may lie one
        folder deeper, as in ``derivatives/fmriprep``), or a tab-separated table
        with the columns ``participant_id`` and ``bold``, and any of ``session``, ``run``,
        ``mask``, ``confounds``, ``tr_s``. Relative paths start at the table's folder.
    participant_ids : iterable of str
        With or without ``sub-``. Those without any run are left out of the result.
    space, task : str, optional
        See `BoldOptions`; a table has neither.

    Returns
    -------
    list of BoldRun
        In the order of `participant_ids`, then by session and run, numbers as numbers
        (run 2 before run 10).

    Raises
    ------
    InputError
        No such folder or table, a table that cannot be read, or several files for one recording
        with nothing to choose by; all problems at once.
    """
    source = Path(derivatives_or_table)
    ids = list(dict.fromkeys(participant_ids))
    if source.is_dir():
        return _find_in_folder(_pipeline_folder(source), ids, space, task)
    if source.is_file():
        return _find_in_table(source, ids)
    raise InputError(_no_source(source))


def find_subjects(derivatives_or_table: str | Path) -> list[str]:
    """Return whoever has a folder of BOLD, or a row in a table of paths; see `find_runs`.

    Returns
    -------
    list of str
        As the folders or rows name them, folders sorted.

    Raises
    ------
    InputError
        As `find_runs`, but for files it has no need to look at.
    """
    source = Path(derivatives_or_table)
    if source.is_dir():
        folders = (path for path in _pipeline_folder(source).glob("sub-*") if path.is_dir())
        return sorted(path.name for path in folders)
    if source.is_file():
        table, _ = _read_table(source)
        return [str(who) for who in dict.fromkeys(table.cells["participant_id"]) if who]
    raise InputError(_no_source(source))


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key that reads digits as numbers: run-2 before run-10."""
    parts = re.findall(r"\d+|\D+", text)
    return [(0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts]


def parse_entities(name: str) -> dict[str, str]:
    """Entities of a BIDS file name, ``{"sub": "01", "task": "rest", ...}``, in their order."""
    stem = name.split(".", 1)[0]
    pairs = (part.partition("-") for part in stem.split("_"))
    return {key: value for key, dash, value in pairs if dash}


def _no_source(source: Path) -> Problem:
    wanted = "a BIDS derivatives folder, or a table of paths"
    return Problem("bold-missing", str(source), "no such file or folder", wanted)


def _pipeline_folder(root: Path) -> Path:
    """Return the folder with ``sub-*`` folders: this one, or the only one directly below."""
    if any(root.glob("sub-*")):
        return root
    below = sorted({path.parent for path in root.glob("*/sub-*") if path.is_dir()})
    if len(below) > 1:
        found = f"several pipelines' outputs: {', '.join(path.name for path in below)}"
        fix = f"set cohort.bold={below[0]}"
        raise InputError(Problem("bold-ambiguous", str(root), found, "one of them", fix))
    return below[0] if below else root


def _find_in_folder(
    root: Path, ids: Sequence[str], space: str | None, task: str | None
) -> list[BoldRun]:
    runs: list[BoldRun] = []
    problems: list[Problem] = []
    for participant_id in ids:
        folder = root / f"sub-{participant_id.removeprefix('sub-')}"
        files = _bold_files(folder)
        try:
            chosen = _choose(folder, files, space, task)
            found = [_describe(root, participant_id, path, entities) for path, entities in chosen]
        except InputError as error:
            problems += error.problems
            continue
        runs += sorted(found, key=lambda run: (natural_key(run.session), natural_key(run.run)))
    if problems:
        raise InputError(problems)
    return runs


def _bold_files(folder: Path) -> list[tuple[Path, dict[str, str]]]:
    paths = [*folder.glob("func/*_bold.nii*"), *folder.glob("ses-*/func/*_bold.nii*")]
    kept = sorted(path for path in paths if _SUFFIX.search(path.name))
    return [(path, parse_entities(path.name)) for path in kept]


def _choose(
    folder: Path, files: list[tuple[Path, dict[str, str]]], space: str | None, task: str | None
) -> list[tuple[Path, dict[str, str]]]:
    if not files:
        return []
    tasks = sorted({entities.get("task", "") for _, entities in files})
    if task is None and len(tasks) > 1:
        found = f"several tasks: {', '.join(tasks)}"
        raise InputError(
            Problem("bold-ambiguous", str(folder), found, "one task", f"set bold.task={tasks[0]}")
        )
    files = [(p, e) for p, e in files if task is None or e.get("task", "") == task]
    recordings: dict[tuple[tuple[str, str], ...], list[tuple[Path, dict[str, str]]]] = defaultdict(
        list
    )
    for path, entities in files:
        same = tuple((k, v) for k, v in entities.items() if k not in _VERSION_ENTITIES)
        recordings[same].append((path, entities))
    problems: list[Problem] = []
    chosen = []
    for versions in recordings.values():
        problem, one = _choose_version(versions, space)
        chosen += [one] if one is not None else []
        problems += [problem] if problem is not None else []
    if problems:
        raise InputError(problems)
    return chosen


def _choose_version(
    versions: list[tuple[Path, dict[str, str]]], space: str | None
) -> tuple[Problem | None, tuple[Path, dict[str, str]] | None]:
    first = versions[0][0]
    spaces = sorted({_space_label(entities) for _, entities in versions})
    if space is not None:
        wanted_space, _, wanted_res = space.partition(":")
        versions = [
            (p, e)
            for p, e in versions
            if e.get("space", "func") == wanted_space
            and (not wanted_res or f"res-{e.get('res')}" == wanted_res)
        ]
        if not versions:
            found = f"no image in space {space}; there is {', '.join(spaces)}"
            fix = f"set bold.space={spaces[0]}"
            wanted = "the space that bold.space names"
            return Problem("bold-space", str(first), found, wanted, fix), None
    # fMRIPrep's combination of all echoes carries no echo entity.
    combined = [(p, e) for p, e in versions if "echo" not in e]
    versions = combined or versions
    if len(versions) == 1:
        return None, versions[0]
    spaces = sorted({_space_label(entities) for _, entities in versions})
    if len(spaces) > 1:
        found, fix = f"several spaces: {', '.join(spaces)}", f"set bold.space={spaces[0]}"
    else:
        found = f"several files: {', '.join(path.name for path, _ in versions)}"
        fix = "keep one, or name the files in a table of paths"
    return Problem("bold-ambiguous", str(first), found, "one image a recording", fix), None


def _space_label(entities: dict[str, str]) -> str:
    label = entities.get("space", "func")
    return f"{label}:res-{entities['res']}" if "res" in entities else label


def _describe(root: Path, participant_id: str, bold: Path, entities: dict[str, str]) -> BoldRun:
    stem = _SUFFIX.sub("", bold.name)
    masks = [bold.with_name(f"{stem}_desc-brain_mask.nii{gz}") for gz in (".gz", "")]
    shared = re.sub(r"_(space|res|den|cohort|echo)-[^_]+", "", stem)
    tables = [
        bold.with_name(f"{shared}_desc-confounds_{kind}.tsv")
        for kind in ("timeseries", "regressors")  # the second until fMRIPrep 20.2
    ]
    telling = {
        key: value
        for key, value in entities.items()
        if key not in (*_VERSION_ENTITIES, "sub", "ses", "task", "desc")
    }
    run = "_".join(f"{key}-{value}" for key, value in telling.items())
    return BoldRun(
        participant_id=participant_id,
        session=entities.get("ses", ""),
        run=telling["run"] if list(telling) == ["run"] else run,
        bold=bold,
        mask=next((path for path in masks if path.is_file()), None),
        confounds=next((path for path in tables if path.is_file()), None),
        tr_s=_inherited_tr_s(root, bold, entities),
    )


def _inherited_tr_s(root: Path, bold: Path, entities: dict[str, str]) -> float | None:
    """Repetition time of the nearest sidecar (BIDS inheritance: own file, then folders above)."""
    candidates = [sidecar_path(bold)]
    folder = bold.parent
    while True:
        applies = [
            path
            for path in folder.glob("*_bold.json")
            if set(parse_entities(path.name).items()) <= set(entities.items())
        ]
        candidates += sorted(applies, key=lambda p: (-len(parse_entities(p.name)), p.name))
        if folder in (root, folder.parent):
            break
        folder = folder.parent
    for path in candidates:
        tr_s = read_sidecar_tr_s(path) if path.is_file() else None
        if tr_s is not None:
            return tr_s
    return None


def _find_in_table(path: Path, ids: Sequence[str]) -> list[BoldRun]:
    table, problems = _read_table(path)
    order = {participant_id.removeprefix("sub-"): i for i, participant_id in enumerate(ids)}
    runs: list[BoldRun] = []
    first: dict[tuple[str, str, str], int] = {}
    for number, cells in zip(table.lines, table.cells.to_dict("records"), strict=True):
        row = {str(name): str(text) for name, text in cells.items()}
        key = (row["participant_id"].removeprefix("sub-"), row["session"], row["run"])
        where = f"{path} line {number}"
        if key in first:
            found = f"{row['participant_id']} {row['session']} {row['run']}".strip()
            wanted = f"each run once; its first line is {first[key]}"
            fix = "give each run of a participant its own session or run label"
            problems.append(Problem("bold-table", where, f"{found} twice", wanted, fix))
            continue
        first[key] = int(number)
        tr_s, problem = _table_tr_s(row["tr_s"], where)
        problems += [problem] if problem is not None else []
        if not row["participant_id"]:
            problems.append(Problem("bold-table", where, "no participant_id", "whose run it is"))
        if not row["bold"]:
            problems.append(Problem("bold-table", where, "no bold", "the path of a 4D image"))
        if key[0] in order:
            runs.append(
                BoldRun(
                    participant_id=ids[order[key[0]]],
                    session=row["session"],
                    run=row["run"],
                    bold=path.parent / row["bold"],
                    mask=path.parent / row["mask"] if row["mask"] else None,
                    confounds=path.parent / row["confounds"] if row["confounds"] else None,
                    tr_s=tr_s,
                )
            )
    if problems:
        raise InputError(problems)
    return sorted(
        runs,
        key=lambda run: (
            order[run.participant_id.removeprefix("sub-")],
            natural_key(run.session),
            natural_key(run.run),
        ),
    )


def _read_table(path: Path) -> tuple[TextTable, list[Problem]]:
    """Read a table of paths; every column is there, with "" where a cell is missing."""
    table, problems = read_table(path, code="bold-table")
    if table is None:
        raise InputError(problems)
    absent = [name for name in ("participant_id", "bold") if name not in table.cells]
    if absent:
        found = f"columns {', '.join(table.columns)}"
        wanted = f"tab-separated columns {', '.join(TABLE_COLUMNS)} (the first and bold needed)"
        raise InputError(Problem("bold-table", f"{path} line 1", found, wanted))
    cells = table.cells.reindex(columns=list(TABLE_COLUMNS), fill_value="")
    cells = cells.map(lambda text: "" if text.lower() in _MISSING else text)
    return TextTable(path, cells, table.lines), problems


def _table_tr_s(text: str, where: str) -> tuple[float | None, Problem | None]:
    if not text:
        return None, None
    try:
        return float(text), None
    except ValueError:
        wanted = "a repetition time in seconds, or n/a"
        return None, Problem("bold-table", where, f"tr_s {text!r}", wanted)
