"""The files of a simulated cohort: formats, cross-references and reproducibility."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pysam
import pytest
from cyvcf2 import VCF

from encoders.errors import InputError
from multimodal.simulate import SimulationOptions, simulate_cohort

SMALL = SimulationOptions(
    seed=3,
    subjects=30,
    frames_one_run=70,
    frames_two_runs=48,
    family_fraction=0.4,
    voxels=(10, 11, 9),
    voxel_mm=17.0,
)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return simulate_cohort(tmp_path_factory.mktemp("cohort") / "small", SMALL)


@pytest.fixture(scope="module")
def participants(cohort):
    return pd.read_csv(cohort["participants"], sep="\t")


def test_same_seed_gives_the_same_bytes_on_any_number_of_threads(cohort, tmp_path):
    simulate_cohort(tmp_path / "again", replace(SMALL, n_jobs=2))
    assert digests(tmp_path / "again") == digests(cohort["participants"].parent)


def test_another_seed_gives_other_genomes_and_brains(cohort, tmp_path):
    other = simulate_cohort(tmp_path / "other", replace(SMALL, seed=4, subjects=20))
    for name in ("genotypes", "reference", "participants", "truth"):
        assert other[name].read_bytes() != cohort[name].read_bytes()


def test_worlds_of_one_seed_share_their_reference(cohort, tmp_path):
    null = simulate_cohort(tmp_path / "null", replace(SMALL, world="null"))
    for name in ("genotypes", "reference", "regions"):
        assert null[name].read_bytes() == cohort[name].read_bytes()
    first = next(cohort["bold"].glob("sub-0001/func/*bold.nii.gz"))
    assert (null["bold"] / first.relative_to(cohort["bold"])).read_bytes() != first.read_bytes()


def test_the_record_of_a_first_cohort_has_no_options_of_new_people(cohort):
    settings = json.loads(cohort["simulation"].read_text())["options"]
    assert not {"people_seed", "new_subjects"} & set(settings)


def test_new_people_live_in_the_same_world(cohort, participants, tmp_path):
    new = simulate_cohort(tmp_path / "new", replace(SMALL, people_seed=1, new_subjects=20))
    for name in ("reference", "regions", "atlas", "atlas_table"):
        assert new[name].read_bytes() == cohort[name].read_bytes()
    sites = [[v.ID for v in VCF(str(files["genotypes"]))] for files in (cohort, new)]
    assert sites[0] == sites[1]
    effects = [
        json.loads(files["simulation"].read_text())["score_variants"] for files in (cohort, new)
    ]
    assert effects[0] == effects[1]
    people = pd.read_csv(new["participants"], sep="\t")
    assert len(people) == 20
    for column in ("participant_id", "family_id", "genotype_id"):
        assert not set(people[column]) & set(participants[column])
    assert sorted(path.name for path in new["bold"].glob("sub-*")) == list(people["participant_id"])
    ours = participants.groupby("ancestry")["PC1"].mean()
    theirs = people.groupby("ancestry")["PC1"].mean()
    assert np.sign(theirs).tolist() == np.sign(ours).tolist()
    assert (theirs / ours > 0.5).all()


def test_new_people_of_other_seeds_are_others():
    options = [replace(SMALL, people_seed=seed) for seed in (None, 0, 1, SMALL.seed)]
    draws = [one.people_stream("people").random() for one in options]
    assert len(set(draws)) == 4


def test_new_people_cannot_be_drawn_from_real_genotypes(cohort, tmp_path):
    with pytest.raises(InputError, match="people_seed"):
        simulate_cohort(
            tmp_path / "real", replace(SMALL, people_seed=1),
            genotypes=cohort["genotypes"], reference=cohort["reference"],
        )  # fmt: skip
    with pytest.raises(InputError, match="new_subjects"):
        replace(SMALL, new_subjects=25)


def test_an_occupied_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="something is there already"):
        simulate_cohort(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("multimodal.simulate.cohort.write_vcf", fail)
    with pytest.raises(OSError, match="disk full"):
        simulate_cohort(tmp_path / "cohort", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_vcf_has_every_kind_of_record(cohort, participants):
    with pysam.VariantFile(str(cohort["genotypes"])) as file:
        records = list(file)
        assert sorted(file.header.samples) == sorted(participants.genotype_id)
        assert list(file.header.samples) != list(participants.genotype_id)
        assert all(contig.length > 0 for contig in file.header.contigs.values())
    kinds = {
        "snp": any(
            len(r.ref) == 1 and r.alts == (r.alts[0],) and len(r.alts[0]) == 1 for r in records
        ),
        "insertion": any(len(r.ref) == 1 and len(r.alts[0]) > 1 for r in records),
        "deletion": any(len(r.ref) > 1 for r in records),
        "multi-allelic": any(len(r.alts) > 1 for r in records),
        "spanned": any("*" in r.alts for r in records),
        "missing": any(None in call["GT"] for r in records for call in r.samples.values()),
    }
    assert all(kinds.values()), kinds
    called = [call for r in records for call in r.samples.values() if None not in call["GT"]]
    assert all(call.phased for call in called)


def test_vcf_is_sorted_indexed_and_agrees_with_the_reference(cohort):
    reader = VCF(str(cohort["genotypes"]))
    with pysam.FastaFile(str(cohort["reference"])) as fasta:
        records = list(reader)
        for record in records:
            start = record.POS - 1
            assert fasta.fetch(record.CHROM, start, start + len(record.REF)).upper() == record.REF
            for alt in record.ALT:
                if len(alt) != len(record.REF):
                    # Left-aligned and parsimonious: anchors equal, last bases not.
                    assert alt[0] == record.REF[0]
                    assert alt[-1] != record.REF[-1]
        assert any(base.islower() for base in fasta.fetch("chr1"))
    places = [(record.CHROM, record.POS) for record in records]
    assert places == sorted(places)
    regions = pd.read_csv(cohort["regions"], sep="\t", header=None)
    assert set(regions[5]) == {"+", "-"}
    for chrom, start, end in regions[[0, 1, 2]].itertuples(index=False):
        inside = [place for place in places if place[0] == chrom and start < place[1] <= end]
        fetched = [(v.CHROM, v.POS) for v in reader(f"{chrom}:{start + 1}-{end}") if start < v.POS]
        assert fetched == inside
        assert len(inside) >= 9


def test_info_counts_are_those_of_the_genotypes(cohort):
    for record in VCF(str(cohort["genotypes"])):
        alleles = record.genotype.array()[:, :2]
        called = alleles[(alleles >= 0).all(axis=1)]
        counts = tuple(int((called == a + 1).sum()) for a in range(len(record.ALT)))
        assert record.INFO["AN"] == called.size
        assert np.atleast_1d(record.INFO["AC"]).tolist() == list(counts)


def test_bold_headers_hold_what_a_pipeline_needs(cohort, participants):
    runs = sorted(cohort["bold"].glob("sub-*/func/*_bold.nii.gz"))
    assert len(runs) == round(1.5 * len(participants))
    atlas = nib.load(cohort["atlas"])
    for path in runs[:6]:
        image = nib.load(path)
        header = image.header
        frames = SMALL.frames_two_runs if "_run-" in path.name else SMALL.frames_one_run
        assert image.shape == (*SMALL.voxels, frames)
        assert header.get_data_dtype() == np.int16
        assert header.get_xyzt_units() == ("mm", "sec")
        assert header.get_zooms()[3] == pytest.approx(SMALL.tr_s)
        assert image.dataobj.slope not in (0.0, 1.0)
        assert nib.aff2axcodes(image.affine) == ("L", "A", "S")
        assert np.array_equal(image.affine, atlas.affine)
        sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["RepetitionTime"] == SMALL.tr_s
        data = np.asarray(image.dataobj)
        mask = nib.load(path.with_name(path.name.replace("preproc_bold", "brain_mask"))).get_fdata()
        assert (data[mask == 0] == 0).all()
        assert (data[mask > 0].mean(axis=1) > 300).all()
        assert np.isfinite(data).all()
        assert (np.abs(data[mask > 0]) < 30000).all()


def test_atlas_table_describes_the_atlas(cohort):
    table = pd.read_csv(cohort["atlas_table"], sep="\t")
    image = nib.load(cohort["atlas"])
    labels = np.asarray(image.dataobj)
    assert table["index"].tolist() == list(range(1, SMALL.parcels + 1))
    for row in table.itertuples():
        centre = np.argwhere(labels == row.index).mean(axis=0)
        assert nib.affines.apply_affine(image.affine, centre) == pytest.approx(
            [row.x, row.y, row.z], abs=0.02
        )
        assert row.name.startswith("LH" if row.x < 0 else "RH")


def test_confounds_are_read_by_nilearn_and_explain_the_scan(cohort):
    from nilearn.interfaces.fmriprep import load_confounds

    path = sorted(cohort["bold"].glob("sub-*/func/*_bold.nii.gz"))[0]
    confounds, kept = load_confounds(
        str(path),
        strategy=["motion", "wm_csf", "high_pass", "compcor", "scrub"],
        motion="full",
        n_compcor=3,
        compcor="anat_combined",
        scrub=0,
    )
    image = nib.load(path)
    assert len(confounds) == image.shape[3]
    assert kept is not None
    assert not {0, 1} & set(kept.tolist())
    data = np.asarray(image.dataobj, dtype=float)
    atlas = np.asarray(nib.load(cohort["atlas"]).dataobj)
    series = np.stack([data[atlas == p].mean(axis=0) for p in range(1, SMALL.parcels + 1)], axis=1)
    table = pd.read_csv(
        path.with_name(path.name.split("_space")[0] + "_desc-confounds_timeseries.tsv"), sep="\t"
    )
    assert table["framewise_displacement"].isna().sum() == 1
    steps = table[["trans_x", "trans_y", "trans_z"]].diff().abs().sum(axis=1)
    steps += 50.0 * table[["rot_x", "rot_y", "rot_z"]].diff().abs().sum(axis=1)
    assert np.allclose(steps[1:], table["framewise_displacement"][1:], atol=2e-4)
    steady = slice(SMALL.non_steady_frames, None)
    nuisance = table[["csf", "white_matter", "trans_x", "trans_y", "trans_z"]].to_numpy()[steady]
    basis = np.column_stack([np.ones(len(nuisance)), nuisance])
    centred = series[steady] - series[steady].mean(axis=0)
    residual = centred - basis @ np.linalg.lstsq(basis, centred, rcond=None)[0]
    assert residual.var() < 0.8 * centred.var()


def test_tables_agree_with_each_other(cohort, participants):
    ids = set(participants.participant_id)
    assert len(ids) == SMALL.subjects
    assert {f"PC{i}" for i in range(1, 11)} <= set(participants.columns)
    kinship = pd.read_csv(cohort["kinship"], sep="\t")
    assert set(kinship.kinship) == {0.25, 0.5}
    family = participants.set_index("participant_id").family_id
    assert (family[kinship.id1].to_numpy() == family[kinship.id2].to_numpy()).all()
    related = participants.groupby("family_id").filter(lambda rows: len(rows) > 1)
    assert set(related.participant_id) == set(kinship.id1) | set(kinship.id2)
    assert {path.name for path in cohort["bold"].glob("sub-*")} == ids
    truth = pd.read_csv(cohort["truth"], sep="\t")
    assert truth.participant_id.tolist() == participants.participant_id.tolist()
    record = json.loads(cohort["simulation"].read_text())
    assert record["variants_have_an_effect"]
    assert len(record["score_variants"]) == SMALL.causal_variants
    assert str(cohort["simulation"].parent) not in cohort["simulation"].read_text()


def test_written_scores_follow_from_the_written_genotypes(cohort, participants):
    """Recompute the causal scores from VCF and simulation.json; only missing calls may differ."""
    record = json.loads(cohort["simulation"].read_text())
    reader = VCF(str(cohort["genotypes"]))
    columns = [reader.samples.index(name) for name in participants.genotype_id]
    scores = np.zeros((len(participants), SMALL.causal_dimensions))
    complete = np.ones(len(participants), dtype=bool)
    for variant in record["score_variants"]:
        place = f"{variant['chrom']}:{variant['pos']}-{variant['pos']}"
        found = next(v for v in reader(place) if variant["pos"] == v.POS)
        assert (found.REF, found.ALT[0]) == (variant["ref"], variant["alt"])
        assert 0.2 <= variant["frequency"] <= 0.5
        alleles = found.genotype.array()[columns, :2]
        complete &= (alleles >= 0).all(axis=1)
        scores += (alleles == 1).sum(axis=1)[:, None] * np.array(variant["weights"])
    truth = pd.read_csv(cohort["truth"], sep="\t").filter(like="score_").to_numpy()
    offset = (truth - scores)[complete]
    assert complete.sum() > 20
    assert np.allclose(offset, offset[0], atol=1e-3)
