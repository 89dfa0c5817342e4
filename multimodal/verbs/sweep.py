"""Sweeps (``--multirun``): what a job leaves for the others, and the comparison at the end."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from encoders.errors import InputError, Problem
from multimodal.bold.bids import natural_key
from multimodal.report.provenance import random_encoders
from multimodal.verbs.console import say, table

_FOLDERS = ("run_dir=", "output_dir=", "cohort.dir=", "features.dir=")
# Of a job that did not end with 0. A file, since a launcher may run jobs in other processes, or on
# other machines.
_EXIT_CODE = ".exit_code"
# What hydra-submitit-launcher names by default; its jobs print into files there.
_SUBMITTED = ".submitit"
_LONG_NUMBER = re.compile(r"(?<==)-?\d+\.\d{5,}(?:e[+-]?\d+)?\b")
_CHOSEN_BY = "validation percentile"

_sweep_dir: Path | None = None


def note_exit_code(code: int) -> None:
    """Leave a job's exit code in its folder; outside sweeps, do nothing."""
    folder = _folder_of_job()
    if folder is None:
        return
    if code:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _EXIT_CODE).write_text(str(code))
    else:
        (folder / _EXIT_CODE).unlink(missing_ok=True)


def exit_code() -> int:
    """Return the highest exit code among the jobs of the sweep that this process began."""
    if _sweep_dir is None:
        return 0
    return max((int(file.read_text()) for file in _sweep_dir.glob(f"*/{_EXIT_CODE}")), default=0)


def left_out() -> str:
    """Return what an experiment would compare with ``--multirun``, where that was not given."""
    if not HydraConfig.initialized() or HydraConfig.get().mode == RunMode.MULTIRUN:
        return ""
    compared = HydraConfig.get().sweeper.get("params")
    if not compared:
        return ""
    values = ", ".join(f"{key}={value}" for key, value in compared.items())
    return f"one run alone; with --multirun this experiment compares {values}"


def refuse_search(config: DictConfig, has_objective: bool) -> None:
    """Refuse a search that could not find anything, before any of its jobs costs time.

    Parameters
    ----------
    config : DictConfig
        Of a job.
    has_objective : bool
        Whether the verb leaves something to choose by.

    Raises
    ------
    InputError
        Nothing to choose by, or a search for the worst.
    """
    if _folder_of_job() is None or not _is_search():
        return
    problems = []
    if not has_objective:
        problems.append(
            Problem(
                "no-objective", "hydra/sweeper", "this verb leaves nothing to choose by",
                "align or demo, which train", "leave hydra/sweeper out",
            )
        )  # fmt: skip
    elif not config.split.validation and config.split.file is None:
        problems.append(_nothing_to_choose_by(config))
    direction = str(HydraConfig.get().sweeper.get("direction", "maximize")).rpartition(".")[2]
    if direction != "maximize":
        problems.append(
            Problem(
                "search-direction", "hydra.sweeper.direction", direction,
                "maximize: the validation percentile is the better the higher",
                "set hydra.sweeper.direction=maximize",
            )
        )  # fmt: skip
    if problems:
        raise InputError(problems)


def _is_search() -> bool:
    return HydraConfig.get().runtime.choices.get("hydra/sweeper") != "basic"


def _nothing_to_choose_by(config: DictConfig) -> Problem:
    return Problem(
        "no-objective",
        f"split.validation={config.split.validation}",
        "no validation subjects",
        "some, by whose retrieval a search chooses",
        "set split.validation=0.2, or search without hydra/sweeper",
    )


def objective(config: DictConfig) -> float | None:
    """Return what a search over settings maximises; None outside sweeps.

    The validation percentile at the kept epoch: test subjects are not looked at, so that the
    held-out test of whatever is found stays honest.

    Parameters
    ----------
    config : DictConfig
        Of a finished ``align`` or ``demo``.

    Raises
    ------
    InputError
        A search, and no validation subjects to search by.
    """
    if _folder_of_job() is None:
        return None
    value = _validation_percentile(Path(config.output_dir))
    if value is None and _is_search():
        raise InputError(_nothing_to_choose_by(config))
    return value


def _folder_of_job() -> Path | None:
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().runtime.output_dir)


def _validation_percentile(output_dir: Path) -> float | None:
    if not (output_dir / "run.json").is_file():
        return None
    kept = json.loads((output_dir / "run.json").read_text())["best_epoch"]
    history = pd.read_csv(output_dir / "history.csv", index_col="epoch")
    if "val_percentile" not in history:
        return None
    return float(history.loc[kept, "val_percentile"])


class CompareRuns(Callback):
    """After a sweep, print one row a job from the ``metrics.json`` each of them left, and keep it.

    The rows also go to ``comparison.tsv`` in the sweep's folder. A job that left no metrics is
    shown as such. After a search the best job is named, and what its figures are worth.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _sweep_dir
        _sweep_dir = Path(config.hydra.sweep.dir)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        sweep_dir = Path(config.hydra.sweep.dir)
        jobs = [job for job in sweep_dir.iterdir() if (job / ".hydra").is_dir()]
        jobs.sort(key=lambda job: natural_key(job.name))
        rows = [_row(job, words) for job, words in zip(jobs, _differing_words(jobs), strict=True)]
        if not rows:
            return
        header = list(rows[0])
        cells = [[row[name] for name in header] for row in rows]
        lines = ["\t".join(map(str, line)) for line in [header, *cells]]
        (sweep_dir / "comparison.tsv").write_text("\n".join(lines) + "\n")
        say()
        say(table([[_shortened(words), *rest] for words, *rest in cells], header))
        say("\nraw and matched subjects: those looked for, and among whom, in each kind of gallery")
        say("matched: galleries of the same sex, site and ancestry; chance is 0.5")
        for reason in _reasons(jobs):
            say(reason)
        if untrained := _untrained(jobs):
            say(f"random weights, never trained, and no word on the published: {untrained}")
        for line in _of_search(sweep_dir, jobs):
            say(line)
        say(f"in {sweep_dir / 'comparison.tsv'}")


def _differing_words(jobs: list[Path]) -> list[str]:
    """Return what sets each job apart, or all that was said where there is only one."""
    said = [
        [str(word) for word in OmegaConf.load(job / ".hydra" / "overrides.yaml")] for job in jobs
    ]
    common = set.intersection(*map(set, said)) if len(jobs) > 1 else set()
    return [
        " ".join(w for w in words if w not in common and not w.startswith(_FOLDERS)) or job.name
        for job, words in zip(jobs, said, strict=True)
    ]


def _shortened(words: str) -> str:
    """Return words with their long numbers rounded."""
    return _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.3g}", words)


def _row(job: Path, words: str) -> dict[str, Any]:
    row: dict[str, Any] = {"run": words}
    metrics = _metrics(job)
    validation = _validation_percentile(job)
    row[_CHOSEN_BY] = None if validation is None else round(validation, 4)
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
            printed = job.parent / _SUBMITTED
            where = f"in {printed}" if printed.is_dir() else "above"
            why = "no test subjects" if metrics else f"it did not finish; its message is {where}"
            reasons[f"run {job.name}: nothing was tested ({why})"] = None
        for gallery, test in metrics.get("permutation", {}).items():
            if test.get("reason"):
                reasons[f"{gallery}: {test['reason']}"] = None
    return list(reasons)


def _untrained(jobs: list[Path]) -> str:
    """Return the encoders whose weights were drawn at random."""
    names: dict[str, None] = {}
    for file in (job / "run.json" for job in jobs):
        encoders = json.loads(file.read_text()).get("encoders", {}) if file.is_file() else {}
        names |= dict.fromkeys(random_encoders(encoders))
    return ", ".join(names)


def _of_search(sweep_dir: Path, jobs: list[Path]) -> list[str]:
    """Return which job a search found to be the best, and what may be claimed of it."""
    found = sweep_dir / "optimization_results.yaml"
    tried = {job: _validation_percentile(job) for job in jobs}
    known = {job: value for job, value in tried.items() if value is not None}
    if not found.is_file() or not known:
        return []
    best = max(known, key=lambda job: known[job])
    if any(" split." in f" {words}" for words in _differing_words(jobs)):
        return [f"run {best.name} has the highest, but splits differ: percentiles of other people"]
    return [
        f"best of {len(known)} by the validation subjects: run {best.name}, "
        f"{_CHOSEN_BY} {known[best]:.3f}; its settings are in {best / '.hydra' / 'overrides.yaml'}",
        "a claim is its held-out test among the test subjects, whom the search did not look at;",
        "cross-fitting it (`genebold evaluate`) tests people who chose the settings: optimistic",
    ]


def _four_decimals(p: float | None) -> str:
    return "-" if p is None else f"{p:.4f}"
