"""Words of a small demo, and a way to run the command as a user would."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from warm import run_program

SMALL = [
    "cohort.subjects=40",
    "cohort.family_fraction=0.1",
    "cohort.region_count=2",
    "cohort.region_length_bp=700",
    "cohort.causal_variants=4",
    "cohort.causal_dimensions=2",
    "cohort.frames_one_run=96",
    "cohort.frames_two_runs=64",
    "cohort.voxels=[10,10,10]",
    "align.epochs=4",
    "evaluation.folds=2",
    "evaluation.permutations=199",
    "evaluation.bootstrap_replicates=50",
    "dna.config={d_model: 16, n_layer: 1}",
    "embed_subjects=3",
]


def genebold(
    *words: str, cwd: Path | None = None, fresh: bool = False
) -> "subprocess.CompletedProcess[str]":
    """Run the command as a user would, in a process of its own.

    It has imported nothing of the project; nor, where it is `fresh` or starts jobs by a plugin of
    Hydra, the libraries that take long.
    """
    if not fresh and not any(word.startswith("hydra/") for word in words):
        return run_program(_genebold, words, cwd)
    return subprocess.run(
        [sys.executable, "-m", "multimodal.cli", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )


def _genebold(words: Sequence[str]) -> int:
    from multimodal.cli import main

    return main(words)
