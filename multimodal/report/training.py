"""The training of the bundle's towers: its curves, and what it added to where it began."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from multimodal.report.charts import line_chart
from multimodal.report.inputs import ReportInputs

_STARTS = {"cca": "CCA start", "random": "random start"}


def training_charts(inputs: ReportInputs) -> list[dict[str, str]]:
    """Return titles and charts of loss and validation percentile; empty without a history."""
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
    title = "Contrastive loss"
    charts = [{"title": title, "svg": line_chart(epochs, losses, title, **common)}]
    if "val_percentile" in history:
        ranks = {"validation": history["val_percentile"]}
        title = "Validation mean rank percentile"
        svg = line_chart(epochs, ranks, title, level=0.5, **common)
        charts.append({"title": title, "svg": svg})
    return [chart for chart in charts if chart["svg"]]


def training_gain(inputs: ReportInputs) -> str:
    """Return, in a sentence, what contrastive training added to the start of the towers.

    Empty where the validation percentile of the start or of the kept epoch is not known.
    """
    best = inputs.record.get("best_epoch")
    if best is None:
        return ""
    by_epoch = _by_epoch(inputs.history)
    before, after = by_epoch.get(0.0), by_epoch.get(float(best))
    if before is None or after is None:
        return ""
    start = _start(inputs.record)
    if best == 0:
        return (
            f"Contrastive training added nothing to the {start}: the kept epoch is the start "
            f"itself (validation percentile {before:.3f})."
        )
    gain = round(after, 3) - round(before, 3)
    changed = "added nothing to" if gain == 0 else "raised" if gain > 0 else "lowered"
    return (
        f"Contrastive training {changed} the validation percentile of the {start}: "
        f"{before:.3f} at the start, {after:.3f} at the kept epoch {best:g} ({gain:+.3f})."
    )


def _by_epoch(history: Mapping[str, Sequence[float]]) -> dict[float, float]:
    pairs = zip(history.get("epoch", ()), history.get("val_percentile", ()), strict=False)
    return {epoch: value for epoch, value in pairs if math.isfinite(value)}


def _start(record: Mapping[str, Any]) -> str:
    named = (record.get("align") or {}).get("start")
    return _STARTS.get(str(named), "start of the towers")
