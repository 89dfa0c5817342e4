"""Latents for subjects a bundle has never seen, straight from their files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from encoders.atomic import write_text
from encoders.errors import InputError, Problem
from multimodal.bold.options import BoldOptions
from multimodal.cohort.covariates import CovariateCoding
from multimodal.cohort.table import Cohort, CohortPaths, read_cohort
from multimodal.features.options import GenomeOptions
from multimodal.features.tables import GeneFeatures
from multimodal.genome.regions import Region
from multimodal.latent.bundle import Bundle
from multimodal.latent.table import Latents

if TYPE_CHECKING:
    from encoders.base import BrainEncoder, DnaEncoder

SIDES = ("gene", "brain")


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


def embed_genomes(
    bundle: Bundle, cohort: Cohort, encoder: DnaEncoder | str, features_dir: Path, *,
    batch_size: int = 8,
) -> Latents:  # fmt: skip
    """Encode genomes as the bundle's were, and map them into its space.

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

    Raises
    ------
    InputError
        Another genome build (the reference over the regions differs), covariates missing that the
        towers regress out, and all that `encode_genomes` refuses.
    """
    from multimodal.features.encode import encode_genomes, windows_of
    from multimodal.features.read import read_gene_features

    manifest = bundle.manifest
    regions = Path(features_dir) / "regions.bed"
    write_text(regions, _bed(manifest["regions"]))
    cohort = replace(cohort, paths=replace(cohort.paths, regions=regions))
    _covariates(manifest, cohort, cohort.participant_ids)  # refused before anything is encoded
    genome = dict(manifest["genome"])
    wanted = genome.pop("windows")
    filters = genome.get("filters")
    genome["filters"] = None if filters is None else tuple(filters)
    options = GenomeOptions(**genome)
    _, found = windows_of(cohort, encoder, options)
    if found != wanted:
        raise InputError(
            Problem(
                "other-reference",
                str(cohort.paths.reference),
                f"its sequence over the bundle's {len(manifest['regions'])} regions differs",
                "the genome build the bundle was trained on",
                "use the same reference FASTA",
            )
        )
    store = encode_genomes(cohort, encoder, options, features_dir, batch_size=batch_size)
    features = read_gene_features(store)
    if encoder == "dosage":
        features = _dosage_columns(features, store, manifest["dna"]["variants"])
    covariates = _covariates(manifest, cohort, features.participant_ids)
    latents = bundle.load_aligner().embed_genes(features, covariates)
    ids = features.participant_ids
    return Latents("gene", ids, ["new"] * len(ids), latents)


def embed_brains(
    bundle: Bundle, cohort: Cohort, encoder: BrainEncoder, features_dir: Path, *,
    batch_size: int = 16,
) -> Latents:  # fmt: skip
    """Encode scans as the bundle's were, and map them into its space; see `embed_genomes`.

    Raises
    ------
    InputError
        Another atlas, and all that `encode_brains` refuses.
    """
    from multimodal.features.encode import encode_brains
    from multimodal.features.read import read_brain_features

    manifest = bundle.manifest
    _covariates(manifest, cohort, cohort.participant_ids)  # refused before anything is encoded
    bold = dict(manifest["bold"])
    wanted = bold.pop("atlas")
    if wanted is not None and cohort.paths.atlas is not None:
        table = _atlas_table(cohort.paths.atlas, cohort.paths.atlas_table, wanted)
        cohort = replace(cohort, paths=replace(cohort.paths, atlas_table=table))
    store = encode_brains(cohort, encoder, BoldOptions(**bold), features_dir, batch_size=batch_size)
    features = read_brain_features(store)
    covariates = _covariates(manifest, cohort, features.participant_ids)
    latents = bundle.load_aligner().embed_brains(features, covariates)
    ids = features.participant_ids
    return Latents("brain", ids, ["new"] * len(ids), latents)


def _atlas_table(image: Path, given: Path | None, wanted: Mapping[str, Any]) -> Path | None:
    """Return the table that makes the label image the bundle's atlas.

    Where none is given, ``atlas.tsv`` (or the image's own name) beside the image is tried too.

    Raises
    ------
    InputError
        No table does.
    """
    from multimodal.bold.parcels import load_atlas
    from multimodal.features.encode import atlas_fingerprint

    tried: list[Path | None] = [given]
    if given is None:
        own = image.with_name(image.name.split(".")[0] + ".tsv")
        beside = dict.fromkeys([image.with_name("atlas.tsv"), own])
        tried += [path for path in beside if path.is_file()]
    found = [atlas_fingerprint(load_atlas(image, table)) for table in tried]
    if wanted in found:
        return tried[found.index(dict(wanted))]
    fix = "use the label image and table the bundle was trained with"
    if given is None and found[0]["parcels"] == wanted["parcels"]:
        fix = (
            "the number of parcels agrees, and no table of their names and centres is given: "
            "set cohort.atlas_table to the one the bundle was trained with"
        )
    elif given is not None and atlas_fingerprint(load_atlas(image)) == wanted:
        fix = f"the bundle was trained without a table: leave {given} out"
    raise InputError(
        Problem(
            "other-atlas",
            str(image),
            f"{found[-1]['parcels']} parcels, digest {found[-1]['sha256'][:12]}",
            f"the bundle's atlas: {wanted['parcels']} parcels, digest {wanted['sha256'][:12]}",
            fix,
        )
    )


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
