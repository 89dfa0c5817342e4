"""``run.json``: what `align` was told and did, so that later verbs speak of the same."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from encoders.atomic import write_text
from encoders.errors import InputError, Problem
from multimodal.bold.bids import natural_key
from multimodal.cohort.table import CohortPaths
from multimodal.verbs.console import say
from multimodal.verbs.settings import cohort_paths, named_paths

FILE = "run.json"
_PACKAGES = ("genebold", "torch", "lightning", "numpy", "nilearn", "cyvcf2", "pysam")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape results."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def write_json(path: Path, values: Any) -> None:
    """Write JSON-ready values, whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_record(output_dir: Path) -> dict[str, Any]:
    """Return what `align` recorded in a run's folder.

    Raises
    ------
    InputError
        There is no finished alignment in it.
    """
    file = output_dir / FILE
    if not file.is_file():
        raise InputError(
            Problem(
                "no-alignment",
                str(output_dir),
                f"no {FILE} in it",
                "the output_dir of a finished `genebold align`",
                "align first, or set run_dir (or output_dir)",
            )
        )
    record: dict[str, Any] = json.loads(file.read_text())
    return record


def paths_of_run(config: DictConfig) -> CohortPaths:
    """Return the cohort's files: those of the settings, else those the run was aligned with before.

    A cohort that lies elsewhere is named once: where no folder was chosen and `run_dir` holds
    none, ``run.json`` says which it was. Files named one by one go over those it says.

    Parameters
    ----------
    config : DictConfig
        With ``run_dir`` and ``cohort``.

    Raises
    ------
    InputError
        There is no such folder, and nothing to remember.
    """
    run_dir = Path(config.run_dir)
    standard = run_dir / "cohort"
    if config.cohort.dir is None or Path(config.cohort.dir) != standard or standard.exists():
        return cohort_paths(config.cohort)
    file = _last_record(run_dir)
    if file is None:
        return cohort_paths(config.cohort)
    recorded = json.loads(file.read_text())["cohort"]
    say(f"{'cohort':<10} the one of {file}: {recorded['participants']}")
    return CohortPaths().with_paths(**recorded).with_paths(**named_paths(config.cohort))


def _last_record(run_dir: Path) -> Path | None:
    """Return the newest ``run.json``; an alignment not finished yet has set the last one aside."""
    aside = sorted(run_dir.glob("previous-*"), key=lambda folder: natural_key(folder.name))
    files = [folder / FILE for folder in (run_dir, *reversed(aside))]
    return next((file for file in files if file.is_file()), None)


def update_metrics(output_dir: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Merge values into ``metrics.json``: key by key, within ``stages`` too."""
    file = output_dir / "metrics.json"
    metrics: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    stages = {**metrics.get("stages", {}), **values.get("stages", {})}
    metrics = {**metrics, **values, "stages": stages}
    write_json(file, metrics)
    return metrics
