"""Two guards against confounds: what they take out of latents, and what they leave of a signal.

Simulates cohorts in the `confounded` world (genomes say nothing about brains, but ancestry goes
with the scanner) and in the `signal` world, encodes each once, and cross-fits the towers plainly,
with batches matched for covariates, and with an adversary that reads site and ancestry from the
latents. A guard that works brings the raw percentile of the confounded world to 0.5 and makes site
and ancestry hard to read, and leaves the signal world detected.

    python benchmarks/confounds.py            # the whole table, and a file in results
    python benchmarks/confounds.py --short    # one small cohort a world; nothing is written
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from cohorts import EncodedCohort, encoded_cohort, every_value, training_options
from readings import readability
from tables import heading, markdown, publish

from multimodal.simulate.options import SimulationOptions, World

SEEDS: dict[World, tuple[int, ...]] = {"confounded": (501, 502, 503), "signal": (511, 512, 513)}
SUBJECTS, SHORT_SUBJECTS = 240, 80
MATCHED = ("align.batch_strata=[sex,site,ancestry]",)
ADVERSARY = ("align.adversary=[site,ancestry]", "align.adversary_weight=1")
VARIANTS = {
    "neither": (),
    "matched batches": MATCHED,
    "matched, start only": (*MATCHED, "align.epochs=0"),
    "adversary": ADVERSARY,
    "adversary, start only": (*ADVERSARY, "align.epochs=0"),
    "both": (*MATCHED, *ADVERSARY),
    "residualised": ("align.residualise=true",),
}
READ = (("gene", "ancestry"), ("brain", "site"), ("gene", "site"), ("brain", "ancestry"))


@dataclass
class Cell:
    """What one variant gave in one world, a value a seed."""

    raw: list[float] = field(default_factory=list)
    raw_p: list[float] = field(default_factory=list)
    matched: list[float] = field(default_factory=list)
    matched_p: list[float] = field(default_factory=list)
    read: dict[tuple[str, str], list[float]] = field(default_factory=dict)


def measure(cohort: EncodedCohort, words: tuple[str, ...], cell: Cell) -> None:
    """Train one variant on one cohort, and add what it gave."""
    latents = cohort.latents(training_options(words))
    raw, matched = cohort.tests(latents)
    cell.raw.append(raw[0])
    cell.raw_p.append(raw[1])
    cell.matched.append(matched[0])
    cell.matched_p.append(matched[1])
    for side, column in READ:
        values = latents[0] if side == "gene" else latents[1]
        read = readability(values, cohort.column(column), cohort.folds, cohort.joint.components)
        cell.read.setdefault((side, column), []).append(read)


def verdicts(cells: dict[tuple[str, str], Cell]) -> Iterator[tuple[str, str, bool]]:
    """Say for each guard whether it does what it is for, by means over seeds."""
    plain = cells["confounded", "neither"]
    for guard in ("matched batches", "adversary"):
        cell = cells["confounded", guard]
        before, after = (abs(float(np.mean(of.raw)) - 0.5) for of in (plain, cell))
        found = f"{after:.3f} from chance, {before:.3f} without"
        yield f"{guard}: raw percentile nearer to chance", found, after < before
        for side, column in READ[:2]:
            without, with_guard = (float(np.mean(of.read[side, column])) for of in (plain, cell))
            found = f"{with_guard:.2f}, {without:.2f} without"
            yield f"{guard}: {column} harder to read from {side}s", found, with_guard < without
        largest = max(cells["signal", guard].matched_p)
        what = f"{guard}: signal world detected, matched p at most 0.01"
        yield what, f"largest p {largest:.4f}", largest <= 0.01


def row(world: str, variant: str, cell: Cell) -> list[str]:
    """Return a row of the table: means over seeds, and every seed."""
    return [
        world,
        variant,
        every_value(cell.raw, "{:.3f}"),
        " ".join(f"{p:.4f}" for p in cell.raw_p),
        every_value(cell.matched, "{:.3f}"),
        " ".join(f"{p:.4f}" for p in cell.matched_p),
        *(every_value(cell.read[read], "{:.2f}") for read in READ),
    ]


def main() -> int:
    """Measure, print and (unless short) write the table; the exit code says whether all holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="one small cohort a world")
    short = parser.parse_args().short
    torch.set_num_threads(1)
    subjects = SHORT_SUBJECTS if short else SUBJECTS
    cells: dict[tuple[str, str], Cell] = {}
    used = {world: seeds[:1] if short else seeds for world, seeds in SEEDS.items()}
    for world, seeds in used.items():
        for seed in seeds:
            simulation = SimulationOptions(world=world, seed=seed, subjects=subjects)
            with tempfile.TemporaryDirectory() as folder:
                cohort = encoded_cohort(Path(folder), simulation, folds=2 if short else 5)
            for variant, words in VARIANTS.items():
                cell = cells.setdefault((world, variant), Cell())
                measure(cohort, words, cell)
                print(seed, "|", " | ".join(row(world, variant, cell)), flush=True)
    held = list(verdicts(cells))
    notes = [
        f"{subjects} simulated subjects a seed; dosages and connectivity, encoded once; 1 thread.",
        "Percentile: mean rank percentile over both directions, cross-fitted, chance 0.5.",
        "Read: balanced accuracy of a logistic regression on held-out latents, chance 0.5.",
        "Mean over seeds, and in brackets every seed: "
        + "; ".join(f"{world} {', '.join(map(str, of))}" for world, of in used.items())
        + ".",
        *(f"- {name}: `{' '.join(words) or 'the defaults'}`" for name, words in VARIANTS.items()),
    ]
    lines = heading("Guards against confounds", notes)
    lines += markdown(
        ["expected", "found", "holds"],
        ([what, found, "yes" if holds else "NO"] for what, found, holds in held),
    )
    table = [row(world, variant, cell) for (world, variant), cell in cells.items()]
    header = ["world", "variant", "raw percentile", "raw p", "matched percentile", "matched p"]
    lines += markdown([*header, *(f"{column} from {side}s" for side, column in READ)], table)
    publish("confounds", lines, write=not short)
    return 0 if short or all(holds for _, _, holds in held) else 1


if __name__ == "__main__":
    raise SystemExit(main())
