"""What is wrong with the words of a command line, in our own words: all of it at once.

Hydra stops at the first word that does not fit and speaks of its own machinery. Here the words are
taken out one by one until the rest composes, and each that was taken out is told with a guess.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from encoders.errors import Problem

FLAGS = (
    "--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m",
    "--shell-completion", "-sc", "--info", "-i",
)  # fmt: skip
_CFG_CHOICES = ("job", "hydra", "all")
# Choices that are there once a plugin of Hydra is installed.
_OF_PLUGINS = {
    "hydra/sweeper": ("optuna",),
    "hydra/launcher": ("submitit_slurm", "submitit_local"),
}
_NOT_OVERRIDDEN = re.compile(r"Could not override '([^'@]+)")


def find_flag_problems(
    verb: str, words: Sequence[str], flags_with_value: Sequence[str]
) -> list[Problem]:
    """Return what is wrong with the words that begin with a dash.

    Parameters
    ----------
    verb : str
    words : sequence of str
        What follows ``genebold VERB``.
    flags_with_value : sequence of str
        Flags after which a word is the flag's.
    """
    problems = []
    rest = iter(words)
    for word in rest:
        flag, _, value = word.partition("=")
        if not word.startswith("-") or word in FLAGS or flag == "--info":
            continue
        if flag not in flags_with_value:
            problems.append(_unknown_flag(verb, flag, flags_with_value))
            continue
        value = value or next(rest, "")
        if not value or value.startswith("-"):
            problems.append(Problem("flag-value", flag, "nothing follows it", "a value"))
        elif flag in ("--cfg", "-c") and value not in _CFG_CHOICES:
            wanted = f"one of {', '.join(_CFG_CHOICES)}"
            problems.append(Problem("flag-value", flag, f"'{value}'", wanted))
    return problems


def _unknown_flag(verb: str, flag: str, flags_with_value: Sequence[str]) -> Problem:
    known = [name for name in (*FLAGS, *flags_with_value) if name.startswith("--")]
    near = difflib.get_close_matches(flag, known, n=1)
    written = f"settings are written key=value; `genebold {verb} --help` lists them"
    if near:
        return Problem("unknown-flag", flag, "no such flag", f"did you mean {near[0]}?", written)
    name = flag.lstrip("-") or "key"
    return Problem("unknown-flag", flag, "no such flag", f"did you mean {name}=VALUE?", written)


def find_setting_problems(
    verb: str, overrides: Sequence[str], config_dir: Path, own_dir: str | None = None
) -> list[Problem]:
    """Return every override that the verb's configuration does not take.

    Parameters
    ----------
    verb : str
        The root config's name.
    overrides : sequence of str
        Without flags. Of a sweep's choices, each is looked at.
    config_dir : Path
        The folder of the root configs.
    own_dir : str, optional
        The folder given by ``--config-dir``.

    Returns
    -------
    list of Problem
        Empty where nothing was found that this can tell of.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    words, problems = _expanded(verb, overrides)
    if own_dir is not None:
        words.append([f"hydra.searchpath=[file://{Path(own_dir).absolute()}]"])
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir.absolute()), version_base="1.3"):
        first = [choices[0] for choices in words]
        base, found = _fitting(verb, first)
        problems += found
        for choices in words:
            for choice in choices[1:]:
                problems += _fitting(verb, [*base, choice])[1]
    return list(dict.fromkeys(problems))


def _expanded(verb: str, overrides: Sequence[str]) -> tuple[list[list[str]], list[Problem]]:
    """Return each word as the list of its sweep's choices, and the words that are no settings."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    words: list[list[str]] = []
    problems = []
    for word in overrides:
        try:
            parsed = parser.parse_override(word)
        except HydraException:
            if "=" in word:
                wanted = "a value that Hydra's grammar reads"
                fix = "put quotation marks around it: " + "KEY='\"VALUE\"'"
            else:
                wanted = "settings are written key=value"
                fix = f"`genebold {verb} --help` lists them"
            problems.append(Problem("not-a-setting", word, "not a setting", wanted, fix))
            continue
        key = parsed.input_line.partition("=")[0] if parsed.input_line else parsed.key_or_group
        if parsed.is_range_sweep() or parsed.is_interval_sweep():
            words.append([f"{key}={parsed.value().start}"])  # type: ignore[union-attr]
        elif parsed.is_choice_sweep():
            words.append([f"{key}={value}" for value in parsed.sweep_string_iterator()])
        else:
            words.append([word])
    return words, problems


def _fitting(verb: str, words: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """Return the words that compose, and what is wrong with the others."""
    from hydra import compose
    from hydra.errors import HydraException, MissingConfigException

    kept, refused = list(words), []
    choices: list[Problem] = []
    while True:
        try:
            config = compose(verb, overrides=kept)
        except MissingConfigException as error:
            group, _, name = (error.missing_cfg_file or "").rpartition("/")
            if not group or error.options is None or not (word := _word_of(kept, group)):
                return kept, choices
            choices.append(_unknown_choice(group, name, list(error.options)))
        except HydraException as error:
            found = _NOT_OVERRIDDEN.search(_whole_text(error))
            if found is None or not (word := _word_of(kept, found[1])):
                return kept, choices
            refused.append(found[1])
        else:
            return kept, choices + [_unknown_key(verb, key, config) for key in refused]
        kept.remove(word)


def _whole_text(error: BaseException | None) -> str:
    text = ""
    while error is not None:
        text += f"{error}\n"
        error = error.__cause__
    return text


def _word_of(words: Sequence[str], key: str) -> str | None:
    """Return the last word that sets a key or group."""
    names = [(word, word.lstrip("+~").partition("=")[0].partition("@")[0]) for word in words]
    return next((word for word, name in reversed(names) if name.lstrip("/") == key), None)


def _unknown_choice(group: str, name: str, known: Sequence[str]) -> Problem:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    wanted = f"one of {', '.join(sorted(known))}"
    guess = f"did you mean {' or '.join(near)}?" if near else ""
    if name in _OF_PLUGINS.get(group, ()):
        guess = "pip install 'genebold[sweeps]' brings it"
    return Problem("unknown-choice", f"{group}={name}", "unknown choice", wanted, guess)


def _unknown_key(verb: str, key: str, config: DictConfig) -> Problem:
    known = list(_keys(OmegaConf.to_container(config, resolve=False)))
    near = _guess(key, known)
    hint = f"`genebold {verb} --help` lists the settings"
    if near is None:
        return Problem("unknown-key", key, "unknown key", hint)
    return Problem("unknown-key", key, "unknown key", f"did you mean {near}?", hint)


def _guess(key: str, known: Sequence[str]) -> str | None:
    """Return the key that was meant: by its whole name, else by its last part."""
    leaf = key.rpartition(".")[2]
    ending = [name for name in known if name.rpartition(".")[2] == leaf]
    if ending:
        near = difflib.get_close_matches(key, ending, n=1, cutoff=0.0)
        return near[0]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    if near:
        return near[0]
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
    close = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7)
    return leaves[close[0]] if close else None


def _keys(values: object, above: str = "") -> Iterator[str]:
    if not isinstance(values, Mapping):
        return
    for name, value in values.items():
        yield f"{above}{name}"
        yield from _keys(value, f"{above}{name}.")
