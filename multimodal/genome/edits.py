"""Alternate alleles as edits of the reference: normalised, clipped to a window, overlapping."""

from collections.abc import Sequence
from dataclasses import dataclass

_BASES = frozenset("ACGTN")


@dataclass(frozen=True, slots=True)
class Edit:
    """Reference bases ``[start_bp, end_bp)`` replaced by `alt`, shared bases taken off.

    An insertion has ``start_bp == end_bp`` and lies before that base; a deletion has no `alt`.

    Parameters
    ----------
    start_bp, end_bp : int
        The changed bases, counted from 0.
    alt : str
        What stands in their place.
    """

    start_bp: int
    end_bp: int
    alt: str


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of an edit inside a window: window bases ``[start, end)`` become `text`."""

    start: int
    end: int
    text: str


def is_explicit(alt: str) -> bool:
    """Tell whether an alternate allele spells out its bases (not ``*``, ``<DEL>``, a breakend)."""
    return bool(alt) and _BASES.issuperset(alt)


def normalised(start_bp: int, ref: str, alt: str) -> Edit | None:
    """Return the edit that an explicit alternate allele makes, or None where it makes none.

    Shared bases are taken off as ``bcftools norm`` does: the end first, keeping one base, then the
    beginning; what is left at the end last. So the base on which VCF anchors an indel is not part
    of the edit.

    Parameters
    ----------
    start_bp : int
        0-based position of the first base of `ref`.
    ref, alt : str
        Upper-case alleles.

    References
    ----------
    Tan A, Abecasis GR, Kang HM. Unified representation of genetic variants. Bioinformatics 31:2202
    (2015).
    """
    end_ref, end_alt = _trim_end(ref, alt, keep=1)
    first = 0
    while first < min(end_ref, end_alt) and ref[first] == alt[first]:
        first += 1
    ref, alt = ref[first:end_ref], alt[first:end_alt]
    end_ref, end_alt = _trim_end(ref, alt, keep=0)
    if end_ref == 0 and end_alt == 0:
        return None
    return Edit(start_bp + first, start_bp + first + end_ref, alt[:end_alt])


def _trim_end(ref: str, alt: str, *, keep: int) -> tuple[int, int]:
    """Return the lengths of both alleles without the bases that their ends share."""
    end_ref, end_alt = len(ref), len(alt)
    while min(end_ref, end_alt) > keep and ref[end_ref - 1] == alt[end_alt - 1]:
        end_ref -= 1
        end_alt -= 1
    return end_ref, end_alt


def begins_in(edit: Edit, start_bp: int, end_bp: int, chrom_length_bp: int) -> bool:
    """Tell whether the first changed base lies in the interval.

    An insertion belongs to the base after it; behind a chromosome's last base, to that base.
    """
    at_end = edit.start_bp == end_bp == chrom_length_bp
    return start_bp <= edit.start_bp < end_bp or at_end


def clipped(edit: Edit, start_bp: int, end_bp: int, chrom_length_bp: int) -> Piece | None:
    """Return the part of `edit` inside an interval, or None where there is none.

    Replacing and replaced bases are paired from the left; each pair lies where its reference base
    lies. Reference bases left over are deleted, each where it lies; alternate bases left over are
    inserted before the base that follows the edit. So intervals that lie end to end share out every
    edit, and their haplotypes, joined, are the haplotype of the whole.
    """
    paired = min(edit.end_bp - edit.start_bp, len(edit.alt))
    left_over = edit.alt[paired:]
    at_end = edit.end_bp == end_bp == chrom_length_bp
    inserted = left_over if start_bp <= edit.end_bp < end_bp or at_end else ""
    low, high = max(edit.start_bp, start_bp), min(edit.end_bp, end_bp)
    if low < high:
        first, last = low - edit.start_bp, min(high - edit.start_bp, paired)
        return Piece(low - start_bp, high - start_bp, edit.alt[first:last] + inserted)
    if not inserted:
        return None
    return Piece(edit.end_bp - start_bp, edit.end_bp - start_bp, inserted)


def overlap(one: Edit, other: Edit) -> bool:
    """Tell whether two edits cannot both be made on one haplotype.

    They cannot where they share a reference base, where one inserts inside what the other replaces,
    or where both insert at one place. A substitution of the base on which an indel is anchored, and
    edits side by side, go together.
    """
    if one.start_bp == one.end_bp == other.start_bp == other.end_bp:
        return True
    return one.start_bp < other.end_bp and other.start_bp < one.end_bp


def earlier_overlaps(edits: Sequence[Edit], starts_bp: Sequence[int]) -> dict[int, list[int]]:
    """Return, for each edit that overlaps earlier ones, which.

    Parameters
    ----------
    edits : sequence of Edit
        In file order.
    starts_bp : sequence of int
        Position of the record each comes from, ascending; no edit begins before its record.

    Returns
    -------
    dict of int to list of int
        Rows of `edits`; ascending.
    """
    found: dict[int, list[int]] = {}
    reach: list[int] = []
    for row, edit in enumerate(edits):
        reach = [earlier for earlier in reach if edits[earlier].end_bp >= starts_bp[row]]
        hits = [earlier for earlier in reach if overlap(edits[earlier], edit)]
        if hits:
            found[row] = hits
        reach.append(row)
    return found
