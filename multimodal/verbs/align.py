"""``genebold align``: train the towers, write the bundle, test on the held-out split."""

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from encoders.errors import InputError, Problem
from multimodal.align.options import AlignOptions
from multimodal.cohort.covariates import CovariateCoding
from multimodal.cohort.splits import make_split, read_split, write_split
from multimodal.cohort.strata import strata_labels
from multimodal.cohort.table import Cohort, CohortPaths, read_cohort
from multimodal.evaluate.summary import Evaluated, EvaluateOptions, evaluate_latents
from multimodal.features.encode import DOSAGE
from multimodal.features.read import read_dosage_variants
from multimodal.features.store import read_fingerprint
from multimodal.latent.bundle import write_bundle
from multimodal.latent.table import Latents, write_latents
from multimodal.verbs.console import Stages, say, table
from multimodal.verbs.encode import encode, preparation
from multimodal.verbs.pipeline import Joint, Preparation, join
from multimodal.verbs.record import update_metrics, versions, write_json
from multimodal.verbs.settings import cohort_paths, options, plain


def run(config: DictConfig) -> int:
    """Encode what is missing, train, and leave bundle, latents, split and metrics behind."""
    stages = Stages()
    cohort = read_cohort(cohort_paths(config.cohort))
    align(config, cohort, stages)
    return 0


def align(config: DictConfig, cohort: Cohort, stages: Stages) -> dict[str, Any]:
    """Run an alignment as `config` says, and return its metrics."""
    from multimodal.align.fit import fit

    output_dir = Path(config.output_dir)
    how = preparation(config)
    choices = AlignOptions.from_dict(plain(config.align))
    _refuse_target_bundle(how)
    stores = encode(cohort, how, stages)
    joint = join(cohort, stores["dna"], stores["brain"], float(config.split.kinship_threshold))
    evaluation = plain(config.evaluation)
    output_dir.mkdir(parents=True, exist_ok=True)
    split = draw_split(config, joint, list(evaluation["strata"]), output_dir)
    train = np.flatnonzero(split == "train")
    coding = CovariateCoding.fit(joint.cohort.participants, list(config.covariates), train)
    covariates = coding.matrix(joint.cohort.participants) if choices.residualise else None
    _say_cohort(joint, split)
    identity = _identity(choices, how, stores, plain(config.split), list(config.covariates))
    _set_aside_other(output_dir, identity)
    with stages.stage("align", f"{len(train)} training subjects, up to {choices.epochs} epochs"):
        fitted = fit(
            joint.gene, joint.brain, split, joint.components, covariates, choices,
            out_dir=output_dir, resume=bool(config.get("resume", True)),
        )  # fmt: skip
    with stages.stage("held out", "retrieval among the test subjects"):
        gene = fitted.aligner.embed_genes(joint.gene, covariates)
        brain = fitted.aligner.embed_brains(joint.brain, covariates)
        metrics = heldout_metrics(joint, split, gene, brain, evaluation)
    fitted.history.to_csv(output_dir / "history.csv", index=False)
    write_latents(
        output_dir / "latents.parquet",
        [
            Latents("gene", joint.cohort.participant_ids, list(split), gene),
            Latents("brain", joint.cohort.participant_ids, list(split), brain),
        ],
    )
    record = {
        "versions": versions(),
        "identity": identity,
        "cohort": {
            name: None if path is None else str(Path(path).absolute())
            for name, path in vars(cohort.paths).items()
        },
        "stores": {side: str(store.absolute()) for side, store in stores.items()},
        "dna": how.dna, "brain": how.brain, "genome": how.genome, "bold": how.bold,
        "align": choices.as_dict(), "split": plain(config.split), "evaluation": evaluation,
        "covariates": list(config.covariates),
        "best_epoch": fitted.best_epoch,
        "encoders": {side: read_fingerprint(store)["encoder"] for side, store in stores.items()},
    }  # fmt: skip
    write_json(output_dir / "run.json", record)
    metrics = {"cohort": describe_cohort(joint, split), **metrics, "stages": stages.seconds}
    (output_dir / "metrics.json").unlink(missing_ok=True)
    metrics = update_metrics(output_dir, metrics)
    bundle = write_bundle(
        output_dir / "bundle",
        fitted.aligner,
        _manifest(record, stores, cohort.paths, coding, choices, metrics),
    )
    say_retrieval(metrics)
    say(f"bundle in {bundle.path}, latents in {output_dir / 'latents.parquet'}")
    return metrics


def draw_split(
    config: DictConfig, joint: Joint, strata_keys: list[str], output_dir: Path
) -> np.ndarray:
    """Return each participant's part (train, validation, test): read from a file, or drawn.

    The split used is written to ``output_dir/split.tsv``.
    """
    section = plain(config.split)
    everybody = np.arange(len(joint.cohort.participants))
    if section["file"]:
        split = read_split(section["file"], joint.cohort, joint.components)
    else:
        split = make_split(
            joint.cohort,
            joint.components,
            strata_labels(joint.cohort.participants, strata_keys, everybody),
            {name: section[name] for name in ("train", "validation", "test")},
            int(section["seed"]),
        )
    write_split(split, output_dir / "split.tsv")
    return split.to_numpy().astype(str)


def strata_of(joint: Joint, keys: list[str], train_rows: np.ndarray) -> np.ndarray:
    """Return each participant's stratum, ancestry clusters fitted on training rows."""
    return strata_labels(joint.cohort.participants, keys, train_rows)


def evaluate_options(evaluation: dict[str, Any]) -> EvaluateOptions:
    """Return the options of `multimodal.evaluate` among the ``evaluation`` section's."""
    names = [field.name for field in dataclasses.fields(EvaluateOptions)]
    return options(EvaluateOptions, {name: evaluation[name] for name in names}, "evaluation")


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
    return evaluate_latents(gene, brain, who, options=evaluate_options(evaluation))


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


def say_retrieval(metrics: dict[str, Any]) -> None:
    """Print the table of retrieval against its null."""
    if "permutation" not in metrics:
        say("no test subjects: nothing was tested; `genebold evaluate` cross-fits")
        return
    rows = []
    blocks = {"genome": metrics, **metrics.get("controls", {})}
    for name, block in blocks.items():
        for gallery, test in block["permutation"].items():
            found = [block["retrieval"][gallery][way] for way in ("gene_to_brain", "brain_to_gene")]
            recall = [part.get("recall@1") for part in found]
            chance = (found[0].get("chance") or {}).get("recall@1")
            mean = None if None in recall else float(np.mean(recall))
            row = [name.replace("_", " "), gallery, test["n"], test["statistic"], mean, chance]
            rows.append([*row, "-" if test["p"] is None else f"{test['p']:.4f}"])
    header = ["gene side", "gallery", "subjects", "percentile", "recall@1", "by chance", "p"]
    say()
    say(table(rows, header))
    say()


def _say_cohort(joint: Joint, split: np.ndarray) -> None:
    parts = ", ".join(f"{(split == name).sum()} {name}" for name in ("train", "validation", "test"))
    alone = joint.only_gene + joint.only_brain
    left = f"; {alone} with one side only are left out" if alone else ""
    say(f"{'cohort':<10} {len(split)} participants with both sides ({parts}){left}")


def _identity(
    choices: AlignOptions,
    how: Preparation,
    stores: dict[str, Path],
    split: dict[str, Any],
    covariates: list[str],
) -> str:
    """Digest of what an alignment is: its training options and the features it trains on."""
    settings = (how.genome, how.bold, split, covariates)
    parts = [choices.fingerprint(), *map(repr, settings)]
    parts += [repr(read_fingerprint(store)) for store in stores.values()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _set_aside_other(output_dir: Path, identity: str) -> None:
    """Move what an alignment of other settings left in `output_dir` into a folder of its own."""
    import json

    file = output_dir / "run.json"
    marker = output_dir / "checkpoints" / "identity.txt"
    before = marker.read_text() if marker.exists() else None
    if before is None and file.exists():
        before = json.loads(file.read_text()).get("identity")
    if before is not None and before != identity:
        aside = output_dir / f"previous-{before}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for name in _RESULTS:
            if (output_dir / name).exists():
                (output_dir / name).rename(aside / name)
        say(f"{'note':<10} the results of other settings that lay here are now in {aside}")
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(identity)


_RESULTS = (
    "bundle", "checkpoints", "run.json", "metrics.json", "latents.parquet", "history.csv",
    "report.html",
)  # fmt: skip


def _refuse_target_bundle(how: Preparation) -> None:
    for side, section in (("dna", how.dna), ("brain", how.brain)):
        if "_target_" in section:
            say(
                f"note: {side} comes by _target_; it aligns and evaluates, but `embed` will "
                "need it installed under an entry point in the group 'genebold.encoders'"
            )


def _manifest(
    record: dict[str, Any],
    stores: dict[str, Path],
    paths: CohortPaths,
    coding: CovariateCoding,
    choices: AlignOptions,
    metrics: dict[str, Any],
) -> dict[str, Any]:
    from multimodal.genome.regions import read_regions

    prints = {side: read_fingerprint(store) for side, store in stores.items()}
    if paths.regions is None:
        raise InputError(Problem("cohort-path", "cohort.regions", "no file", "a BED file"))
    sides = {}
    for side in ("dna", "brain"):
        section = {k: v for k, v in record[side].items() if k not in ("device", "batch_size")}
        sides[side] = {**section, "spec": prints[side]["encoder"]}
    if record["dna"].get("name") == DOSAGE:
        sides["dna"]["variants"] = read_dosage_variants(stores["dna"])
    public = ("participants", "families", "in_families", "split", "runs", "segments", "windows")
    return {
        "versions": record["versions"],
        **sides,
        "genome": {**record["genome"], "windows": prints["dna"]["windows"]},
        "bold": {**record["bold"], "atlas": prints["brain"]["atlas"]},
        "regions": [dataclasses.asdict(region) for region in read_regions(paths.regions)],
        "covariates": coding.as_dict() if choices.residualise else None,
        "align": choices.as_dict(),
        "training": {name: metrics["cohort"][name] for name in public},
        "metrics": {"permutation": metrics.get("permutation", {})},
    }
