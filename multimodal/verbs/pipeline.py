"""Steps the verbs share: open a cohort, load encoders, encode what is missing, read features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from encoders.errors import InputError, Problem
from multimodal.bold.options import BoldOptions
from multimodal.cohort.table import Cohort
from multimodal.features.encode import DOSAGE, encode_brains, encode_genomes
from multimodal.features.options import GenomeOptions
from multimodal.features.tables import BrainFeatures, GeneFeatures
from multimodal.verbs.settings import options

if TYPE_CHECKING:
    from encoders.base import BrainEncoder, DnaEncoder, Encoder

ENCODER_KEYS = ("name", "weights", "revision", "config", "seed", "dtype", "device")


def load_side(section: Mapping[str, Any], key: str) -> Encoder | str:
    """Return the encoder a ``dna`` or ``brain`` section names, or ``"dosage"``.

    Parameters
    ----------
    section : mapping
        The encoder's group: a name with its settings, or a Hydra ``_target_``.
    key : {"dna", "brain"}

    Raises
    ------
    InputError
        No such encoder, weights that do not load, or an encoder of the other side.
    """
    from encoders import load_encoder
    from encoders.base import BrainEncoder, DnaEncoder

    if "_target_" in section:
        encoder = _instantiate(section, key)
    elif key == "dna" and section["name"] == DOSAGE:
        return DOSAGE
    else:
        known = {name: section[name] for name in ENCODER_KEYS if name in section}
        encoder = load_encoder(known.pop("name"), known.pop("weights", None), **known)
    wanted = DnaEncoder if key == "dna" else BrainEncoder
    if not isinstance(encoder, wanted):
        found = f"'{encoder.spec.name}' encodes {encoder.spec.modality}"
        raise InputError(Problem("wrong-side", key, found, f"a {wanted.__name__}"))
    return encoder


def _instantiate(section: Mapping[str, Any], key: str) -> Encoder:
    """Make the encoder that a section describes by ``_target_`` and its arguments."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from encoders.licences import say_licence_once
    from encoders.registry import check_encoder

    where = f"{key}._target_={section['_target_']}"
    ours = ("batch_size", "workers")
    given = {name: value for name, value in section.items() if name not in ours}
    try:
        encoder = instantiate(given, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        raise InputError(
            Problem(
                "bad-target",
                where,
                f"makes no encoder ({' '.join(str(error).split())})",
                "the dotted name of a class or function that imports, and its arguments",
                "install its package, or put its folder into PYTHONPATH",
            )
        ) from error
    check_encoder(encoder, where)
    say_licence_once(encoder.spec.weight_license, encoder.spec.weights_id)
    return encoder.eval()


@dataclass(frozen=True)
class Preparation:
    """How both sides are encoded: the sections of a configuration, as plain values.

    Parameters
    ----------
    dna, brain : dict
        Encoders and their batch sizes.
    genome, bold : dict
        Preprocessing.
    features_dir : Path
    """

    dna: dict[str, Any]
    brain: dict[str, Any]
    genome: dict[str, Any]
    bold: dict[str, Any]
    features_dir: Path

    def encode_dna(self, cohort: Cohort, encoder: DnaEncoder | str) -> Path:
        """Encode the genomes that are not in the store yet, and return the store."""
        return encode_genomes(
            cohort,
            encoder,
            options(GenomeOptions, self.genome, "genome"),
            self.features_dir,
            batch_size=int(self.dna.get("batch_size", 8)),
        )

    def encode_brain(self, cohort: Cohort, encoder: BrainEncoder) -> Path:
        """Encode the runs that are not in the store yet, and return the store."""
        return encode_brains(
            cohort,
            encoder,
            options(BoldOptions, self.bold, "bold"),
            self.features_dir,
            batch_size=int(self.brain.get("batch_size", 16)),
            workers=int(self.brain.get("workers", 0)),
        )


@dataclass(frozen=True)
class Joint:
    """Features of the participants who have both sides, row for row.

    Parameters
    ----------
    cohort : Cohort
        Those participants, in the cohort's order.
    everybody : Cohort
        The whole cohort.
    all_components : ndarray [N] int
        Kinship components of everybody.
    gene : GeneFeatures
    brain : BrainFeatures
    components : ndarray [n] int
        Those of the participants with both sides.
    only_gene, only_brain : int
        Participants left out because they have one side only.
    kinship : pair of ndarray
        Pairs of relatives among those with both sides, and their coefficients, as
        `multimodal.cohort.kinship.kinship_table` gives them.
    """

    cohort: Cohort
    everybody: Cohort
    all_components: np.ndarray
    gene: GeneFeatures
    brain: BrainFeatures
    components: np.ndarray
    only_gene: int
    only_brain: int
    kinship: tuple[np.ndarray, np.ndarray] | None = None


def join(cohort: Cohort, gene_store: Path, brain_store: Path, kinship_threshold: float) -> Joint:
    """Read both stores and keep the participants who are in both.

    Raises
    ------
    InputError
        Nobody is in both.
    """
    from multimodal.cohort.kinship import components, kinship_table
    from multimodal.features.read import read_brain_features, read_gene_features

    gene, brain = read_gene_features(gene_store), read_brain_features(brain_store)
    with_gene, with_brain = set(gene.participant_ids), set(brain.participant_ids)
    both = [who for who in cohort.participant_ids if who in with_gene and who in with_brain]
    if not both:
        raise InputError(
            Problem(
                "nobody",
                str(cohort.paths.participants),
                f"{len(with_gene)} participants with a genome, {len(with_brain)} with a scan, "
                "none with both",
                "participants with both, to align them",
                "check that ids agree: genotype_id with the VCF, participant_id with sub-*",
            )
        )
    all_components = components(cohort, kinship_threshold)
    rows = _rows_of(both, cohort.participant_ids)
    joined = cohort.take(both)
    return Joint(
        joined,
        cohort,
        all_components,
        gene.take(_rows_of(both, gene.participant_ids)),
        brain.take(_rows_of(both, brain.participant_ids)),
        all_components[rows],
        only_gene=len(with_gene - with_brain),
        only_brain=len(with_brain - with_gene),
        kinship=kinship_table(joined, kinship_threshold),
    )


def _rows_of(wanted: Sequence[str], ids: Sequence[str]) -> np.ndarray:
    place = {who: row for row, who in enumerate(ids)}
    return np.array([place[who] for who in wanted], dtype=np.int64)
