"""A cohort is named once: later alignments of a run folder take the one its record names."""

import json
from pathlib import Path

import pytest
from command import genebold
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from encoders.errors import InputError
from multimodal.cli import config_dir
from multimodal.cohort.table import CohortPaths
from multimodal.verbs.record import paths_of_run


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("align", overrides=list(overrides))


def write_record(folder: Path, paths: CohortPaths) -> None:
    folder.mkdir(parents=True)
    named = {name: None if path is None else str(path) for name, path in vars(paths).items()}
    (folder / "run.json").write_text(json.dumps({"cohort": named}))


def test_the_recorded_cohort_is_taken_where_none_is_named(cohort: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_record(run, CohortPaths.from_dir(cohort))
    assert paths_of_run(composed(f"run_dir={run}")) == CohortPaths.from_dir(cohort)
    # An output_dir of its own, as every job of a sweep has, changes nothing.
    elsewhere = composed(f"run_dir={run}", f"output_dir={tmp_path / 'job'}")
    assert paths_of_run(elsewhere) == CohortPaths.from_dir(cohort)
    atlas = tmp_path / "other.nii.gz"
    named = paths_of_run(composed(f"run_dir={run}", f"cohort.atlas={atlas}"))
    assert (named.atlas, named.genotypes) == (atlas, cohort / "genotypes.vcf.gz")


def test_a_record_set_aside_by_an_unfinished_alignment_counts(cohort: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_record(run / "previous-2", CohortPaths())
    write_record(run / "previous-10", CohortPaths.from_dir(cohort))
    assert paths_of_run(composed(f"run_dir={run}")) == CohortPaths.from_dir(cohort)


def test_a_cohort_named_or_in_the_run_folder_goes_first(cohort: Path, tmp_path: Path) -> None:
    write_record(tmp_path / "other", CohortPaths())
    chosen = paths_of_run(composed(f"run_dir={tmp_path / 'other'}", f"cohort.dir={cohort}"))
    assert chosen == CohortPaths.from_dir(cohort)
    (tmp_path / "run.json").write_text(json.dumps({"cohort": vars(CohortPaths())}))
    assert paths_of_run(composed(f"run_dir={tmp_path}")) == CohortPaths.from_dir(cohort)


def test_without_either_the_error_says_what_to_set(tmp_path: Path) -> None:
    for words in ([f"run_dir={tmp_path}"], [f"cohort.dir={tmp_path / 'nowhere'}"]):
        with pytest.raises(InputError, match=r"cohort\.dir=DIR"):
            paths_of_run(composed(*words))


@pytest.mark.slow
def test_another_encoder_needs_no_second_cohort(cohort: Path, tmp_path: Path) -> None:
    """The readme's third job, after its first, as printed."""
    small = ["dna=dosage", "align.epochs=1", "evaluation.permutations=19", "split.train=0.8"]
    small += ["split.validation=0"]
    run = f"run_dir={tmp_path / 'first'}"
    done = genebold("align", f"cohort.dir={cohort}", run, *small)
    assert done.returncode == 0, done.stderr
    done = genebold("align", run, *small, "brain=brainlm_vitmae", "brain.config.frames=48")
    assert done.returncode == 0, done.stderr
    done = genebold("align", run, *small, "--multirun", "brain=fc")
    assert done.returncode == 0, done.stderr
    assert "hydra:runtime" not in done.stdout.replace("\\", "")
