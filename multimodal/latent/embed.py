"""Latents for subjects a bundle has never seen, straight from their files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from encoders.atomic import write_text
from encoders.errors import InputError, Problem
from multimodal.cohort.covariates import CovariateCoding
from multimodal.cohort.table import Cohort, CohortPaths, read_cohort
from multimodal.features.crew import Crew
from multimodal.features.fingerprint import array_digest, code_version, text_digest
from multimodal.features.read import read_gene_features
from multimodal.features.tables import GeneFeatures
from multimodal.genome.regions import Region
from multimodal.latent.atlas import atlas_table
from multimodal.latent.bundle import Bundle
from multimodal.latent.manifest import bold_options, genome_options
from multimodal.latent.scans import scan_check
from multimodal.latent.shards import NEW
from multimodal.latent.table import Latents

if TYPE_CHECKING:
    from encoders.base import BrainEncoder, DnaEncoder
    from multimodal.features.brain import BadParticipant
    from multimodal.features.read import BrainBlock

SIDES = ("gene", "brain")
SUBJECTS = 1024
"""Subjects in a block: what is in memory, and what a killed run may lose of its latents."""


def new_cohort(paths: CohortPaths, sides: Sequence[str]) -> Cohort:
    """Return the cohort to embed: of its participants table, or of whoever is in the files.

    Without ``participants.tsv`` the participants are the samples of the VCF and the subjects of
    the BOLD folder, by their own names.

    Raises
    ------
    InputError
        Neither a table nor a file of the sides asked for.
    """
    if not sides:
        raise InputError(_nothing())
    if paths.participants is not None:
        return read_cohort(paths)
    samples: list[str] = []
    if "gene" in sides and paths.genotypes is not None:
        from multimodal.genome.variants import VariantFile

        samples = list(VariantFile(paths.genotypes).samples)
    scanned: list[str] = []
    if "brain" in sides and paths.bold is not None:
        from multimodal.bold.bids import find_subjects

        scanned = find_subjects(paths.bold)
    ids = list(dict.fromkeys([*samples, *scanned]))
    if not ids:
        raise InputError(_nothing())
    known = set(samples)
    table = pd.DataFrame(
        {"family_id": ids, "genotype_id": [who if who in known else None for who in ids]},
        index=pd.Index(ids, name="participant_id"),
    )
    return Cohort(table, pd.DataFrame(columns=["id1", "id2", "kinship"]), paths)


def _nothing() -> Problem:
    return Problem(
        "nobody",
        "cohort",
        "no genotypes and no scans",
        "subjects to embed",
        "set cohort.dir, or cohort.genotypes and cohort.reference, or cohort.bold (and, for "
        "parcels, cohort.atlas)",
    )


@dataclass(frozen=True)
class Block:
    """Some subjects of one modality, whose latents can be had.

    Parameters
    ----------
    participant_ids : list of str
        n subjects.
    inputs : str
        Digest of all that makes the latents.
    latents : callable
        Reads the features and gives the latents [n, 512].
    """

    participant_ids: list[str]
    inputs: str
    latents: Callable[[], np.ndarray]


def genome_blocks(
    bundle: Bundle,
    cohort: Cohort,
    encoder: DnaEncoder | str,
    features_dir: Path,
    *,
    batch_size: int = 8,
    subjects: int = SUBJECTS,
    on_bad: BadParticipant | None = None,
    crew: Crew | None = None,
) -> list[Block]:
    """Encode genomes as the bundle's were, and return them in blocks for its towers.

    Parameters
    ----------
    bundle : Bundle
    cohort : Cohort
        With paths of genotypes and reference; the regions are the bundle's.
    encoder : DnaEncoder or "dosage"
        The bundle's, loaded.
    features_dir : Path
        Where features go; a killed run resumes there.
    batch_size : int
        Windows a batch.
    subjects : int
        Most subjects in a block: what is in memory at a time.
    on_bad : callable, optional
        Told of each participant who is no sample of the genotypes, and left out; by default they
        are refused.
    crew : Crew, optional
        Processes that all call this alike, and share the encoding.

    Raises
    ------
    InputError
        Another genome build (the reference over the regions differs), covariates missing that the
        towers regress out, and all that `encode_genomes` refuses.
    """
    from multimodal.features.encode import encode_genomes, windows_of
    from multimodal.features.read import stored_participants
    from multimodal.features.store import read_fingerprint

    manifest = bundle.manifest
    regions = Path(features_dir) / "regions.bed"
    crew = crew or Crew()
    crew.from_first(str(regions), lambda: write_text(regions, _bed(manifest["regions"])))
    cohort = replace(cohort, paths=replace(cohort.paths, regions=regions))
    _covariates(manifest, cohort, cohort.participant_ids)  # refused before anything is encoded
    options = genome_options(manifest)
    _, found = windows_of(cohort, encoder, options)
    if found != manifest["genome"]["windows"]:
        raise InputError(
            Problem(
                "other-reference",
                str(cohort.paths.reference),
                f"its sequence over the bundle's {len(manifest['regions'])} regions differs",
                "the genome build the bundle was trained on",
                "use the same reference FASTA",
            )
        )
    if on_bad is not None:
        cohort = _with_samples(cohort, on_bad)
        if not cohort.participants["genotype_id"].notna().any():
            return []
    store = encode_genomes(cohort, encoder, options, features_dir, batch_size=batch_size, crew=crew)
    ids = stored_participants(store)
    made_by = json.dumps(read_fingerprint(store), sort_keys=True)
    aligner = bundle.load_aligner()

    def latents(chosen: list[str]) -> np.ndarray:
        features = read_gene_features(store, chosen)
        if encoder == "dosage":
            features = _dosage_columns(features, store, manifest["dna"]["variants"])
        return aligner.embed_genes(features, _covariates(manifest, cohort, chosen))

    blocks = []
    for start in range(0, len(ids), subjects):
        chosen = ids[start : start + subjects]
        inputs = _inputs_digest(bundle, cohort, chosen, [made_by])
        blocks.append(Block(chosen, inputs, partial(latents, chosen)))
    return blocks


def brain_blocks(
    bundle: Bundle,
    cohort: Cohort,
    encoder: BrainEncoder,
    features_dir: Path,
    *,
    batch_size: int = 16,
    workers: int = 0,
    subjects: int = SUBJECTS,
    on_bad: BadParticipant | None = None,
    crew: Crew | None = None,
) -> list[Block]:
    """Encode scans as the bundle's were, and return them in blocks; see `genome_blocks`.

    Raises
    ------
    InputError
        Another atlas, space or repetition time, and all that `encode_brains` refuses; with
        `on_bad` those of single scans leave out whose they are.
    """
    from multimodal.features import read
    from multimodal.features.encode import encode_brains
    from multimodal.features.shards import shard_inputs
    from multimodal.features.store import read_fingerprint

    manifest = bundle.manifest
    cohort = with_atlas_of(bundle, cohort)
    check = scan_check(manifest.get("scans"), manifest["brain"]["spec"])
    store = encode_brains(
        cohort, encoder, bold_options(manifest), features_dir,
        batch_size=batch_size, workers=workers, check=check, on_bad=on_bad, crew=crew,
    )  # fmt: skip
    made_by = json.dumps(read_fingerprint(store), sort_keys=True)
    aligner = bundle.load_aligner()

    def latents(block: BrainBlock) -> np.ndarray:
        covariates = _covariates(manifest, cohort, block.participant_ids)
        return aligner.embed_brains(block.read(), covariates)

    blocks = []
    for block in read.brain_blocks(store, subjects):
        shards = [shard_inputs(path) or "" for path in block.shards]
        inputs = _inputs_digest(bundle, cohort, block.participant_ids, [made_by, *shards])
        blocks.append(Block(block.participant_ids, inputs, partial(latents, block)))
    return blocks


def with_atlas_of(bundle: Bundle, cohort: Cohort) -> Cohort:
    """Return the cohort with the table that makes its label image the bundle's atlas.

    Raises
    ------
    InputError
        Another atlas, or covariates missing that the towers regress out.
    """
    _covariates(bundle.manifest, cohort, cohort.participant_ids)
    wanted = bundle.manifest["bold"]["atlas"]
    if wanted is None or cohort.paths.atlas is None:
        return cohort
    table = atlas_table(cohort.paths.atlas, cohort.paths.atlas_table, wanted)
    return replace(cohort, paths=replace(cohort.paths, atlas_table=table))


def embed_genomes(
    bundle: Bundle, cohort: Cohort, encoder: DnaEncoder | str, features_dir: Path, *,
    batch_size: int = 8,
) -> Latents:  # fmt: skip
    """Return the latents of all genomes of a cohort at once; see `genome_blocks`."""
    return _all_of("gene", genome_blocks(bundle, cohort, encoder, features_dir,
                                         batch_size=batch_size))  # fmt: skip


def embed_brains(
    bundle: Bundle, cohort: Cohort, encoder: BrainEncoder, features_dir: Path, *,
    batch_size: int = 16,
) -> Latents:  # fmt: skip
    """Return the latents of all scans of a cohort at once; see `brain_blocks`."""
    return _all_of("brain", brain_blocks(bundle, cohort, encoder, features_dir,
                                         batch_size=batch_size))  # fmt: skip


def _all_of(modality: str, blocks: Sequence[Block]) -> Latents:
    ids = [who for block in blocks for who in block.participant_ids]
    values = np.concatenate([block.latents() for block in blocks])
    return Latents(modality, ids, [NEW] * len(ids), values)


def _inputs_digest(
    bundle: Bundle, cohort: Cohort, participant_ids: list[str], made_by: Sequence[str]
) -> str:
    covariates = _covariates(bundle.manifest, cohort, participant_ids)
    extra = "none" if covariates is None else array_digest(covariates)
    towers = bundle.manifest["towers_sha256"]
    settings = json.dumps(bundle.manifest["towers"], sort_keys=True)
    return text_digest([towers, settings, code_version(), *made_by, extra, *participant_ids])


def _with_samples(cohort: Cohort, on_bad: BadParticipant) -> Cohort:
    """Return the cohort without the genotype ids that are no samples of its genotypes."""
    from multimodal.genome.variants import VariantFile

    if cohort.paths.genotypes is None:
        return cohort
    samples = set(VariantFile(cohort.paths.genotypes).samples)
    named = cohort.participants["genotype_id"].dropna()
    absent = named[~named.isin(samples)]
    for who, sample in absent.items():
        problem = Problem(
            "genotype-absent", str(cohort.paths.genotypes), f"no sample {sample}",
            f"the sample that is {who}'s genotype_id", "correct genotype_id, or set it to n/a",
        )  # fmt: skip
        on_bad(str(who), (problem,))
    return cohort.take([who for who in cohort.participant_ids if who not in set(absent.index)])


def _bed(regions: Sequence[Mapping[str, Any]]) -> str:
    rows = (Region(**region) for region in regions)
    return "".join(f"{r.chrom}\t{r.start_bp}\t{r.end_bp}\t{r.name}\t0\t{r.strand}\n" for r in rows)


def _covariates(
    manifest: Mapping[str, Any], cohort: Cohort, participant_ids: Sequence[str]
) -> np.ndarray | None:
    if manifest.get("covariates") is None:
        return None
    if cohort.paths.participants is None:
        raise InputError(
            Problem(
                "covariates-missing",
                "cohort.participants",
                "no table",
                "a participants.tsv with the covariates these towers regress out",
                "set cohort.participants",
            )
        )
    coding = CovariateCoding.from_dict(manifest["covariates"])
    return coding.matrix(cohort.participants.loc[list(participant_ids)])


def _dosage_columns(features: GeneFeatures, store: Path, wanted: Sequence[str]) -> GeneFeatures:
    """Put dosages into the columns the towers know; a variant not in the file is all reference."""
    from multimodal.features.read import read_dosage_variants

    place = {name: column for column, name in enumerate(read_dosage_variants(store))}
    values = np.zeros((*features.distinct.shape[:2], len(wanted)), dtype=np.float32)
    known = [column for column, name in enumerate(wanted) if name in place]
    if not known:
        raise InputError(
            Problem(
                "no-known-variant",
                "cohort.genotypes",
                f"none of the {len(wanted)} alleles the towers were trained on",
                "genotypes of the same build and naming, with homozygous-reference sites kept",
            )
        )
    if len(known) < len(wanted):
        warnings.warn(
            f"{len(wanted) - len(known)} of {len(wanted)} alleles the towers were trained on are "
            "not in the genotypes; everybody is taken to have the reference there",
            stacklevel=3,
        )
    values[..., known] = features.distinct[..., [place[wanted[column]] for column in known]]
    return replace(features, distinct=values)
