"""Whether what is given to a fit goes together."""

import numpy as np

from encoders.errors import InputError, Problem
from multimodal.align.options import AlignOptions
from multimodal.features.tables import BrainFeatures, GeneFeatures

SPLITS = ("train", "validation", "test")


def check_inputs(
    gene: GeneFeatures,
    brain: BrainFeatures,
    split: np.ndarray,
    relatives: np.ndarray,
    covariates: np.ndarray | None,
    options: AlignOptions,
    strata: np.ndarray | None,
    confounds: np.ndarray | None,
) -> None:
    """Raise `InputError` with all that does not; arguments as `multimodal.align.fit.fit` takes."""
    subjects = len(gene.participant_ids)
    problems = []
    if list(gene.participant_ids) != list(brain.participant_ids):
        problems.append(
            Problem(
                "different-subjects",
                "features",
                f"{subjects} subjects on the gene side, "
                f"{len(brain.participant_ids)} on the brain side, not the same in the same order",
                "the subjects that have both modalities, in one order",
                "take() the same rows of both",
            )
        )
    problems += [
        Problem("wrong-length", name, f"{len(values)} entries", f"{subjects}, one a subject")
        for name, values in (("split", split), ("relatives", relatives))
        if len(values) != subjects
    ]
    if options.residualise and covariates is None:
        problems.append(
            Problem(
                "covariates-missing",
                "align.residualise",
                "true, but no covariates",
                "covariates to regress out",
                "name covariates, or set align.residualise=false",
            )
        )
    wanted = (("batch_strata", strata), ("adversary", confounds))
    problems += [
        Problem("labels-missing", f"align.{name}", "set, but no labels", "labels of the subjects")
        for name, labels in wanted
        if getattr(options, name) and (labels is None or len(labels) != subjects)
    ]
    if not problems:
        problems += _split_problems(np.asarray(split), np.asarray(relatives))
    if problems:
        raise InputError(problems)


def _split_problems(split: np.ndarray, relatives: np.ndarray) -> list[Problem]:
    unknown = sorted({str(name) for name in split} - set(SPLITS))
    if unknown:
        return [Problem("unknown-split", "split", ", ".join(unknown), " or ".join(SPLITS))]
    problems = []
    for name, least in (("train", 2), ("validation", 0)):
        members = split == name
        families = len(np.unique(relatives[members]))
        if families < max(least, 2 if members.any() else 0):
            problems.append(
                Problem(
                    "too-few-unrelated",
                    f"split {name}",
                    f"{int(members.sum())} subjects of {families} families",
                    "at least two unrelated subjects to tell apart",
                    "change the split's fractions" + (", or use none" if name != "train" else ""),
                )
            )
    return problems
