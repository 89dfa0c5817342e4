"""Hyper-parameters: plain, checked, and light to import."""

import json
import math
import subprocess
import sys
from itertools import pairwise

import pytest
from omegaconf import OmegaConf

from encoders.errors import InputError
from multimodal.align.module import learning_rate_factor
from multimodal.align.options import LOSSES, AlignOptions
from multimodal.cli import config_dir


def test_round_trip_through_json():
    options = AlignOptions.from_dict(
        {"epochs": 7, "gene": {"components": None}, "brain": {"head": "linear"}}
    )
    assert options.gene.components is None
    assert options.brain.head == "linear"
    assert AlignOptions.from_dict(json.loads(json.dumps(options.as_dict()))) == options


def test_unknown_keys_and_bad_values_are_all_listed():
    with pytest.raises(InputError) as caught:
        AlignOptions.from_dict({"epoch": 3, "gene": {"compnents": 4}})
    assert [p.where for p in caught.value.problems] == ["align.epoch", "align.gene.compnents"]
    with pytest.raises(InputError) as caught:
        AlignOptions.from_dict(
            {"epochs": -1, "start": "pls", "learning_rate": "fast", "brain": {"dropout": 1.5}}
        )
    assert len(caught.value.problems) == 4


def test_fingerprint_follows_what_shapes_the_weights():
    assert AlignOptions().fingerprint() == AlignOptions(checkpoint_every=5).fingerprint()
    assert AlignOptions().fingerprint() != AlignOptions(seed=1).fingerprint()


def test_learning_rate_course():
    options = AlignOptions(epochs=20, warmup_epochs=4)
    factors = [learning_rate_factor(epoch, options) for epoch in range(21)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a >= b for a, b in pairwise(factors[4:]))
    assert math.isclose(factors[20], 0, abs_tol=1e-12)
    constant = AlignOptions(epochs=20, warmup_epochs=0, schedule="constant")
    assert {learning_rate_factor(epoch, constant) for epoch in range(20)} == {1.0}


def test_options_import_neither_torch_nor_lightning():
    code = (
        "import sys, multimodal.align.options; "
        "sys.exit(bool({'torch', 'lightning'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_a_choice_with_options_of_its_own(loss):
    section = OmegaConf.to_container(OmegaConf.load(config_dir() / "loss" / f"{loss}.yaml"))
    options = AlignOptions.from_dict(section)
    assert options.loss == loss
    assert {file.stem for file in (config_dir() / "loss").glob("*.yaml")} == set(LOSSES)


def test_options_of_another_loss_are_refused():
    with pytest.raises(InputError) as caught:
        AlignOptions(loss="siglip", positive_share=0.2, kinship_weight=0.1)
    assert [p.where for p in caught.value.problems] == [
        "align.positive_share",
        "align.kinship_weight",
    ]
    assert "loss=debiased" in str(caught.value)
    with pytest.raises(InputError, match="info_nce or siglip"):
        AlignOptions(loss="clip")
    with pytest.raises(InputError) as caught:
        AlignOptions(loss="soft_target", kinship_weight=0, chunk_rows=0, accumulate=0)
    assert len(caught.value.problems) == 3
