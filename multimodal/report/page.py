"""Put a run on one HTML page that needs nothing but itself."""

import datetime
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

from multimodal.cohort.atomic import write_text
from multimodal.report.charts import bars, forest, line_chart, null_histogram
from multimodal.report.inputs import ReportInputs, read_inputs
from multimodal.report.verdict import LEVEL, judge, show_p

FILE = "report.html"
KINDS = {"raw": "all candidates", "matched": "matched candidates"}
DIRECTIONS = {"gene_to_brain": "gene → brain", "brain_to_gene": "brain → gene"}
CONTROLS = {
    "covariates_only": "covariates instead of the genome",
    "reference_genome": "everybody given the reference genome",
}
METRICS = {
    "recall@1": "recall@1",
    "recall@5": "recall@5",
    "recall@10": "recall@10",
    "mean_rank_percentile": "mean rank percentile",
    "median_rank": "median rank",
    "mrr": "MRR",
}
_SETTINGS = ("dna", "brain", "genome", "bold", "align", "split", "evaluation", "covariates")
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
    metrics = _known(inputs.metrics)
    return environment.from_string(source).render(
        verdict=judge(metrics),
        level=LEVEL,
        cards=_cards(metrics),
        method=_method(metrics),
        nulls=_nulls(metrics),
        forest=_forest(metrics),
        tables=_tables(metrics),
        controls=_controls(metrics),
        galleries=metrics.get("galleries") or {},
        kinds=KINDS,
        cohort=_cohort(metrics.get("cohort") or {}),
        training=_training(inputs),
        record=inputs.record,
        encoders=_encoders(inputs.record),
        settings=_settings(inputs.record),
        stages=bars(metrics["stages"], "Seconds per stage", unit=" s")
        if metrics.get("stages")
        else "",
        seconds=sum((metrics.get("stages") or {}).values()),
        missing=inputs.missing,
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is null: to the page it is the same as missing, at any depth."""
    return {
        key: _known(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def _cards(metrics: dict[str, Any]) -> list[dict[str, str]]:
    cards = []
    for kind, title in KINDS.items():
        test = (metrics.get("permutation") or {}).get(kind) or {}
        if test.get("p") is not None:
            notes = []
            if test.get("statistic") is not None:
                notes.append(f"mean rank percentile {test['statistic']:.3f}, chance 0.500")
            if test.get("n") is not None:
                notes.append(f"{test['n']:,} subjects")
            value = f"p = {show_p(test['p'])}"
            cards.append({"title": title, "value": value, "note": "; ".join(notes)})
    retrieval = (metrics.get("retrieval") or {}).get("raw") or {}
    found = [retrieval[way] for way in DIRECTIONS if "recall@10" in retrieval.get(way, {})]
    if found:
        mean = sum(part["recall@10"] for part in found) / len(found)
        chance = (found[0].get("chance") or {}).get("recall@10")
        cards.append(
            {
                "title": "recall@10, all candidates",
                "value": f"{100 * mean:.1f}%",
                "note": "" if chance is None else f"{100 * chance:.1f}% by chance",
            }
        )
    return cards


def _method(metrics: dict[str, Any]) -> str:
    if metrics.get("method") == "crossfit":
        folds = f"{metrics['folds']}-fold cross-fitting" if "folds" in metrics else "Cross-fitting"
        return (
            f"{folds}: everybody was tested once, by towers trained "
            "without them and their relatives. The null is widened for what the folds' towers "
            "share."
        )
    if metrics.get("method") == "heldout":
        return (
            "One held-out split: the tested subjects and their relatives took no part in training."
        )
    return ""


def _blocks(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The genome's results and the covariates-only control's, by title."""
    blocks = {"genome": metrics}
    control = (metrics.get("controls") or {}).get("covariates_only")
    if control:
        blocks["covariates only"] = control
    return blocks


def _nulls(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for name, block in _blocks(metrics).items():
        for kind, title in KINDS.items():
            test = (block.get("permutation") or {}).get(kind)
            null = (block.get("null") or {}).get(kind) or {}
            if not test:
                continue
            drawn = {"edges", "counts", "statistic"} <= null.keys()
            label = f"{name}, {title}"
            found.append(
                {
                    "name": name,
                    "title": title,
                    "p": test.get("p"),
                    "permutations": test.get("permutations"),
                    "reason": test.get("reason") or "",
                    "chart": null_histogram(null, label, test.get("p")) if drawn else "",
                }
            )
    return found


def _forest(metrics: dict[str, Any]) -> str:
    rows = []
    for name, block in _blocks(metrics).items():
        for kind in KINDS:
            for way, title in DIRECTIONS.items():
                found = ((block.get("retrieval") or {}).get(kind) or {}).get(way) or {}
                interval = (found.get("interval") or {}).get("mean_rank_percentile")
                value = found.get("mean_rank_percentile")
                if interval and value is not None:
                    label = f"{name}, {kind}, {title}"
                    rows.append((label, float(value), interval, name != "genome"))
    return forest(rows, "Mean rank percentiles with their intervals") if rows else ""


def _tables(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    tables = []
    for kind, title in KINDS.items():
        block = (metrics.get("retrieval") or {}).get(kind) or {}
        ways = {name: block[way] for way, name in DIRECTIONS.items() if block.get(way, {}).get("n")}
        if not ways:
            continue
        first = next(iter(ways.values()))
        rows = [
            {
                "name": name,
                "chance": (first.get("chance") or {}).get(metric),
                "cells": [
                    (part.get(metric), (part.get("interval") or {}).get(metric))
                    for part in ways.values()
                ],
            }
            for metric, name in METRICS.items()
        ]
        level = first.get("interval_level", 0.95)
        tables.append({"title": title, "ways": list(ways), "rows": rows, "level": level})
    return tables


def _controls(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    sides = {"genome": metrics, **(metrics.get("controls") or {})}
    for name, block in sides.items():
        for kind, title in KINDS.items():
            test = (block.get("permutation") or {}).get(kind)
            if test:
                rows.append({"name": CONTROLS.get(name, name), "kind": title, "test": test})
    return rows


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


def _training(inputs: ReportInputs) -> list[str]:
    history = inputs.history
    epochs = history.get("epoch")
    if not epochs:
        return []
    best = inputs.record.get("best_epoch")
    common: dict[str, Any] = {
        "x_label": "epoch",
        "mark": None if best is None else float(best),
        "mark_label": "kept",
    }
    losses = {
        label: history[name]
        for name, label in (("train_loss", "training"), ("val_loss", "validation"))
        if name in history
    }
    charts = [line_chart(epochs, losses, "Contrastive loss", **common)]
    if "val_percentile" in history:
        ranks = {"validation": history["val_percentile"]}
        title = "Mean rank percentile while training"
        charts.append(line_chart(epochs, ranks, title, level=0.5, **common))
    return [chart for chart in charts if chart]


def _encoders(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for side, spec in (record.get("encoders") or {}).items():
        if not isinstance(spec, dict):
            continue
        rows.append(
            {
                "side": {"dna": "DNA", "brain": "brain"}.get(side, side),
                "name": spec.get("name", "?"),
                "weights": _without_folders(spec.get("weights_id") or "none"),
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
