"""Encoders of volumes through every verb, on a cohort that has no atlas."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import SMALL, genebold

from encoders.errors import Problem
from multimodal.cohort.table import CohortPaths
from multimodal.latent.table import read_latents
from multimodal.verbs.check import check

VOLUMES = ["swift", "brainmt"]


def found_in(cohort: Path, *overrides: str) -> tuple[list[Problem], dict[str, object]]:
    """Problems, and the summary, of ``genebold check``."""
    from hydra import compose, initialize_config_dir

    from multimodal.cli import config_dir

    words = [f"cohort.dir={cohort}", f"run_dir={cohort.parent}", "dna=dosage", *overrides]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("check", overrides=words)
    problems, _, summary = check(config, CohortPaths.from_dir(cohort))
    return problems, {str(name): value for name, value in summary}


@pytest.mark.parametrize("name", VOLUMES)
def test_check_wants_no_atlas_for_volumes(cohort: Path, name: str) -> None:
    for atlas in cohort.glob("atlas.*"):
        atlas.unlink()
    problems, summary = found_in(cohort, f"brain={name}")
    assert problems == []
    assert str(summary["segments"]).startswith("16 x 16 x 16 voxels, ")
    assert "parcels" not in summary
    (problem,) = found_in(cohort, "brain=fc")[0]
    assert problem.where == "cohort.atlas"


def test_check_tells_of_each_scan_what_the_volumes_want(cohort: Path) -> None:
    problems, _ = found_in(cohort, "brain=swift", "brain.config.img_size=[16,16,16,80]")
    runs = list((cohort / "derivatives").rglob("*desc-preproc_bold.nii.gz"))
    assert {problem.code for problem in problems} == {"run-too-short"}
    assert 0 < len(problems) < len(runs)
    problems, _ = found_in(cohort, "brain=swift", "brain.config.voxel_mm=2.0")
    assert [problem.code for problem in problems] == ["voxel-size"] * len(runs)


@pytest.mark.slow
@pytest.mark.parametrize("name", VOLUMES)
def test_a_demo_of_volumes_and_embedding_without_an_atlas(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = genebold("demo", f"run_dir={run}", *SMALL, f"brain={name}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "latents agree to" in done.stdout
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["retrieval"]
    assert (run / "report.html").stat().st_size > 0
    manifest = json.loads((run / "bundle" / "bundle.json").read_text())
    assert manifest["brain"]["spec"]["input"]["kind"] == "VolumeInput"
    assert manifest["bold"]["atlas"] is None
    theirs, before = read_latents(run / "latents.parquet")
    brains = (theirs["modality"] == "brain").to_numpy()
    who = theirs.loc[brains, "participant_id"].tolist()[:2]
    new = tmp_path / "new"
    for each in who:
        shutil.copytree(run / "cohort" / "derivatives" / each, new / each)
    done = genebold(
        "embed", f"bundle={run / 'bundle'}", f"cohort.bold={new}", f"run_dir={tmp_path / 'again'}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    frame, values = read_latents(tmp_path / "again" / "embedded" / "latents.parquet")
    assert frame["participant_id"].tolist() == sorted(who)
    rows = [theirs.index[brains][theirs.loc[brains, "participant_id"] == w][0] for w in sorted(who)]
    np.testing.assert_allclose(values, before[rows], atol=1e-6)
