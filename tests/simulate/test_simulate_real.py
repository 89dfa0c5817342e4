"""Semi-simulation: the three worlds on genotypes that somebody else wrote."""

import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pysam
import pytest
from cyvcf2 import VCF

from encoders.errors import InputError
from multimodal.simulate import SimulationOptions, real, simulate_cohort

REAL = Path(os.environ.get("GENEBOLD_REAL", "nowhere"))
REAL_VCF = REAL / "1000g_chr20_1.0-2.5Mb.vcf.gz"
REAL_FASTA = REAL / "chr20_like_2.6Mb.fa.gz"
QUICK = {"frames_one_run": 40, "frames_two_runs": 40, "voxels": (9, 9, 9), "voxel_mm": 20.0}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Genotypes of a stranger: another cohort's, without relatives."""
    options = SimulationOptions(seed=8, subjects=50, family_fraction=0.0, region_count=6, **QUICK)
    return simulate_cohort(tmp_path_factory.mktemp("source") / "cohort", options)


def plant(source, out, **changes):
    settings = {"subjects": 40, "seed": 1, **QUICK, **changes}
    bed = settings.pop("bed", source["regions"])
    options = SimulationOptions(**settings)
    return simulate_cohort(
        out, options, genotypes=source["genotypes"], reference=source["reference"], regions=bed
    )


def test_files_are_taken_over_as_they_are(source, tmp_path):
    planted = plant(source, tmp_path / "planted")
    for name in ("genotypes", "reference", "regions"):
        assert planted[name].read_bytes() == source[name].read_bytes()
    assert planted["genotypes"].with_name("genotypes.vcf.gz.tbi").exists()
    participants = pd.read_csv(planted["participants"], sep="\t")
    samples = VCF(str(source["genotypes"])).samples
    assert len(participants) == 40
    assert set(participants.genotype_id) <= set(samples)
    assert participants.family_id.is_unique
    assert pd.read_csv(planted["kinship"], sep="\t").empty
    order = [samples.index(name) for name in participants.genotype_id]
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.5


def test_regions_are_chosen_where_common_variants_are(source, tmp_path):
    planted = plant(
        source, tmp_path / "planted", bed=None, region_count=2, common_variants_per_region=3
    )
    regions = pd.read_csv(planted["regions"], sep="\t", header=None)
    assert len(regions) == 2
    assert set(regions[5]) == {"+", "-"}
    record = json.loads(planted["simulation"].read_text())
    for variant in record["score_variants"]:
        region = regions.iloc[variant["region"] - 1]
        assert region[0] == variant["chrom"]
        assert region[1] < variant["pos"] <= region[2]


def test_large_files_are_linked_and_indexed(source, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(source["genotypes"], bare / "their.vcf.gz")
    shutil.copy(source["reference"], bare / "their.fa")
    monkeypatch.setattr(real, "COPY_LIMIT_BYTES", 10)
    files = {**source, "genotypes": bare / "their.vcf.gz", "reference": bare / "their.fa"}
    planted = plant(files, tmp_path / "planted")
    assert planted["genotypes"].is_symlink()
    assert len(list(VCF(str(planted["genotypes"]))("chr1:1-5000"))) > 3
    assert list(pysam.FastaFile(str(planted["reference"])).references) == ["chr1", "chr2"]
    assert sorted(path.name for path in bare.iterdir()) == ["their.fa", "their.vcf.gz"]


def test_contigs_named_otherwise_are_refused(source, tmp_path):
    renamed = tmp_path / "renamed.fa"
    renamed.write_text(source["reference"].read_text().replace(">chr", ">"))
    with pytest.raises(InputError, match=r"chr1 is not in renamed\.fa"):
        plant({**source, "reference": renamed}, tmp_path / "planted")
    assert [path.name for path in tmp_path.iterdir()] == ["renamed.fa"]


def test_regions_without_common_variants_are_refused(source, tmp_path):
    bed = tmp_path / "empty.bed"
    bed.write_text("chr1\t300\t400\tnowhere\t0\t+\n")
    with pytest.raises(InputError, match="0 single-base variants"):
        plant(source, tmp_path / "planted", bed=bed)


def test_a_damaged_file_is_refused(source, tmp_path):
    damaged = tmp_path / "damaged.vcf.gz"
    damaged.write_bytes(b"not a VCF file")
    with pytest.raises(InputError, match=r"damaged\.vcf\.gz: cannot be read"):
        plant({**source, "genotypes": damaged}, tmp_path / "planted")


def rewritten(source, path, change):
    """Write the genotypes anew with each line changed, as plain VCF."""
    lines = gzip.decompress(source["genotypes"].read_bytes()).decode().splitlines()
    path.write_text("\n".join(map(change, lines)) + "\n")
    return path


@pytest.mark.parametrize("alt", ["GT", "CG", "ACGT"])
def test_insertions_are_no_single_base_variants(source, tmp_path, alt):
    """Each of these is part of the word ACGT, and none is a base."""

    def insert(line):
        fields = line.split("\t")
        return "\t".join([*fields[:4], alt, *fields[5:]]) if line.startswith("chr2") else line

    path = rewritten(source, tmp_path / "insertions.vcf", insert)
    found = real._read_common(path, np.arange(50))
    assert set(found.chrom.tolist()) == {"chr1"}
    assert all(base in {"A", "C", "G", "T"} for base in found.alt)


@pytest.mark.parametrize("where", ["chr", "chr2"])
def test_variants_without_genotypes_are_refused(source, tmp_path, where):
    def drop(line):
        fields = line.split("\t")
        if not line.startswith(where):
            return line
        return "\t".join([*fields[:8], "DP", *(["3"] * len(fields[9:]))])

    header = "##FORMAT=<ID=DP,Number=1,Type=Integer,Description=Depth>\n#CHROM"
    path = rewritten(
        source, tmp_path / "depths.vcf", lambda line: drop(line).replace("#CHROM", header)
    )
    with pytest.raises(InputError, match=rf"depths\.vcf: {where}.*no genotypes"):
        real._read_common(path, np.arange(50))


def test_genotypes_without_reference_are_refused(source, tmp_path):
    with pytest.raises(InputError, match="genotypes and reference together"):
        simulate_cohort(tmp_path / "planted", SimulationOptions(), genotypes=source["genotypes"])


@pytest.mark.skipif(not REAL_VCF.exists(), reason=f"no real genotypes in {REAL}")
@pytest.mark.parametrize("world", ["signal", "null", "confounded"])
def test_the_worlds_are_planted_on_real_haplotypes(world, tmp_path):
    options = SimulationOptions(world=world, seed=0, **QUICK)
    planted = simulate_cohort(tmp_path / world, options, genotypes=REAL_VCF, reference=REAL_FASTA)
    participants = pd.read_csv(planted["participants"], sep="\t")
    truth = pd.read_csv(planted["truth"], sep="\t")
    assert len(participants) == 200
    away = np.mean(
        participants.ancestry.str.removeprefix("ancestry")
        != participants.site.str.removeprefix("site")
    )
    assert (0.15 <= away <= 0.20) == (world == "confounded")
    squared = [
        np.corrcoef(truth[f"score_{k}"], truth[f"dimension_{k}"])[0, 1] ** 2 for k in range(1, 5)
    ]
    assert np.mean(squared) == pytest.approx(0.7 if world == "signal" else 0.0, abs=0.1)
    sizes = participants.groupby(["sex", "site", "ancestry"]).size()
    # Enough for strata of five people in each of five folds.
    assert sizes[sizes >= 25].sum() >= 0.6 * len(participants)
