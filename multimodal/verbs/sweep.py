"""The comparison table at the end of ``--multirun``."""

import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from multimodal.bold.bids import natural_key
from multimodal.verbs.console import say, table

_FOLDERS = ("run_dir=", "output_dir=", "cohort.dir=", "features.dir=")


class CompareRuns(Callback):
    """After a sweep, print one row a job from the ``metrics.json`` each of them left, and keep it.

    The rows also go to ``comparison.tsv`` in the sweep's folder. A job that left no metrics is
    shown as such.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        sweep_dir = Path(config.hydra.sweep.dir)
        jobs = [job for job in sweep_dir.iterdir() if (job / ".hydra").is_dir()]
        jobs.sort(key=lambda job: natural_key(job.name))
        rows = [_row(job) for job in jobs]
        if not rows:
            return
        header = list(rows[0])
        cells = [[row[name] for name in header] for row in rows]
        lines = ["\t".join(map(str, line)) for line in [header, *cells]]
        (sweep_dir / "comparison.tsv").write_text("\n".join(lines) + "\n")
        say()
        say(table(cells, header))
        say("\nraw and matched subjects: those looked for, and among whom, in each kind of gallery")
        say("matched: galleries of the same sex, site and ancestry; chance is 0.5")
        for reason in _reasons(jobs):
            say(reason)
        say(f"in {sweep_dir / 'comparison.tsv'}")


def _row(job: Path) -> dict[str, Any]:
    overrides = [str(word) for word in OmegaConf.load(job / ".hydra" / "overrides.yaml")]
    shown = [word for word in overrides if not word.startswith(_FOLDERS)]
    row: dict[str, Any] = {"run": " ".join(shown) or job.name}
    metrics = _metrics(job)
    for gallery in ("raw", "matched"):
        test = metrics.get("permutation", {}).get(gallery, {})
        row[f"{gallery} subjects"] = test.get("n")
        row[f"{gallery} percentile"] = test.get("statistic")
        row[f"{gallery} p"] = _four_decimals(test.get("p"))
    control = metrics.get("controls", {}).get("covariates_only") or {}
    of_control = control.get("permutation", {}).get("matched", {})
    row["covariates matched p"] = _four_decimals(of_control.get("p"))
    row["seconds"] = round(sum(metrics.get("stages", {}).values()), 1) if metrics else None
    return row


def _metrics(job: Path) -> dict[str, Any]:
    file = job / "metrics.json"
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def _reasons(jobs: list[Path]) -> list[str]:
    """Return why cells hold no number, each reason once."""
    reasons: dict[str, None] = {}
    for job in jobs:
        metrics = _metrics(job)
        if "permutation" not in metrics:
            why = "no test subjects" if metrics else "it did not finish; its message is above"
            reasons[f"run {job.name}: nothing was tested ({why})"] = None
        for gallery, test in metrics.get("permutation", {}).items():
            if test.get("reason"):
                reasons[f"{gallery}: {test['reason']}"] = None
    return list(reasons)


def _four_decimals(p: float | None) -> str:
    return "-" if p is None else f"{p:.4f}"
