"""``genebold evaluate``: retrieval against its null, with controls; or a cohort's power."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from encoders.errors import InputError, Problem
from multimodal.align.finetune.options import FineTuneOptions
from multimodal.align.options import AlignOptions
from multimodal.align.processes import refuse_several
from multimodal.cohort.covariates import covariate_matrix
from multimodal.cohort.kinship import components
from multimodal.cohort.splits import make_folds, read_split
from multimodal.cohort.strata import strata_labels
from multimodal.cohort.table import Cohort, CohortPaths, read_cohort
from multimodal.evaluate.crossfit import cross_fit
from multimodal.evaluate.summary import Evaluated, Latents, evaluate_latents
from multimodal.evaluate.unmatched import without_matching
from multimodal.features.store import read_fingerprint
from multimodal.features.tables import GeneFeatures
from multimodal.latent.bundle import record_metrics
from multimodal.report.provenance import simulation_of
from multimodal.verbs.align import digest_of, say_retrieval, strata_of
from multimodal.verbs.console import Stages, say
from multimodal.verbs.labels import training_labels
from multimodal.verbs.pipeline import Joint, join
from multimodal.verbs.record import paths_of_run, read_record, update_metrics
from multimodal.verbs.settings import cohort_paths, flag, named_paths, options, plain
from multimodal.verbs.upfront import METHODS, evaluate_options

if TYPE_CHECKING:
    from multimodal.align.aligner import Aligner


def run(config: DictConfig) -> int:
    """Evaluate the alignment in ``output_dir``, or print the plan of a cohort."""
    refuse_several("evaluate")
    if flag(config.plan, "plan"):
        plan_cohort(config)
        return 0
    output_dir = Path(config.output_dir)
    record = read_record(output_dir)
    recorded = {name: Path(path) for name, path in record["cohort"].items() if path is not None}
    paths = (
        CohortPaths(**recorded).with_paths(**named_paths(config.cohort))
        if config.cohort.dir is None
        else cohort_paths(config.cohort)
    )
    evaluate(output_dir, record, read_cohort(paths), plain(config.evaluation), Stages())
    return 0


def evaluate(
    output_dir: Path,
    record: dict[str, Any],
    cohort: Cohort,
    evaluation: dict[str, Any],
    stages: Stages,
) -> dict[str, Any]:
    """Evaluate a recorded alignment and merge the result into its ``metrics.json``.

    Small cohorts are cross-fitted: towers are trained afresh for each fold with the recorded
    options, so everybody is tested once by towers that saw neither them nor their relatives.
    Large ones are tested on the split's test subjects with the towers of the bundle.
    """
    choices = evaluate_options(evaluation)
    controlled = flag(evaluation["covariates_only"], "evaluation.covariates_only")
    threshold = float(record["split"]["kinship_threshold"])
    stores = {side: Path(path) for side, path in record["stores"].items()}
    _refuse_other_features(record, stores)
    joint = join(cohort, stores["dna"], stores["brain"], threshold)
    split = read_split(output_dir / "split.tsv", joint.cohort, joint.components)
    _refuse_other_split(record, split, output_dir)
    split_values = split.to_numpy().astype(str)
    options_of_run = AlignOptions.from_dict(record["align"])
    tested = int((split_values == "test").sum())
    method = choose_method(evaluation, tested, fine_tuned=bool(options_of_run.fine_tune.sides))
    # The features are those of the tuned encoders: what is trained anew here is trained on them.
    on_features = replace(options_of_run, fine_tune=FineTuneOptions())
    task = _Task(joint, on_features, record, evaluation)
    if controlled:
        task.covariates()  # refused before anything is trained
    controls: dict[str, Latents] = {}
    if method == "crossfit":
        folds = task.folds()
        with stages.stage("evaluate", f"{evaluation['folds']}-fold cross-fitting"):
            main = task.cross_fit("genome", folds)
        if controlled:
            with stages.stage("control", "covariates in place of the genome"):
                controls["covariates_only"] = task.cross_fit("covariates", folds)
        controls["reference_genome"] = task.cross_fit_reference
    else:
        folds = np.where(split_values == "test", 0, -1)
        with stages.stage("evaluate", "the split's test subjects"):
            main = task.heldout("genome", split_values, output_dir)
        if controlled:
            with stages.stage("control", "covariates in place of the genome"):
                controls["covariates_only"] = task.heldout("covariates", split_values, output_dir)
        controls["reference_genome"] = task.heldout("reference", split_values, output_dir)
    who = Evaluated(
        joint.cohort.participant_ids,
        folds,
        joint.components,
        _strata(joint, list(evaluation["strata"]), folds, split_values, method),
        method=method,  # type: ignore[arg-type]
    )
    found = evaluate_latents(*main, who, controls=controls, options=choices)
    if not evaluation["strata"]:
        found = without_matching(found)
    found["settings"] = evaluation
    found["simulation"] = simulation_of(vars(cohort.paths))
    metrics = update_metrics(output_dir, {**found, "stages": stages.seconds})
    if (output_dir / "bundle" / "bundle.json").is_file():
        record_metrics(output_dir / "bundle", metrics)
    say_retrieval(metrics)
    return metrics


def _refuse_other_features(record: dict[str, Any], stores: dict[str, Path]) -> None:
    problems = [
        Problem(
            "other-features",
            str(store),
            "these features were made after the alignment, with other settings",
            "the features the towers were trained on",
            "run `genebold align` again, with the same run_dir",
        )
        for side, store in stores.items()
        if digest_of(read_fingerprint(store)) != record["store_digests"][side]
    ]
    if problems:
        raise InputError(problems)


def _refuse_other_split(record: dict[str, Any], split: pd.Series, output_dir: Path) -> None:
    if digest_of(split.to_dict()) != record["split_digest"]:
        raise InputError(
            Problem(
                "other-split",
                str(output_dir / "split.tsv"),
                "it was changed after the alignment",
                "the split the towers were trained with",
                "align with split.file=FILE instead of editing it",
            )
        )


def _strata(
    joint: Joint, keys: list[str], folds: np.ndarray, split: np.ndarray, method: str
) -> np.ndarray:
    """Return strata of the tested; ancestry clusters are fitted on the fold's training subjects."""
    strata = np.full(len(folds), "", dtype=object)
    for fold in np.unique(folds[folds >= 0]):
        tested = folds == fold
        training = ~tested if method == "crossfit" else split == "train"
        strata[tested] = strata_of(joint, keys, np.flatnonzero(training))[tested]
    return strata.astype(str)


def choose_method(
    evaluation: dict[str, Any], test_subjects: int, *, fine_tuned: bool = False
) -> str:
    """Return ``crossfit`` or ``heldout``.

    Tuned encoders have seen all training subjects, so that towers cross-fitted on their features
    would be tested on people their encoders know: only those set aside can be tested.

    Raises
    ------
    InputError
        An unknown method, cross-fitting of tuned encoders' features, or a held-out evaluation
        without test subjects.
    """
    method = str(evaluation["method"])
    if method not in METHODS:
        raise InputError(
            Problem("bad-value", "evaluation.method", f"'{method}'", f"one of {', '.join(METHODS)}")
        )
    if fine_tuned and method == "crossfit":
        raise InputError(
            Problem(
                "crossfit-tuned-encoders",
                "evaluation.method",
                "crossfit, of encoders that were fine-tuned on the training subjects",
                "heldout: others know nobody who is tested",
                "set evaluation.method=auto, or align with frozen encoders",
            )
        )
    if fine_tuned:
        method = "heldout"
    if method == "auto":
        return "crossfit" if test_subjects < int(evaluation["crossfit_below"]) else "heldout"
    if method == "heldout" and test_subjects < 2:
        raise InputError(
            Problem(
                "no-test-subjects",
                "evaluation.method",
                f"heldout, with {test_subjects} test subjects in the split",
                "at least two",
                "align with another split"
                if fine_tuned
                else "set evaluation.method=crossfit, or align with another split",
            )
        )
    return method


class _Task:
    """One alignment, to be trained again and again on parts of the cohort."""

    def __init__(
        self,
        joint: Joint,
        choices: AlignOptions,
        record: dict[str, Any],
        evaluation: dict[str, Any],
    ) -> None:
        self.joint, self.choices = joint, choices
        self.covariate_names = list(record["covariates"])
        self.evaluation = evaluation
        n = len(joint.cohort.participants)
        split = record["split"]
        self.validation_share = split["validation"] / (split["train"] + split["validation"])
        self._reference: tuple[np.ndarray, np.ndarray] | None = None
        self._everybody = np.arange(n)

    def folds(self) -> np.ndarray:
        """Return the fold of each subject: whole families, strata balanced."""
        strata = strata_of(self.joint, list(self.evaluation["strata"]), self._everybody)
        return make_folds(
            self.joint.components,
            strata,
            int(self.evaluation["folds"]),
            int(self.evaluation["seed"]),
            participant_ids=self.joint.cohort.participant_ids,
        )

    @property
    def cross_fit_reference(self) -> Latents:
        """Latents with the reference genome in everybody's place, from the genome's own towers."""
        assert self._reference is not None
        return self._reference

    def cross_fit(self, side: str, folds: np.ndarray) -> Latents:
        """Return out-of-fold latents of both sides, as rows of the cohort."""
        from multimodal.features.progress import progress_bar

        reference: list[tuple[np.ndarray, np.ndarray]] = []
        bar = progress_bar(f"cross-fitting {side}", int(folds.max()) + 1, "fold", True)

        def fit_and_embed(train: np.ndarray, test: np.ndarray, fold: int) -> Latents:
            split = np.full(len(folds), "test", dtype="<U10")
            split[train] = "train"
            split[self._validation(train, fold)] = "validation"
            gene, brain, aligner, covariates = self._fit(side, split)
            if side == "genome":
                reference.append((test, self._embed_reference(aligner, test, covariates)))
            bar.update()
            return gene[test], brain[test]

        latents = cross_fit(fit_and_embed, folds, components=self.joint.components)
        bar.close()
        if side == "genome":
            gene = np.full_like(latents.gene, np.nan)
            for rows, values in reference:
                gene[rows] = values
            self._reference = (gene, latents.brain)
        return latents.gene, latents.brain

    def heldout(self, side: str, split: np.ndarray, output_dir: Path) -> Latents:
        """Return latents of everybody by towers that were trained on the training subjects."""
        from multimodal.latent.bundle import read_bundle

        if side == "covariates":
            gene, brain, _, _ = self._fit(side, split)
            return gene, brain
        aligner = read_bundle(output_dir / "bundle", installed=False).load_aligner()
        covariates = self.covariates() if self.choices.residualise else None
        brain = aligner.embed_brains(self.joint.brain, covariates)
        if side == "reference":
            return self._embed_reference(aligner, self._everybody, covariates), brain
        return aligner.embed_genes(self.joint.gene, covariates), brain

    def _fit(
        self, side: str, split: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Aligner, np.ndarray | None]:
        from multimodal.align.controls import covariate_features, covariate_options
        from multimodal.align.fit import fit

        choices, gene = self.choices, self.joint.gene
        wanted = side == "covariates" or choices.residualise
        covariates = self.covariates() if wanted else None
        if side == "covariates":
            assert covariates is not None
            gene = covariate_features(self.joint.cohort.participant_ids, covariates)
            choices, covariates = covariate_options(choices), None
        brain, relatives = self.joint.brain, self.joint.components
        fitted = fit(
            gene, brain, split, relatives, covariates, choices,
            progress=False,
            **training_labels(self.joint, choices, np.flatnonzero(split == "train")),
        )  # fmt: skip
        aligner = fitted.aligner
        return (
            aligner.embed_genes(gene, covariates),
            aligner.embed_brains(self.joint.brain, covariates),
            aligner,
            covariates,
        )

    def covariates(self) -> np.ndarray:
        """Return the design matrix; its levels are everybody's, so that no fold lacks one.

        The towers scale and regress by training subjects alone: a column without variance among
        them has no say.
        """
        people = self.joint.cohort.participants
        return covariate_matrix(people, self.covariate_names, self._everybody)[0]

    def _embed_reference(
        self, aligner: Aligner, rows: np.ndarray, covariates: np.ndarray | None
    ) -> np.ndarray:
        """Embed subjects as if all had the reference sequence: no difference anywhere.

        Covariates are everybody's first, so that nothing tells subjects apart.
        """
        gene = self.joint.gene
        nothing = GeneFeatures(
            [gene.participant_ids[int(row)] for row in rows],
            gene.windows,
            np.zeros((1, *gene.distinct.shape[1:]), dtype=np.float32),
            np.zeros((len(rows), *gene.index.shape[1:]), dtype=np.int64),
        )
        same = None if covariates is None else np.repeat(covariates[rows[:1]], len(rows), axis=0)
        return aligner.embed_genes(nothing, same)

    def _validation(self, train: np.ndarray, fold: int) -> np.ndarray:
        """Return the training rows set aside to choose the epoch: whole families.

        Their share is that of validation in the alignment's split.
        """
        if not self.validation_share:
            return train[:0]
        ids = [self.joint.cohort.participant_ids[int(row)] for row in train]
        strata = strata_of(self.joint, list(self.evaluation["strata"]), self._everybody)[train]
        parts = make_folds(
            self.joint.components[train],
            strata,
            max(2, round(1 / self.validation_share)),
            int(self.evaluation["seed"]) + 1 + fold,
            participant_ids=ids,
        )
        return train[parts == 0]


def plan_cohort(config: DictConfig) -> None:
    """Print which effect the cohort would detect, and how many subjects an effect needs."""
    from multimodal.evaluate.power import PowerOptions, format_plan, plan

    named = named_paths(config.cohort)
    if config.cohort.dir is None and "participants" not in named:
        section = {**plain(config.cohort), "dir": f"{config.run_dir}/cohort"}
        paths = paths_of_run(OmegaConf.create({"run_dir": config.run_dir, "cohort": section}))
    else:
        paths = cohort_paths(config.cohort)
    cohort = read_cohort(paths)
    evaluation = plain(config.evaluation)
    everybody = np.arange(len(cohort.participants))
    strata = strata_labels(cohort.participants, list(evaluation["strata"]), everybody)
    kin = components(cohort, float(config.kinship_threshold))
    folds = make_folds(
        kin,
        strata,
        int(evaluation["folds"]),
        int(evaluation["seed"]),
        participant_ids=cohort.participant_ids,
    )
    who = Evaluated(cohort.participant_ids, folds, kin, strata)
    say(format_plan(plan(who, options=options(PowerOptions, plain(config.power), "power"))))
