"""Every number a simulated cohort depends on, with its unit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from encoders.errors import InputError, Problem
from multimodal.simulate.streams import people_stream

World = Literal["signal", "null", "confounded"]
WORLDS: tuple[World, ...] = ("signal", "null", "confounded")
MIN_VARIANT_SPACING_BP = 40
REGION_EDGE_BP = 30
MAX_CORRELATION_SD = 0.35


@dataclass(frozen=True)
class SimulationOptions:
    """What to simulate; the same options and seed give the same bytes.

    Parameters
    ----------
    world : {"signal", "null", "confounded"}
        ``signal``: causal variants drive network connectivity. ``null``: no variant has an effect;
        brains vary as much, and relatives' brains are as alike. ``confounded``: no effect either,
        but ancestry goes with site, and site with the BOLD signal.
    seed : int
        Not negative.
    people_seed : int or None
        Draws new people, their genomes, brains and scans, in the world of `seed`: reference,
        regions, ancestral haplotypes, causal effects and atlas stay, and participants have other
        ids. All other options have to be those of the first cohort. None draws the first cohort.
    new_subjects : int or None
        With `people_seed`, the number of new people; None for as many as `subjects`.
    subjects : int
        Number of participants; with real genotypes the largest number, drawn from the samples.
    family_fraction : float
        Fraction of participants who have a relative in the cohort (sibling pairs and trios,
        dizygotic and monozygotic twins).
    sites : int
        Number of scanners.
    site_shares : tuple of float
        Fraction of participants at each site, in `signal` and `null`.
    ancestries : int
        Number of ancestry groups.
    ancestry_shares : tuple of float or None
        Fraction of participants of each ancestry; None for 0.75 and 0.25, in `confounded` 0.6 and
        0.4 (more than two groups: equal shares). Ignored with real genotypes, whose principal
        components decide.
    off_diagonal : float
        In `confounded`, the fraction of participants at another site than the one their ancestry
        goes with.
    region_count : int
        Number of genomic regions, strands alternating.
    region_length_bp : int
        Length of each region.
    flank_bp : int
        Bases on either side of a region that carry variants too.
    common_variants_per_region : int
        Variants with an alternate allele at frequency 0.2 to 0.5; of every six, one is an indel
        and one multi-allelic, the others single-base.
    rare_variants_per_region : int
        Variants at frequency 0.01 to 0.05, every third a deletion.
    haplotypes_per_region : int
        Ancestral haplotypes that founders copy: few distinct sequences, with linkage.
    fst : float
        Fixation index between ancestries of haplotypes and background markers.
    background_markers : int
        Unlinked markers outside the VCF, which PC1 to PC10 are computed from.
    missing_rate : float
        Fraction of genotype calls that are missing.
    causal_variants : int
        Number of causal single-base variants (frequency 0.2 to 0.5), spread evenly over regions.
    causal_dimensions : int
        Independent directions of network connectivity that they drive.
    heritability : float
        Fraction of the variance along these directions, within ancestry, due to causal variants.
    shared_environment : float
        Correlation of relatives' environmental part.
    parcels : int
        Labels of the atlas.
    networks : int
        Networks that the parcels belong to.
    correlation_sd : float
        Mean over network pairs of the between-subject standard deviation of their correlation.
    causal_share : float
        Share of that variance along the causal directions; the rest is each pair's own.
    run_sd : float
        Standard deviation between a subject's runs, as a fraction of that between subjects.
    coherence : float
        Fraction of a parcel's BOLD variance that its network shares.
    site_shift_sd, confounded_site_shift_sd : float
        Connectivity difference between sites, per network pair, in units of the between-subject
        standard deviation; the second in `confounded`.
    voxels : tuple of int
        Grid of the BOLD images.
    voxel_mm : float
        Isotropic voxel size in mm; coarse, to keep files small.
    tr_s : float
        Repetition time in seconds.
    two_run_fraction : float
        Fraction of participants with two runs.
    frames_one_run, frames_two_runs : int
        Frames of the run of a participant with one, and of each run of a participant with two.
        The defaults leave four segments of 64 frames a participant after censoring.
    non_steady_frames : int
        Brighter frames at the start of each run, before the magnetisation is steady.
    time_constant_s : float
        Time constant of the neural signal's autocorrelation, in seconds.
    bold_percent, voxel_noise_percent : float
        Standard deviation of a voxel's BOLD signal and of its thermal noise, in percent of its
        mean.
    motion_fd_mm : float
        Typical framewise displacement between spikes, in mm.
    spike_rate : float
        Typical fraction of frames at which the head jumps.
    n_jobs : int
        Threads that write scans; changes no byte.
    """

    world: World = "signal"
    seed: int = 0
    people_seed: int | None = None
    new_subjects: int | None = None
    subjects: int = 240
    family_fraction: float = 0.22
    sites: int = 2
    site_shares: tuple[float, ...] = (0.6, 0.4)
    ancestries: int = 2
    ancestry_shares: tuple[float, ...] | None = None
    off_diagonal: float = 0.175
    region_count: int = 4
    region_length_bp: int = 2000
    flank_bp: int = 500
    common_variants_per_region: int = 6
    rare_variants_per_region: int = 3
    haplotypes_per_region: int = 12
    fst: float = 0.25
    background_markers: int = 200
    missing_rate: float = 0.003
    causal_variants: int = 12
    causal_dimensions: int = 4
    heritability: float = 0.7
    shared_environment: float = 0.2
    parcels: int = 24
    networks: int = 6
    correlation_sd: float = 0.15
    causal_share: float = 0.85
    run_sd: float = 0.2
    coherence: float = 0.65
    site_shift_sd: float = 0.3
    confounded_site_shift_sd: float = 2.5
    voxels: tuple[int, int, int] = (14, 16, 12)
    voxel_mm: float = 12.0
    tr_s: float = 0.735
    two_run_fraction: float = 0.5
    frames_one_run: int = 336
    frames_two_runs: int = 208
    non_steady_frames: int = 2
    time_constant_s: float = 1.5
    bold_percent: float = 1.0
    voxel_noise_percent: float = 1.2
    motion_fd_mm: float = 0.1
    spike_rate: float = 0.012
    n_jobs: int = 1

    def __post_init__(self) -> None:
        """Refuse options that no cohort can meet, all at once."""
        problems = list(_find_problems(self))
        if problems:
            raise InputError(problems)

    def people_stream(self, name: str, *numbers: int) -> np.random.Generator:
        """Return the generator of a part that new people have of their own."""
        return people_stream(self.seed, self.people_seed, name, *numbers)

    def of_first_people(self) -> "SimulationOptions":
        """Return the options of the cohort whose world this one's people live in."""
        return replace(self, people_seed=None, new_subjects=None)

    def of_new_people(self) -> "SimulationOptions":
        """Return the options with the number of new people as that of subjects."""
        return replace(self, subjects=self.new_subjects or self.subjects, new_subjects=None)

    def shares(self) -> tuple[float, ...]:
        """Return the fraction of participants of each ancestry."""
        if self.ancestry_shares is not None:
            return self.ancestry_shares
        if self.ancestries == 2:
            return (0.6, 0.4) if self.world == "confounded" else (0.75, 0.25)
        return (1.0 / self.ancestries,) * self.ancestries

    def network_pairs(self) -> int:
        """Return the number of unordered pairs of networks."""
        return self.networks * (self.networks - 1) // 2


_FRACTIONS = (
    "family_fraction",
    "off_diagonal",
    "missing_rate",
    "heritability",
    "shared_environment",
    "causal_share",
    "two_run_fraction",
    "spike_rate",
    "coherence",
)
_POSITIVE = (
    "correlation_sd",
    "voxel_mm",
    "tr_s",
    "time_constant_s",
    "bold_percent",
    "voxel_noise_percent",
    "motion_fd_mm",
)
_AT_LEAST: dict[str, int] = {
    "seed": 0,
    "subjects": 20,
    "sites": 1,
    "ancestries": 1,
    "region_count": 1,
    "flank_bp": 0,
    "common_variants_per_region": 3,
    "rare_variants_per_region": 0,
    "haplotypes_per_region": 6,
    "background_markers": 20,
    "causal_variants": 1,
    "causal_dimensions": 1,
    "networks": 3,
    "parcels": 3,
    "frames_one_run": 32,
    "frames_two_runs": 32,
    "non_steady_frames": 0,
    "n_jobs": 1,
}


def _problem(name: str, found: object, wanted: str, fix: str = "") -> Problem:
    return Problem("simulation-option", f"cohort.{name}", f"{found} given", wanted, fix)


def _find_problems(o: SimulationOptions) -> Iterator[Problem]:
    if o.world not in WORLDS:
        yield _problem("world", repr(o.world), f"one of {', '.join(WORLDS)} wanted")
    for name in _FRACTIONS:
        if not 0.0 <= getattr(o, name) <= 1.0:
            yield _problem(name, getattr(o, name), "a fraction from 0 to 1 wanted")
    for name in _POSITIVE:
        if not getattr(o, name) > 0.0:
            yield _problem(name, getattr(o, name), "a positive number wanted")
    for name, least in _AT_LEAST.items():
        if getattr(o, name) < least:
            yield _problem(name, getattr(o, name), f"at least {least} wanted")
    if o.people_seed is not None and o.people_seed < 0:
        yield _problem("people_seed", o.people_seed, "at least 0 wanted, or null")
    if o.new_subjects is not None and o.new_subjects < _AT_LEAST["subjects"]:
        yield _problem("new_subjects", o.new_subjects, f"at least {_AT_LEAST['subjects']} wanted")
    if o.new_subjects is not None and o.people_seed is None:
        yield _problem(
            "new_subjects", o.new_subjects, "cohort.people_seed beside it wanted",
            "set cohort.subjects for a first cohort",
        )  # fmt: skip
    if not 0.0 < o.fst < 1.0:
        yield _problem("fst", o.fst, "a number between 0 and 1 wanted")
    if o.correlation_sd > MAX_CORRELATION_SD:
        yield _problem("correlation_sd", o.correlation_sd, f"at most {MAX_CORRELATION_SD} wanted")
    yield from _find_share_problems(o)
    yield from _find_size_problems(o)


def _find_share_problems(o: SimulationOptions) -> Iterator[Problem]:
    for name, shares, count in (
        ("site_shares", o.site_shares, o.sites),
        ("ancestry_shares", o.ancestry_shares, o.ancestries),
    ):
        if shares is None:
            continue
        if len(shares) != count or min(shares) <= 0 or abs(sum(shares) - 1.0) > 1e-6:
            yield _problem(name, shares, f"{count} positive fractions that add up to 1 wanted")
    if o.world == "confounded" and (o.sites != o.ancestries or o.sites < 2):
        yield _problem(
            "sites",
            f"{o.sites} sites and {o.ancestries} ancestries",
            "as many sites as ancestries, at least 2, wanted in the confounded world",
        )


def _find_size_problems(o: SimulationOptions) -> Iterator[Problem]:
    variants = o.common_variants_per_region + o.rare_variants_per_region + 1
    least = variants * MIN_VARIANT_SPACING_BP + 2 * REGION_EDGE_BP
    if o.region_length_bp < least:
        yield _problem(
            "region_length_bp",
            o.region_length_bp,
            f"at least {least} wanted for {variants} variants",
            "lengthen the regions or ask for fewer variants",
        )
    if o.causal_variants < o.causal_dimensions:
        yield _problem(
            "causal_variants",
            o.causal_variants,
            f"at least one for each of the {o.causal_dimensions} causal dimensions wanted",
        )
    if o.causal_dimensions > o.network_pairs():
        yield _problem(
            "causal_dimensions",
            o.causal_dimensions,
            f"at most {o.network_pairs()} wanted, the number of network pairs",
        )
    if o.parcels < o.networks:
        yield _problem(
            "parcels", o.parcels, f"at least one for each of {o.networks} networks wanted"
        )
    if len(o.voxels) != 3 or min(o.voxels) < 8:
        yield _problem("voxels", o.voxels, "three numbers of at least 8 wanted")
    if o.non_steady_frames * 4 > min(o.frames_one_run, o.frames_two_runs):
        yield _problem(
            "non_steady_frames", o.non_steady_frames, "a quarter of a run at most wanted"
        )
