"""Regions of the genome: BED6 files in and out, genes of a GTF turned into regions."""

import gzip
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from encoders.errors import InputError, Problem

_HEADER_WORDS = {"chrom", "chr", "chromosome", "seqname", "contig"}
_STRANDS = {"+": "+", "-": "-", ".": "+"}


@dataclass(frozen=True)
class Region:
    """A named genomic interval, usually a gene.

    Parameters
    ----------
    name : str
        Unique within a file.
    chrom : str
        Chromosome, named as in the FASTA.
    start_bp, end_bp : int
        First base and the base after the last, counted from 0 (BED's convention).
    strand : {"+", "-"}
        The strand it is read from.
    """

    name: str
    chrom: str
    start_bp: int
    end_bp: int
    strand: str = "+"


def read_regions(path: str | os.PathLike[str]) -> list[Region]:
    """Read a BED file of three to six or more columns, plain or gzipped, in file order.

    Blank lines, comments (``#``), ``track`` and ``browser`` lines and one line of column names are
    passed over. Without a name, a region is called ``chrom_start_end``; without a strand, or with
    ``.``, it is read forward. Score and later columns are not used.

    Parameters
    ----------
    path : path
        Tab-separated, or separated by blanks.

    Raises
    ------
    InputError
        Everything wrong with the file, by line: ``bed-missing``, ``bed-unreadable``, ``bed-empty``,
        ``bed-columns``, ``bed-position``, ``bed-interval``, ``bed-strand``, ``bed-name``,
        ``bed-duplicate``.
    """
    lines = _read_lines(path, "bed", "a BED file")
    problems: list[Problem] = []
    regions: list[Region] = []
    first_line: dict[str, int] = {}
    for number, fields in _data_lines(lines):
        where = f"{path} line {number}"
        if not regions and not problems and _is_header(fields):
            continue
        parsed = _parse(fields, where)
        if isinstance(parsed, Problem):
            problems.append(parsed)
            continue
        seen = first_line.setdefault(parsed.name, number)
        if seen != number:
            problems.append(
                Problem(
                    "bed-duplicate",
                    where,
                    f"the name {parsed.name!r} was used on line {seen}",
                    "every region needs a name of its own",
                )
            )
        regions.append(parsed)
    if not regions and not problems:
        problems.append(
            Problem("bed-empty", str(path), "no region in it", "at least one region is needed")
        )
    if problems:
        raise InputError(problems)
    return regions


def write_regions(regions: Sequence[Region], path: str | os.PathLike[str]) -> None:
    """Write `regions` as BED6, complete or not at all.

    Parameters
    ----------
    regions : sequence of Region
    path : path
        An existing file is replaced.
    """
    target = Path(path)
    text = "".join(
        f"{r.chrom}\t{r.start_bp}\t{r.end_bp}\t{r.name}\t0\t{r.strand}\n" for r in regions
    )
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def regions_from_gtf(path: str | os.PathLike[str], genes: Sequence[str]) -> list[Region]:
    """Return the regions of `genes`, looked up among the ``gene`` lines of a GTF.

    Parameters
    ----------
    path : path
        A GTF as GENCODE or Ensembl publish it, plain or gzipped (1-based, both ends included).
    genes : sequence of str
        Gene names or gene ids, with or without the id's version; regions come in this order, named
        as asked for.

    Raises
    ------
    InputError
        ``gtf-missing``, ``gtf-unreadable``, ``gtf-columns``, ``gene-missing``, ``gene-ambiguous``
        (one name, several genes) or ``gene-duplicate`` (asked for twice), all in one go.
    """
    found: dict[str, list[tuple[int, Region]]] = {name: [] for name in genes}
    problems = [
        Problem("gene-duplicate", str(path), f"gene {name!r} is asked for twice", "once is enough")
        for name in found
        if sum(name == other for other in genes) > 1
    ]
    for number, line in enumerate(_read_lines(path, "gtf", "a GTF file"), start=1):
        fields = line.split("\t")
        if line.startswith("#") or not line.strip():
            continue
        if len(fields) < 9 or not (fields[3].isdigit() and fields[4].isdigit()):
            bad = f"{len(fields)} columns, or positions that are no whole numbers"
            wanted = "nine columns separated by tabs, start and end in the fourth and fifth"
            problems.append(Problem("gtf-columns", f"{path} line {number}", bad, wanted))
            break
        if fields[2] != "gene":
            continue
        attributes = _gtf_attributes(fields[8])
        gene_id = attributes.get("gene_id", "")
        for name in {attributes.get("gene_name", ""), gene_id, gene_id.split(".")[0]} & set(found):
            region = Region(
                name, fields[0], int(fields[3]) - 1, int(fields[4]), _STRANDS.get(fields[6], "+")
            )
            found[name].append((number, region))
    problems += [p for name, hits in found.items() for p in _gene_problems(path, name, hits)]
    if problems:
        raise InputError(problems)
    return [hits[0][1] for hits in found.values()]


def _gene_problems(
    path: str | os.PathLike[str], name: str, hits: list[tuple[int, Region]]
) -> Iterator[Problem]:
    if not hits:
        wanted = "a gene_name or gene_id of a line whose third column is 'gene'"
        yield Problem("gene-missing", str(path), f"no gene {name!r}", wanted)
    elif len(hits) > 1:
        lines = ", ".join(str(number) for number, _ in hits)
        found = f"{len(hits)} genes are called {name!r} (lines {lines})"
        yield Problem("gene-ambiguous", str(path), found, "one gene", "ask for it by gene_id")


def _gtf_attributes(text: str) -> dict[str, str]:
    """Return the key "value" pairs of a GTF's ninth column, the first of repeated keys."""
    attributes: dict[str, str] = {}
    for item in text.split(";"):
        key, _, value = item.strip().partition(" ")
        attributes.setdefault(key, value.strip().strip('"'))
    return attributes


def _read_lines(path: str | os.PathLike[str], kind: str, wanted: str) -> list[str]:
    try:
        data = Path(path).read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(
            Problem(f"{kind}-missing", str(path), "no such file", f"{wanted} is needed")
        ) from None
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(
            Problem(f"{kind}-unreadable", str(path), f"it cannot be read ({error})", wanted)
        ) from error


def _data_lines(lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield (1-based line number, fields) of the lines that hold a region or a header."""
    for number, line in enumerate(lines, start=1):
        text = line.rstrip("\r\n ")
        if not text.strip() or text.startswith("#"):
            continue
        fields = [field.strip() for field in text.split("\t")] if "\t" in text else text.split()
        if fields[0] in {"track", "browser"} or fields[0].startswith(("track ", "browser ")):
            continue
        yield number, fields


def _is_header(fields: list[str]) -> bool:
    return (
        fields[0].lower() in _HEADER_WORDS
        and len(fields) >= 3
        and not any(field.lstrip("-").isdigit() for field in fields[1:3])
    )


def _parse(fields: list[str], where: str) -> Region | Problem:
    if len(fields) < 3:
        found = f"{len(fields)} column{'s' if len(fields) > 1 else ''}"
        wanted = "a region needs chromosome, start and end, separated by tabs"
        return Problem("bed-columns", where, found, wanted)
    positions: list[int] = []
    for label, text in zip(("start", "end"), fields[1:3], strict=True):
        if not (text.isascii() and text.isdigit()):
            wanted = "a position is a whole number of bases, from 0"
            return Problem("bed-position", where, f"{label} is {text!r}", wanted)
        positions.append(int(text))
    start, end = positions
    if end <= start:
        found = f"end {end:,} is not after start {start:,}"
        return Problem("bed-interval", where, found, "a region needs at least one base")
    strand = fields[5] if len(fields) > 5 else "."
    if strand not in _STRANDS:
        return Problem("bed-strand", where, f"strand is {strand!r}", "'+', '-' or '.'")
    name = fields[3] if len(fields) > 3 and fields[3] not in {"", "."} else ""
    if any(character in name for character in "\t\n/\\") or not name.isprintable():
        found = f"the name is {name!r}"
        return Problem("bed-name", where, found, "a name without slashes and control characters")
    return Region(name or f"{fields[0]}_{start}_{end}", fields[0], start, end, _STRANDS[strand])
