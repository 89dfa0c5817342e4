"""What encoders read inside the training step, found among a cohort's files."""

from functools import partial
from pathlib import Path

import numpy as np

from encoders.base import BrainEncoder, DnaEncoder
from encoders.errors import InputError, Problem
from multimodal.align.finetune.brains import BrainInputs
from multimodal.align.finetune.genes import GenomeInputs
from multimodal.bold.bids import BoldRun, find_runs
from multimodal.bold.inputs import input_kind, prepare
from multimodal.bold.options import BoldOptions
from multimodal.bold.parcels import load_atlas
from multimodal.cohort.table import Cohort
from multimodal.features.dna import DnaPlan
from multimodal.features.encode import windows_of
from multimodal.features.options import GenomeOptions
from multimodal.features.tables import BrainFeatures, GeneFeatures
from multimodal.genome.haplotypes import Genotypes
from projectors.pooling import MotionWeighting
from projectors.strand import MergeMode


def genome_inputs(
    cohort: Cohort,
    gene: GeneFeatures,
    encoder: DnaEncoder,
    options: GenomeOptions,
    *,
    strand_merge: MergeMode,
    batch_size: int,
    progress: bool = True,
) -> GenomeInputs:
    """Return the haplotypes of those whose stored features are trained on.

    Parameters
    ----------
    cohort : Cohort
        With paths of genotypes, reference and regions.
    gene : GeneFeatures
        Stored features; the same subjects, in that order.
    encoder : DnaEncoder
    options : GenomeOptions
        With which `gene` was encoded.
    strand_merge : str
    batch_size : int
        Most sequences the encoder takes at once.
    progress : bool
        Show a progress bar while all genotypes are read once.

    Raises
    ------
    InputError
        Files that are missing or cannot be read, or other windows than the features'.
    """
    windows, _ = windows_of(cohort, encoder, options)
    genotypes = Genotypes(
        _path(cohort, "genotypes"),
        _path(cohort, "reference"),
        unphased=options.unphased,  # type: ignore[arg-type]  # checked by GenomeOptions
        filters=options.filters,
    )
    if [window.name for window in windows] != list(gene.windows):
        found = f"{len(windows)} windows, others than the features'"
        wanted = f"the {len(gene.windows)} that were encoded"
        raise InputError(Problem("gene-windows", str(cohort.paths.regions), found, wanted))
    samples = cohort.participants.loc[gene.participant_ids, "genotype_id"].astype(str).tolist()
    longest: int | None = getattr(encoder.spec.input, "max_length_bp", None)
    plan = DnaPlan(genotypes, windows, gene.participant_ids, samples, longest)
    return GenomeInputs(plan, strand_merge, batch_size, plan.survey(progress).kept)


def brain_inputs(
    cohort: Cohort,
    brain: BrainFeatures,
    encoder: BrainEncoder,
    options: BoldOptions,
    *,
    weighting: MotionWeighting,
    batch_size: int,
) -> BrainInputs:
    """Return the segments of those whose stored features are trained on.

    Parameters
    ----------
    cohort : Cohort
        With paths of BOLD and, for an encoder of parcels, atlas.
    brain : BrainFeatures
        Stored features; the same subjects, in that order.
    encoder : BrainEncoder
    options : BoldOptions
        With which `brain` was encoded.
    weighting : {"motion", "mean"}
    batch_size : int
        Most segments the encoder takes at once.

    Raises
    ------
    InputError
        Files that are missing or cannot be read, or other runs than the features'.
    """
    ids = brain.participant_ids
    found = find_runs(_path(cohort, "bold"), ids, space=options.space, task=options.task)
    runs: dict[str, list[BoldRun]] = {who: [] for who in ids}
    for run in found:
        runs[run.participant_id].append(run)
    encoded = np.zeros(len(ids), dtype=np.int64)
    np.maximum.at(encoded, brain.subject, brain.run + 1)
    other = [who for who, count in zip(ids, encoded, strict=True) if len(runs[who]) != count]
    if other:
        told = f"other runs than were encoded, of {len(other)} participants"
        raise InputError(Problem("scan-changed", str(cohort.paths.bold), told, "the same scans"))
    atlas = None
    if input_kind(encoder.spec.input) == "parcels":
        atlas = load_atlas(_path(cohort, "atlas"), cohort.paths.atlas_table)
    prepare_one = partial(prepare, atlas=atlas, spec_input=encoder.spec.input, options=options)
    return BrainInputs(brain, [runs[who] for who in ids], prepare_one, weighting, batch_size)


def _path(cohort: Cohort, name: str) -> Path:
    path: Path | None = getattr(cohort.paths, name)
    if path is None:
        raise InputError(Problem("cohort-path", f"cohort.{name}", "no file", f"a path for {name}"))
    return path
