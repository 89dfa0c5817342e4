"""DNA in: an indexed reference, phased genotypes and regions become haplotypes over windows."""

from multimodal.genome.checks import (
    GenomeSurvey,
    find_genome_problems,
    find_missing_imbalance,
    survey_genome,
)
from multimodal.genome.counts import GenotypeCounts
from multimodal.genome.haplotypes import Genotypes, WindowHaplotypes
from multimodal.genome.reference import Reference
from multimodal.genome.regions import Region, read_regions, regions_from_gtf, write_regions
from multimodal.genome.sequences import oriented, reverse_complement, sequence_hash
from multimodal.genome.windows import Window, make_windows

__all__ = [
    "GenomeSurvey",
    "GenotypeCounts",
    "Genotypes",
    "Reference",
    "Region",
    "Window",
    "WindowHaplotypes",
    "find_genome_problems",
    "find_missing_imbalance",
    "make_windows",
    "oriented",
    "read_regions",
    "regions_from_gtf",
    "reverse_complement",
    "sequence_hash",
    "survey_genome",
    "write_regions",
]
