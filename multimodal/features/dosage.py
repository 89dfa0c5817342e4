"""Allele dosages of each region: the honest baseline on the DNA side, without a network."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from encoders.errors import InputError, Problem
from multimodal.features.fingerprint import text_digest
from multimodal.features.genotype_calls import sum_counts
from multimodal.features.progress import progress_bar
from multimodal.features.shards import texts, vectors
from multimodal.features.writer import StoreWriter
from multimodal.genome.haplotypes import Genotypes
from multimodal.genome.windows import Window


@dataclass(frozen=True)
class DosageSurvey:
    """Dosages that were read, region by region.

    Parameters
    ----------
    values : list of ndarray [n, V] float32
    variants : list of list of str
        ``chrom:position:ref:alt`` of the V alleles of each region.
    calls : DataFrame
        As `multimodal.features.genotype_calls.sum_counts` gives it.
    """

    values: list[np.ndarray]
    variants: list[list[str]]
    calls: pd.DataFrame


def read_dosages(
    genotypes: Genotypes,
    regions: Sequence[Window],
    participant_ids: Sequence[str],
    samples: Sequence[str],
    progress: bool,
) -> DosageSurvey:
    """Read the dosages of all regions, before anything is written.

    Raises
    ------
    InputError
        Everything wrong in any region, or no variant in all of them.
    """
    values, variants, counts = [], [], []
    problems: list[Problem] = []
    with progress_bar("reading dosages", len(regions), "region", progress) as bar:
        for region in regions:
            try:
                dosages, names = genotypes.dosages(region, samples)
                counts.append(genotypes.counts(region, samples))
            except InputError as error:
                problems += error.problems
            else:
                values.append(dosages)
                variants.append(names)
            bar.update()
    if problems:
        raise InputError(dict.fromkeys(problems))
    if not any(variants):
        found = f"no variant in any of the {len(regions)} regions"
        wanted = "at least one alternate allele"
        raise InputError(Problem("no-variants", str(genotypes.path), found, wanted))
    return DosageSurvey(values, variants, sum_counts(participant_ids, counts))


def write_dosages(
    survey: DosageSurvey,
    regions: Sequence[Window],
    participant_ids: Sequence[str],
    store: StoreWriter,
) -> None:
    """Write one shard a region, and the variants' names; no feature where there is no variant."""
    everyone = np.arange(len(participant_ids), dtype=np.int32)
    for number, region in enumerate(regions):
        name = f"regions/{number:06d}.parquet"
        inputs = text_digest([region.name, *survey.variants[number]])
        if store.has(name, inputs):
            continue
        columns: dict[str, pa.Array] = {
            "subject": texts(list(participant_ids), everyone),
            "region": texts([region.region], np.zeros(len(everyone), dtype=np.int32)),
        }
        if survey.variants[number]:
            columns["feature"] = vectors(survey.values[number])
        store.write(name, columns, inputs)
    names = [name for variants in survey.variants for name in variants]
    inputs = text_digest(names)
    if not store.has("variants/000000.parquet", inputs):
        count = [len(variants) for variants in survey.variants]
        owner = np.repeat(np.arange(len(regions), dtype=np.int32), count)
        columns = {
            "region": texts([window.region for window in regions], owner),
            "variant": pa.array(names, type=pa.string()),
        }
        store.write("variants/000000.parquet", columns, inputs)
