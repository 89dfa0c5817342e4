"""Running frozen encoders over a cohort into the feature store. A killed run resumes.

Shards are planned from the inputs alone and batches composed within a shard, so a store is, byte
for byte, the same however often its run was killed (at equal batch size, device and threads).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from encoders.errors import InputError, Problem
from multimodal.cohort.table import Cohort
from multimodal.features.brain import (
    BadParticipant,
    CheckRun,
    bold_preprocessing,
    encode_segments,
    run_preparer,
)
from multimodal.features.brain_shards import plan_shards, run_name
from multimodal.features.crew import Crew
from multimodal.features.dna import DnaPlan, encode_windows
from multimodal.features.dosage import read_dosages, write_dosages
from multimodal.features.fingerprint import (
    STORE_VERSION,
    array_digest,
    code_version,
    file_identity,
    text_digest,
)
from multimodal.features.genotype_calls import warn_if_unbalanced
from multimodal.features.options import GenomeOptions
from multimodal.features.shards import texts
from multimodal.features.store import brain_store, dna_store
from multimodal.features.writer import StoreWriter, write_together

if TYPE_CHECKING:
    import pandas as pd

    from encoders.base import BrainEncoder, DnaEncoder, Encoder
    from multimodal.bold.options import BoldOptions
    from multimodal.bold.parcels import Atlas
    from multimodal.genome.haplotypes import Genotypes
    from multimodal.genome.windows import Window

__all__ = [
    "DOSAGE",
    "GenomeOptions",
    "atlas_fingerprint",
    "encode_brains",
    "encode_genomes",
    "windows_of",
]

DOSAGE = "dosage"


def encode_genomes(
    cohort: Cohort,
    encoder: DnaEncoder | str,
    options: GenomeOptions | None,
    store_dir: str | Path,
    progress: bool = True,
    *,
    batch_size: int = 8,
    shard_sequences: int = 256,
    crew: Crew | None = None,
) -> Path:
    """Encode the genomes of all participants that have one.

    All genotypes are read once before anything is written, so that bad input leaves nothing
    behind. Warns where sites differ in their missing calls.

    Parameters
    ----------
    cohort : Cohort
        With paths of genotypes, reference and regions.
    encoder : DnaEncoder or "dosage"
    options : GenomeOptions or None
        None takes the defaults.
    store_dir : path
        The features folder; this encoder's store is ``dna/<name>`` in it.
    progress : bool
        Show progress bars.
    batch_size : int
        Most sequences in a batch.
    shard_sequences : int
        Most sequences in a shard: what a killed run may lose.
    crew : Crew, optional
        Processes that all call this alike, and share the shards of sequences; the first reads
        dosages alone.

    Returns
    -------
    Path
        The store.

    Raises
    ------
    InputError
        Everything wrong with genotypes, reference or regions; features there that something else
        made; another run that is writing them.
    """
    options = options or GenomeOptions()
    _check_positive(batch_size=batch_size, shard_sequences=shard_sequences)
    _wanted(cohort, ("genotypes", "reference", "regions"))
    have = cohort.participants["genotype_id"].dropna()
    participant_ids, samples = [str(who) for who in have.index], [str(name) for name in have]
    if not samples:
        raise InputError(_nobody("genotype", str(cohort.paths.participants)))
    name = encoder if isinstance(encoder, str) else encoder.spec.name
    windows, windows_print = windows_of(cohort, encoder, options)
    genotypes = _genotypes(cohort, options)
    fingerprint = {
        **_encoder_fingerprint(encoder),
        "preprocessing": genome_preprocessing(options, isinstance(encoder, str)),
        "windows": windows_print,
        "genotypes": file_identity(genotypes.path),
        "participants": {
            "count": len(samples),
            "sha256": text_digest([*participant_ids, *samples]),
        },
    }
    crew = crew or Crew()
    store = StoreWriter(dna_store(store_dir, name), fingerprint, alone=crew.processes == 1)
    store.check()
    if crew.from_first(f"{store.folder} is complete", store.is_complete):
        return store.folder
    if crew.is_first:
        store.refuse_others()
    if isinstance(encoder, str):

        def write() -> None:
            dosages = read_dosages(genotypes, windows, participant_ids, samples, progress)
            with store:
                write_dosages(dosages, windows, participant_ids, store)
                _write_calls(store, dosages.calls)
                store.finish()
            warn_if_unbalanced(dosages.calls, cohort.participants)

        crew.from_first(f"{store.folder} is written", write)
        return store.folder
    plan = DnaPlan(genotypes, windows, participant_ids, samples, _longest_bp(encoder))
    survey = plan.survey(progress and crew.is_first)

    def work(shown: bool) -> None:
        encode_windows(
            plan, survey, encoder, store, batch_size=batch_size,
            shard_sequences=shard_sequences, progress=progress and shown,
        )  # fmt: skip

    write_together(store, crew, work, lambda: _write_calls(store, survey.calls))
    if crew.is_first:
        warn_if_unbalanced(survey.calls, cohort.participants)
    return store.folder


def encode_brains(
    cohort: Cohort,
    encoder: BrainEncoder,
    options: BoldOptions | None,
    store_dir: str | Path,
    progress: bool = True,
    *,
    batch_size: int = 16,
    shard_subjects: int = 16,
    workers: int = 0,
    on_bad: BadParticipant | None = None,
    check: CheckRun | None = None,
    crew: Crew | None = None,
) -> Path:
    """Encode the BOLD runs of all participants that have one.

    Parameters
    ----------
    cohort : Cohort
        With paths of BOLD and, for an encoder of parcels, atlas.
    encoder : BrainEncoder
    options : BoldOptions or None
        None takes the defaults.
    store_dir : path
        The features folder; this encoder's store is ``brain/<name>`` in it.
    progress : bool
        Show a progress bar.
    batch_size : int
        Most segments in a batch.
    shard_subjects : int
        Subjects in a shard: what a killed run may lose.
    workers : int
        Processes that prepare runs; 0 prepares them in this one.
    on_bad, check : callable, optional
        Leave bad participants out instead of refusing them; see
        `multimodal.features.brain.encode_segments`. Of several processes the first is told
        of everybody, in the end.
    crew : Crew, optional
        Processes that all call this alike, and share the shards.

    Returns
    -------
    Path
        The store.

    Raises
    ------
    InputError
        Everything wrong with any run, after the good shards are written; no run at all; features
        there that something else made; another run that is writing them.
    """
    from multimodal.bold.bids import find_runs
    from multimodal.bold.inputs import input_kind
    from multimodal.bold.options import BoldOptions
    from multimodal.bold.parcels import load_atlas

    options = options or BoldOptions()
    _check_positive(batch_size=batch_size, shard_subjects=shard_subjects)
    kind = input_kind(encoder.spec.input)
    paths = _wanted(cohort, ("bold", "atlas") if kind == "parcels" else ("bold",))
    atlas = load_atlas(paths["atlas"], cohort.paths.atlas_table) if kind == "parcels" else None
    runs = find_runs(paths["bold"], cohort.participant_ids, space=options.space, task=options.task)
    if not runs:
        raise InputError(_nobody("BOLD run", str(paths["bold"])))
    shards = plan_shards(runs, shard_subjects)
    fingerprint = {
        **_encoder_fingerprint(encoder),
        "preprocessing": bold_preprocessing(options, kind),
        "atlas": None if atlas is None else atlas_fingerprint(atlas),
        "shard_subjects": shard_subjects,
        "runs": {
            "count": len(runs),
            "sha256": text_digest(part for run in runs for part in run_name(run)),
        },
    }
    crew = crew or Crew()
    folder = brain_store(store_dir, encoder.spec.name)
    store = StoreWriter(folder, fingerprint, alone=crew.processes == 1)
    store.check()
    planned = {shard.name: shard.inputs for shard in shards}
    if crew.from_first(f"{folder} is complete", lambda: store.is_complete(planned)):
        return store.folder
    if crew.is_first:
        store.refuse_others()
    with run_preparer(atlas, encoder.spec.input, options, workers) as prepare_many:

        def work(shown: bool) -> None:
            encode_segments(
                shards, encoder, prepare_many, store, batch_size=batch_size,
                progress=progress and shown, on_bad=on_bad, check=check,
            )  # fmt: skip

        write_together(store, crew, work)
    return store.folder


def windows_of(
    cohort: Cohort, encoder: DnaEncoder | str, options: GenomeOptions
) -> tuple[list[Window], dict[str, Any]]:
    """Return the windows that a cohort's regions make for an encoder, and their fingerprint.

    Parameters
    ----------
    cohort : Cohort
        With paths of reference and regions.
    encoder : DnaEncoder or "dosage"
        Dosages have one window a region, whatever ``options.length_bp``.
    options : GenomeOptions

    Returns
    -------
    windows : list of Window
    fingerprint : dict
        Their number, and a digest over names, places, strands and the reference's sequences.

    Raises
    ------
    InputError
        Everything wrong with reference or regions; a window longer than the encoder takes.
    """
    from multimodal.genome.reference import Reference
    from multimodal.genome.regions import read_regions
    from multimodal.genome.windows import make_windows

    if isinstance(encoder, str) and encoder != DOSAGE:
        raise InputError(Problem("encoder", "dna.name", encoder, f"an encoder, or {DOSAGE!r}"))
    paths = _wanted(cohort, ("reference", "regions"))
    reference = Reference(paths["reference"])
    windows = make_windows(
        read_regions(paths["regions"]),
        length_bp=None if isinstance(encoder, str) else options.length_bp,
        flank_bp=options.flank_bp,
        max_length_bp=None if isinstance(encoder, str) else _longest_bp(encoder),
        lengths=reference.lengths,
    )
    digest = text_digest(
        part
        for w in windows
        for part in (
            f"{w.name} {w.chrom} {w.start_bp} {w.end_bp} {w.strand}",
            reference.fetch(w.chrom, w.start_bp, w.end_bp),
        )
    )
    return windows, {"count": len(windows), "sha256": digest}


def _genotypes(cohort: Cohort, options: GenomeOptions) -> Genotypes:
    from multimodal.genome.haplotypes import Genotypes

    paths = _wanted(cohort, ("genotypes", "reference"))
    return Genotypes(
        paths["genotypes"],
        paths["reference"],
        unphased=options.unphased,  # type: ignore[arg-type]  # checked by GenomeOptions
        filters=options.filters,
    )


def _write_calls(store: StoreWriter, calls: pd.DataFrame) -> None:
    columns: dict[str, pa.Array] = {"subject": texts(calls["subject"].tolist())}
    counts = calls.drop(columns="subject")
    for name in counts:
        columns[str(name)] = pa.array(counts[name])
    inputs = text_digest([*calls["subject"], array_digest(counts.to_numpy())])
    if not store.has("calls/000000.parquet", inputs):
        store.write("calls/000000.parquet", columns, inputs)


def _encoder_fingerprint(encoder: Encoder | str) -> dict[str, Any]:
    versions = {"store_version": STORE_VERSION, "code_version": code_version()}
    if isinstance(encoder, str):
        return {**versions, "encoder": {"name": encoder}, "dtype": "float32"}
    from multimodal.features.devices import dtype_of

    dtype = str(dtype_of(encoder)).removeprefix("torch.")
    return {**versions, "encoder": encoder.spec.as_dict(), "dtype": dtype}


def genome_preprocessing(options: GenomeOptions, dosage: bool) -> dict[str, Any]:
    """Return the part of a DNA store's fingerprint that `options` make."""
    values = asdict(options)
    values["filters"] = None if options.filters is None else sorted(options.filters)
    if dosage:
        # Dosages know neither windows nor phase.
        del values["length_bp"], values["unphased"]
    return values


def atlas_fingerprint(atlas: Atlas) -> dict[str, Any]:
    """Return what tells an atlas from another: how many parcels, and a digest over all."""
    arrays = array_digest(atlas.labels, atlas.affine, atlas.xyz_mm)
    order = text_digest([*map(str, atlas.ids), *atlas.names])
    return {"parcels": len(atlas.ids), "sha256": text_digest([arrays, order])}


def _longest_bp(encoder: DnaEncoder) -> int | None:
    longest: int | None = getattr(encoder.spec.input, "max_length_bp", None)
    return longest


def _wanted(cohort: Cohort, names: Sequence[str]) -> Mapping[str, Path]:
    paths = {name: getattr(cohort.paths, name) for name in names}
    absent = [name for name, path in paths.items() if path is None]
    if absent:
        raise InputError(
            Problem("cohort-path", f"cohort.{name}", "no file", f"a path for {name}")
            for name in absent
        )
    return paths


def _nobody(what: str, where: str) -> Problem:
    return Problem("nobody", where, f"no participant has a {what}", "at least one")


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise InputError(Problem("encode-option", name, f"{value}", "at least 1"))
