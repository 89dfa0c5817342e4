"""Files in a cohort folder that were meant, but have a name that nothing looks for."""

import re
from collections.abc import Iterator
from pathlib import Path

from encoders.errors import Problem
from multimodal.cohort.table import STANDARD_NAMES, CohortPaths

# Name by field (upper and lower case alike), and what to do: the first that fits tells.
_NEAR_MISSES: dict[str, tuple[tuple[str, str], ...]] = {
    "participants": (
        (r"participants?\.tsv(\.gz)?", "rename it to participants.tsv, uncompressed"),
        (r"participants?\.(csv|txt|xlsx?|ods)", "save it tab-separated as participants.tsv"),
    ),
    "kinship": (
        (r"kinship\.(csv|xlsx?|ods)", "save it tab-separated as kinship.tsv"),
        (r"kinship\.(tsv|txt|kin0?)|.*\.kin0", "set cohort.kinship={path}"),
    ),
    "genotypes": (
        (r"genotypes?\.vcf", "bgzip {path} && tabix -p vcf {path}.gz{named}"),
        (r"genotypes?\.(vcf\.b?gz|bcf|bcf\.gz)", "set cohort.genotypes={path}"),
        (
            r"genotypes?\.(pgen|bed|bgen)",
            "export it as a VCF, e.g. plink2 --export vcf bgz, and index it: tabix -p vcf",
        ),
    ),
    "reference": ((r"reference\.(fa|fasta|fna)(\.b?gz)?", "set cohort.reference={path}"),),
    "regions": (
        (r"regions?\.bed\.b?gz", "gunzip -c {path} > {folder}/regions.bed"),
        (r"regions?\.bed", "set cohort.regions={path}"),
        (r"regions?\.(txt|tsv|csv|xlsx?)", "write it as BED6: regions.bed"),
    ),
    "bold": ((r"derivatives?|fmriprep|bold\.tsv", "set cohort.bold={path}"),),
    "atlas": (
        (r"atlas.*\.(dlabel\.nii|gii|mgz|mgh)", "save its volume as NIfTI: atlas.nii.gz"),
        (r"atlas.*\.nii(\.gz)?", "set cohort.atlas={path}"),
    ),
    "atlas_table": (
        (r"atlas\.(csv|xlsx?)", "save it tab-separated as atlas.tsv"),
        (r"atlas\.(tsv|txt)", "set cohort.atlas_table={path}"),
    ),
}  # fmt: skip


def find_near_misses(folder: str | Path, paths: CohortPaths) -> dict[str, Problem]:
    """Find files that look like those a cohort lacks.

    Parameters
    ----------
    folder : path
        The cohort folder; one that is not there has none.
    paths : CohortPaths
        The cohort's files, those given one by one included.

    Returns
    -------
    dict of str to Problem
        By field of `paths`, for the fields that are None; the problem names the file found and
        the way out.
    """
    folder = Path(folder)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    problems = {}
    for field in _NEAR_MISSES:
        if getattr(paths, field) is None:
            found = next(_fitting(field, names), None)
            if found is not None:
                problems[field] = _problem(field, folder / found[0], found[1])
    return problems


def _fitting(field: str, names: list[str]) -> Iterator[tuple[str, str]]:
    for pattern, fix in _NEAR_MISSES[field]:
        for name in names:
            if re.fullmatch(pattern, name, re.IGNORECASE):
                yield name, fix


def _problem(field: str, path: Path, fix: str) -> Problem:
    standard = " or ".join(STANDARD_NAMES[field])
    compressed = f"{path.name}.gz"
    named = "" if compressed in STANDARD_NAMES[field] else f", and set cohort.{field}={path}.gz"
    return Problem(
        "cohort-near-miss",
        str(path),
        f"not taken as cohort.{field}",
        f"the name {standard}, or cohort.{field} set",
        fix.format(path=path, folder=path.parent, named=named),
    )


def find_missing_parts(
    folder: str | Path | None, paths: CohortPaths
) -> tuple[list[Problem], list[Problem]]:
    """Say which side of a cohort, or which file that a side needs, is not there.

    Parameters
    ----------
    folder : path or None
        The cohort folder; None where every file is given by itself.
    paths : CohortPaths

    Returns
    -------
    problems, warnings : list of Problem
        One side alone is a warning, because it can be encoded and embedded; neither is a problem.
    """
    problems: list[Problem] = []
    warnings: list[Problem] = []
    if paths.genotypes is None and paths.bold is None:
        problems.append(
            Problem(
                "cohort-no-side",
                "cohort",
                "no genotypes and no BOLD",
                "both to align, one of them to encode or embed",
                "; ".join(_way_to(field, folder) for field in ("genotypes", "bold")),
            )
        )
        return problems, warnings
    for field, what in (("genotypes", "genotypes"), ("bold", "BOLD")):
        if getattr(paths, field) is None:
            warnings.append(
                Problem(
                    "cohort-one-side",
                    f"cohort.{field}",
                    f"no {what}: align needs both sides",
                    "encode and embed work on one alone",
                    _way_to(field, folder),
                )
            )
    if paths.genotypes is not None and paths.reference is None:
        wanted = "the FASTA that the genotypes were called against"
        fix = _way_to("reference", folder)
        problems.append(Problem("cohort-path", "cohort.reference", "no file", wanted, fix))
    if paths.genotypes is not None and paths.regions is None:
        wanted = "encode and align need regions; embed has the bundle's"
        fix = _way_to("regions", folder)
        warnings.append(Problem("cohort-no-regions", "cohort.regions", "no file", wanted, fix))
    return problems, warnings


def _way_to(field: str, folder: str | Path | None) -> str:
    """Return how to name a file, with one that may be it where the folder has one alone."""
    suffixes = {
        "genotypes": (".vcf.gz", ".vcf.bgz", ".bcf"),
        "reference": (".fa", ".fasta", ".fna", ".fa.gz", ".fasta.gz", ".fna.gz"),
        "regions": (".bed",),
    }.get(field, ())
    if folder is None:
        return f"set cohort.{field}, or cohort.dir"
    fitting = [p for p in Path(folder).glob("*") if suffixes and p.name.lower().endswith(suffixes)]
    if len(fitting) == 1:
        return f"set cohort.{field}={fitting[0]}"
    return f"add {' or '.join(STANDARD_NAMES[field])} to the folder, or set cohort.{field}"
