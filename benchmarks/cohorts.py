"""A simulated cohort, encoded once, whose towers are trained as often as a comparison wants."""

import os
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from multimodal.align.fit import fit
from multimodal.align.options import AlignOptions
from multimodal.cli import config_dir
from multimodal.cohort.covariates import covariate_matrix
from multimodal.cohort.splits import make_folds
from multimodal.cohort.table import CohortPaths, read_cohort
from multimodal.evaluate.crossfit import cross_fit
from multimodal.evaluate.summary import Evaluated, EvaluateOptions, Latents, evaluate_latents
from multimodal.simulate.cohort import simulate_cohort
from multimodal.simulate.options import SimulationOptions
from multimodal.verbs.align import strata_of
from multimodal.verbs.console import Stages
from multimodal.verbs.encode import encode, preparation
from multimodal.verbs.labels import training_labels
from multimodal.verbs.pipeline import Joint, join
from multimodal.verbs.settings import plain
from multimodal.verbs.upfront import align_options

# Dosages and connectivity: the baselines, whose encoding costs next to nothing.
BASELINES = ("experiment=first_alignment",)


def settings(words: Sequence[str] = ()) -> DictConfig:
    """Return what ``genebold align`` would be told by these words."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(config_dir().absolute()), version_base="1.3"):
        return compose("align", [*BASELINES, *words])


def training_options(words: Sequence[str]) -> AlignOptions:
    """Return the ``align`` section of `settings`."""
    return align_options(plain(settings(words).align))


@dataclass(frozen=True)
class EncodedCohort:
    """Features of a simulated cohort, and in which fold everybody is tested.

    Parameters
    ----------
    joint : Joint
    strata : ndarray [n] of str
        Sex, site and ancestry of each participant: the matched galleries.
    folds : ndarray [n] int
        Whole families, strata spread evenly.
    validation : float
        Share of a fold's training participants who choose the epoch.
    covariates : ndarray [n, c]
        What ``align.residualise`` regresses out.
    """

    joint: Joint
    strata: np.ndarray
    folds: np.ndarray
    validation: float
    covariates: np.ndarray

    def column(self, name: str) -> np.ndarray:
        """Return a column of participants.tsv as text, [n]."""
        return self.joint.cohort.participants[name].astype(str).to_numpy()

    def latents(self, options: AlignOptions, relatives: np.ndarray | None = None) -> Latents:
        """Train once a fold, and embed the fold.

        Parameters
        ----------
        options : AlignOptions
        relatives : ndarray [n] int, optional
            Kinship components that the loss is told; those of the cohort by default.

        Returns
        -------
        gene, brain : ndarray [n, latent_dim]
            Those of different folds lie in different spaces.
        """
        joint = self.joint
        told = joint.components if relatives is None else relatives
        covariates = self.covariates if options.residualise else None

        def fit_and_embed(train: np.ndarray, test: np.ndarray, fold: int) -> Latents:
            split = np.full(len(self.folds), "test", dtype="<U10")
            split[train] = "train"
            split[self._validation(train, fold)] = "validation"
            labels = training_labels(joint, options, np.flatnonzero(split == "train"))
            fitted = fit(
                joint.gene, joint.brain, split, told, covariates, options, progress=False, **labels
            )
            gene = fitted.aligner.embed_genes(joint.gene, covariates)[test]
            return gene, fitted.aligner.embed_brains(joint.brain, covariates)[test]

        found = cross_fit(fit_and_embed, self.folds, components=joint.components)
        return found.gene, found.brain

    def tests(self, latents: Latents) -> list[tuple[float, float]]:
        """Return statistic and p in the raw and in the matched galleries.

        They are what ``genebold evaluate`` would say; NaN where nobody can be matched.
        """
        who = Evaluated(
            self.joint.cohort.participant_ids, self.folds, self.joint.components, self.strata
        )
        options = EvaluateOptions(bootstrap_replicates=1)
        tests = evaluate_latents(*latents, who, options=options)["permutation"]
        return [
            (float("nan"), float("nan")) if test["p"] is None else (test["statistic"], test["p"])
            for test in (tests["raw"], tests["matched"])
        ]

    def _validation(self, train: np.ndarray, fold: int) -> np.ndarray:
        """Return the training rows that choose the epoch: whole families."""
        ids = [self.joint.cohort.participant_ids[int(row)] for row in train]
        parts = make_folds(
            self.joint.components[train],
            self.strata[train],
            round(1 / self.validation),
            1 + fold,
            participant_ids=ids,
        )
        return train[parts == 0]


def encoded_cohort(
    folder: Path, simulation: SimulationOptions, *, folds: int = 5, validation: float = 0.125
) -> EncodedCohort:
    """Simulate a cohort into `folder`, unless it lies there, and encode it.

    Parameters
    ----------
    folder : Path
        Receives ``cohort/`` and ``features/``.
    simulation : SimulationOptions
    folds : int
        Of the cross-fitting.
    validation : float
        See `EncodedCohort`; an eighth is what ``split`` sets aside by default.
    """
    if not (folder / "cohort").exists():
        simulate_cohort(folder / "cohort", simulation)
    how = settings([f"run_dir={folder}", f"cohort.dir={folder / 'cohort'}"])
    cohort = read_cohort(CohortPaths.from_dir(folder / "cohort"))
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stores = encode(cohort, preparation(how), Stages())
    joint = join(cohort, stores["dna"], stores["brain"], float(how.split.kinship_threshold))
    everybody = np.arange(len(joint.cohort.participants))
    strata = strata_of(joint, list(how.evaluation.strata), everybody)
    ids = joint.cohort.participant_ids
    placed = make_folds(joint.components, strata, folds, 0, participant_ids=ids)
    people, names = joint.cohort.participants, list(how.covariates)
    covariates = covariate_matrix(people, names, everybody)[0]
    return EncodedCohort(joint, strata, placed, validation, covariates)


def every_value(values: Sequence[float], shown: str) -> str:
    """Return a table's cell: the mean, and every value behind it, by a format as ``{:.2f}``."""
    return f"{shown.format(np.mean(values))} ({' '.join(map(shown.format, values))})"
