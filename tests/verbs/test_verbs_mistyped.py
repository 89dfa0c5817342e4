"""Words that no verb takes: what is said about them."""

from pathlib import Path

import pytest

from multimodal.cli import _FLAGS_WITH_VALUE, config_dir, main
from multimodal.verbs import mistyped
from multimodal.verbs.mistyped import find_flag_problems, find_setting_problems


def said(verb: str, *words: str, own_dir: str | None = None) -> list[str]:
    return [str(found) for found in find_setting_problems(verb, words, config_dir(), own_dir)]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("cohort.dri=DATA", "cohort.dir"),
        ("epochs=5", "align.epochs"),
        ("align.epohcs=5", "align.epochs"),
        ("dnaa=dosage", "dna"),
        ("seeds=1", "seed"),
    ],
)
def test_a_key_misspelt_is_guessed(word: str, meant: str) -> None:
    (text,) = said("align", word)
    assert text.startswith(f"{word.partition('=')[0]}: unknown key; did you mean ")
    assert meant in text
    assert "+" not in text


def test_everything_wrong_is_told_at_once() -> None:
    texts = said("align", "cohort.dri=DATA", "brain=brainml", "cohort.dir", "align.epochs=2")
    assert len(texts) == 3
    assert "settings are written key=value" in texts[0]
    assert "one of brainlm_nystromformer, brainlm_vitmae" in texts[1]
    assert "brainlm_vitmae?" in texts[1]
    assert "did you mean cohort.dir?" in texts[2]


def test_every_choice_of_a_sweep_is_looked_at() -> None:
    texts = said("align", "brain=fc,brainml", "align.epoch=2,3")
    assert [text.split(":")[0] for text in texts] == ["align.epoch", "brain=brainml"]


def test_intervals_of_a_search_are_no_mistakes() -> None:
    words = ["align.learning_rate=tag(log,interval(1e-6,1e-3))", "align.epohcs=range(1,3)"]
    (text,) = said("align", *words)
    assert "did you mean align.epochs?" in text


def test_a_choice_of_a_plugin_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mistyped._OF_PLUGINS, "hydra/sweeper", ("absent",))
    (text,) = said("align", "hydra/sweeper=absent")
    assert "pip install 'genebold[sweeps]'" in text


def test_choices_of_a_folder_of_ones_own_are_known(tmp_path: Path) -> None:
    (tmp_path / "brain").mkdir()
    (tmp_path / "brain" / "mine.yaml").write_text("name: fc\n")
    (text,) = said("align", "brain=mien", own_dir=str(tmp_path))
    assert "mine?" in text
    assert said("align", "brain=mine", own_dir=str(tmp_path)) == []


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--hlep"], "did you mean --help?"),
        (["--cohort.dir", "DATA"], "did you mean cohort.dir=VALUE?"),
        (["--cohort.dir=DATA"], "did you mean cohort.dir=VALUE?"),
        (["--cfg"], "nothing follows it"),
        (["--cfg", "jobs"], "one of job, hydra, all"),
    ],
)
def test_an_unknown_flag_brings_no_list_of_hydras(words: list[str], meant: str) -> None:
    (problem,) = find_flag_problems("align", words, _FLAGS_WITH_VALUE)
    assert meant in str(problem)


def test_flags_of_hydra_pass() -> None:
    words = ["--cfg", "job", "--config-dir=x", "-m", "--info", "a=-1", "--info=plugins", "-cd", "y"]
    assert find_flag_problems("align", words, _FLAGS_WITH_VALUE) == []


def test_the_command_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["align", "--hlep"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("genebold align: --hlep: no such flag; did you mean --help?")
