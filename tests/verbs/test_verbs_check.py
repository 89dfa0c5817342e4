"""Bad input: found by `check` in one pass, worded so that one can mend it, nothing half-written."""

import gzip
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pysam
import pytest
from command import genebold
from omegaconf import DictConfig

from encoders.errors import Problem
from multimodal.cohort.table import CohortPaths, read_cohort
from multimodal.verbs.check import _ancestry, _check_strata, check

DNA = "dna.config={d_model: 16, n_layer: 1}"


def found_in(cohort: Path, *overrides: str) -> list[Problem]:
    return looked_at(cohort, *overrides)[0]


def warned_of(cohort: Path, *overrides: str) -> list[Problem]:
    return looked_at(cohort, *overrides)[1]


def looked_at(
    cohort: Path, *overrides: str
) -> tuple[list[Problem], list[Problem], list[list[Any]]]:
    return check(settings(cohort, *overrides), CohortPaths.from_dir(cohort))


def settings(cohort: Path, *overrides: str) -> DictConfig:
    from hydra import compose, initialize_config_dir

    from multimodal.cli import config_dir

    words = [f"cohort.dir={cohort}", f"run_dir={cohort.parent}", DNA, *overrides]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("check", overrides=words)


def runs(cohort: Path) -> list[Path]:
    return sorted((cohort / "derivatives").rglob("*desc-preproc_bold.nii.gz"))


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(path)
    values = change(np.asarray(image.dataobj, dtype=np.float32))
    fresh = nib.Nifti1Image(values, image.affine, image.header)
    fresh.set_data_dtype(np.float32)
    nib.save(fresh, path)


def edit_table(cohort: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = cohort / "participants.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    change(table).to_csv(path, sep="\t", index=False)


def edit_vcf(cohort: Path, change: Callable[[str], str]) -> None:
    path = cohort / "genotypes.vcf.gz"
    with gzip.open(path, "rt") as file:
        text = change(file.read())
    plain = cohort / "genotypes.vcf"
    plain.write_text(text)
    for old in cohort.glob("genotypes.vcf.gz*"):
        old.unlink()
    pysam.tabix_compress(str(plain), str(path))
    pysam.tabix_index(str(path), preset="vcf", force=True)
    plain.unlink()


def one(problems: list[Problem], *needles: str) -> Problem:
    """Return the one problem that holds all the words."""
    fitting = [problem for problem in problems if all(word in str(problem) for word in needles)]
    assert len(fitting) == 1, [str(problem) for problem in problems]
    return fitting[0]


def test_a_good_cohort_has_no_problem(finished_cohort: Path) -> None:
    problems, warnings, _ = looked_at(finished_cohort)
    assert (problems, warnings) == ([], [])


def test_a_vcf_that_is_not_compressed_is_a_problem(cohort: Path) -> None:
    with gzip.open(cohort / "genotypes.vcf.gz", "rt") as file:
        (cohort / "genotypes.vcf").write_text(file.read())
    for path in cohort.glob("genotypes.vcf.gz*"):
        path.unlink()
    (cohort / "atlas.nii.gz").rename(cohort / "atlas_parcels.nii.gz")
    problems = found_in(cohort)
    assert len(problems) == 2
    assert one(problems, "genotypes.vcf:", "bgzip", "tabix -p vcf")
    assert one(problems, f"set cohort.atlas={cohort / 'atlas_parcels.nii.gz'}")


def test_a_cohort_of_one_side_is_said_to_be_one(cohort: Path) -> None:
    for path in cohort.glob("genotypes.vcf.gz*"):
        path.unlink()
    problems, warnings, summary = looked_at(cohort)
    assert problems == []
    assert one(warnings, "no genotypes: align needs both sides")
    assert ["genomes", "none"] in summary
    shutil.rmtree(cohort / "derivatives")
    assert one(found_in(cohort), "no genotypes and no BOLD")


def test_a_mistyped_id_is_warned_of(cohort: Path) -> None:
    def mistype(table: pd.DataFrame) -> pd.DataFrame:
        who = table["participant_id"] == "sub-0002"
        table.loc[who, "participant_id"] = "sub-00O2"
        table.loc[0, "genotype_id"] = "n/a"
        return table

    (cohort / "kinship.tsv").unlink()
    edit_table(cohort, mistype)
    problems, warnings, _ = looked_at(cohort)
    assert problems == []
    assert one(warnings, "no BOLD run of 1 participant (sub-00O2)")
    assert one(warnings, "1 subject (sub-0002)", "sub-0002 may be sub-00O2")
    assert one(warnings, "no genotype of 1 participant (sub-0001)")
    assert one(warnings, "1 sample", "no participant names")


def test_everything_wrong_is_found_in_one_pass(cohort: Path) -> None:
    """Twelve faults at once, one in each of several files; none hides another."""
    scans = runs(cohort)
    whole = scans[0].read_bytes()
    scans[0].write_bytes(whole[: len(whole) // 2])
    rewrite(scans[1], lambda v: np.where(np.arange(v.shape[3]) == 5, np.nan, v))
    rewrite(scans[2], lambda v: v[..., :12])
    confounds = Path(str(scans[2]).split("_space-")[0] + "_desc-confounds_timeseries.tsv")
    pd.read_csv(confounds, sep="\t").head(12).to_csv(confounds, sep="\t", index=False, na_rep="n/a")
    shifted = nib.load(scans[3])
    affine = shifted.affine.copy()
    affine[:3, 3] += 5
    nib.save(nib.Nifti1Image(np.asarray(shifted.dataobj), affine, shifted.header), scans[3])
    no_tr = nib.load(scans[4])
    no_tr.header["pixdim"][4] = 0
    nib.save(nib.Nifti1Image(np.asarray(no_tr.dataobj), no_tr.affine, no_tr.header), scans[4])
    Path(str(scans[4]).replace(".nii.gz", ".json")).write_text("{}")
    lonely = scans[-1].parts[-3]
    shutil.rmtree(scans[-1].parent)

    def spoil(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table["participant_id"] == lonely, "genotype_id"] = "n/a"
        table.loc[0, "genotype_id"] = "NOBODY"
        return pd.concat([table, table.iloc[[3]]])

    edit_table(cohort, spoil)
    edit_vcf(cohort, _unphase_and_misquote)
    with (cohort / "regions.bed").open("a") as bed:
        bed.write("chr1\t10\t99999999\tfar\t0\t+\n")

    problems = found_in(cohort)
    assert one(problems, scans[0].name, "truncated")
    assert one(problems, scans[1].name, "NaN")
    assert one(problems, scans[2].name, "too short")
    assert one(problems, scans[3].name, "grid")
    assert one(problems, scans[4].name, "RepetitionTime")
    assert one(problems, "participants.tsv", lonely)
    assert one(problems, "NOBODY")
    assert [problem for problem in problems if problem.code == "participants-duplicate"]
    assert [problem for problem in problems if "99,999,999" in str(problem)]
    codes = {problem.code for problem in problems}
    assert {"ref-mismatch", "unphased"} <= codes, codes


def _unphase_and_misquote(text: str) -> str:
    lines = text.splitlines()
    body = [number for number, line in enumerate(lines) if not line.startswith("#")]
    snps = [n for n in body if len(lines[n].split("\t")[3]) == 1 and "0|1" in lines[n]]
    for number in snps:
        lines[number] = lines[number].replace("0|1", "0/1", 1)
    columns = lines[snps[1]].split("\t")
    columns[3] = next(base for base in "ACGT" if base not in (columns[3], *columns[4].split(",")))
    lines[snps[1]] = "\t".join(columns)
    return "\n".join(lines) + "\n"


def test_no_index(cohort: Path) -> None:
    (cohort / "genotypes.vcf.gz.tbi").unlink()
    assert one(found_in(cohort), "genotypes.vcf.gz", "index")


def test_chromosome_naming(cohort: Path) -> None:
    edit_vcf(cohort, lambda text: text.replace("chr", ""))
    assert "chr" in str(found_in(cohort)[0])


@pytest.mark.xdist_group("demo")
def test_another_encoder_made_the_features(demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("cohort", "features"):
        shutil.copytree(demo / name, run / name)
    store = run / "features" / "dna" / "caduceus_ps"
    before = sorted((p, p.stat().st_mtime_ns) for p in store.rglob("*") if p.is_file())
    done = genebold("encode", f"run_dir={run}", "sides=[dna]", DNA, "dna.seed=7")
    assert done.returncode == 2
    assert "the features were made with" in done.stderr
    assert "set features.dir to another folder" in done.stderr
    assert sorted((p, p.stat().st_mtime_ns) for p in store.rglob("*") if p.is_file()) == before
    done = genebold("check", f"run_dir={run}", DNA, "dna.seed=7")
    assert done.returncode == 2
    assert "the features were made with" in done.stderr


def test_encode_of_a_bad_cohort_writes_nothing(cohort: Path) -> None:
    edit_vcf(cohort, _unphase_and_misquote)
    features = cohort.parent / "features"
    done = genebold("encode", f"run_dir={cohort.parent}", "sides=[dna]", DNA)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not features.exists() or not [p for p in features.rglob("*") if p.is_file()]


def test_a_real_scan_with_two_frames_is_refused_in_words(cohort: Path) -> None:
    scan = Path(nib.__file__).parent / "tests" / "data" / "example4d.nii.gz"
    image = nib.load(scan)
    labels = np.zeros(image.shape[:3], dtype=np.int16)
    labels[20:40, 20:40, 5:10] = 1
    labels[60:80, 40:60, 5:10] = 2
    nib.save(nib.Nifti1Image(labels, image.affine), cohort / "atlas.nii.gz")
    (cohort / "atlas.tsv").unlink()
    who = pd.read_csv(cohort / "participants.tsv", sep="\t")["participant_id"][0]
    shutil.rmtree(cohort / "derivatives")
    table = cohort / "bold.tsv"
    table.write_text(f"participant_id\tbold\n{who}\t{scan}\n")
    words = ["motion", "wm_csf"]
    off = [*(f"bold.{word}=none" for word in words), "bold.fd_threshold_mm=null"]
    for verb in ("check", "encode"):
        extra = ["sides=[brain]"] if verb == "encode" else []
        done = genebold(
            verb,
            f"cohort.dir={cohort}",
            f"run_dir={cohort.parent}",
            f"cohort.bold={table}",
            "bold.use_mask=false",
            *off,
            *extra,
        )
        assert done.returncode == 2
        assert "run too short" in done.stderr
        assert "2 frames" in done.stderr
        assert "2000" not in done.stderr


def test_what_stands_in_for_ancestry_is_said(finished_cohort: Path) -> None:
    cohort = read_cohort(CohortPaths.from_dir(finished_cohort))
    assert _ancestry(cohort) == []
    people = cohort.participants.drop(columns="ancestry")
    ((_, found),) = _ancestry(replace(cohort, participants=people))
    assert found == "clusters of PC1 to PC4"


def test_columns_that_align_will_want_are_looked_for(cohort: Path) -> None:
    words = ["align.batch_strata=[sex,scanner]", "align.adversary=[ancestry,coil]"]
    problems = found_in(cohort, *words)
    assert [problem.where for problem in problems] == [
        "align.batch_strata=scanner", "align.adversary=coil",
    ]  # fmt: skip

    def damage(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[0, "age"] = "old"
        return table.drop(columns=["PC1", "ancestry"], errors="ignore")

    edit_table(cohort, damage)
    paths = CohortPaths.from_dir(cohort)
    problems = _check_strata(settings(cohort, *words), paths, None)  # a table that cannot be read
    assert one(problems, "align.batch_strata=scanner")
    assert one(problems, "align.adversary=ancestry", "neither a column ancestry nor PC1")
    experiment = settings(cohort, "experiment=survives_unlearning", "dna=caduceus_ps")
    assert [p.where for p in _check_strata(experiment, paths, None)] == ["align.adversary=ancestry"]
    mistyped = settings(cohort, "align.adversary=site")
    assert one(_check_strata(mistyped, paths, None), "align.adversary", "a list of")
