"""``run.json``: what `align` was told and did, so that later verbs speak of the same."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from encoders.errors import InputError, Problem
from multimodal.cohort.atomic import write_text

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


def update_metrics(output_dir: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Merge values into ``metrics.json``: key by key, within ``stages`` too."""
    file = output_dir / "metrics.json"
    metrics: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    stages = {**metrics.get("stages", {}), **values.get("stages", {})}
    metrics = {**metrics, **values, "stages": stages}
    write_json(file, metrics)
    return metrics
