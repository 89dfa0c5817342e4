"""Chromosome names: chr1 against 1, and what to do about it."""

from collections.abc import Collection

from encoders.errors import Problem


def chromosome_key(name: str) -> str:
    """Return what names of one chromosome have in common (chr1 and 1; chrM and MT)."""
    key = name[3:] if name.lower().startswith("chr") else name
    key = key.upper()
    return "MT" if key == "M" else key


def chromosome_problem(chrom: str, names: Collection[str], file: str, kind: str) -> Problem | None:
    """Return what is wrong with looking for `chrom` among the `names` of a file, or None.

    Parameters
    ----------
    chrom : str
        The name that regions and windows use.
    names : collection of str
        The names the file uses.
    file : str
        The file, for the message.
    kind : {"VCF", "FASTA"}
        What it is, for the message.
    """
    if chrom in names:
        return None
    key = chromosome_key(chrom)
    twin = next((name for name in names if chromosome_key(name) == key), None)
    if twin is None:
        shown = ", ".join(list(names)[:5]) + (", ..." if len(names) > 5 else "")
        return Problem(
            "chromosome-missing",
            file,
            f"the {kind} has no chromosome {chrom!r} (it has {shown or 'none'})",
            f"the regions lie on {chrom!r}",
        )
    fixes = {
        "VCF": "rename in one of them, e.g. bcftools annotate --rename-chrs MAP (lines 'old new')",
        "FASTA": "rename in one of them, e.g. in the FASTA's '>' lines, and index it again",
    }
    return Problem(
        "chromosome-naming",
        file,
        f"the {kind} says {twin!r} where the regions say {chrom!r}",
        "one name for a chromosome in VCF, FASTA and regions",
        fixes[kind],
    )
