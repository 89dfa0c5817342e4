"""What a reader must know before any number: simulated people, networks that never learnt."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SIMULATION_FILE = "simulation.json"
_SIDES = {"dna": "DNA", "brain": "brain"}
_RANDOM = re.compile(r"random\(seed=(.+)\)")


def simulation_of(paths: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how a cohort was simulated, or None for a cohort of people.

    The simulator leaves ``simulation.json`` beside what it writes; a cohort counts as simulated
    where one lies beside its participants, genotypes or scans.

    Parameters
    ----------
    paths : mapping
        A cohort's paths by name, as in ``run.json`` or `multimodal.cohort.table.CohortPaths`.

    Returns
    -------
    dict or None
        ``world``, ``seed`` and ``genotypes`` ("simulated" or "given").
    """
    for name in ("participants", "genotypes", "bold"):
        path = paths.get(name)
        found = None if path is None else _read(Path(path).parent / SIMULATION_FILE)
        if found is not None:
            return found
    return None


def _read(file: Path) -> dict[str, Any] | None:
    """Other software uses this name too: what is not the simulator's says nothing."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        options, genotypes = values["options"], values["source"]["genotypes"]
        drawn = "simulated" if genotypes == "simulated" else "given"
        return {"world": str(options["world"]), "seed": int(options["seed"]), "genotypes": drawn}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def simulation_in(metrics: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how a run's cohort was simulated: as recorded, else as its folder says now."""
    for values in (metrics, record):
        if "simulation" in values:
            recorded: dict[str, Any] | None = values["simulation"]
            return recorded
    return simulation_of(record.get("cohort") or {})


def random_seed(weights_id: str) -> str | None:
    """Return the seed of weights that were drawn and never trained; None for other weights."""
    if not weights_id.startswith("random("):
        return None
    found = _RANDOM.fullmatch(weights_id)
    return found[1] if found else "not recorded"


def random_encoders(encoders: Mapping[str, Any]) -> dict[str, str]:
    """Return the encoders whose weights were drawn and never trained: name to side.

    Parameters
    ----------
    encoders : mapping of str to mapping
        What ``run.json`` says of them, by side.
    """
    return {
        str(spec.get("name", "?")): side
        for side, spec in encoders.items()
        if isinstance(spec, Mapping) and random_seed(str(spec.get("weights_id") or "")) is not None
    }


def warnings(metrics: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """Return the sentences that stand at the top of the page."""
    said = []
    simulation = simulation_in(metrics, record)
    if simulation:
        drawn = f"(world {simulation.get('world', '?')}, seed {simulation.get('seed', '?')})"
        said.append(
            f"The cohort's brains are simulated {drawn} on genotypes that were given."
            if simulation.get("genotypes") == "given"
            else f"The cohort is simulated {drawn}."
        )
    said += [
        f"The encoder weights are random: {_SIDES.get(side, side)} encoder "
        f"{name} was never trained, and nothing here speaks for the published network."
        for name, side in random_encoders(record.get("encoders") or {}).items()
    ]
    return said
