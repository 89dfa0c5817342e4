"""What kind of scans the towers saw, and whether new ones are of it: repetition time and space."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from encoders.errors import InputError, Problem
from multimodal.bold.bids import BoldRun, parse_entities
from multimodal.bold.nifti import differ, open_scan, repetition_time_s

CheckRun = Callable[[BoldRun], tuple[Problem, ...]]


def describe_scans(runs: Iterable[BoldRun]) -> dict[str, Any]:
    """Return what a bundle says of the scans it was trained on; no ids, no file names.

    Parameters
    ----------
    runs : iterable of BoldRun
        As `multimodal.bold.bids.find_runs` gives them.

    Returns
    -------
    dict
        ``tr_s``: the repetition times in seconds, those within 1% of one another once.
        ``spaces``: the standard spaces that file names tell, with the resolution.
    """
    times: list[float] = []
    spaces: set[str] = set()
    for run in runs:
        tr_s = run_tr_s(run)
        if not any(not differ(tr_s, known) for known in times):
            times.append(tr_s)
        spaces.add(run_space(run))
    return {"tr_s": sorted(times), "spaces": sorted(spaces - {""})}


def run_tr_s(run: BoldRun) -> float:
    """Return the repetition time in seconds, of sidecar, table or header.

    Raises
    ------
    InputError
        Nothing says it, or the header cannot be read.
    """
    return run.tr_s if run.tr_s is not None else repetition_time_s(open_scan(run.bold), None)


def run_space(run: BoldRun) -> str:
    """Return the space and resolution a file's name tells, as ``bold.space`` writes them, or ""."""
    entities = parse_entities(run.bold.name)
    if "space" not in entities:
        return ""
    resolution = f":res-{entities['res']}" if "res" in entities else ""
    return entities["space"] + resolution


def scan_check(wanted: Mapping[str, Any] | None, spec: Mapping[str, Any]) -> CheckRun:
    """Return a function that says how a run differs from what a bundle was trained on.

    Parameters
    ----------
    wanted : mapping or None
        As `describe_scans` gives it; None where the bundle does not say.
    spec : mapping
        The brain encoder's, from the bundle. One with a repetition time of its own has every scan
        brought to it, or refused, when it is prepared: then any will do here.
    """
    times = [float(tr_s) for tr_s in (wanted or {}).get("tr_s", ())]
    spaces = [str(space) for space in (wanted or {}).get("spaces", ())]
    if (spec.get("input") or {}).get("tr_s") is not None:
        times = []

    def check(run: BoldRun) -> tuple[Problem, ...]:
        problems = []
        space = run_space(run)
        if spaces and space and space not in spaces:
            problems.append(
                Problem(
                    "other-space", str(run.bold), f"in space {space}",
                    f"the bundle's: {' or '.join(spaces)}",
                    "give images in that space (fMRIPrep: --output-spaces)",
                )
            )  # fmt: skip
        if times:
            try:
                tr_s = run_tr_s(run)
            except InputError as error:
                return (*problems, *error.problems)
            if all(differ(tr_s, known) for known in times):
                problems.append(
                    Problem(
                        "other-tr", str(run.bold), f"repetition time {tr_s:g} s",
                        f"the bundle's: {' or '.join(f'{known:g}' for known in times)} s",
                        "embed scans of the same protocol, or align on such scans too",
                    )
                )  # fmt: skip
        return tuple(problems)

    return check
