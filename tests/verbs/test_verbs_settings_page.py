"""``genebold VERB --help``: every setting is explained where it stands."""

import re

import pytest

from encoders import list_encoders
from multimodal.cli import VERBS, config_dir, main
from multimodal.verbs.settings_page import read_comments, settings_page

# Arguments of networks are upstream's; what each number of a simulation does stands in its options.
_EXPLAINED_ELSEWHERE = ("demo", "simulate")


def page(verb: str, *overrides: str) -> str:
    return settings_page(verb, overrides, config_dir())


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in _EXPLAINED_ELSEWHERE])
def test_every_setting_is_explained(verb: str) -> None:
    settings = page(verb).partition("Settings\n\n")[2].partition("\n\n")[0].splitlines()
    inside_config = re.compile(r"^    \w+: ")
    leaves = [line for line in settings if not re.search(r":$", line)]
    unexplained = [line for line in leaves if "# " not in line and not inside_config.match(line)]
    assert unexplained == []


def test_groups_are_those_that_a_verb_uses() -> None:
    assert "Groups" not in page("report")
    assert "brain: fc, brainlm_nystromformer" in page("align")
    assert "trainer: default" not in page("align")  # a group of one choice is none
    assert "brain:" not in page("evaluate")


def test_a_choice_shows_its_own_settings() -> None:
    text = page("align", "brain=swift", "align.epochs=7")
    assert "brain: swift, brainlm_nystromformer" in text
    assert "voxels along x, y, z, and frames" in text
    assert re.search(r"epochs: 7 +# most epochs", text)


def test_comments_are_read_by_path() -> None:
    text = "# @package align\na:  # one\n  b: 1  # two\n       # and more\nc: x\n  # of none\n"
    assert read_comments(text, "towers") == {
        ("align", "a"): "one",
        ("align", "a", "b"): "two and more",
    }
    assert read_comments("a: 1 # x", "dna") == {("dna", "a"): "x"}


def test_help_of_a_verb_is_asked_either_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "report"]) == 0
    first = capsys.readouterr().out
    assert main(["report", "--help"]) == 0
    assert capsys.readouterr().out == first == page("report")
    assert main(["report", "--help", "run_dri=x"]) == 2
    assert "did you mean run_dir?" in capsys.readouterr().err


def test_every_encoder_listed_is_a_choice() -> None:
    files = {file.stem for side in ("dna", "brain") for file in (config_dir() / side).glob("*")}
    assert set(list_encoders()) <= files
