"""``genebold check``: everything wrong with a cohort, in one pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from encoders.errors import InputError, Problem
from multimodal.align.options import AlignOptions
from multimodal.align.processes import refuse_several
from multimodal.bold.options import BoldOptions
from multimodal.cohort.near_misses import find_missing_parts, find_near_misses
from multimodal.cohort.strays import find_unmatched_samples, find_unmatched_scans
from multimodal.cohort.table import Cohort, CohortPaths, find_table_problems, read_cohort
from multimodal.cohort.tsv import MISSING, read_table
from multimodal.features.options import GenomeOptions
from multimodal.verbs.console import say, table, warn
from multimodal.verbs.encode import preparation
from multimodal.verbs.labels import find_missing_columns
from multimodal.verbs.pipeline import Preparation, load_side
from multimodal.verbs.settings import cohort_paths, options, plain

if TYPE_CHECKING:
    import pandas as pd


def run(config: DictConfig) -> int:
    """Look at every file, show all problems, and return 2 when there are any."""
    refuse_several("check")
    paths = cohort_paths(config.cohort)
    problems, warnings, summary = check(config, paths)
    for warning in warnings:
        warn(str(warning))
    if problems:
        raise InputError(problems)
    say(table(summary, ["what", "found"]))
    say("\nno problems found")
    return 0


def check(
    config: DictConfig, paths: CohortPaths
) -> tuple[list[Problem], list[Problem], list[list[Any]]]:
    """Return problems, warnings and a summary of a cohort; one file's fault hides no other's."""
    problems: list[Problem] = []
    how = preparation(config)
    genome = _collect(problems, lambda: options(GenomeOptions, how.genome, "genome"))
    bold = _collect(problems, lambda: options(BoldOptions, how.bold, "bold"))
    genome, bold = genome or GenomeOptions(), bold or BoldOptions()
    cohort = _cohort(paths, bold, list(config.covariates), problems)
    problems += _check_strata(config, paths, cohort)
    brain = _collect(problems, lambda: load_side(how.brain, "brain"))
    dna = _collect(problems, lambda: load_side(how.dna, "dna"))
    warnings, summary = _check_genome(paths, cohort, genome, problems)
    summary += _check_bold(paths, cohort, bold, brain, problems)
    problems += _check_features(how, dna, brain, genome, bold)
    problems, missing = _with_missing_files(problems, config.cohort.dir, paths)
    rows = [["participants", len(cohort.participants)], *summary] if cohort else summary
    if cohort is not None:
        warnings += _unmatched(cohort, bold)
        rows += _ancestry(cohort)
    return list(dict.fromkeys(problems)), [*missing, *warnings], rows


def _check_strata(config: DictConfig, paths: CohortPaths, cohort: Cohort | None) -> list[Problem]:
    """Look for the columns that `align` will be asked to fill batches by, or to unlearn."""
    problems: list[Problem] = []
    given = plain(config.align)
    asked = ("batch_strata", "adversary")
    wanted: dict[str, Any] = {name: given[name] for name in asked if name in given}
    choices = _collect(problems, lambda: options(AlignOptions, wanted, "align"))
    people = _columns(paths) if cohort is None else cohort.participants
    if choices is not None and people is not None:
        problems += find_missing_columns(people, choices)
    return problems


def _columns(paths: CohortPaths) -> pd.DataFrame | None:
    """Return a participants table that may have any fault, for the columns it has."""
    import pandas as pd

    if paths.participants is None:
        return None
    table, _ = read_table(paths.participants, code="participants")
    if table is None:
        return None
    cells = table.cells.mask(table.cells.isin(["", MISSING]))
    for name in cells:
        if str(name).startswith("PC"):
            cells[name] = pd.to_numeric(cells[name], errors="coerce")
    return cells


def _ancestry(cohort: Cohort) -> list[list[Any]]:
    """Say what strata take for ancestry where the table has none."""
    people = cohort.participants
    if "ancestry" in people and bool(people["ancestry"].notna().any()):
        return []
    found = "clusters of PC1 to PC4" if "PC1" in people else "none, and no PC1 to cluster by"
    return [["ancestry of the strata (no column ancestry)", found]]


def _unmatched(cohort: Cohort, bold: BoldOptions) -> list[Problem]:
    """Warn of ids that one side has and the other, or the table, has not."""
    from multimodal.bold.bids import find_runs, find_subjects
    from multimodal.genome.variants import VariantFile

    warnings: list[Problem] = []
    paths, ids = cohort.paths, cohort.participant_ids
    with suppress(InputError):  # told by the check of the runs
        if paths.bold is not None:
            runs = find_runs(paths.bold, ids, space=bold.space, task=bold.task)
            with_bold = {run.participant_id for run in runs}
            warnings += find_unmatched_scans(ids, with_bold, find_subjects(paths.bold))
    with suppress(InputError):  # told by the check of the genotypes
        if paths.genotypes is not None:
            genotype_ids = cohort.participants["genotype_id"].items()
            named = {str(who): None if name is None else str(name) for who, name in genotype_ids}
            warnings += find_unmatched_samples(named, VariantFile(paths.genotypes).samples)
    return warnings


def _with_missing_files(
    problems: list[Problem], folder: str | None, paths: CohortPaths
) -> tuple[list[Problem], list[Problem]]:
    """Add what is not there; a file that lies there by another name is told once, by that name."""
    near = find_near_misses(folder, paths) if folder is not None else {}
    absent, warnings = find_missing_parts(folder, paths)
    explained = {f"cohort.{field}" for field in near}
    if {"genotypes", "bold"} & set(near):
        explained.add("cohort")
    kept = [p for p in [*problems, *absent] if not (p.where in explained and "no " in p.found)]
    return [*near.values(), *kept], [p for p in warnings if p.where not in explained]


def _collect(problems: list[Problem], step: Callable[[], Any]) -> Any:
    """Run a step; on bad input note its problems and return None."""
    try:
        return step()
    except InputError as error:
        problems += error.problems
        return None


def _cohort(
    paths: CohortPaths, bold: BoldOptions, covariates: list[str], problems: list[Problem]
) -> Cohort | None:
    """Check the tables; return the cohort as far as it can be read."""
    from multimodal.bold.bids import find_runs

    with_bold: set[str] | None = None
    if paths.participants is not None and paths.bold is not None:
        try:
            ids = _participant_ids(paths.participants)
            runs = find_runs(paths.bold, ids, space=bold.space, task=bold.task)
            with_bold = {run.participant_id for run in runs}
        except InputError:
            with_bold = None  # told once, by the check of the runs
    problems += find_table_problems(paths, with_bold=with_bold, required=covariates)
    try:
        return read_cohort(paths)
    except InputError:
        return None


def _participant_ids(path: Path) -> list[str]:
    """Return the ids of a participants table that may have any other fault."""
    import pandas as pd

    try:
        column = pd.read_csv(path, sep="\t", usecols=["participant_id"], dtype=str)
    except (ValueError, OSError):
        return []
    return list(dict.fromkeys(column["participant_id"].dropna()))


def _genotype_ids(path: Path | None) -> list[str]:
    import pandas as pd

    if path is None:
        return []
    try:
        frame = pd.read_csv(path, sep="\t", dtype=str, na_values=["n/a"])
    except (ValueError, OSError):
        return []
    column = "genotype_id" if "genotype_id" in frame else "participant_id"
    return list(dict.fromkeys(frame[column].dropna())) if column in frame else []


def _check_genome(
    paths: CohortPaths, cohort: Cohort | None, genome: GenomeOptions, problems: list[Problem]
) -> tuple[list[Problem], list[list[Any]]]:
    from multimodal.genome.checks import survey_genome

    if cohort is not None:
        samples = [str(name) for name in cohort.participants["genotype_id"].dropna()]
    else:
        samples = _genotype_ids(paths.participants)
    if paths.genotypes is None and paths.regions is None:
        return [], [["genomes", "none"]]
    survey = survey_genome(
        paths.genotypes,
        paths.reference,
        paths.regions,
        samples,
        unphased=genome.unphased,  # type: ignore[arg-type]  # checked by GenomeOptions
        flank_bp=genome.flank_bp,
        filters=genome.filters,
    )
    problems += survey.problems
    if paths.genotypes is None:
        return survey.warnings, [["genomes", "none"]]
    missing = int(survey.missing.sum())
    return survey.warnings, [
        ["genomes", len(survey.samples)],
        ["variant sites in the regions", survey.sites],
        ["missing calls, taken as reference", missing],
    ]


def _check_bold(
    paths: CohortPaths,
    cohort: Cohort | None,
    bold: BoldOptions,
    brain: Any,
    problems: list[Problem],
) -> list[list[Any]]:
    from multimodal.bold.bids import find_runs
    from multimodal.bold.inputs import describe_input, find_problems, input_kind
    from multimodal.bold.parcels import load_atlas

    if paths.bold is None:
        return [["BOLD runs", "none"]]
    if cohort is not None:
        ids = cohort.participant_ids
    else:
        ids = _participant_ids(paths.participants) if paths.participants else []
    runs = _collect(
        problems,
        lambda: find_runs(paths.bold, ids, space=bold.space, task=bold.task),  # type: ignore[arg-type]
    )
    kind = _collect(problems, lambda: input_kind(brain.spec.input)) if brain is not None else None
    atlas: Any = None
    if paths.atlas is not None and kind != "volumes":
        atlas = _collect(problems, lambda: load_atlas(paths.atlas, paths.atlas_table))  # type: ignore[arg-type]
    elif kind == "parcels":
        problems.append(Problem("cohort-path", "cohort.atlas", "no file", "a label image"))
    if runs is None or kind is None or (kind == "parcels" and atlas is None):
        return []
    problems += find_problems(runs, atlas, brain.spec.input, bold)
    rows = [
        ["participants with a BOLD run", len({run.participant_id for run in runs})],
        ["BOLD runs", len(runs)],
    ]
    if kind == "volumes":
        return [*rows, ["segments", describe_input(brain.spec.input)]]
    return [*rows, ["parcels", len(atlas.ids)]]


def _check_features(
    how: Preparation, dna: Any, brain: Any, genome: GenomeOptions, bold: BoldOptions
) -> list[Problem]:
    """Compare encoders and preprocessing with those that made the features already there."""
    from multimodal.bold.inputs import input_kind
    from multimodal.features.brain import bold_preprocessing
    from multimodal.features.encode import genome_preprocessing
    from multimodal.features.fingerprint import difference
    from multimodal.features.store import brain_store, dna_store

    sides: list[tuple[Any, Path, dict[str, Any]]] = []
    if dna is not None:
        name = dna if isinstance(dna, str) else dna.spec.name
        prepared = genome_preprocessing(genome, isinstance(dna, str))
        sides.append((dna, dna_store(how.features_dir, name), prepared))
    if brain is not None:
        store = brain_store(how.features_dir, brain.spec.name)
        with suppress(InputError):  # of an input that is neither, the check of the runs tells
            prepared = bold_preprocessing(bold, input_kind(brain.spec.input))
            sides.append((brain, store, prepared))
    problems = []
    for encoder, store, preprocessing in sides:
        file = store / "fingerprint.json"
        if file.is_file():
            stored = json.loads(file.read_text())
            spec = {"name": encoder} if isinstance(encoder, str) else encoder.spec.as_dict()
            wanted = {"encoder": spec, "preprocessing": preprocessing}
            found = {name: stored.get(name) for name in wanted}
            problem = difference(file, json.dumps(found), json.dumps(wanted))
            problems += [problem] if problem else []
    return problems
