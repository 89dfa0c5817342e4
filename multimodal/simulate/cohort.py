"""The whole cohort: people, genomes and brains drawn, and written as the files people have."""

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from tqdm import tqdm

from encoders.errors import InputError, Problem
from multimodal.simulate.anatomy import Anatomy, make_anatomy
from multimodal.simulate.ancestry import principal_components
from multimodal.simulate.bids import (
    SPACE,
    write_dataset_description,
    write_json,
    write_nifti,
    write_number_tsv,
    write_tsv,
)
from multimodal.simulate.brains import Brains, correlation_from_log, draw_brains
from multimodal.simulate.effects import CausalModel, draw_causal_model, scores_of_new_people
from multimodal.simulate.genome import Genome, draw_genome
from multimodal.simulate.motion import confounds_sidecar
from multimodal.simulate.options import SimulationOptions
from multimodal.simulate.people import People, draw_people, people_of_samples
from multimodal.simulate.real import link_or_copy, read_real_genotypes
from multimodal.simulate.scan import SCL_INTER, SCL_SLOPE, simulate_scan
from multimodal.simulate.tables import (
    Names,
    draw_names,
    group_prefix,
    kinship_table,
    participants_table,
    simulation_record,
    truth_tables,
)
from multimodal.simulate.variants import sync_folder, write_reference, write_regions, write_vcf


@dataclass(frozen=True)
class _Genetics:
    """What the genome side hands to the brain side, in the order of `People`."""

    people: People
    components: np.ndarray
    causal: CausalModel
    samples: list[str]
    source: dict[str, Any]
    scale: float | None = None


@dataclass(frozen=True)
class _FirstCohort:
    """What new people share with the first cohort of their world, measured in that cohort."""

    markers: np.ndarray
    causal: CausalModel
    scale: float


def simulate_cohort(
    out_dir: str | Path,
    options: SimulationOptions | None = None,
    *,
    genotypes: str | Path | None = None,
    reference: str | Path | None = None,
    regions: str | Path | None = None,
    progress: bool = False,
) -> dict[str, Path]:
    """Write a simulated cohort into `out_dir`, in the file formats a real one has.

    Parameters
    ----------
    out_dir : path
        New or empty folder. It appears complete or not at all.
    options : SimulationOptions, optional
        Defaults to ``SimulationOptions()``.
    genotypes, reference, regions : path, optional
        An indexed VCF or BCF file, its FASTA file and, if wanted, a BED6 file: brains are then
        simulated on these people's real haplotypes (semi-simulation). Without `regions`, stretches
        rich in common variants are chosen.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict of str to Path
        ``participants``, ``kinship``, ``genotypes``, ``reference``, ``regions``, ``bold`` (the
        derivatives folder), ``atlas``, ``atlas_table``; beside them ``simulation`` (options and
        causal variants, JSON), ``truth`` and ``truth_connectivity`` (TSV, one row a participant),
        which no pipeline reads.

    Raises
    ------
    InputError
        `out_dir` is not empty; real genotypes come without reference, or cannot be used.

    Notes
    -----
    The same options (but `n_jobs`), seed and input files give the same bytes, on the same versions
    of zlib and numpy.
    """
    options = options or SimulationOptions()
    out = Path(out_dir)
    _refuse_occupied(out)
    if (genotypes is None) != (reference is None) or (regions is not None and genotypes is None):
        raise InputError(
            Problem(
                "simulation-real-input",
                "cohort.genotypes, cohort.reference, cohort.regions",
                "only some of them given",
                "genotypes and reference together wanted, regions only beside them",
            )
        )
    if genotypes is not None and options.people_seed is not None:
        raise InputError(
            Problem(
                "simulation-option",
                "cohort.people_seed",
                "given beside real genotypes",
                "null: the people are those of the file",
            )
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        # Matrices are small here: one BLAS thread is faster, and always rounds alike.
        with threadpool_limits(1):
            if genotypes is None or reference is None:
                genetics, files = _write_simulated_genomes(work, options)
            else:
                bed = Path(regions) if regions is not None else None
                genetics, files = _write_real_genomes(
                    work, options, Path(genotypes), Path(reference), bed
                )
            files |= _write_people_and_brains(work, options, genetics, progress=progress)
        sync_folder(work)
        work.chmod(0o755)
        if out.exists():
            out.rmdir()
        os.rename(work, out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return {name: out / file for name, file in files.items()}


def _refuse_occupied(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            Problem(
                "simulation-folder",
                str(out),
                "something is there already",
                "a new or empty folder wanted",
                "name another folder, or remove this one",
            )
        )


def _write_simulated_genomes(
    work: Path, options: SimulationOptions
) -> tuple[_Genetics, dict[str, str]]:
    people = draw_people(options.of_new_people())
    genome = draw_genome(options, people)
    rng = options.people_stream("calls")
    n = len(people)
    group = group_prefix(options)
    names = [f"{group}G{number:0{_digits(n)}d}" for number in rng.permutation(n) + 1]
    gap = rng.random((n, len(genome.variants))) < options.missing_rate
    missing = np.where(gap, rng.integers(1, 3, size=gap.shape), 0)
    file_order = rng.permutation(n)
    write_reference(work / "reference.fa", genome.contigs)
    write_regions(work / "regions.bed", genome.regions)
    write_vcf(
        work / "genotypes.vcf.gz",
        genome.variants,
        genome.alleles[file_order],
        missing[file_order],
        [names[row] for row in file_order],
        {name: len(sequence) for name, sequence in genome.contigs.items()},
    )
    dosage = _dosage(genome)
    if options.people_seed is None:
        components = principal_components(genome.markers)
        causal = draw_causal_model(options, genome.variants, dosage, people.ancestry)
        scale = None
    else:
        first = _first_cohort(options.of_first_people())
        components = principal_components(first.markers, new=genome.markers)
        causal = scores_of_new_people(first.causal, genome.variants, dosage)
        scale = first.scale
    source = {"genotypes": "simulated"}
    genetics = _Genetics(people, components, causal, names, source, scale)
    files = {
        "genotypes": "genotypes.vcf.gz",
        "reference": "reference.fa",
        "regions": "regions.bed",
    }
    return genetics, files


def _first_cohort(options: SimulationOptions) -> _FirstCohort:
    people = draw_people(options)
    genome = draw_genome(options, people)
    causal = draw_causal_model(options, genome.variants, _dosage(genome), people.ancestry)
    scale = draw_brains(options, people, causal.scores).scale
    return _FirstCohort(genome.markers, causal, scale)


def _dosage(genome: Genome) -> np.ndarray:
    return (genome.alleles == 1).sum(axis=1).astype(np.float64)


def _write_real_genomes(
    work: Path, options: SimulationOptions, genotypes: Path, reference: Path, regions: Path | None
) -> tuple[_Genetics, dict[str, str]]:
    real = read_real_genotypes(options, genotypes, reference, regions)
    files = {
        "genotypes": link_or_copy(genotypes, work, "genotypes"),
        "reference": link_or_copy(reference, work, "reference"),
        "regions": "regions.bed",
    }
    write_regions(work / "regions.bed", real.regions)
    genetics = _Genetics(
        people=people_of_samples(options, real.ancestry),
        components=real.components,
        causal=draw_causal_model(options, real.variants, real.dosage, real.ancestry),
        samples=real.samples,
        source=real.source,
    )
    return genetics, files


def _write_people_and_brains(
    work: Path, options: SimulationOptions, genetics: _Genetics, *, progress: bool
) -> dict[str, str]:
    people = genetics.people
    brains = draw_brains(options, people, genetics.causal.scores, genetics.scale)
    anatomy = make_anatomy(options)
    names = draw_names(options, people, genetics.samples)
    motion_level = draw_motion_levels(options, people)
    mean_fd_mm = _write_scans(
        work / "derivatives", options, people, brains, anatomy, names, motion_level, progress
    )
    table = participants_table(options, people, names, genetics.components, brains)
    write_tsv(work / "participants.tsv", table)
    write_tsv(work / "kinship.tsv", kinship_table(people, names))
    truth, connectivity = truth_tables(
        people, names, genetics.causal, brains, motion_level, mean_fd_mm
    )
    write_tsv(work / "truth.tsv", truth)
    write_tsv(work / "truth_connectivity.tsv", connectivity)
    record = simulation_record(options, people, genetics.causal, genetics.source)
    write_json(work / "simulation.json", record)
    write_nifti(work / "atlas.nii.gz", anatomy.labels, anatomy.affine)
    atlas = pd.DataFrame({"index": np.arange(1, len(anatomy.names) + 1), "name": anatomy.names})
    write_tsv(
        work / "atlas.tsv",
        atlas.assign(**{axis: anatomy.xyz_mm[:, i] for i, axis in enumerate("xyz")}),
    )
    return {
        "participants": "participants.tsv",
        "kinship": "kinship.tsv",
        "bold": "derivatives",
        "atlas": "atlas.nii.gz",
        "atlas_table": "atlas.tsv",
        "simulation": "simulation.json",
        "truth": "truth.tsv",
        "truth_connectivity": "truth_connectivity.tsv",
    }


def draw_motion_levels(options: SimulationOptions, people: People) -> np.ndarray:
    """Draw how much everybody moves, [n], 1 being usual; a little more with age."""
    rng = options.people_stream("motion")
    level = np.exp(0.35 * rng.standard_normal(len(people)) + 0.015 * (people.age - 62.0))
    return np.clip(level, 0.4, 2.5)


def _write_scans(
    folder: Path,
    options: SimulationOptions,
    people: People,
    brains: Brains,
    anatomy: Anatomy,
    names: Names,
    motion_level: np.ndarray,
    progress: bool,
) -> np.ndarray:
    """Write everybody's runs; return the mean framewise displacement [n] in mm."""
    folder.mkdir()
    write_dataset_description(folder)
    n = len(people)
    two_runs = np.zeros(n, dtype=bool)
    rng = options.people_stream("runs")
    two_runs[rng.permutation(n)[: round(options.two_run_fraction * n)]] = True

    def write_one(row: int) -> float:
        runs = 2 if two_runs[row] else 1
        func = folder / names.participants[row] / "func"
        func.mkdir(parents=True)
        return float(
            np.mean(
                [
                    _write_run(
                        func,
                        options,
                        brains,
                        anatomy,
                        names.participants[row],
                        row=row,
                        run=run if runs == 2 else None,
                        motion_level=float(motion_level[row]),
                        site=int(people.site[row]),
                    )
                    for run in range(1, runs + 1)
                ]
            )
        )

    # Every run draws from a stream of its own, so neither order nor threads change a byte.
    with ThreadPoolExecutor(options.n_jobs) as pool:
        hidden = None if progress else True  # None: only where the output is no terminal
        scans = pool.map(write_one, range(n))
        steps = tqdm(scans, "simulate scans", n, disable=hidden, unit="subject")
        return np.array(list(steps))


def _write_run(
    func: Path,
    options: SimulationOptions,
    brains: Brains,
    anatomy: Anatomy,
    participant: str,
    *,
    row: int,
    run: int | None,
    motion_level: float,
    site: int,
) -> float:
    rng = options.people_stream("scan", row, run or 0)
    state = brains.log_correlation[row] + brains.run_sd * rng.standard_normal(
        brains.log_correlation.shape[1]
    )
    scan = simulate_scan(
        rng,
        options,
        anatomy,
        correlation=correlation_from_log(state[None], options.networks)[0],
        frames=options.frames_one_run if run is None else options.frames_two_runs,
        motion_level=motion_level,
        site=site,
    )
    stem = f"{participant}_task-rest" + (f"_run-{run}" if run is not None else "")
    bold = func / f"{stem}_space-{SPACE}_desc-preproc_bold.nii.gz"
    write_nifti(
        bold,
        scan.volumes,
        anatomy.affine,
        tr_s=options.tr_s,
        scl_slope=SCL_SLOPE,
        scl_inter=SCL_INTER,
    )
    write_json(
        bold.with_name(bold.name.replace(".nii.gz", ".json")),
        {"RepetitionTime": options.tr_s, "TaskName": "rest", "SkullStripped": True},
    )
    write_nifti(
        func / f"{stem}_space-{SPACE}_desc-brain_mask.nii.gz",
        anatomy.mask.astype(np.uint8),
        anatomy.affine,
    )
    confounds = func / f"{stem}_desc-confounds_timeseries.tsv"
    write_number_tsv(confounds, scan.confounds)
    components = sum(name.startswith("a_comp_cor_") for name in scan.confounds.columns)
    write_json(confounds.with_suffix(".json"), confounds_sidecar(components))
    return scan.mean_fd_mm


def _digits(n: int) -> int:
    return max(4, len(str(n)))
