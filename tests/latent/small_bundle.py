"""A bundle over a tiny cohort in real files: dosages on one side, connectivity on the other."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from features.feature_files import BOLD, write_cohort
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from encoders import load_encoder
from multimodal.align.aligner import Aligner, pool_brains, pool_genes
from multimodal.bold.bids import find_runs
from multimodal.cli import config_dir
from multimodal.cohort.table import CohortPaths, read_cohort
from multimodal.features.encode import GenomeOptions, encode_brains, encode_genomes
from multimodal.features.read import (
    read_brain_features,
    read_dosage_variants,
    read_gene_features,
)
from multimodal.features.store import read_fingerprint
from multimodal.genome.regions import read_regions
from multimodal.latent.bundle import write_bundle
from multimodal.latent.scans import describe_scans
from projectors.tower import Tower, TowerOptions

METRICS: dict[str, Any] = {
    "method": "heldout",
    "permutation": {
        "raw": {"statistic": 0.61, "p": 0.0123, "n": 40, "reason": ""},
        "matched": {"statistic": None, "p": None, "n": 0, "reason": "no stratum of 5"},
    },
    "retrieval": {
        "raw": {
            "gene_to_brain": {
                "n": 40,
                "mean_rank_percentile": 0.61,
                "recall@1": 0.05,
                "chance": {"recall@1": 0.025},
                "interval": {"mean_rank_percentile": [0.52, 0.7], "recall@1": [0.0, 0.1]},
                "interval_level": 0.95,
            }
        }
    },
    "controls": {
        "covariates_only": {"permutation": {"raw": {"statistic": 0.55, "p": 0.2, "n": 40}}}
    },
}


def write_small_bundle(folder: Path, subjects: int = 12) -> Path:
    """Write ``cohort`` and ``bundle`` into a folder, and return the bundle's."""
    (folder / "cohort").mkdir(parents=True)
    write_cohort(folder / "cohort", subjects=subjects)
    cohort = read_cohort(CohortPaths.from_dir(folder / "cohort"))
    fc = load_encoder("fc")
    dna = encode_genomes(cohort, "dosage", GenomeOptions(), folder / "features", False)
    brain = encode_brains(cohort, fc, BOLD, folder / "features", False)
    genes, brains = read_gene_features(dna), read_brain_features(brain)
    options = TowerOptions(hidden_dim=16)
    aligner = Aligner(
        Tower.fit(pool_genes(genes, "mean"), options),
        Tower.fit(pool_brains(brains, "motion"), options),
        genes.windows,
    ).eval()
    prints = {"dna": read_fingerprint(dna), "brain": read_fingerprint(brain)}
    runs = find_runs(cohort.paths.bold, cohort.participant_ids)
    manifest = {
        "versions": {"genebold": "0"},
        "dna": {
            "name": "dosage",
            "spec": {"name": "dosage"},
            "variants": read_dosage_variants(dna),
        },
        "brain": {"name": "fc", "weights": None, "config": None, "spec": fc.spec.as_dict()},
        "genome": {**asdict(GenomeOptions()), "windows": prints["dna"]["windows"]},
        "bold": {**asdict(BOLD), "atlas": prints["brain"]["atlas"]},
        "scans": describe_scans(runs),
        "regions": [asdict(region) for region in read_regions(cohort.paths.regions)],
        "covariates": None,
        "training": {"participants": subjects, "split": {"train": subjects, "test": 0}},
        "metrics": METRICS,
    }
    return write_bundle(folder / "bundle", aligner, manifest).path


def embed_config(folder: Path, out: Path, *words: str) -> DictConfig:
    """Return the settings of ``genebold embed`` over the folder's cohort and bundle."""
    with initialize_config_dir(str(config_dir().absolute()), version_base="1.3"):
        return compose(
            "embed",
            [
                f"bundle={folder / 'bundle'}",
                f"cohort.dir={folder / 'cohort'}",
                f"run_dir={out}",
                "block_subjects=3",
                *words,
            ],
        )
