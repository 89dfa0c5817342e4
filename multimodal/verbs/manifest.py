"""What a bundle says of itself, from what `align` was told and found."""

import dataclasses
from pathlib import Path
from typing import Any

from encoders.errors import InputError, Problem
from multimodal.bold.bids import find_runs
from multimodal.cohort.covariates import CovariateCoding
from multimodal.cohort.table import CohortPaths
from multimodal.features.encode import DOSAGE
from multimodal.features.read import read_dosage_variants, stored_participants
from multimodal.features.store import read_fingerprint
from multimodal.latent.card import public_metrics
from multimodal.latent.scans import describe_scans


def manifest_of(
    record: dict[str, Any],
    stores: dict[str, Path],
    paths: CohortPaths,
    coding: CovariateCoding | None,
    metrics: dict[str, Any],
) -> dict[str, Any]:
    """Return what ``bundle.json`` says, but for what `write_bundle` adds.

    Parameters
    ----------
    record : dict
        The content of ``run.json``.
    stores : dict of str to Path
        Features by the encoders as they were published.
    paths : CohortPaths
    coding : CovariateCoding or None
        Of covariates that are regressed out.
    metrics : dict
        The content of ``metrics.json``.

    Raises
    ------
    InputError
        No regions or no scans.
    """
    from multimodal.genome.regions import read_regions

    prints = {side: read_fingerprint(store) for side, store in stores.items()}
    if paths.regions is None:
        raise InputError(Problem("cohort-path", "cohort.regions", "no file", "a BED file"))
    if paths.bold is None:
        raise InputError(Problem("cohort-path", "cohort.bold", "no folder", "scans"))
    sides = {
        side: _public_section(record[side], prints[side]["encoder"]) for side in ("dna", "brain")
    }
    if record["dna"].get("name") == DOSAGE:
        sides["dna"]["variants"] = read_dosage_variants(stores["dna"])
    public = ("participants", "families", "in_families", "split", "runs", "segments", "windows")
    return {
        "versions": record["versions"],
        **sides,
        "genome": {**record["genome"], "windows": prints["dna"]["windows"]},
        "bold": {**record["bold"], "atlas": prints["brain"]["atlas"]},
        "regions": [dataclasses.asdict(region) for region in read_regions(paths.regions)],
        "covariates": coding.as_dict() if coding else None,
        "align": record["align"],
        "training": {name: metrics["cohort"][name] for name in public},
        "scans": describe_scans(
            find_runs(
                paths.bold,
                stored_participants(stores["brain"]),
                space=record["bold"]["space"],
                task=record["bold"]["task"],
            )
        ),
        "metrics": public_metrics(metrics),
    }


def _public_section(section: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """Return an encoder's section as a bundle may hold it: no code, no paths of this machine."""
    hidden = ("_target_", "device", "batch_size", "workers")
    public = {name: value for name, value in section.items() if name not in hidden}
    public = (
        {"name": spec["name"], **public} if "_target_" not in section else {"name": spec["name"]}
    )
    spec = dict(spec)
    if public.get("weights") is not None and Path(public["weights"]).exists():
        public["weights"] = None
        public["local_weights"] = Path(section["weights"]).name
        spec["weights_id"] = Path(str(spec["weights_id"])).name
    return {**public, "spec": spec}
