"""``genebold encode``: frozen encoders over a cohort, into the feature store."""

import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from encoders.errors import InputError, Problem
from multimodal.align.processes import refuse_several
from multimodal.cohort.table import Cohort, read_cohort
from multimodal.verbs.console import Stages, say
from multimodal.verbs.pipeline import Preparation, load_side
from multimodal.verbs.record import paths_of_run
from multimodal.verbs.settings import plain
from multimodal.verbs.upfront import refuse_bad_settings

SIDES = ("dna", "brain")


def run(config: DictConfig) -> int:
    """Encode the sides asked for; what is there already is not encoded again."""
    refuse_several("encode")
    sides = list(config.sides)
    unknown = [side for side in sides if side not in SIDES]
    if unknown or not sides:
        raise InputError(Problem("bad-sides", "sides", str(sides), f"some of {list(SIDES)}"))
    refuse_bad_settings(config)
    cohort = read_cohort(paths_of_run(config))
    stores = encode(cohort, preparation(config), Stages(), sides)
    for side, store in stores.items():
        say(f"{side} features are in {store}")
    return 0


def preparation(config: DictConfig) -> Preparation:
    """Return how a configuration wants both sides encoded."""
    sections = {name: plain(config[name]) for name in ("dna", "brain", "genome", "bold")}
    return Preparation(**sections, features_dir=Path(config.features.dir))


def encode(
    cohort: Cohort, how: Preparation, stages: Stages, sides: list[str] | tuple[str, ...] = SIDES
) -> dict[str, Path]:
    """Encode the given sides of a cohort and return their stores.

    Where another run writes the same features, as another job of a sweep may, this waits for it.
    """
    stores: dict[str, Path] = {}
    if "dna" in sides:
        encoder = load_side(how.dna, "dna")
        with stages.stage("encode dna", _name(encoder)):
            stores["dna"] = _after_others(
                lambda: how.encode_dna(cohort, encoder)  # type: ignore[arg-type]
            )
    if "brain" in sides:
        encoder = load_side(how.brain, "brain")
        with stages.stage("encode brain", _name(encoder)):
            stores["brain"] = _after_others(
                lambda: how.encode_brain(cohort, encoder)  # type: ignore[arg-type]
            )
    return stores


def _after_others(write: Callable[[], Path], every_s: float = 2.0) -> Path:
    """Write a store once no other run does; what that one wrote is found and not written again."""
    said = False
    while True:
        try:
            return write()
        except InputError as error:
            if any(problem.code != "features-locked" for problem in error.problems):
                raise
            if not said:
                say(f"{'note':<10} {error.problems[0].where}: another run writes it; waiting")
            said = True
        time.sleep(every_s)


def _name(encoder: object) -> str:
    return encoder if isinstance(encoder, str) else encoder.spec.name  # type: ignore[attr-defined]
