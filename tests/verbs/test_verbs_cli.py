"""The command line itself: what it says, what it imports, how it fails."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import genebold
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from encoders.errors import InputError
from multimodal.align.options import _OPTIONS_OF_A_LOSS, AlignOptions
from multimodal.align.running import TrainerOptions
from multimodal.bold.options import BoldOptions
from multimodal.cli import VERBS, _flags_first, config_dir, main, usage
from multimodal.evaluate.summary import EvaluateOptions
from multimodal.features.options import GenomeOptions
from multimodal.simulate.options import SimulationOptions
from multimodal.verbs.console import table
from multimodal.verbs.settings import options
from multimodal.verbs.simulate import world_of


def composed(verb: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose(verb, overrides=list(overrides))
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def test_help_names_every_verb_and_imports_no_torch() -> None:
    code = (
        "import sys; from multimodal.cli import main; main(['--help']); "
        "print([m for m in ('torch', 'lightning', 'nilearn', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(verb in done.stdout for verb in VERBS)
    assert done.stdout.rstrip().endswith("[]")


def test_no_verb_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().out == usage()


def test_a_verb_misspelt_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["algin"]) == 2
    assert "Did you mean 'align'?" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_config_that_resolves(verb: str) -> None:
    assert composed(verb)["run_dir"] == "runs/demo"


@pytest.mark.parametrize(
    ("section", "cls"),
    [
        (lambda: composed("align")["align"], AlignOptions),
        (lambda: composed("align")["trainer"], TrainerOptions),
        (lambda: composed("align")["bold"], BoldOptions),
        (lambda: composed("align")["genome"], GenomeOptions),
        (lambda: composed("align")["evaluation"], EvaluateOptions),
        (lambda: composed("simulate")["cohort"], SimulationOptions),
    ],
)
def test_configs_say_the_defaults_of_the_options(section: Any, cls: type) -> None:
    """A default is written twice, in a config to be seen and in a dataclass to be used: equal."""
    found = section()
    for field in dataclasses.fields(cls):
        default = getattr(cls(), field.name)
        if dataclasses.is_dataclass(default):
            default = dataclasses.asdict(default)  # type: ignore[arg-type]
        written = found[field.name] if field.name in found else of_its_loss(field.name)
        assert written == as_lists(default), field.name


def as_lists(value: Any) -> Any:
    """Return a value with lists in place of tuples, as a config file has them."""
    if isinstance(value, dict):
        return {key: as_lists(inner) for key, inner in value.items()}
    return [as_lists(inner) for inner in value] if isinstance(value, tuple) else value


def of_its_loss(name: str) -> Any:
    """Return a setting that only one loss has, as that loss' config writes it."""
    return composed("align", f"loss={_OPTIONS_OF_A_LOSS[name]}")["align"][name]


def test_experiments_compose() -> None:
    names = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))
    assert "first_alignment" in names
    for name in names:
        composed("align", f"experiment={name}")


def test_flags_may_stand_anywhere() -> None:
    words = ["run_dir=x", "--config-dir", "mine", "--multirun", "brain=fc,fc"]
    assert _flags_first(words) == ["--config-dir", "mine", "--multirun", "run_dir=x", "brain=fc,fc"]


def test_an_unknown_key_is_bad_input(tmp_path: Path) -> None:
    done = genebold("align", f"run_dir={tmp_path}", "align.epoch=3", fresh=True)
    assert done.returncode == 2
    assert "epoch" in done.stderr
    assert "did you mean align.epochs?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_value_of_the_wrong_type_names_its_key(tmp_path: Path) -> None:
    done = genebold("simulate", f"run_dir={tmp_path}", "cohort.subjects=many")
    assert done.returncode == 2
    assert "cohort.subjects: 'many'" in done.stderr
    assert not (tmp_path / "cohort").exists()


def test_the_null_world_may_be_written_as_yaml_writes_nothing() -> None:
    for word in ("null", "'null'"):
        section = OmegaConf.create(composed("simulate", f"cohort.world={word}")["cohort"])
        assert world_of(section) == "null"


def test_options_list_all_that_is_wrong() -> None:
    with pytest.raises(InputError) as error:
        options(GenomeOptions, {"length_bp": "long", "flank": 3}, "genome")
    assert [problem.where for problem in error.value.problems] == [
        "genome.length_bp",
        "genome.flank",
    ]


def test_tables_align_numbers_to_the_right() -> None:
    text = table([["a", 1], ["bb", 10], ["c", None]], ["name", "count"])
    assert text.splitlines() == [
        "name  count",
        "----  -----",
        "a         1",
        "bb       10",
        "c         -",
    ]
