"""Bundles from Python: latents for new subjects, and how alike they are."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from encoders.errors import InputError, Problem
from multimodal.cohort.table import Cohort, CohortPaths
from multimodal.latent import embed
from multimodal.latent.bundle import Bundle, read_bundle
from multimodal.latent.encoders import load_bundle_encoder
from multimodal.latent.table import Latents

if TYPE_CHECKING:
    from encoders.base import Encoder


def load_aligner(
    path: str | Path,
    *,
    revision: str | None = None,
    device: str = "cpu",
    dna_weights: str | None = None,
    brain_weights: str | None = None,
) -> LoadedAligner:
    """Open a bundle that ``genebold align`` left, or that lies on the Hugging Face hub.

    Parameters
    ----------
    path : path or str
        The bundle's folder, or a hub id ``owner/name``; ``HF_HUB_OFFLINE=1`` leaves the cache only.
    revision : str, optional
        Branch, tag or commit of a hub id.
    device : str
        Where the encoders run.
    dna_weights, brain_weights : str, optional
        Where the encoders' weights lie on this machine, if the bundle's own place does not exist
        here.

    Returns
    -------
    LoadedAligner

    Raises
    ------
    InputError
        No such bundle, or one that is damaged, smuggles code in, or wants encoders that are not
        installed.
    """
    weights = {"dna": dna_weights, "brain": brain_weights}
    return LoadedAligner(read_bundle(path, revision=revision), device, weights)


class LoadedAligner:
    """A bundle ready for new subjects; its encoders are loaded when they are first needed.

    Parameters
    ----------
    bundle : Bundle
    device : str
    weights : mapping of str to str or None
        By side, ``"dna"`` and ``"brain"``.
    """

    def __init__(
        self, bundle: Bundle, device: str = "cpu", weights: dict[str, str | None] | None = None
    ) -> None:
        self.bundle = bundle
        self._device = device
        self._weights = weights or {}
        self._encoders: dict[str, Encoder | str] = {}

    def embed_genomes(
        self,
        genotypes: str | Path,
        reference: str | Path,
        *,
        participant_ids: Sequence[str] | None = None,
        participants: str | Path | None = None,
        features_dir: str | Path | None = None,
        batch_size: int = 8,
    ) -> Latents:
        """Return latents of the genomes in a VCF or BCF.

        Parameters
        ----------
        genotypes : path
            Indexed VCF or BCF.
        reference : path
            Indexed FASTA, of the build the bundle was trained on.
        participant_ids : sequence of str, optional
            Who, in this order; by default every sample, or everybody in the table who has one.
        participants : path, optional
            ``participants.tsv``: names the samples by ``genotype_id``, and holds covariates where
            the towers want them. Without it samples go by their own names.
        features_dir : path, optional
            Where features are kept, so that another call need not encode again; by default they
            are thrown away.
        batch_size : int
            Most windows in a batch.

        Returns
        -------
        Latents
            ``participant_ids``, and ``values`` [n, 512] float32, rows of unit length.

        Raises
        ------
        InputError
            Another genome build, genotypes that cannot be read, or participants without one.
        """
        paths = _paths(participants, genotypes=genotypes, reference=reference)
        encoder = self._encoder("dna")
        return self._embed(
            embed.embed_genomes, "gene", paths, encoder, participant_ids, features_dir, batch_size
        )

    def embed_brains(
        self,
        bold: str | Path,
        *,
        atlas: str | Path | None = None,
        atlas_table: str | Path | None = None,
        participant_ids: Sequence[str] | None = None,
        participants: str | Path | None = None,
        features_dir: str | Path | None = None,
        batch_size: int = 16,
    ) -> Latents:
        """Return latents of the BOLD runs in a derivatives folder, all runs of a subject pooled.

        Parameters
        ----------
        bold : path
            Derivatives as fMRIPrep writes them, or a table of paths.
        atlas, atlas_table : path, optional
            The label image the bundle was trained with, and its table; for encoders of parcels.
        participant_ids, participants, features_dir, batch_size
            As for `embed_genomes`; a batch is of segments.

        Returns
        -------
        Latents
            ``participant_ids``, and ``values`` [n, 512] float32, rows of unit length.

        Raises
        ------
        InputError
            Another atlas, space or repetition time, scans that cannot be read, or participants
            without one.
        """
        paths = _paths(participants, bold=bold, atlas=atlas, atlas_table=atlas_table)
        encoder = self._encoder("brain")
        return self._embed(
            embed.embed_brains, "brain", paths, encoder, participant_ids, features_dir, batch_size
        )

    def similarity(
        self, first: Latents | np.ndarray, second: Latents | np.ndarray
    ) -> Float64[np.ndarray, "first second"]:
        """Return the cosine of every row of one set of latents with every row of another.

        Parameters
        ----------
        first, second : Latents or ndarray [n, 512], [m, 512]
            As `embed_genomes` and `embed_brains` give them.

        Returns
        -------
        ndarray [n, m] float64
            Between -1 and 1.

        Raises
        ------
        ValueError
            The rows are not of equal size.
        """
        left, right = (
            np.asarray(side.values if isinstance(side, Latents) else side, dtype=np.float64)
            for side in (first, second)
        )
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
            raise ValueError(f"latents of shapes {left.shape} and {right.shape} do not go together")
        cosines: Float64[np.ndarray, "first second"] = _unit(left) @ _unit(right).T
        return cosines.clip(-1.0, 1.0)

    def _encoder(self, side: str) -> Any:
        if side not in self._encoders:
            weights = self._weights.get(side)
            self._encoders[side] = load_bundle_encoder(self.bundle, side, weights, self._device)
        return self._encoders[side]

    def _embed(
        self,
        embed_side: Callable[..., Latents],
        modality: str,
        paths: CohortPaths,
        encoder: Any,
        participant_ids: Sequence[str] | None,
        features_dir: str | Path | None,
        batch_size: int,
    ) -> Latents:
        cohort = embed.new_cohort(paths, [modality])
        if participant_ids is not None:
            cohort = _taken(cohort, list(participant_ids))
        folder: AbstractContextManager[Any] = (
            tempfile.TemporaryDirectory(prefix="genebold-")
            if features_dir is None
            else nullcontext(features_dir)
        )
        with folder as features:
            found = embed_side(self.bundle, cohort, encoder, Path(features), batch_size=batch_size)
        if participant_ids is not None:
            _refuse_absent(list(participant_ids), found, modality)
        return found


def _paths(participants: str | Path | None, **given: str | Path | None) -> CohortPaths:
    return CohortPaths().with_paths(participants=participants, **given)


def _taken(cohort: Cohort, ids: list[str]) -> Cohort:
    unknown = [who for who in ids if who not in cohort.participants.index]
    if unknown:
        found = f"{len(unknown)} unknown, {', '.join(unknown[:5])}"
        raise InputError(
            Problem("unknown-participant", "participant_ids", found, "ids among the files")
        )
    return cohort.take(ids)


def _refuse_absent(wanted: list[str], found: Latents, modality: str) -> None:
    absent = [who for who in wanted if who not in set(found.participant_ids)]
    if absent:
        what = "genome" if modality == "gene" else "scan"
        told = f"{len(absent)} have no {what}, {', '.join(absent[:5])}"
        raise InputError(Problem("nobody", "participant_ids", told, f"participants with a {what}"))


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths == 0, 1.0, lengths))
