"""What `evaluate` records about itself, where `align` had been told otherwise."""

import json
import shutil
from pathlib import Path

import pytest
from command import genebold

pytestmark = pytest.mark.xdist_group("demo")


def evaluated(demo: Path, folder: Path, *words: str) -> tuple[dict, str]:
    """Evaluate the demo's alignment into another folder; return the metrics and the report."""
    folder.mkdir()
    for name in ("run.json", "split.tsv", "history.csv"):
        shutil.copy(demo / name, folder)
    shutil.copytree(demo / "bundle", folder / "bundle")
    words = (*words, "evaluation.folds=2", "evaluation.covariates_only=false")
    for verb in (["evaluate", *words], ["report"]):
        done = genebold(*verb, f"output_dir={folder}")
        assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "metrics.json").read_text()), (folder / "report.html").read_text()


def test_evaluate_records_its_own_settings(demo: Path, tmp_path: Path) -> None:
    words = ("evaluation.strata=[sex]", "evaluation.permutations=49")
    metrics, html = evaluated(demo, tmp_path / "run", *words)
    assert metrics["settings"]["strata"] == ["sex"]
    assert metrics["settings"]["permutations"] == 49
    assert "<dt>permutations</dt><dd>49</dd>" in html


def test_evaluate_without_strata_matches_nothing(demo: Path, tmp_path: Path) -> None:
    words = ("evaluation.strata=[]", "evaluation.permutations=49")
    metrics, html = evaluated(demo, tmp_path / "run", *words)
    assert metrics["permutation"]["matched"]["p"] is None
    assert metrics["controls"]["reference_genome"]["permutation"]["matched"]["p"] is None
    assert metrics["galleries"]["matched"]["count"] == 0
    assert "among people" not in html
    assert "No covariates were matched" in html
