"""Settings are looked at first, all of them, and told in words."""

from pathlib import Path
from typing import Any, Literal

import pytest
from command import genebold
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from encoders.errors import InputError
from multimodal.cli import config_dir
from multimodal.verbs import align, demo, encode
from multimodal.verbs.settings import in_words
from multimodal.verbs.upfront import refuse_bad_settings


def composed(verb: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(verb, overrides=list(overrides))


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number, or null"),
        (bool, "true or false"),
        (tuple[str, ...], "a list of texts"),
        (tuple[int, int, int], "a list of 3 whole numbers"),
        (Literal["a", "b"], "one of a, b"),
    ],
)
def test_types_are_said_in_words(hint: Any, words: str) -> None:
    assert in_words(hint) == words


def test_all_sections_are_looked_at() -> None:
    words = {
        "align.epochs=five": "a whole number",
        "align.gene.dropout=high": "a number",
        "bold.detrend=perhaps": "true or false",
        "genome.flank_bp=x": "a whole number",
        "split.seed=x": "a whole number",
        "evaluation.strata=[{a: 1}]": "a list of texts",
        "evaluation.permutations=many": "a whole number",
        "evaluation.folds=many": "a whole number",
        "brain.batch_size=x": "a whole number",
        "covariates=age": "a list of texts",
    }
    with pytest.raises(InputError) as error:
        refuse_bad_settings(composed("align", *words))
    told = {problem.where: problem.wanted for problem in error.value.problems}
    assert told == {word.partition("=")[0]: wanted for word, wanted in words.items()}
    assert "class" not in str(error.value)


def test_shares_of_a_split_are_refused_first() -> None:
    with pytest.raises(InputError, match="sum to 1"):
        refuse_bad_settings(composed("align", "split.test=0.5"))


def test_every_verbs_own_settings_pass() -> None:
    for verb in ("align", "encode", "demo"):
        refuse_bad_settings(composed(verb))


@pytest.mark.parametrize("verb", [align, encode, demo])
def test_nothing_is_read_or_written_before(verb: Any, tmp_path: Path) -> None:
    name = verb.__name__.rpartition(".")[2]
    config = composed(name, f"run_dir={tmp_path / 'run'}", "bold.min_frames=few")
    with pytest.raises(InputError, match=r"bold\.min_frames: 'few'; a whole number"):
        verb.run(config)
    assert not (tmp_path / "run").exists()


def test_the_command_says_a_whole_number(tmp_path: Path) -> None:
    done = genebold("align", f"run_dir={tmp_path}", "align.epochs=five")
    assert done.returncode == 2
    assert done.stderr.strip() == "genebold align: align.epochs: 'five'; a whole number"
