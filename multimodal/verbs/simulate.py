"""``genebold simulate``: a simulated cohort in real file formats."""

from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from multimodal.align.processes import refuse_several
from multimodal.simulate.options import SimulationOptions
from multimodal.verbs.console import Stages, say
from multimodal.verbs.settings import options, plain


def run(config: DictConfig) -> int:
    """Write the cohort that ``cohort`` describes into ``cohort.dir``."""
    refuse_several("simulate")
    with Stages().stage("simulate", f"{world_of(config.cohort)} world, seed {config.cohort.seed}"):
        folder = simulate(config.cohort)
    people = len(pd.read_csv(folder / "participants.tsv", sep="\t", usecols=["participant_id"]))
    say(f"{people} participants, their genotypes and BOLD runs written to {folder}")
    say(f"next: genebold check cohort.dir={folder}")
    return 0


def world_of(section: DictConfig) -> str:
    """Return the world's name; ``cohort.world=null`` on a command line means the null world."""
    return "null" if section.world is None else str(section.world)


def simulate(section: DictConfig) -> Path:
    """Write a simulated cohort and return its folder."""
    from multimodal.simulate.cohort import simulate_cohort

    values = plain(section)
    folder = Path(values.pop("dir"))
    values["world"] = world_of(section)
    real = {name: values.pop(name) for name in ("genotypes", "reference", "regions")}
    simulate_cohort(
        folder,
        options(SimulationOptions, values, "cohort"),
        **{name: Path(path) if path else None for name, path in real.items()},
        progress=True,
    )
    return folder
