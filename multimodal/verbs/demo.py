"""``genebold demo``: a simulated cohort, taken through everything."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from encoders.errors import InputError
from multimodal.align.processes import companions, refuse_several
from multimodal.cohort.table import Cohort, CohortPaths, read_cohort
from multimodal.latent.bundle import read_bundle
from multimodal.latent.table import read_latents
from multimodal.verbs.align import accompany, align, stoppable
from multimodal.verbs.check import check
from multimodal.verbs.console import Stages, say
from multimodal.verbs.embed import embed
from multimodal.verbs.evaluate import evaluate
from multimodal.verbs.record import read_record, update_metrics, write_json
from multimodal.verbs.settings import plain
from multimodal.verbs.simulate import simulate, world_of
from multimodal.verbs.upfront import refuse_bad_settings, trainer_options

_WORLDS = {
    "signal": "common variants drive network connectivity",
    "null": "genomes say nothing about brains",
    "confounded": "genomes say nothing, but ancestry goes with the scanner",
}


def run(config: DictConfig) -> int:
    """Simulate, check, encode, align, evaluate, embed and report."""
    refuse_several("demo")
    from multimodal.report.page import write_report

    refuse_bad_settings(config)
    start = time.perf_counter()
    stages = Stages()
    output_dir = Path(config.output_dir)
    world = world_of(config.cohort)
    say(f"The {world} world: {_WORLDS.get(world, 'unknown')}.\n")
    cohort_dir = _cohort(config, stages)
    paths = CohortPaths.from_dir(cohort_dir)
    with stages.stage("check", "every file, id and covariate"):
        problems, _, _ = check(config, paths)
    if problems:
        raise InputError(problems)
    cohort = read_cohort(paths)
    settings = OmegaConf.to_container(config, resolve=True)
    others = companions(trainer_options(config), accompany, settings)
    with stoppable("demo") as stop, others:
        align(config, cohort, stages, stop)
    metrics = evaluate(
        output_dir, read_record(output_dir), cohort, plain(config.evaluation), stages
    )
    largest = _embed_again(config, cohort, output_dir, stages)
    with stages.stage("report", "one HTML page"):
        update_metrics(output_dir, {"stages": stages.seconds})
        page = write_report(output_dir)
    update_metrics(output_dir, {"stages": stages.seconds})
    _say_meaning(metrics, world, largest)
    _say_places(config, output_dir, page, time.perf_counter() - start)
    return 0


def _cohort(config: DictConfig, stages: Stages) -> Path:
    """Simulate the cohort, unless the same one lies there already."""
    folder = Path(config.cohort.dir)
    section = plain(config.cohort)
    wanted = {key: value for key, value in section.items() if key not in ("dir", "n_jobs")}
    marker = folder / "demo.json"
    if marker.is_file() and json.loads(marker.read_text()) == wanted:
        say(f"{'simulate':<10} the same cohort lies in {folder} already")
        return folder
    what = f"{config.cohort.subjects} participants, seed {config.cohort.seed}"
    with stages.stage("simulate", what):
        simulate(config.cohort)
    write_json(marker, wanted)
    return folder


def _embed_again(
    config: DictConfig, cohort: Cohort, output_dir: Path, stages: Stages
) -> float | None:
    """Embed test subjects from their raw files and return the largest difference of a latent."""
    frame, values = read_latents(output_dir / "latents.parquet")
    test = frame.loc[frame["split"] == "test", "participant_id"].drop_duplicates()
    chosen = list(test[: int(config.embed_subjects)])
    by_target = "_target_" in config.dna or "_target_" in config.brain
    if not chosen or by_target:
        return None
    what = f"{len(chosen)} test subjects again, from VCF and BOLD"
    scratch = tempfile.TemporaryDirectory(dir=output_dir, prefix=".embed-")
    with stages.stage("embed", what), scratch as folder:
        bundle = read_bundle(output_dir / "bundle")
        parts = embed(bundle, cohort.take(chosen), ["gene", "brain"], Path(folder))
    largest = 0.0
    for part in parts:
        rows = {
            who: row
            for row, (who, side) in enumerate(
                zip(frame["participant_id"], frame["modality"], strict=True)
            )
            if side == part.modality
        }
        before = values[[rows[who] for who in part.participant_ids]]
        largest = max(largest, float(np.abs(before - part.values).max()))
    return largest


def _say_meaning(metrics: dict[str, Any], world: str, largest: float | None) -> None:
    matched = metrics["permutation"]["matched"]
    raw = metrics["permutation"]["raw"]
    say("What it means")
    say(
        "  A percentile of 0.5 is chance, 1 is always first. The matched gallery holds people\n"
        "  of the same sex, site and ancestry, so these cannot help; the raw one rewards them too."
    )
    if matched["p"] is None:
        say(f"  Matched: not tested ({matched['reason']}).")
    else:
        found = matched["p"] <= 0.05
        verdict = "genomes and brains of the same people go together" if found else "nothing found"
        say(f"  Matched p = {matched['p']:.4f}: {verdict} (raw p = {raw['p']:.4f}).")
    truth = {
        "signal": "In this world there is a signal to find.",
        "null": "In this world there is nothing to find: p below 0.05 comes up one time in twenty.",
        "confounded": "In this world a raw hit is the confound, and matching should take it away.",
    }
    say(f"  {truth.get(world, '')}")
    if largest is not None:
        say(f"  Embedded again from raw files, latents agree to {largest:.1e}.")
    say()


def _say_places(config: DictConfig, output_dir: Path, page: Path, seconds: float) -> None:
    say("Where things lie")
    for name, what in (
        (Path(config.cohort.dir), "the simulated cohort: VCF, FASTA, BED, NIfTI, tables"),
        (Path(config.features.dir), "features, as Parquet"),
        (output_dir / "bundle", "the trained towers, for `genebold embed`"),
        (output_dir / "metrics.json", "every number"),
        (output_dir / "latents.parquet", "512 numbers a participant and side"),
        (page, "open this first"),
    ):
        say(f"  {name!s:<34} {what}")
    say(f"\nDone in {seconds:.0f} s.")
