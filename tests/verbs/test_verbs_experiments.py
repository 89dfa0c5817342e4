"""Every experiment runs on a simulated cohort with one command."""

from pathlib import Path

import pytest
import yaml
from command import genebold

from multimodal.cli import config_dir

# What this one asks for lies on the hub.
ELSEWHERE = {"published_caduceus"}
NAMES = {path.stem for path in (config_dir() / "experiment").glob("*.yaml")} - ELSEWHERE
QUICK = [
    "align.epochs=2",
    "align.batch_size=8",
    "evaluation.permutations=49",
    "evaluation.bootstrap_replicates=20",
    # Of 20 people, parts large enough to tell anybody apart.
    "split.train=0.5",
    "split.validation=0.25",
    "split.test=0.25",
]


def test_experiments_say_what_they_ask() -> None:
    for name in NAMES | ELSEWHERE:
        lines = (config_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()
        assert lines[1].startswith("# "), name
        readme = (config_dir() / "experiment" / "README.md").read_text()
        assert f"`{name}`" in readme, name


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_experiment_runs(finished_cohort: Path, tmp_path: Path, name: str) -> None:
    settings = yaml.safe_load((config_dir() / "experiment" / f"{name}.yaml").read_text())
    words = [f"experiment={name}", f"cohort.dir={finished_cohort}", f"run_dir={tmp_path}", *QUICK]
    if name == "which_genes":
        regions = (finished_cohort / "regions.bed").read_text().splitlines(keepends=True)
        files = [tmp_path / f"{part}.bed" for part in range(2)]
        for part, file in enumerate(files):
            file.write_text("".join(regions[part::2]))
        words += ["--multirun", f"cohort.regions={files[0]},{files[1]}"]
    elif "hydra" in settings:
        words += ["--multirun"]
    if name == "brain_encoders":
        # The others want longer runs than this cohort's; the demo's sweep has them.
        words += ["brain=fc"]
    if name == "search_settings":
        words += ["hydra.sweeper.n_trials=2"]
    if name == "frozen_or_fine_tuned":
        words += ["brain.config.frames=32", "dna.config={d_model: 16, n_layer: 1}"]
    if name in ("first_alignment", "random_caduceus", "without_covariates"):
        words += ["dna.config={d_model: 16, n_layer: 1}"] if name != "first_alignment" else []
    done = genebold("align", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.rglob("metrics.json"))
