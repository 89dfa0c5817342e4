"""Semi-simulation: the genetics of real people, on which simulated brains are planted."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pysam.bcftools
from cyvcf2 import VCF

from encoders.errors import InputError, Problem
from multimodal.simulate.ancestry import cluster, principal_components
from multimodal.simulate.effects import CAUSAL_FREQUENCY
from multimodal.simulate.options import SimulationOptions
from multimodal.simulate.streams import stream
from multimodal.simulate.variants import SimulatedRegion, Variant

BASES = frozenset("ACGT")
COPY_LIMIT_BYTES = 50_000_000
THIN_BP = 5_000
MIN_THIN_BP = 500
ANCESTRY_FREQUENCY = 0.05
CLUSTER_COMPONENTS = 2
REGION_SPACING_BP = 20_000
INDEXES = (".tbi", ".csi", ".fai", ".gzi")


@dataclass(frozen=True)
class RealGenotypes:
    """What a simulation needs to know of real genotypes.

    Parameters
    ----------
    samples : list of str
        The n samples taken, in random order.
    regions : list of SimulatedRegion
    variants : list of Variant
        V common biallelic single-base variants inside the regions.
    dosage : ndarray [n, V] float64
        Their alternate-allele counts; missing calls count as reference.
    components : ndarray [n, 10] float64
        Principal components of thinned variants of the whole file.
    ancestry : ndarray [n] int64
        Cluster of the leading components.
    source : dict
        Names and digests of the files.
    """

    samples: list[str]
    regions: list[SimulatedRegion]
    variants: list[Variant]
    dosage: np.ndarray
    components: np.ndarray
    ancestry: np.ndarray
    source: dict[str, Any]


@dataclass(frozen=True)
class _Common:
    """Common single-base variants of a file: M contigs, positions and alleles.

    ``counts`` [n, M] int8 are alternate-allele counts, -1 where missing.
    """

    chrom: np.ndarray
    pos_bp: np.ndarray
    ref: list[str]
    alt: list[str]
    counts: np.ndarray

    def dosage(self, columns: np.ndarray) -> np.ndarray:
        """Return the counts of some variants as float64, NaN where missing."""
        counts = self.counts[:, columns].astype(np.float64)
        return np.where(counts < 0, np.nan, counts)


def read_real_genotypes(
    options: SimulationOptions, genotypes: Path, reference: Path, regions: Path | None
) -> RealGenotypes:
    """Read the samples, regions, causal candidates and ancestry of an indexed VCF or BCF file.

    Parameters
    ----------
    options : SimulationOptions
        Of these, `subjects` is the largest number of samples taken; `regions`,
        `region_length_bp` and `common_variants_per_region` say what regions to look for.
    genotypes, reference : Path
    regions : Path or None
        BED6 file; None chooses regions.

    Raises
    ------
    InputError
        Files are missing or unreadable, too few samples or variants, contigs that the reference
        does not have, or no stretch rich enough in common variants.
    """
    lengths_bp = _reference_lengths(reference)
    samples, picked = _pick_samples(options, genotypes)
    common = _read_common(genotypes, picked)
    strangers = sorted(set(common.chrom.tolist()) - set(lengths_bp))
    if strangers:
        raise InputError(
            Problem(
                "genome-contig-names",
                str(genotypes),
                f"contig {strangers[0]} is not in {reference.name}",
                f"contigs named as in the reference ({', '.join(list(lengths_bp)[:3])}, ...)",
                "rename the contigs of one of them, e.g. with bcftools annotate --rename-chrs",
            )
        )
    chosen = _read_bed(regions) if regions is not None else _choose_regions(options, common)
    variants, dosage = _inside(common, chosen)
    components = principal_components(common.dosage(_thin(common)))
    rng = stream(options.seed, "ancestry")
    return RealGenotypes(
        samples=samples,
        regions=chosen,
        variants=variants,
        dosage=np.nan_to_num(dosage),
        components=components,
        ancestry=cluster(components[:, :CLUSTER_COMPONENTS], options.ancestries, rng),
        source={"genotypes": _digest(genotypes), "reference": _digest(reference)},
    )


def link_or_copy(source: Path, folder: Path, stem: str) -> str:
    """Bring a genome file and its indexes into a folder; return its name there.

    Files up to 50 MB are copied, larger ones linked to. A missing index is made.
    """
    suffix = next((s for s in (".vcf.gz", ".bcf", ".fa.gz") if source.name.endswith(s)), "")
    if not suffix:
        zipped = source.suffix in (".gz", ".bgz")
        suffix = {"genotypes": ".vcf.gz", "reference": ".fa.gz" if zipped else ".fa"}[stem]
    target = folder / f"{stem}{suffix}"
    for extra in ("", *INDEXES):
        original = source.with_name(source.name + extra)
        if not original.is_file():
            continue
        if source.stat().st_size <= COPY_LIMIT_BYTES:
            shutil.copyfile(original, target.with_name(target.name + extra))
        else:
            os.symlink(original.resolve(), target.with_name(target.name + extra))
    _make_missing_index(target, stem)
    return target.name


def _make_missing_index(target: Path, stem: str) -> None:
    def has(extra: str) -> bool:
        return target.with_name(target.name + extra).exists()

    try:
        if stem == "reference" and not (has(".fai") and (has(".gzi") or target.suffix != ".gz")):
            pysam.faidx(str(target))
        elif stem == "genotypes" and not (has(".tbi") or has(".csi")):
            _index_variants(target)
    except (OSError, pysam.utils.SamtoolsError) as error:
        raise _unreadable(target, error, "an index, or a bgzipped and sorted file") from error


def _index_variants(target: Path) -> None:
    if target.suffix == ".bcf":
        pysam.bcftools.index(str(target), catch_stdout=False)
    else:
        pysam.tabix_index(str(target), preset="vcf")


def _unreadable(path: Path, error: object, wanted: str) -> InputError:
    return InputError(
        Problem("simulation-real-input", str(path), f"cannot be read ({error})", f"{wanted} wanted")
    )


def _reference_lengths(reference: Path) -> dict[str, int]:
    if not reference.is_file():
        raise _unreadable(reference, "no such file", "a FASTA file")
    try:
        index = reference.with_name(reference.name + ".fai")
        if index.is_file():
            rows = (line.split("\t") for line in index.read_text().splitlines())
            return {row[0]: int(row[1]) for row in rows}
        with pysam.FastxFile(str(reference)) as file:
            return {str(record.name): len(record.sequence or "") for record in file}
    except (OSError, ValueError, IndexError) as error:
        raise _unreadable(reference, error, "a FASTA file") from error


def _pick_samples(options: SimulationOptions, genotypes: Path) -> tuple[list[str], np.ndarray]:
    """Draw the samples to take, in random order; return them and their columns in the file."""
    if not genotypes.is_file():
        raise _unreadable(genotypes, "no such file", "a VCF or BCF file")
    try:
        reader = VCF(str(genotypes))
    except OSError as error:
        raise _unreadable(genotypes, error, "a VCF or BCF file") from error
    samples = list(reader.samples)
    reader.close()
    if len(samples) < 20:
        raise InputError(
            Problem(
                "simulation-real-input",
                str(genotypes),
                f"{len(samples)} samples",
                "at least 20 wanted for a cohort",
            )
        )
    order = stream(options.seed, "samples").permutation(len(samples))[: options.subjects]
    return [samples[column] for column in order], order


def _read_common(genotypes: Path, picked: np.ndarray) -> _Common:
    """Read biallelic single-base variants of frequency above 0.05 among the samples picked."""
    chrom: list[str] = []
    pos: list[int] = []
    ref: list[str] = []
    alt: list[str] = []
    columns: list[np.ndarray] = []
    for record in _records(genotypes):
        counts = _counts(record, genotypes)[picked]
        called = counts[counts >= 0]
        frequency = float(called.mean()) / 2.0 if len(called) else 0.0
        if ANCESTRY_FREQUENCY <= frequency <= 1.0 - ANCESTRY_FREQUENCY:
            chrom.append(record.CHROM)
            pos.append(record.POS - 1)
            ref.append(record.REF)
            alt.append(record.ALT[0])
            columns.append(counts)
    if len(columns) < 10:
        raise InputError(
            Problem(
                "simulation-real-input",
                str(genotypes),
                f"{len(columns)} common single-base variants",
                "at least 10 wanted, to find ancestry and causal variants",
            )
        )
    return _Common(np.array(chrom), np.array(pos), ref, alt, np.stack(columns, axis=1))


def _records(genotypes: Path) -> Iterator[Any]:
    reader = VCF(str(genotypes))
    try:
        for record in reader:
            if len(record.ALT) == 1 and len(record.REF) == 1 and record.ALT[0] in BASES:
                yield record
    # cyvcf2 raises nothing more specific for a damaged record.
    except Exception as error:
        raise _unreadable(genotypes, error, "an undamaged VCF or BCF file") from error
    finally:
        reader.close()


def _counts(record: Any, genotypes: Path) -> np.ndarray:
    """Alternate-allele counts of all samples, -1 where any allele is missing."""
    if "GT" not in (record.FORMAT or ()):
        raise InputError(
            Problem(
                "simulation-real-input",
                f"{genotypes}: {record.CHROM}:{record.POS}",
                "no genotypes (FORMAT has no GT)",
                "genotypes of every sample at every variant",
                "take a file with called genotypes, or leave such variants out",
            )
        )
    alleles = record.genotype.array()[:, :-1]
    missing = (alleles == -1).any(axis=1)
    return np.where(missing, -1, (alleles == 1).sum(axis=1)).astype(np.int8)


def _thin(common: _Common) -> np.ndarray:
    """Pick variants far enough apart to be nearly unlinked; less far apart where there are few."""
    spacing = THIN_BP
    while True:
        kept: list[int] = []
        last: tuple[str, int] = ("", 0)
        for v, (chrom, pos) in enumerate(
            zip(common.chrom.tolist(), common.pos_bp.tolist(), strict=True)
        ):
            if chrom != last[0] or pos - last[1] >= spacing:
                kept.append(v)
                last = (chrom, pos)
        if len(kept) >= 100 or spacing <= MIN_THIN_BP:
            return np.array(kept)
        spacing //= 2


def _read_bed(path: Path) -> list[SimulatedRegion]:
    from multimodal.genome.regions import read_regions

    return [
        SimulatedRegion(r.name, r.chrom, r.start_bp, r.end_bp, r.strand) for r in read_regions(path)
    ]


def _choose_regions(options: SimulationOptions, common: _Common) -> list[SimulatedRegion]:
    """Choose stretches with many common variants that are little linked, apart from each other."""
    length = options.region_length_bp
    called = np.maximum((common.counts >= 0).sum(axis=0), 1)
    frequency = np.maximum(common.counts, 0).sum(axis=0, dtype=np.int64) / called / 2.0
    low, high = CAUSAL_FREQUENCY
    causal = np.flatnonzero((frequency >= low) & (frequency <= high))
    ranked: list[tuple[float, str, int]] = []
    for chrom in np.unique(common.chrom).tolist():
        here = causal[common.chrom[causal] == chrom]
        positions = common.pos_bp[here]
        for first in range(len(here)):
            start = max(0, int(positions[first]) - length // 50)
            inside = here[first : np.searchsorted(positions, start + length)]
            if len(inside) >= options.common_variants_per_region:
                ranked.append((-_effective_number(common.dosage(inside)), chrom, start))
    chosen: list[tuple[str, int]] = []
    for _, chrom, start in sorted(ranked):
        spacing = max(REGION_SPACING_BP, 2 * length)
        if all(chrom != other or abs(start - at) >= spacing for other, at in chosen):
            chosen.append((chrom, start))
        if len(chosen) == options.region_count:
            break
    if len(chosen) < options.region_count:
        raise InputError(
            Problem(
                "simulation-regions",
                "cohort.genotypes",
                f"{len(chosen)} stretches of {length} bases with at least "
                f"{options.common_variants_per_region} variants of frequency 0.2 to 0.5",
                f"{options.region_count} wanted",
                "ask for fewer or longer regions, or give cohort.regions",
            )
        )
    return [
        SimulatedRegion(f"region{i + 1}", chrom, start, start + length, "+-"[i % 2])
        for i, (chrom, start) in enumerate(sorted(chosen))
    ]


def _effective_number(dosage: np.ndarray) -> float:
    """Effective number of independent variants: (trace C)^2 / |C|^2 of their correlations."""
    filled = np.where(np.isnan(dosage), np.nanmean(dosage, axis=0), dosage)
    correlation = np.corrcoef(filled, rowvar=False)
    return float(len(correlation) ** 2 / (correlation**2).sum())


def _inside(common: _Common, regions: list[SimulatedRegion]) -> tuple[list[Variant], np.ndarray]:
    variants: list[Variant] = []
    columns: list[int] = []
    for number, region in enumerate(regions):
        inside = (common.chrom == region.chrom) & (common.pos_bp >= region.start_bp)
        for v in np.flatnonzero(inside & (common.pos_bp < region.end_bp)):
            pos = int(common.pos_bp[v])
            variants.append(Variant(region.chrom, pos, common.ref[v], (common.alt[v],), number))
            columns.append(int(v))
    return variants, common.dosage(np.array(columns, dtype=np.int64))


def _digest(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        return {"name": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
