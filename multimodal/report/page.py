"""Put a run on one HTML page that needs nothing but itself."""

import datetime
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

from encoders.atomic import write_text
from multimodal.evaluate.unmatched import without_matching
from multimodal.report.charts import bars
from multimodal.report.inputs import ReportInputs, read_inputs
from multimodal.report.provenance import random_seed, warnings
from multimodal.report.results import results
from multimodal.report.training import training_charts, training_gain
from multimodal.report.verdict import LEVEL, judge, listed, show_p, strata_in

FILE = "report.html"
_SETTINGS = ("dna", "brain", "genome", "bold", "align", "split", "evaluation", "covariates")
# A stage that finds its results ready takes milliseconds, and would be shown as 0.0 s.
_RESUMED_BELOW_S = 0.05
_COUNTS = {
    "participants": "participants",
    "families": "families with relatives",
    "in_families": "participants with relatives",
    "runs": "BOLD runs",
    "segments": "BOLD segments",
    "mean_fd_mm": "mean framewise displacement (mm)",
    "windows": "DNA windows",
    "distinct_sequences": "distinct sequences",
    "only_genome": "left out: genome only",
    "only_scan": "left out: scan only",
}


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run's folder.

    Parameters
    ----------
    run_dir : str or Path
        Folder with ``metrics.json``, ``run.json`` and ``history.csv``; a missing one is named on
        the page.

    Returns
    -------
    Path
        The page. It loads nothing from elsewhere and holds no participant identifiers.

    Raises
    ------
    InputError
        There is nothing to report, or a file cannot be read.
    """
    run_dir = Path(run_dir)
    page = run_dir / FILE
    write_text(page, render(read_inputs(run_dir)))
    return page


def render(inputs: ReportInputs) -> str:
    """Return the page as HTML."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    environment.filters["p"] = _p
    source = files("multimodal.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    metrics = _evaluation(inputs)
    strata = strata_in(metrics)
    return environment.from_string(source).render(
        verdict=judge(metrics),
        level=LEVEL,
        matching=_matching(strata),
        **results(metrics),
        warnings=warnings(inputs.metrics, inputs.record),
        cohort=_cohort(metrics.get("cohort") or {}),
        training=training_charts(inputs),
        gain=training_gain(inputs),
        record=inputs.record,
        encoders=_encoders(inputs.record),
        settings=_settings({**inputs.record, "evaluation": metrics["settings"]}),
        **_stages(metrics.get("stages") or {}),
        missing=inputs.missing,
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _evaluation(inputs: ReportInputs) -> dict[str, Any]:
    """Metrics with the settings they were made by, and nothing matched that was not.

    What `evaluate` did not record itself is as `align` was told.
    """
    settings = inputs.metrics.get("settings") or inputs.record.get("evaluation") or {}
    metrics = {**inputs.metrics, "settings": settings}
    return _known(without_matching(metrics) if strata_in(metrics) == [] else metrics)


def _matching(strata: list[str] | None) -> str:
    if strata == []:
        return "No covariates were matched: the strata of this evaluation are empty."
    same = f"the same {listed(strata)}" if strata else "one stratum"
    return (
        f"In the matched galleries only people of {same} compete, so these cannot make a pair "
        "look right."
    )


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is null: to the page it is the same as missing, at any depth."""
    return {
        key: _known(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def _cohort(cohort: Mapping[str, Any]) -> dict[str, Any]:
    counts = [(label, cohort[name]) for name, label in _COUNTS.items() if name in cohort]
    age = cohort.get("age_years") or {}
    if {"mean", "sd"} <= age.keys():
        counts.append(("age (years), mean and SD", f"{age['mean']:.1f} ± {age['sd']:.1f}"))
    groups = [
        (name, bars(cohort[name], f"Participants by {name}"))
        for name in ("split", "sex", "site", "ancestry")
        if cohort.get(name)
    ]
    return {"counts": counts, "groups": groups}


def _stages(seconds: Mapping[str, float]) -> dict[str, Any]:
    """The chart of the stages, and the seconds of those that had something to do."""
    if not seconds:
        return {}
    resumed = {name for name, value in seconds.items() if value < _RESUMED_BELOW_S}
    chart = bars(seconds, "Seconds per stage", unit=" s", instead=dict.fromkeys(resumed, "resumed"))
    took = sum(value for name, value in seconds.items() if name not in resumed)
    return {"stages": chart, "seconds": took, "resumed": bool(resumed)}


def _encoders(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for side, spec in (record.get("encoders") or {}).items():
        if not isinstance(spec, dict):
            continue
        weights = str(spec.get("weights_id") or "none")
        seed = random_seed(weights)
        rows.append(
            {
                "side": {"dna": "DNA", "brain": "brain"}.get(side, side),
                "name": spec.get("name", "?"),
                "weights": _without_folders(weights) if seed is None else f"random, seed {seed}",
                "random": seed is not None,
                "digest": str(spec.get("weights_sha256") or "")[:12],
                "parameters": spec.get("parameters"),
                "dim": spec.get("feature_dim"),
                "license": spec.get("weight_license") or "",
                "cohorts": ", ".join(spec.get("pretraining_cohorts") or []) or "none",
                "paper": spec.get("paper") or "",
            }
        )
    return rows


def _settings(record: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    sections = []
    for name in _SETTINGS:
        values = record.get(name)
        if values:
            leaves = list(_leaves(values)) if isinstance(values, dict) else [("", values)]
            sections.append((name, [(key, _without_folders(value)) for key, value in leaves]))
    return sections


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves


def _without_folders(value: Any) -> str:
    """A path's folders may name people or machines; its last part says enough."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_without_folders, value))
    text = str(value)
    absolute = PurePath(text).is_absolute() or text.startswith(("~", "file:"))
    return PurePath(text).name if absolute else text


def _number(value: Any) -> str:
    if _is_unknown(value):
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 2 and float(value).is_integer()):
        return f"{int(value):,}"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:,.1f}"


def _p(value: Any) -> str:
    return "–" if _is_unknown(value) else show_p(value)


def _is_unknown(value: Any) -> bool:
    from jinja2 import Undefined

    missing = value is None or isinstance(value, Undefined)
    return missing or (isinstance(value, float) and not math.isfinite(value))
