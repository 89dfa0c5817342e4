"""Participants, scans and genomes that belong to nobody: legal, but often a mistyped id."""

import difflib
from collections.abc import Collection, Iterable, Mapping

from encoders.errors import Problem

_SHOWN = 3


def find_unmatched_scans(
    participant_ids: Iterable[str], with_bold: Collection[str], subjects: Iterable[str]
) -> list[Problem]:
    """Warn of participants without a BOLD run, and of subjects that are no participant.

    Parameters
    ----------
    participant_ids : iterable of str
        Everybody in the table, with or without ``sub-``.
    with_bold : collection of str
        The participants that have a run.
    subjects : iterable of str
        Whoever has a folder of BOLD, or a row in the table of paths.

    Returns
    -------
    list of Problem
        Empty when all belong together. A stranger whose name is nearly that of a participant
        without a run is named with it.
    """
    ids = list(participant_ids)
    known = {_bare(who) for who in ids}
    without = [who for who in ids if who not in with_bold]
    strangers = [who for who in subjects if _bare(who) not in known]
    problems = []
    if without:
        problems.append(
            Problem(
                "participants-without-bold",
                "cohort.bold",
                f"no BOLD run of {_some(without, 'participants')}",
                "they take part with their genomes only",
            )
        )
    if strangers:
        problems.append(
            Problem(
                "bold-of-nobody",
                "cohort.bold",
                f"BOLD of {_some(strangers, 'subjects')} who are not in participants.tsv",
                "it is left out",
                _mistyped(strangers, without),
            )
        )
    return problems


def find_unmatched_samples(
    genotype_ids: Mapping[str, str | None], samples: Collection[str]
) -> list[Problem]:
    """Warn of participants without a genotype, and of VCF samples that are nobody's.

    Parameters
    ----------
    genotype_ids : mapping of str to str or None
        VCF sample by participant; None where the table has ``n/a``.
    samples : collection of str
        The samples of the VCF.
    """
    named = {name for name in genotype_ids.values() if name is not None}
    present = set(samples)
    without = [who for who, name in genotype_ids.items() if name is None]
    strangers = [name for name in samples if name not in named]
    absent = [name for name in named if name not in present]
    problems = []
    if without:
        problems.append(
            Problem(
                "participants-without-genotype",
                "cohort.genotypes",
                f"no genotype of {_some(without, 'participants')}",
                "they take part with their scans only",
            )
        )
    if strangers:
        problems.append(
            Problem(
                "samples-of-nobody",
                "cohort.genotypes",
                f"{_some(strangers, 'samples')} that no participant names",
                "they are left out",
                _mistyped(strangers, absent),
            )
        )
    return problems


def _bare(who: str) -> str:
    return who.removeprefix("sub-")


def _some(names: list[str], what: str) -> str:
    """Return how many there are, and the first few."""
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} {what if len(names) > 1 else what.removesuffix('s')} ({shown})"


def _mistyped(strangers: list[str], missed: list[str]) -> str:
    """Return which of the missed each of the first few strangers may be, one character apart."""
    pairs = []
    for name in strangers[:_SHOWN]:
        near = [other for other in missed if _one_apart(name, other)]
        pairs += [f"{name} may be {near[0]}"] if len(near) == 1 else []
    return "; ".join(pairs)


def _one_apart(a: str, b: str) -> bool:
    if abs(len(a) - len(b)) > 1:
        return False
    matched = sum(block.size for block in difflib.SequenceMatcher(a=a, b=b).get_matching_blocks())
    return max(len(a), len(b)) - matched <= 1
