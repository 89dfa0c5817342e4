"""A tiny cohort in real files, its stored features, and encoders that learn on it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from features.feature_files import BOLD, TinyBrain, TinyDna, write_cohort

from encoders import load_encoder
from multimodal.align.finetune.cohort import brain_inputs, genome_inputs
from multimodal.align.finetune.module import FineTuneModule
from multimodal.align.finetune.options import EncoderTuning, FineTuneOptions
from multimodal.align.finetune.tuned import TunedEncoder
from multimodal.align.fit import _prepare
from multimodal.align.options import AlignOptions, SideOptions
from multimodal.cohort.table import Cohort
from multimodal.features.encode import GenomeOptions, encode_brains, encode_genomes
from multimodal.features.read import read_brain_features, read_gene_features
from multimodal.features.tables import BrainFeatures, GeneFeatures

SUBJECTS = 16
BRAINLM = {
    "num_brain_voxels": 3, "num_timepoints_per_voxel": 12, "timepoint_patching_size": 4,
    "pooling": "mean", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2,
}  # fmt: skip


def encoder(side: str, kind: str) -> Any:
    """Return an encoder in float64: of the tests, or one of ours that is small."""
    if kind == "tiny":
        return (TinyDna() if side == "dna" else TinyBrain()).double()
    if side == "dna":
        return load_encoder(kind, config={"d_model": 8, "n_layer": 2}, dtype="float64")
    return load_encoder(kind, config=BRAINLM, dtype="float64")


@dataclass(frozen=True)
class Stored:
    """A cohort and its features of both sides."""

    cohort: Cohort
    gene: GeneFeatures
    brain: BrainFeatures
    kinds: dict[str, str]
    stores: dict[str, Path]

    def tuned(self, options: FineTuneOptions) -> dict[str, TunedEncoder]:
        """Return the encoders that learn, freshly loaded."""
        found = {}
        for side in options.sides:
            network = encoder(side, self.kinds[side])
            if side == "dna":
                inputs: Any = genome_inputs(
                    self.cohort, self.gene, network, GenomeOptions(),
                    strand_merge="sum_absdiff", batch_size=3, progress=False,
                )  # fmt: skip
            else:
                inputs = brain_inputs(
                    self.cohort, self.brain, network, BOLD, weighting="motion", batch_size=4
                )
            found[side] = TunedEncoder(side, network, inputs, options, seed=0)
        return found


def store(folder: Path, dna: str = "tiny", brain: str = "tiny") -> Stored:
    """Write a cohort and encode it."""
    folder.mkdir(parents=True, exist_ok=True)
    cohort = write_cohort(folder, subjects=SUBJECTS + 2)
    kinds = {"dna": dna, "brain": brain}
    dna_store = encode_genomes(cohort, encoder("dna", dna), None, folder / "features", False)
    brain_store = encode_brains(cohort, encoder("brain", brain), BOLD, folder / "features", False)
    ids = cohort.participant_ids[1:-1]  # the first has no scan, the last no genome
    features = read_gene_features(dna_store, ids), read_brain_features(brain_store, ids)
    return Stored(cohort, *features, kinds, {"dna": dna_store, "brain": brain_store})


def align_options(sides: tuple[str, ...] = ("dna", "brain"), **changes: Any) -> AlignOptions:
    """Return options of a small fit; `tuning` is for the encoders, the rest for the alignment."""
    tuning = changes.pop("tuning", {})
    more = {
        name: changes.pop(name) for name in ("gradient_checkpointing", "bf16") if name in changes
    }
    each = {side: EncoderTuning(**{"method": "full", **tuning}) for side in sides}
    own = SideOptions(dropout=0.0, components=6)
    settings: dict[str, Any] = {
        "epochs": 3, "hidden_dim": 12, "latent_dim": 6, "patience": None, "warmup_epochs": 0,
        "strand_merge": "sum_absdiff", "learning_rate": 1e-3,
    }  # fmt: skip
    fine_tune = FineTuneOptions(sides, **each, **more)
    return AlignOptions(gene=own, brain=own, fine_tune=fine_tune, **{**settings, **changes})


def split() -> np.ndarray:
    """Return a split of the subjects."""
    return np.array(["train"] * 10 + ["validation"] * 3 + ["test"] * (SUBJECTS - 13))


def module_of(stored: Stored, options: AlignOptions) -> tuple[FineTuneModule, Any]:
    """Return the module that a fit would train, in float64, and its data set."""
    torch.manual_seed(options.seed)
    setting = _prepare(stored.gene, stored.brain, split(), np.arange(SUBJECTS), None, options)
    data = setting.data.dataset
    data.gene, data.brain = data.gene.double(), data.brain.double()
    module = FineTuneModule(
        setting.aligner, options, stored.tuned(options.fine_tune), subsets=data.subsets
    )
    return module.double(), data
