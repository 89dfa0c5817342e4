"""Sweeps, searches and jobs of a cluster: what they choose by, say, and end with."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from command import SMALL, genebold
from omegaconf import OmegaConf

from encoders.errors import InputError, Problem
from multimodal.cli import _maximised, main
from multimodal.verbs import encode
from multimodal.verbs.align_words import say_if_random
from multimodal.verbs.sweep import CompareRuns

QUICK = [
    "dna=dosage",
    "brain=fc",
    "align.epochs=2",
    "evaluation.permutations=49",
    "evaluation.bootstrap_replicates=20",
    "split.train=0.5",
    "split.validation=0.25",
    "split.test=0.25",
]


def finished_job(folder: Path, percentiles: list[float], kept: int, *words: str) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in words))
    (folder / "run.json").write_text(json.dumps({"best_epoch": kept}))
    rows = pd.DataFrame({"epoch": range(len(percentiles)), "val_percentile": percentiles})
    rows.to_csv(folder / "history.csv", index=False)


def compared(sweep: Path) -> None:
    CompareRuns().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(sweep)}}}))


def test_a_search_names_the_best_of_the_kept_epochs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Job 0 was better once, in an epoch that was not kept.
    finished_job(tmp_path / "0", [0.5, 0.9, 0.6], 2, "align.learning_rate=0.00012345678", "a=b")
    finished_job(tmp_path / "1", [0.5, 0.7, 0.6], 1, "align.learning_rate=3e-05", "a=b")
    compared(tmp_path)
    said = capsys.readouterr().out
    assert "best of" not in said  # nothing was searched for
    (tmp_path / "optimization_results.yaml").write_text("name: optuna\n")
    compared(tmp_path)
    said = capsys.readouterr().out
    assert "best of 2 by the validation subjects: run 1, validation percentile 0.700" in said
    assert "optimistic" in said
    finished_job(tmp_path / "2", [0.8], 0, "split.seed=4")
    compared(tmp_path)
    said = capsys.readouterr().out
    assert "run 2 has the highest, but splits differ" in said
    shutil.rmtree(tmp_path / "2")
    compared(tmp_path)
    said = capsys.readouterr().out
    # Only what differs is shown, on the screen in few digits, in the file in all of them.
    assert "align.learning_rate=0.000123 " in said
    table = pd.read_csv(tmp_path / "comparison.tsv", sep="\t")
    assert list(table["run"]) == ["align.learning_rate=0.00012345678", "align.learning_rate=3e-05"]
    assert list(table["validation percentile"]) == [0.6, 0.7]


def test_random_networks_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoders = {
        "dna": {"name": "dosage"},
        "brain": {"name": "brainlm_vitmae", "weights_id": "random(seed=0)"},
    }
    finished_job(tmp_path / "0", [0.5], 0, "brain=brainlm_vitmae")
    (tmp_path / "0" / "run.json").write_text(json.dumps({"best_epoch": 0, "encoders": encoders}))
    compared(tmp_path)
    assert "never trained, and no word on the published: brainlm_vitmae" in capsys.readouterr().out
    say_if_random(list(encoders.values()))
    said = capsys.readouterr().out
    assert "brainlm_vitmae has random weights" in said
    assert "brain.weights=DIR_OR_HUB_ID" in said
    assert "dosage" not in said


def test_where_jobs_were_submitted_their_words_are_looked_for_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    (tmp_path / "0" / ".hydra" / "overrides.yaml").write_text("- brain=fc\n")
    compared(tmp_path)
    assert "its message is above" in capsys.readouterr().out
    (tmp_path / ".submitit").mkdir()
    compared(tmp_path)
    assert f"its message is in {tmp_path / '.submitit'}" in capsys.readouterr().out


def test_a_search_asked_for_on_the_command_line_maximises() -> None:
    assert _maximised(["brain=fc"]) == []
    assert _maximised(["hydra/sweeper=optuna"]) == ["hydra.sweeper.direction=maximize"]
    assert _maximised(["hydra/sweeper=optuna", "hydra.sweeper.direction=minimize"]) == []


def test_what_another_run_encodes_is_waited_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tries = []

    def write() -> Path:
        tries.append(None)
        if len(tries) < 4:
            raise InputError(Problem("features-locked", "here", "another run", "one at a time"))
        return tmp_path

    assert encode._after_others(write, every_s=0.0) == tmp_path
    assert len(tries) == 4
    assert capsys.readouterr().out.count("another run writes it; waiting") == 1

    def fail() -> Path:
        raise InputError(Problem("vcf-no-index", "here", "none", "one"))

    with pytest.raises(InputError, match="none"):
        encode._after_others(fail, every_s=0.0)


def test_an_experiment_that_compares_says_so_where_it_runs_alone(
    finished_cohort: Path, tmp_path: Path
) -> None:
    words = ["experiment=survives_matching", f"cohort.dir={finished_cohort}"]
    done = genebold("align", *words, f"run_dir={tmp_path}", "align.epochs=-1")
    assert "with --multirun this experiment compares align.batch_strata=[]," in done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize(
    "verb", ["check", "demo", "encode", "encoders", "evaluate", "push", "report", "simulate"]
)
def test_what_one_process_does_is_not_done_by_several(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    words = {"push": ["nowhere", "me/mine"], "encoders": ["list"]}.get(verb, [])
    monkeypatch.chdir(tmp_path)
    assert main([verb, *words]) == 2
    assert "were started; one, since all of them would write" in capsys.readouterr().err


def test_exit_codes_of_jobs_without_folders_of_hydra(tmp_path: Path) -> None:
    words = [f"run_dir={tmp_path}", "--multirun", f"cohort.dir={tmp_path / 'a'},{tmp_path / 'b'}"]
    done = genebold("check", *words)
    assert done.returncode == 2
    assert done.stderr.count("no such folder") == 2
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_demo_of_two_processes(tmp_path: Path) -> None:
    done = genebold("demo", f"run_dir={tmp_path}", *SMALL, "trainer.devices=2", fresh=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "report.html").is_file()


@pytest.mark.slow
def test_optuna_searches_by_the_validation_subjects(finished_cohort: Path, tmp_path: Path) -> None:
    words = [f"cohort.dir={finished_cohort}", f"run_dir={tmp_path}", *QUICK, "--multirun"]
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=0"]
    done = genebold(
        "align", *words, *search, "hydra.sweeper.n_trials=2",
        "align.learning_rate=tag(log,interval(1e-6,1e-3))", "align.start=choice(cca,random)",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = next(tmp_path.glob("multirun/*/*/optimization_results.yaml")).parent
    table = pd.read_csv(sweep / "comparison.tsv", sep="\t")
    assert len(table) == 2
    found = OmegaConf.load(sweep / "optimization_results.yaml")
    assert round(found.best_value, 4) == table["validation percentile"].max()
    assert "best of 2 by the validation subjects" in done.stdout

    done = genebold(
        "align", *words, *search, "hydra.sweeper.n_trials=1", "align.seed=choice(1,2)",
        "split.validation=0", "split.train=0.75",
    )  # fmt: skip
    assert done.returncode == 2
    assert "no validation subjects" in done.stderr
    assert "encode dna" not in done.stdout  # told before anything is done
    assert "the sweep ends here, since jobs failed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_jobs_may_run_elsewhere(finished_cohort: Path, tmp_path: Path) -> None:
    elsewhere = ["--multirun", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"]
    words = [f"cohort.dir={finished_cohort}", f"run_dir={tmp_path}", *QUICK, *elsewhere]
    done = genebold("align", *words, "align.seed=0,1")
    assert done.returncode == 0, done.stdout + done.stderr
    (comparison,) = tmp_path.glob("multirun/*/*/comparison.tsv")
    assert pd.read_csv(comparison, sep="\t")["raw percentile"].notna().all()
    # What goes wrong there ends the command here as it would have there.
    done = genebold("align", *words[1:], "align.seed=0,1", f"cohort.dir={tmp_path / 'nowhere'}")
    assert done.returncode == 2
    assert "nothing was tested" in done.stdout
