"""What `genebold align` says of the cohort, of the training and of what it found."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from multimodal.align.options import AlignOptions
from multimodal.report.provenance import random_encoders
from multimodal.verbs.console import say, table
from multimodal.verbs.pipeline import Joint, Preparation


def say_retrieval(metrics: dict[str, Any]) -> None:
    """Print the table of retrieval against its null."""
    if "permutation" not in metrics:
        say("no test subjects: nothing was tested; `genebold evaluate` cross-fits")
        return
    rows: list[list[Any]] = []
    reasons: dict[str, None] = {}
    blocks = {"genome": metrics, **metrics.get("controls", {})}
    for name, block in blocks.items():
        for gallery, test in block["permutation"].items():
            found = [block["retrieval"][gallery][way] for way in ("gene_to_brain", "brain_to_gene")]
            recall = [part.get("recall@1") for part in found]
            chance = (found[0].get("chance") or {}).get("recall@1")
            mean = None if None in recall else float(np.mean(recall))
            row = [name.replace("_", " "), gallery, test["n"], test["statistic"], mean, chance]
            rows.append([*row, "-" if test["p"] is None else f"{test['p']:.4f}"])
            if test.get("reason"):
                reasons[f"{gallery}: {test['reason']}"] = None
    header = ["gene side", "gallery", "subjects", "percentile", "recall@1", "by chance", "p"]
    say()
    say(table(rows, header))
    for reason in reasons:
        say(reason)
    say()


def say_cohort(joint: Joint, split: np.ndarray) -> None:
    """Say how many take part, and in which role."""
    parts = ", ".join(f"{(split == name).sum()} {name}" for name in ("train", "validation", "test"))
    alone = joint.only_gene + joint.only_brain
    left = f"; {alone} with one side only are left out" if alone else ""
    say(f"{'cohort':<10} {len(split)} participants with both sides ({parts}){left}")


def say_if_random(encoders: Sequence[Mapping[str, Any]]) -> None:
    """Say which encoders' weights were drawn at random, and how to have the published ones."""
    for name, side in random_encoders(dict(zip(("dna", "brain"), encoders, strict=True))).items():
        say(
            f"{'note':<10} {name} has random weights, never trained, and says nothing of the "
            f"published network ({side}.weights=DIR_OR_HUB_ID {side}.config=null)"
        )


_STARTS = {"cca": "the CCA start", "random": "the random start"}


def training_words(choices: AlignOptions) -> str:
    """Return how long the training may last."""
    if choices.epochs:
        tuned = [
            f"{side} ({choices.fine_tune.of(side).method})" for side in choices.fine_tune.sides
        ]
        with_encoders = f", fine-tuning {' and '.join(tuned)}" if tuned else ""
        return f"up to {choices.epochs} epochs{with_encoders}"
    return f"no training (align.epochs=0): the towers stay at {_STARTS[choices.start]}"


def say_gain(history: pd.DataFrame, best_epoch: int, choices: AlignOptions) -> None:
    """Say what the training added to the start, by the subjects who choose the epoch."""
    if "val_percentile" not in history or history["val_percentile"].isna().all():
        if choices.epochs:
            say(f"{'':<10} no validation subjects: the last epoch is kept")
        return
    percentiles = history.set_index("epoch")["val_percentile"]
    last = int(percentiles.index.max())
    start = f"validation percentile {percentiles.loc[0]:.3f} at {_STARTS[choices.start]}"
    if not choices.epochs:
        say(f"{'':<10} {start}")
    elif best_epoch == 0:
        say(f"{'':<10} {start}, which is kept: none of {last} epochs lowered the validation loss")
    else:
        kept = f"{percentiles.loc[best_epoch]:.3f} at the kept epoch, {best_epoch} of {last}"
        say(f"{'':<10} {start}, {kept}")


def say_if_not_embeddable(how: Preparation) -> None:
    """Say which side comes by `_target_`, which a bundle cannot hold."""
    for side, section in (("dna", how.dna), ("brain", how.brain)):
        if "_target_" in section:
            say(
                f"note: {side} comes by _target_; it aligns and evaluates, but `embed` will "
                "need it installed under an entry point in the group 'genebold.encoders'"
            )
