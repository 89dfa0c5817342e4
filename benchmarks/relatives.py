"""What does it buy that relatives are no negatives of each other?

Simulates cohorts of the `signal` world in which everybody has a sibling or a twin, encodes each
once, and cross-fits the towers with relatives masked, with relatives as plain negatives, and with
relatives as partial matches by their kinship. Whole families are held out, and galleries hold one
member of each, in all of these alike: only the loss differs.

    python benchmarks/relatives.py            # the whole table, and a file in results
    python benchmarks/relatives.py --short    # one small cohort; nothing is written
"""

import argparse
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from cohorts import EncodedCohort, encoded_cohort, every_value, training_options
from readings import likeness, told_apart
from tables import heading, markdown, publish

from multimodal.align.losses.relatives import MONOZYGOTIC
from multimodal.simulate.options import SimulationOptions

SEEDS = (521, 522, 523)
SUBJECTS, SHORT_SUBJECTS = 240, 80
TRAININGS = {
    "from the CCA": (),
    "from random weights": ("align.start=random", "align.learning_rate=0.0003"),
}
# The loss, and whether it is told who is related.
VARIANTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "masked": ((), True),
    "plain negatives": ((), False),
    "partial matches": (("loss=soft_target",), True),
}


@dataclass
class Cell:
    """What one variant gave, a value a seed."""

    raw: list[float] = field(default_factory=list)
    matched: list[float] = field(default_factory=list)
    told_apart: list[float] = field(default_factory=list)
    likeness: list[float] = field(default_factory=list)
    unlikeness: list[float] = field(default_factory=list)


def unrelated_pairs(cohort: EncodedCohort) -> np.ndarray:
    """Pairs [p, 2] of rows of one fold that belong to different families."""
    one, other = np.triu_indices(len(cohort.folds), 1)
    components = cohort.joint.components
    apart = (cohort.folds[one] == cohort.folds[other]) & (components[one] != components[other])
    return np.stack([one[apart], other[apart]], axis=1)


def measure(cohort: EncodedCohort, words: tuple[str, ...], related: bool, cell: Cell) -> None:
    """Train one variant on one cohort, and add what it gave."""
    strangers = None if related else np.arange(len(cohort.folds))
    gene, brain = cohort.latents(training_options(words), strangers)
    raw, matched = cohort.tests((gene, brain))
    cell.raw.append(raw[0])
    cell.matched.append(matched[0])
    assert cohort.joint.kinship is not None
    pairs, coefficient = cohort.joint.kinship
    siblings = pairs[coefficient < MONOZYGOTIC]
    cell.told_apart.append(told_apart(gene, brain, siblings))
    cell.likeness.append(likeness(gene, siblings))
    cell.unlikeness.append(likeness(gene, unrelated_pairs(cohort)))


def row(training: str, variant: str, cell: Cell) -> list[str]:
    """Return a row of the table: means over seeds, and every seed."""
    figures = (cell.raw, cell.matched, cell.told_apart, cell.likeness, cell.unlikeness)
    return [training, variant, *(every_value(values, "{:.3f}") for values in figures)]


def main() -> int:
    """Measure, print and (unless short) write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="one small cohort")
    short = parser.parse_args().short
    torch.set_num_threads(1)
    subjects = SHORT_SUBJECTS if short else SUBJECTS
    seeds = SEEDS[:1] if short else SEEDS
    cells: dict[tuple[str, str], Cell] = {}
    for seed in seeds:
        simulation = SimulationOptions(seed=seed, subjects=subjects, family_fraction=1.0)
        with tempfile.TemporaryDirectory() as folder:
            cohort = encoded_cohort(Path(folder), simulation, folds=2 if short else 5)
        for training, words in TRAININGS.items():
            for variant, (loss, related) in VARIANTS.items():
                cell = cells.setdefault((training, variant), Cell())
                measure(cohort, (*words, *loss), related, cell)
                print(seed, "|", " | ".join(row(training, variant, cell)), flush=True)
    families = len(np.unique(cohort.joint.components))
    notes = [
        f"{subjects} simulated subjects in {families} families a seed, siblings and twins;",
        "dosages and connectivity, encoded once; one thread. Percentile: mean rank percentile over",
        "both directions among unrelated people, cross-fitted, chance 0.5. Told from a sibling:",
        "share of sibling pairs whose genomes find their own of the two brains, chance 0.5.",
        "Cosines are between the latents of two genomes. Mean over seeds, and in brackets every",
        f"seed: {', '.join(map(str, seeds))}.",
        *(f"- {name}: `{' '.join(words) or 'the defaults'}`" for name, words in TRAININGS.items()),
    ]
    header = [
        "training", "relatives", "raw percentile", "matched percentile", "told from a sibling",
        "cosine of siblings", "cosine of strangers",
    ]  # fmt: skip
    table = [row(training, variant, cell) for (training, variant), cell in cells.items()]
    lines = [*heading("Relatives in the loss", notes), *markdown(header, table)]
    publish("relatives", lines, write=not short)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
