"""``genebold align``: train the towers, write the bundle, test on the held-out split."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from encoders.atomic import write_text
from encoders.errors import InputError
from multimodal.align.interruption import Interrupted, StopRequest
from multimodal.align.processes import Processes, companions, joined, place, refuse_other_number
from multimodal.align.running import TrainerOptions
from multimodal.cohort.covariates import CovariateCoding
from multimodal.cohort.splits import make_split, read_split, write_split
from multimodal.cohort.strata import strata_labels
from multimodal.cohort.table import Cohort, CohortPaths, read_cohort
from multimodal.cohort.tsv import read_table
from multimodal.evaluate.summary import Evaluated, evaluate_latents
from multimodal.evaluate.unmatched import without_matching
from multimodal.features.store import read_fingerprint
from multimodal.latent.bundle import write_bundle
from multimodal.latent.table import Latents, write_latents
from multimodal.report.provenance import simulation_of
from multimodal.verbs.align_words import (
    say_cohort,
    say_gain,
    say_if_not_embeddable,
    say_if_random,
    say_retrieval,
    training_words,
)
from multimodal.verbs.console import Stages, say
from multimodal.verbs.encode import encode, preparation
from multimodal.verbs.fine_tuning import encode_tuned, refuse_untunable, tuned_encoders
from multimodal.verbs.labels import refuse_missing_columns, training_labels
from multimodal.verbs.manifest import manifest_of
from multimodal.verbs.pipeline import Joint, Preparation, join
from multimodal.verbs.record import paths_of_run, update_metrics, versions, write_json
from multimodal.verbs.settings import flag, plain
from multimodal.verbs.upfront import (
    align_options,
    evaluate_options,
    refuse_bad_settings,
    trainer_options,
)


def run(config: DictConfig) -> int:
    """Encode what is missing, train, and leave bundle, latents, split and metrics behind.

    Raises
    ------
    SystemExit
        On SIGTERM, SIGUSR1 or Ctrl-C: the same command goes on.
    """
    refuse_bad_settings(config)
    others = companions(
        trainer_options(config), accompany, OmegaConf.to_container(config, resolve=True)
    )
    with stoppable("align") as stop, others:
        _align_as_one_of(config, stop)
    return 0


@contextmanager
def stoppable(verb: str) -> Iterator[StopRequest]:
    """Let SIGTERM, SIGUSR1 and Ctrl-C end the block in order, and say how to go on.

    Raises
    ------
    SystemExit
        On a signal.
    """
    stop = StopRequest()
    try:
        with stop.listening():
            yield stop
    except Interrupted as interrupted:
        if place().rank == 0:
            print(
                f"genebold {verb}: {interrupted}; the same command goes on from here "
                f"(exit code {interrupted.exit_code})",
                file=sys.stderr,
            )
        # Not returned: a sweep is to end here as well.
        raise SystemExit(interrupted.exit_code) from None


def accompany(settings: dict[str, Any]) -> None:
    """Take part as one of the processes that the first one started."""
    with stoppable("align") as stop:
        _align_as_one_of(OmegaConf.create(settings), stop)


def _align_as_one_of(config: DictConfig, stop: StopRequest) -> None:
    """Read the cohort and align it; only the first of several processes speaks."""
    with (
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere if place().rank else sys.stdout),
    ):
        align(config, read_cohort(paths_of_run(config)), Stages(), stop)


def align(
    config: DictConfig, cohort: Cohort, stages: Stages, stop: StopRequest | None = None
) -> dict[str, Any]:
    """Run an alignment as `config` says, and return its metrics.

    Signals that `stop` notes make training save and stop. Other processes than the first only take
    part in the training, and get no metrics.
    """
    running = trainer_options(config)
    refuse_other_number(place().processes, running)
    with joined(running, str(config.align.accelerator)) as processes:
        return _align(config, cohort, stages, running, processes, stop)


def _align(
    config: DictConfig,
    cohort: Cohort,
    stages: Stages,
    running: TrainerOptions,
    processes: Processes,
    stop: StopRequest | None,
) -> dict[str, Any]:
    from multimodal.align.fit import fit

    output_dir = Path(config.output_dir)
    how = preparation(config)
    choices = align_options(plain(config.align))
    resume = flag(config.resume, "resume")
    evaluation = plain(config.evaluation)
    say_if_not_embeddable(how)
    refuse_missing_columns(cohort.participants, choices)
    refuse_untunable(how, choices.fine_tune)
    stores = processes.from_first(lambda: encode(cohort, how, stages))
    joint = join(cohort, stores["dna"], stores["brain"], float(config.split.kinship_threshold))
    split = draw_split(config, joint, list(evaluation["strata"]))
    values = split.to_numpy().astype(str)
    train = np.flatnonzero(values == "train")
    people = joint.cohort.participants
    coding = None
    if choices.residualise:
        coding = CovariateCoding.fit(people, list(config.covariates), train)
    covariates = coding.matrix(people) if coding else None
    say_cohort(joint, values)
    say_if_random([read_fingerprint(store)["encoder"] for store in stores.values()])
    identity = digest_of(
        choices.fingerprint(),
        how.genome,
        how.bold,
        list(config.covariates),
        split.to_dict(),
        [read_fingerprint(store) for store in stores.values()],
    )
    before = processes.from_first(lambda: _begin(output_dir, identity, split))
    encoders = tuned_encoders(joint, how, choices, train, stages)
    with stages.stage("align", f"{len(train)} training subjects, {training_words(choices)}"):
        fitted = fit(
            joint.gene, joint.brain, values, joint.components, covariates, choices,
            out_dir=output_dir, resume=resume, running=running, stop=stop, encoders=encoders,
            **training_labels(joint, choices, train),
        )  # fmt: skip
    if not processes.is_first:
        return {}
    say_gain(fitted.history, fitted.best_epoch, choices)
    frozen, deltas = stores, {side: part.delta() for side, part in encoders.items()}
    if deltas:
        stores = encode_tuned(cohort, how, deltas, stores, stages)
        joint = join(cohort, stores["dna"], stores["brain"], float(config.split.kinship_threshold))
    with stages.stage("held out", "retrieval among the test subjects"):
        gene = fitted.aligner.embed_genes(joint.gene, covariates)
        brain = fitted.aligner.embed_brains(joint.brain, covariates)
        heldout = heldout_metrics(joint, values, gene, brain, evaluation)
    fitted.history.to_csv(output_dir / "history.csv", index=False)
    write_latents(
        output_dir / "latents.parquet",
        [
            Latents("gene", joint.cohort.participant_ids, list(values), gene),
            Latents("brain", joint.cohort.participant_ids, list(values), brain),
        ],
    )
    record = {
        **_record(config, how, cohort.paths, stores),
        "identity": identity,
        "align": choices.as_dict(),
        "split_digest": digest_of(split.to_dict()),
        "best_epoch": fitted.best_epoch,
    }
    write_json(output_dir / "run.json", record)
    # What `evaluate` found about these same towers stays; without it the held-out test stands in.
    found = {"cohort": describe_cohort(joint, values), "heldout": heldout, "stages": stages.seconds}
    evaluated = before == identity and _is_evaluated(output_dir)
    metrics = update_metrics(output_dir, found if evaluated else {**found, **heldout})
    manifest = manifest_of(record, frozen, cohort.paths, coding, metrics)
    bundle = write_bundle(output_dir / "bundle", fitted.aligner, manifest, deltas)
    say_retrieval(heldout)
    say(f"bundle in {bundle.path}, latents in {output_dir / 'latents.parquet'}")
    return metrics


def _record(
    config: DictConfig, how: Preparation, paths: CohortPaths, stores: dict[str, Path]
) -> dict[str, Any]:
    """Return what ``run.json`` says of inputs and settings."""
    prints = {side: read_fingerprint(store) for side, store in stores.items()}
    return {
        "versions": versions(),
        "cohort": {
            name: None if path is None else str(Path(path).absolute())
            for name, path in vars(paths).items()
        },
        "simulation": simulation_of(vars(paths)),
        "stores": {side: str(store.absolute()) for side, store in stores.items()},
        "store_digests": {side: digest_of(made_by) for side, made_by in prints.items()},
        "encoders": {side: made_by["encoder"] for side, made_by in prints.items()},
        "dna": how.dna,
        "brain": how.brain,
        "genome": how.genome,
        "bold": how.bold,
        "split": plain(config.split),
        "evaluation": plain(config.evaluation),
        "covariates": list(config.covariates),
    }


def digest_of(*values: Any) -> str:
    """Return a short digest of JSON-ready values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def draw_split(config: DictConfig, joint: Joint, strata_keys: list[str]) -> pd.Series:
    """Return each joint participant's part (train, validation, test): read from a file, or drawn.

    A file may also name participants of the cohort who have one side only.
    """
    section = plain(config.split)
    if section["file"]:
        return _split_from_file(Path(section["file"]), joint)
    everybody = np.arange(len(joint.cohort.participants))
    return make_split(
        joint.cohort,
        joint.components,
        strata_labels(joint.cohort.participants, strata_keys, everybody),
        {name: section[name] for name in ("train", "validation", "test")},
        int(section["seed"]),
    )


def _split_from_file(file: Path, joint: Joint) -> pd.Series:
    table, problems = read_table(file, code="split")
    if table is None:
        raise InputError(problems)
    named = set(table.cells["participant_id"]) if "participant_id" in table.cells else set()
    both = set(joint.cohort.participant_ids)
    rows = [n for n, who in enumerate(joint.everybody.participant_ids) if who in named | both]
    wanted = joint.everybody.take([joint.everybody.participant_ids[row] for row in rows])
    split = read_split(file, wanted, joint.all_components[rows])
    return split.loc[joint.cohort.participant_ids]


def strata_of(joint: Joint, keys: list[str], train_rows: np.ndarray) -> np.ndarray:
    """Return each participant's stratum, ancestry clusters fitted on training rows."""
    return strata_labels(joint.cohort.participants, keys, train_rows)


def heldout_metrics(
    joint: Joint,
    split: np.ndarray,
    gene: np.ndarray,
    brain: np.ndarray,
    evaluation: dict[str, Any],
) -> dict[str, Any]:
    """Return retrieval metrics among the test subjects; empty where there are none."""
    tested = split == "test"
    if tested.sum() < 2:
        return {}
    strata = strata_of(joint, list(evaluation["strata"]), np.flatnonzero(split == "train"))
    who = Evaluated(
        joint.cohort.participant_ids,
        np.where(tested, 0, -1),
        joint.components,
        strata,
        method="heldout",
    )
    found = evaluate_latents(gene, brain, who, options=evaluate_options(evaluation))
    return found if evaluation["strata"] else without_matching(found)


def describe_cohort(joint: Joint, split: np.ndarray) -> dict[str, Any]:
    """Return counts that describe who took part; no ids."""
    people = joint.cohort.participants
    _, sizes = np.unique(joint.components, return_counts=True)
    counts: dict[str, Any] = {
        "participants": len(people),
        "only_genome": joint.only_gene,
        "only_scan": joint.only_brain,
        "families": int((sizes > 1).sum()),
        "in_families": int(sizes[sizes > 1].sum()),
        "split": {name: int((split == name).sum()) for name in ("train", "validation", "test")},
        "runs": len(np.unique(np.stack([joint.brain.subject, joint.brain.run]), axis=1).T),
        "segments": len(joint.brain.subject),
        "mean_fd_mm": float(np.mean(joint.brain.mean_fd_mm)),
        "windows": len(joint.gene.windows),
        "distinct_sequences": len(joint.gene.distinct),
    }  # fmt: skip
    for column in ("sex", "site", "ancestry"):
        if column in people:
            found = people[column].astype(object).where(people[column].notna(), "n/a")
            counts[column] = {str(k): int(v) for k, v in found.value_counts().sort_index().items()}
    if "age" in people:
        ages = people["age"].dropna()
        counts["age_years"] = {"mean": float(ages.mean()), "sd": float(ages.std())}
    return counts


def _is_evaluated(output_dir: Path) -> bool:
    file = output_dir / "metrics.json"
    return file.is_file() and "reference_genome" in json.loads(file.read_text()).get("controls", {})


def _begin(output_dir: Path, identity: str, split: pd.Series) -> str | None:
    """Make the output folder ready and return the identity of what lies there, if anything."""
    before = _set_aside_other(output_dir, identity)
    write_split(split, output_dir / "split.tsv")
    return before


def _set_aside_other(output_dir: Path, identity: str) -> str | None:
    """Move what an alignment of other settings left here into a folder of its own.

    Returns
    -------
    str or None
        The identity of what lay, and still lies, in `output_dir`.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    marker = output_dir / "alignment.txt"
    before = marker.read_text().strip() if marker.is_file() else None
    if before is not None and before != identity:
        numbers = [int(path.name.rpartition("-")[2]) for path in output_dir.glob("previous-*")]
        aside = output_dir / f"previous-{max(numbers, default=0) + 1}"
        aside.mkdir()
        for name in (*_RESULTS, marker.name):
            if (output_dir / name).exists():
                (output_dir / name).rename(aside / name)
        say(f"{'note':<10} the results of other settings that lay here are now in {aside}")
    write_text(marker, identity + "\n")
    return before


_RESULTS = (
    "bundle", "checkpoints", "run.json", "metrics.json", "latents.parquet", "history.csv",
    "split.tsv", "report.html",
)  # fmt: skip
