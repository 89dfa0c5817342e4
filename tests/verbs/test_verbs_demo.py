"""What a demo leaves behind, and what the other verbs make of it."""

import json
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from command import SMALL, genebold

from multimodal.latent.table import read_latents

pytestmark = pytest.mark.xdist_group("demo")
WAYS = ("gene_to_brain", "brain_to_gene")
GALLERIES = ("raw", "matched")


def test_the_run_folder_holds_what_is_promised(demo: Path) -> None:
    for name in ("cohort", "features", "bundle"):
        assert (demo / name).is_dir()
    for name in ("metrics.json", "latents.parquet", "report.html", "split.tsv", "history.csv"):
        assert (demo / name).is_file()
    for store in ("dna/caduceus_ps/windows", "dna/caduceus_ps/carriers", "brain/fc/segments"):
        assert pq.read_table(demo / "features" / store).num_rows > 0


def test_metrics_have_the_keys_people_read(demo: Path) -> None:
    metrics = json.loads((demo / "metrics.json").read_text())
    assert metrics["gallery_size"] >= 30
    for gallery in GALLERIES:
        assert set(metrics["permutation"][gallery]) >= {"statistic", "p", "permutations"}
        for way in WAYS:
            block = metrics["retrieval"][gallery][way]
            assert set(block) >= {"recall@1", "recall@10", "mean_rank_percentile", "mrr", "chance"}
    assert set(metrics["controls"]) == {"covariates_only", "reference_genome"}


def test_the_reference_genome_ties_everywhere(demo: Path) -> None:
    control = json.loads((demo / "metrics.json").read_text())["controls"]["reference_genome"]
    for gallery in GALLERIES:
        assert control["permutation"][gallery]["statistic"] == 0.5
        assert control["permutation"][gallery]["p"] == 1.0


def test_latents_are_unit_float32_of_512(demo: Path) -> None:
    table = pq.read_table(demo / "latents.parquet")
    assert str(table.schema.field("latent").type) == "fixed_size_list<element: float>[512]"
    frame, values = read_latents(demo / "latents.parquet")
    assert list(frame) == ["participant_id", "modality", "split"]
    assert set(frame["modality"]) == {"gene", "brain"}
    assert set(frame["split"]) <= {"train", "validation", "test"}
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, atol=1e-6)


def test_families_stay_on_one_side_of_the_split(demo: Path) -> None:
    split = pd.read_csv(demo / "split.tsv", sep="\t", index_col="participant_id")["split"]
    people = pd.read_csv(demo / "cohort" / "participants.tsv", sep="\t", index_col="participant_id")
    assert split.groupby(people["family_id"].reindex(split.index)).nunique().max() == 1


def test_nothing_handed_on_names_a_participant(demo: Path) -> None:
    ids = pd.read_csv(demo / "cohort" / "participants.tsv", sep="\t", dtype=str)
    names = [*ids["participant_id"], *ids["genotype_id"], *ids["family_id"]]
    logs = [path for path in (demo / "logs").rglob("*") if path.suffix in (".csv", ".yaml", ".log")]
    for path in [demo / "report.html", *(demo / "bundle").glob("*.[jm]*"), *logs]:
        text = path.read_text()
        assert not [name for name in names if name in text], path


def test_the_report_is_one_file(demo: Path) -> None:
    found: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(
                v for k, v in attrs if k in ("src", "href") and v and not v.startswith("#")
            )

    Links().feed((demo / "report.html").read_text())
    assert [link for link in found if not link.startswith("data:")] == []


def test_a_second_demo_simulates_nothing_again_and_ends_alike(demo: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(demo, again)
    before = (again / "metrics.json").read_text()
    done = genebold("demo", f"run_dir={again}", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "lies in" in done.stdout
    first, second = json.loads(before), json.loads((again / "metrics.json").read_text())
    for key in ("retrieval", "permutation", "controls", "galleries"):
        assert first[key] == second[key]


def test_embed_agrees_with_align_also_for_one_side(demo: Path, tmp_path: Path) -> None:
    cohort = demo / "cohort"
    people = pd.read_csv(cohort / "participants.tsv", sep="\t", index_col="participant_id")
    done = genebold(
        "embed",
        f"bundle={demo / 'bundle'}",
        f"cohort.genotypes={cohort / 'genotypes.vcf.gz'}",
        f"cohort.reference={cohort / 'reference.fa'}",
        f"run_dir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    frame, values = read_latents(tmp_path / "embedded" / "latents.parquet")
    assert set(frame["modality"]) == {"gene"}
    assert set(frame["split"]) == {"new"}
    theirs, before = read_latents(demo / "latents.parquet")
    genes = theirs["modality"] == "gene"
    samples = people.loc[theirs.loc[genes, "participant_id"], "genotype_id"]
    place = {name: row for row, name in enumerate(frame["participant_id"])}
    rows = [place[name] for name in samples]
    np.testing.assert_allclose(values[rows], before[genes.to_numpy()], atol=1e-6)


@pytest.mark.slow
def test_one_override_changes_the_encoder_and_a_sweep_compares(demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("cohort", "features"):
        shutil.copytree(demo / name, run / name)
    common = [f"run_dir={run}", "align.epochs=2", "dna.config={d_model: 16, n_layer: 1}"]
    for words in (
        ["brain=brainlm_vitmae", "brain.config.frames=48"],
        ["brain=brainlm_nystromformer", "brain.config.num_timepoints_per_voxel=48"],
        ["dna=caduceus_ph"],
    ):
        done = genebold("align", *common, *words)
        assert done.returncode == 0, done.stderr
    assert len(list(run.glob("previous-*"))) == 2
    done = genebold("align", *common, "--multirun", "dna=dosage,caduceus_ps")
    assert done.returncode == 0, done.stderr
    comparison = pd.read_csv(next(run.glob("multirun/*/*/comparison.tsv")), sep="\t")
    assert [words.split()[-1] for words in comparison["run"]] == ["dna=dosage", "dna=caduceus_ps"]
    assert comparison["raw percentile"].notna().all()


@pytest.mark.slow
def test_a_killed_align_ends_with_the_same_weights(demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("cohort", "features"):
        shutil.copytree(demo / name, run / name)
    words = [f"run_dir={run}", "align.epochs=40", "align.patience=null", *SMALL[-2:-1]]
    undisturbed = genebold("align", f"output_dir={tmp_path / 'whole'}", *words)
    assert undisturbed.returncode == 0, undisturbed.stderr
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "multimodal.cli", "align", f"output_dir={killed}", *words]
    rng = np.random.default_rng()
    cut = 0
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        last = killed / "checkpoints" / "last.ckpt"
        before = last.stat().st_mtime_ns if last.exists() else 0
        while process.poll() is None and not (last.exists() and last.stat().st_mtime_ns > before):
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.5)))
        cut += process.poll() is None
        process.kill()
        process.wait()
    assert cut
    resumed = genebold("align", f"output_dir={killed}", *words)
    assert resumed.returncode == 0, resumed.stderr
    whole, again = (
        (folder / "bundle" / "towers.safetensors").read_bytes()
        for folder in (tmp_path / "whole", killed)
    )
    assert whole == again


@pytest.mark.slow
def test_dosage_bundles_find_their_variants_by_name(demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(demo / "cohort", run / "cohort")
    done = genebold("align", f"run_dir={run}", "align.epochs=2", "dna=dosage")
    assert done.returncode == 0, done.stderr
    done = genebold(
        "embed",
        f"run_dir={run}",
        f"cohort.dir={run / 'cohort'}",
        "sides=[gene]",
    )
    assert done.returncode == 0, done.stderr
    _, values = read_latents(run / "embedded" / "latents.parquet")
    frame, before = read_latents(run / "latents.parquet")
    np.testing.assert_allclose(values, before[(frame["modality"] == "gene").to_numpy()], atol=1e-6)
