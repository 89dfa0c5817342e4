"""Windows: fixed intervals of the reference inside or around regions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from encoders.errors import InputError, Problem
from multimodal.genome.regions import Region


@dataclass(frozen=True)
class Window:
    """A fixed interval of the reference; a haplotype's sequence over it varies in length.

    Parameters
    ----------
    region : str
        Name of the region it belongs to.
    index : int
        Its number within the region, from 0, in genomic order whatever the strand.
    chrom : str
        Chromosome, named as in the FASTA.
    start_bp, end_bp : int
        First base and the base after the last, counted from 0.
    strand : {"+", "-"}
        The region's strand.
    """

    region: str
    index: int
    chrom: str
    start_bp: int
    end_bp: int
    strand: str

    @property
    def name(self) -> str:
        """``region:index``, unique within a cohort."""
        return f"{self.region}:{self.index}"


def make_windows(
    regions: Sequence[Region],
    *,
    length_bp: int | None,
    flank_bp: int = 0,
    max_length_bp: int | None = None,
    lengths: Mapping[str, int] | None = None,
) -> list[Window]:
    """Cut regions, with their flanks, into windows that lie end to end.

    A region of L bases (flanks included) is cut into the fewest windows of at most `length_bp`
    bases, as equal as whole bases allow: no short rest at the end, whose pooled feature would be
    noisier than its neighbours'.

    Parameters
    ----------
    regions : sequence of Region
    length_bp : int or None
        Longest window in bases of the reference; None makes one window a region.
    flank_bp : int
        Bases added on both sides; they stop at the chromosome's first base, and at its last where
        `lengths` is given.
    max_length_bp : int, optional
        Longest sequence the encoder takes. Insertions make haplotypes longer than their window, so
        leave room: ``Genotypes.haplotypes`` refuses what is longer.
    lengths : mapping of str to int, optional
        Chromosome lengths in bases (``Reference.lengths``). Without them windows may reach beyond
        the end, where reading them is refused (``region-out-of-range``).

    Returns
    -------
    list of Window
        By region in the order given, then along the genome.

    Raises
    ------
    InputError
        ``window-length``: a length below 1, a negative flank, or a window longer than the encoder
        takes. ``region-out-of-range``: a region beyond the end of its chromosome.
    """
    _check_lengths(length_bp, flank_bp, max_length_bp)
    windows: list[Window] = []
    problems: list[Problem] = []
    for region in regions:
        limit = None if lengths is None else lengths.get(region.chrom)
        if limit is not None and region.end_bp > limit:
            problems.append(out_of_range(region.name, region.chrom, region.end_bp, limit))
            continue
        start = max(0, region.start_bp - flank_bp)
        end = region.end_bp + flank_bp
        end = end if limit is None else min(end, limit)
        count = 1 if length_bp is None else -(-(end - start) // length_bp)
        edges = [start + (end - start) * k // count for k in range(count + 1)]
        windows += [
            Window(region.name, k, region.chrom, edges[k], edges[k + 1], region.strand)
            for k in range(count)
        ]
    if max_length_bp is not None:
        problems += [p for w in windows if (p := _too_long(w, max_length_bp)) is not None]
    if problems:
        raise InputError(problems)
    return windows


def out_of_range(name: str, chrom: str, end_bp: int, length_bp: int) -> Problem:
    """Return the problem of an interval that ends beyond its chromosome."""
    return Problem(
        "region-out-of-range",
        f"region {name}",
        f"it ends at base {end_bp:,} of {chrom}, which has {length_bp:,} bases",
        "an interval inside the chromosome",
        "check that regions and FASTA are of one genome build",
    )


def _check_lengths(length_bp: int | None, flank_bp: int, max_length_bp: int | None) -> None:
    if length_bp is not None and length_bp < 1:
        raise InputError(
            Problem("window-length", "length_bp", f"{length_bp}", "at least 1 base a window")
        )
    if flank_bp < 0:
        raise InputError(Problem("window-length", "flank_bp", f"{flank_bp}", "0 or more bases"))
    if length_bp is not None and max_length_bp is not None and length_bp > max_length_bp:
        raise InputError(
            Problem(
                "window-length",
                "length_bp",
                f"{length_bp:,} bases",
                f"the encoder takes at most {max_length_bp:,}",
                "choose a smaller length_bp, with room for insertions",
            )
        )


def _too_long(window: Window, max_length_bp: int) -> Problem | None:
    length = window.end_bp - window.start_bp
    if length <= max_length_bp:
        return None
    return Problem(
        "window-length",
        f"window {window.name}",
        f"{length:,} bases",
        f"the encoder takes at most {max_length_bp:,}",
        "set length_bp, so that the region is cut into several windows",
    )
