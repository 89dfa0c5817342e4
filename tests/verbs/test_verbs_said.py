"""What the console says of a training, a test that could not be made, and a sweep."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from multimodal import cli
from multimodal.align.options import AlignOptions
from multimodal.verbs.align_words import say_gain, say_retrieval, training_words
from multimodal.verbs.sweep import CompareRuns

REASON = "all 4 strata have fewer than 5 unrelated members tested together"
UNTESTED: dict[str, Any] = {"n": 0, "statistic": None, "p": None, "reason": REASON}
TESTED = {"n": 20, "statistic": 0.6, "p": 0.04, "reason": ""}
METRICS: dict[str, Any] = {
    "gallery_size": 20,
    "permutation": {"raw": TESTED, "matched": UNTESTED},
    "retrieval": {
        "raw": {way: {"recall@1": 0.1} for way in ("gene_to_brain", "brain_to_gene")},
        "matched": {way: {} for way in ("gene_to_brain", "brain_to_gene")},
    },
}


def history(*percentiles: float) -> pd.DataFrame:
    epochs = [float(epoch) for epoch in range(len(percentiles))]
    return pd.DataFrame({"epoch": epochs, "val_percentile": percentiles})


def test_training_is_compared_with_its_start(capsys: pytest.CaptureFixture[str]) -> None:
    say_gain(history(0.61, 0.6, 0.625), 2, AlignOptions())
    line = capsys.readouterr().out.strip()
    assert line == ("validation percentile 0.610 at the CCA start, 0.625 at the kept epoch, 2 of 2")
    say_gain(history(0.61, 0.6), 0, AlignOptions(start="random"))
    assert "0.610 at the random start, which is kept: none of 1" in capsys.readouterr().out
    say_gain(pd.DataFrame({"epoch": [0.0, 1.0]}), 1, AlignOptions())
    assert "no validation subjects" in capsys.readouterr().out


def test_no_epochs_are_called_notraining_words() -> None:
    assert "no training (align.epochs=0)" in training_words(AlignOptions(epochs=0))
    assert "CCA start" in training_words(AlignOptions(epochs=0))
    assert training_words(AlignOptions(epochs=7)) == "up to 7 epochs"


def test_a_test_not_made_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    say_retrieval({**METRICS, "controls": {"reference_genome": METRICS}})
    assert capsys.readouterr().out.count(f"matched: {REASON}") == 1


def test_a_sweep_says_whom_it_counts_and_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for job, metrics in (("0", METRICS), ("1", None)):
        (tmp_path / job / ".hydra").mkdir(parents=True)
        (tmp_path / job / ".hydra" / "overrides.yaml").write_text(f"- brain=x{job}\n")
        if metrics:
            (tmp_path / job / "metrics.json").write_text(json.dumps(metrics))
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    CompareRuns().on_multirun_end(config)
    said = capsys.readouterr().out
    assert f"matched: {REASON}" in said
    assert "run 1: nothing was tested" in said
    header = (tmp_path / "comparison.tsv").read_text().splitlines()[0].split("\t")
    assert "gallery" not in header
    assert {"raw subjects", "matched subjects"} <= set(header)


def test_what_our_code_warns_of_is_one_line() -> None:
    def usual(*words: object) -> str:
        return "as always"

    ours, theirs = cli.__file__, "/somewhere/torch/nn.py"
    said = cli._worded_warning(usual, UserWarning("slow path"), UserWarning, ours, 1)
    assert said == "genebold: note: slow path\n"
    assert cli._worded_warning(usual, "slow", UserWarning, theirs, 1) == "as always"
    assert cli._worded_warning(usual, "old", DeprecationWarning, ours, 1) == "as always"
