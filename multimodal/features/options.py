"""What can be chosen on the way from genotypes to features."""

from dataclasses import dataclass

from encoders.errors import InputError, Problem


@dataclass(frozen=True)
class GenomeOptions:
    """How genotypes become inputs. Every field is the configuration key ``genome.<field>``.

    Parameters
    ----------
    length_bp : int or None
        Longest window in bases of the reference; None makes one window a region.
    flank_bp : int
        Bases added on both sides of a region.
    unphased : {"refuse", "as_written"}
        Heterozygous genotypes without phase: refuse them, or take the alleles as written.
    filters : tuple of str or None
        Values of FILTER to take, ``"."`` for records not filtered; None takes every record.

    Raises
    ------
    InputError
        A value is outside its range.
    """

    length_bp: int | None = None
    flank_bp: int = 0
    unphased: str = "refuse"
    filters: tuple[str, ...] | None = ("PASS", ".")

    def __post_init__(self) -> None:
        problems = []
        if self.length_bp is not None and self.length_bp < 1:
            problems.append(_bad("length_bp", self.length_bp, "at least 1 base, or null"))
        if self.flank_bp < 0:
            problems.append(_bad("flank_bp", self.flank_bp, "0 or more bases"))
        if self.unphased not in ("refuse", "as_written"):
            problems.append(_bad("unphased", self.unphased, "refuse or as_written"))
        if problems:
            raise InputError(problems)


def _bad(field: str, found: object, wanted: str) -> Problem:
    return Problem("genome-option", f"genome.{field}", f"{found}", wanted)
