"""``genebold embed``: latents for new subjects from a bundle."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from encoders.errors import InputError, Problem
from multimodal.cohort.table import Cohort
from multimodal.latent.bundle import Bundle, read_bundle
from multimodal.latent.embed import SIDES, embed_brains, embed_genomes, new_cohort
from multimodal.latent.table import Latents, write_latents
from multimodal.verbs.console import Stages, say
from multimodal.verbs.pipeline import load_side
from multimodal.verbs.settings import cohort_paths


def run(config: DictConfig) -> int:
    """Embed the sides that have files, and write ``latents.parquet``."""
    sides = list(config.sides)
    if not sides or set(sides) - set(SIDES):
        raise InputError(Problem("bad-sides", "sides", str(sides), f"some of {list(SIDES)}"))
    bundle = read_bundle(config.bundle)
    paths = cohort_paths(config.cohort)
    if paths.genotypes is None:
        sides = [side for side in sides if side != "gene"]
    if paths.bold is None:
        sides = [side for side in sides if side != "brain"]
    cohort = new_cohort(paths, sides)
    if config.participants is not None:
        cohort = _chosen(cohort, [str(who) for who in config.participants])
    weights = {"dna": config.dna_weights, "brain": config.brain_weights}
    features_dir = Path(config.features.dir)
    parts = embed(bundle, cohort, sides, features_dir, weights, str(config.device))
    write_latents(Path(config.latents), parts)
    for part in parts:
        say(f"{part.modality:<6} {len(part.participant_ids)} subjects")
    say(f"latents in {config.latents}; treat them as the genotypes they come from")
    return 0


def embed(
    bundle: Bundle,
    cohort: Cohort,
    sides: list[str],
    features_dir: Path,
    weights: dict[str, Any] | None = None,
    device: str = "cpu",
) -> list[Latents]:
    """Return the latents of a cohort's subjects, one part a side."""
    stages = Stages()
    parts = []
    if "gene" in sides:
        encoder = bundle_encoder(bundle, "dna", (weights or {}).get("dna"), device)
        with stages.stage("embed gene", "genomes through the bundle's encoder and tower"):
            parts.append(embed_genomes(bundle, cohort, encoder, features_dir))
    if "brain" in sides:
        encoder = bundle_encoder(bundle, "brain", (weights or {}).get("brain"), device)
        with stages.stage("embed brain", "scans through the bundle's encoder and tower"):
            parts.append(embed_brains(bundle, cohort, encoder, features_dir))
    return parts


def bundle_encoder(bundle: Bundle, side: str, weights: str | None, device: str) -> Any:
    """Load a bundle's encoder and check that its weights are those the towers were trained on.

    Raises
    ------
    InputError
        Other weights than the bundle's.
    """
    section = {**bundle.manifest[side], "device": device}
    wanted = section.pop("spec")
    section.pop("variants", None)
    local = section.pop("local_weights", None)
    if weights is not None:
        section["weights"] = weights
    elif local is not None:
        raise InputError(
            Problem(
                "weights-missing",
                f"{side}_weights",
                f"the bundle was trained with a local file or folder, '{local}'",
                "where it lies on this machine",
                f"set {side}_weights=PATH",
            )
        )
    encoder = load_side(section, side)
    if not isinstance(encoder, str) and encoder.spec.weights_sha256 != wanted["weights_sha256"]:
        raise InputError(
            Problem(
                "other-weights",
                f"{side} weights {encoder.spec.weights_id}",
                f"digest {encoder.spec.weights_sha256[:12]}",
                f"the bundle's: {wanted['weights_id']}, digest {wanted['weights_sha256'][:12]}",
                f"set {side}_weights to the file or folder the bundle was trained with",
            )
        )
    return encoder


def _chosen(cohort: Cohort, ids: list[str]) -> Cohort:
    unknown = [who for who in ids if who not in cohort.participants.index]
    if unknown:
        raise InputError(
            Problem(
                "unknown-participant",
                "participants",
                f"{len(unknown)} unknown, the first {unknown[0]}",
                "ids of the cohort",
            )
        )
    return cohort.take(ids)
