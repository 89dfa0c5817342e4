"""The tables of a cohort: participants, kinship, and the truth behind them."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from multimodal.simulate.anatomy import network_name
from multimodal.simulate.brains import Brains
from multimodal.simulate.effects import CausalModel
from multimodal.simulate.options import SimulationOptions
from multimodal.simulate.people import People


@dataclass(frozen=True)
class Names:
    """Identifiers, in the order of `People`; none of them tells of that order or of another.

    Parameters
    ----------
    participants : list of str
        ``sub-0001`` and on, given out at random; of new people ``sub-p1x0001``, 1 being their
        `people_seed`.
    families : list of str
        Family of each participant, ``F001`` and on.
    genotypes : list of str
        Sample of the VCF.
    """

    participants: list[str]
    families: list[str]
    genotypes: list[str]


def draw_names(options: SimulationOptions, people: People, samples: list[str]) -> Names:
    """Give participants and families their identifiers, in random order."""
    rng = options.people_stream("names")
    n, families = len(people), len(people.kind)
    width = max(4, len(str(n)))
    number = rng.permutation(n) + 1
    family_number = rng.permutation(families) + 1
    group = group_prefix(options)
    return Names(
        participants=[f"sub-{group}{i:0{width}d}" for i in number],
        families=[f"{group}F{family_number[f]:0{width}d}" for f in people.family],
        genotypes=samples,
    )


def group_prefix(options: SimulationOptions) -> str:
    """Return what tells the ids of new people from those of the first cohort."""
    return "" if options.people_seed is None else f"p{options.people_seed}x"


def participants_table(
    options: SimulationOptions,
    people: People,
    names: Names,
    components: np.ndarray,
    brains: Brains,
) -> pd.DataFrame:
    """Lay out participants.tsv, sorted by participant.

    Its phenotypes: ``cognition`` falls with age and goes with the first heritable dimension of
    connectivity; ``education_years`` goes with neither.
    """
    rng = options.people_stream("covariates")
    noise = rng.standard_normal((2, len(people)))
    age_z = (people.age - 62.0) / 9.0
    cognition = -0.35 * age_z + 0.35 * brains.dimensions[:, 0] + 0.85 * noise[0]
    table = pd.DataFrame(
        {
            "participant_id": names.participants,
            "family_id": names.families,
            "genotype_id": names.genotypes,
            "sex": people.sex,
            "age": people.age,
            "site": [f"site{s + 1}" for s in people.site],
            "ancestry": [f"ancestry{a + 1}" for a in people.ancestry],
            **{f"PC{c + 1}": components[:, c] for c in range(components.shape[1])},
            "cognition": np.round(cognition, 3),
            "education_years": np.clip(np.round(13.0 + 2.5 * noise[1]), 7, 20).astype(int),
        }
    )
    return table.sort_values("participant_id", ignore_index=True)


def kinship_table(people: People, names: Names) -> pd.DataFrame:
    """Lay out kinship.tsv: every pair of relatives with its expected kinship coefficient."""
    rows: list[tuple[str, str, float]] = []
    for members in people.members():
        ids = sorted((names.participants[m], float(people.relatedness[m]) / 2) for m in members)
        for i, (first, kinship) in enumerate(ids):
            rows += [(first, second, kinship) for second, _ in ids[i + 1 :]]
    return pd.DataFrame(sorted(rows), columns=["id1", "id2", "kinship"])


def truth_tables(
    people: People,
    names: Names,
    causal: CausalModel,
    brains: Brains,
    motion_level: np.ndarray,
    mean_fd_mm: np.ndarray,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Lay out what the simulation knows and no pipeline may: scores and true connectivity.

    Returns
    -------
    truth : DataFrame
        ``score_k`` (causal score of dimension k), ``dimension_k`` (what connectivity follows),
        family kind and motion.
    connectivity : DataFrame
        True correlation of every pair of networks.
    """
    k = causal.scores.shape[1]
    truth = pd.DataFrame(
        {
            "participant_id": names.participants,
            **{f"score_{i + 1}": causal.scores[:, i] for i in range(k)},
            **{f"dimension_{i + 1}": brains.dimensions[:, i] for i in range(k)},
            "family_kind": [people.kind[f] for f in people.family],
            "motion_level": motion_level,
            "mean_fd_mm": mean_fd_mm,
        }
    )
    networks = brains.correlation.shape[1]
    rows, columns = np.triu_indices(networks, 1)
    connectivity = pd.DataFrame(
        brains.correlation[:, rows, columns],
        columns=[
            f"{network_name(i)}__{network_name(j)}"
            for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
        ],
    )
    connectivity.insert(0, "participant_id", names.participants)
    by_id = ["participant_id"]
    return (
        truth.sort_values(by_id, ignore_index=True),
        connectivity.sort_values(by_id, ignore_index=True),
    )


def simulation_record(
    options: SimulationOptions, people: People, causal: CausalModel, source: dict[str, Any]
) -> dict[str, Any]:
    """Return options, counts and causal variants as JSON-ready values."""
    settings = {key: value for key, value in asdict(options).items() if key != "n_jobs"}
    if options.people_seed is None:
        settings = {k: v for k, v in settings.items() if k not in ("people_seed", "new_subjects")}
    kinds, counts = np.unique([people.kind[f] for f in people.family], return_counts=True)
    has_effect = options.world == "signal"
    variants = [
        {
            "chrom": v.chrom,
            "pos": v.pos_bp + 1,
            "ref": v.ref,
            "alt": v.alts[0],
            "region": v.region + 1,
            "frequency": round(float(frequency), 5),
            "weights": [round(float(w), 6) for w in weights],
        }
        for v, frequency, weights in zip(
            causal.variants, causal.frequency, causal.weights, strict=True
        )
    ]
    return {
        "options": settings,
        "source": source,
        "participants": len(people),
        "families": len(people.kind),
        "participants_by_family_kind": dict(zip(kinds.tolist(), counts.tolist(), strict=True)),
        "variants_have_an_effect": has_effect,
        "score_variants": variants,
    }
