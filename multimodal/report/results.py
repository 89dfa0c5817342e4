"""What the evaluation found, as the page's cards, charts and tables show it."""

from typing import Any

from multimodal.report.charts import forest, null_histogram
from multimodal.report.verdict import listed, show_p

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
_RECALL = "recall@"


def results(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what the page's template says of an evaluation, by the names it uses.

    Parameters
    ----------
    metrics : dict
        ``metrics.json`` without nulls; whatever is missing is left out.
    """
    return {
        "cards": _cards(metrics),
        "method": _method(metrics),
        "nulls": _nulls(metrics),
        "forest": _forest(metrics),
        "tables": _tables(metrics),
        "controls": _controls(metrics),
        "galleries": _galleries(metrics),
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
    if found and not _cannot_miss("recall@10", metrics, "raw"):
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
        certain = [metric for metric in METRICS if _cannot_miss(metric, metrics, kind)]
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
            if metric not in certain
        ]
        tables.append(
            {
                "title": title,
                "ways": list(ways),
                "rows": rows,
                "level": first.get("interval_level", 0.95),
                "note": _left_out(certain),
            }
        )
    return tables


def _cannot_miss(metric: str, metrics: dict[str, Any], kind: str) -> bool:
    """Whether recall@k is 1 whatever the latents: no gallery has more than k candidates."""
    if not metric.startswith(_RECALL):
        return False
    largest = ((metrics.get("galleries") or {}).get(kind) or {}).get("largest")
    if largest:
        return int(metric.removeprefix(_RECALL)) >= int(largest)
    ways = ((metrics.get("retrieval") or {}).get(kind) or {}).values()
    return any((way.get("chance") or {}).get(metric, 0.0) >= 1.0 for way in ways)


def _left_out(certain: list[str]) -> str:
    if not certain:
        return ""
    verb = "is" if len(certain) == 1 else "are"
    least = min(int(metric.removeprefix(_RECALL)) for metric in certain)
    return f"{listed(certain)} {verb} left out: no gallery has more than {least} candidates."


def _galleries(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for kind, title in KINDS.items():
        found = (metrics.get("galleries") or {}).get(kind)
        if not found:
            continue
        sizes = "–"
        if found.get("count") == 0 or found.get("largest") == 0:
            sizes = f"none: {found.get('reason') or 'nobody could be tested'}"
        elif {"smallest", "largest"} <= found.keys():
            sizes = f"{found['smallest']:,} to {found['largest']:,}"
        rows.append({"name": title, "sizes": sizes, "found": found})
    return rows


def _controls(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    sides = {"genome": metrics, **(metrics.get("controls") or {})}
    for name, block in sides.items():
        for kind, title in KINDS.items():
            test = (block.get("permutation") or {}).get(kind)
            if test:
                rows.append({"name": CONTROLS.get(name, name), "kind": title, "test": test})
    return rows
