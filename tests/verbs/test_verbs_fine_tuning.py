"""Fine-tuning from the command line: what is refused early, and a whole run with what follows."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import genebold
from hydra import compose, initialize_config_dir

from encoders.errors import InputError
from multimodal.align.finetune.options import EncoderTuning, FineTuneOptions
from multimodal.cli import config_dir
from multimodal.verbs.evaluate import choose_method
from multimodal.verbs.fine_tuning import refuse_untunable
from multimodal.verbs.settings import plain
from multimodal.verbs.upfront import align_options

SMALL = [
    "dna.config={d_model: 8, n_layer: 1}",
    "brain=brainlm_vitmae",
    "brain.config.frames=32",
    "align.epochs=2",
    "align.batch_size=8",
    "align.accumulate=2",
    "align.fine_tune.sides=[dna,brain]",
    "align.fine_tune.dna.method=full",
    "align.fine_tune.brain.rank=2",
    "split.train=0.5",
    "split.validation=0.25",
    "split.test=0.25",
    "evaluation.permutations=49",
    "evaluation.bootstrap_replicates=20",
]


def test_what_has_no_weights_is_refused_before_anything_is_encoded(
    finished_cohort: Path, tmp_path: Path
) -> None:
    done = genebold(
        "align", f"cohort.dir={finished_cohort}", f"run_dir={tmp_path}", "dna=dosage", "brain=fc",
        "align.fine_tune.sides=[dna,brain]",
    )  # fmt: skip
    assert done.returncode == 2
    assert "dna=dosage has no weights" in done.stderr
    assert "brain=fc has no weights" in done.stderr
    assert not (tmp_path / "features").exists()


def test_half_precision_does_not_learn() -> None:
    sides = {"name": "caduceus_ps", "dtype": "bfloat16"}, {"name": "swift"}
    how: Any = SimpleNamespace(dna=sides[0], brain=sides[1])
    tuning = EncoderTuning(method="full")
    choices = FineTuneOptions(sides=("dna", "brain"), dna=tuning, brain=tuning)
    with pytest.raises(InputError, match=r"dna\.dtype") as caught:
        refuse_untunable(how, choices)
    assert [problem.code for problem in caught.value.problems] == ["too-narrow"]


@pytest.mark.slow
def test_a_run_with_tuned_encoders_and_what_follows(finished_cohort: Path, tmp_path: Path) -> None:
    words = [f"cohort.dir={finished_cohort}", f"run_dir={tmp_path / 'run'}", *SMALL]
    done = genebold("align", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fine-tuning dna (full) and brain (lora)" in done.stdout
    bundle = tmp_path / "run" / "bundle"
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert manifest["encoder_delta"]["sides"] == ["brain", "dna"]
    assert manifest["dna"]["spec"]["weights_id"] == "random(seed=0)"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert all("fine_tuned" in path for path in record["stores"].values())
    towers = (bundle / "towers.safetensors").read_bytes()
    again = genebold("align", *words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (bundle / "towers.safetensors").read_bytes() == towers
    assert (
        json.loads((bundle / "bundle.json").read_text())["encoder_delta"]
        == (manifest["encoder_delta"])
    )
    run_dir, quick = f"run_dir={tmp_path / 'run'}", SMALL[-2:]
    leaky = genebold("evaluate", run_dir, "evaluation.method=crossfit", *quick)
    assert leaky.returncode == 2
    assert "fine-tuned on the training subjects" in leaky.stderr
    done = genebold("evaluate", run_dir, *quick)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["method"] == "heldout"
    done = genebold(
        "embed", f"bundle={bundle}", f"cohort.dir={finished_cohort}", f"run_dir={tmp_path / 'new'}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "new" / "embedded" / "latents.parquet").exists()


def test_tuned_encoders_are_never_cross_fitted() -> None:
    evaluation = {"method": "auto", "crossfit_below": 500}
    assert choose_method(evaluation, 20) == "crossfit"
    assert choose_method(evaluation, 20, fine_tuned=True) == "heldout"
    with pytest.raises(InputError, match="fine-tuned on the training subjects"):
        choose_method({**evaluation, "method": "crossfit"}, 20, fine_tuned=True)
    with pytest.raises(InputError, match="align with another split"):
        choose_method(evaluation, 1, fine_tuned=True)


def test_settings_come_as_the_command_line_gives_them() -> None:
    words = ["align.fine_tune.sides=[brain]", "align.fine_tune.brain.targets=[query,value]"]
    with initialize_config_dir(str(config_dir().absolute()), version_base="1.3"):
        options = align_options(plain(compose("align", words).align))
        bad = compose("align", [*words, "align.fine_tune.brain.rank=two", "align.epochs=five"])
    assert options.fine_tune.brain.targets == ("query", "value")
    assert options.fine_tune.dna == EncoderTuning()
    with pytest.raises(InputError) as caught:
        align_options(plain(bad.align))
    where = [problem.where for problem in caught.value.problems]
    assert where == ["align.fine_tune.brain.rank", "align.epochs"]
