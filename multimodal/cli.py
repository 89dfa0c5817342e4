"""The command line: ``genebold VERB [hydra overrides]``.

Each verb is a root config of its own, so Hydra's flags work as everywhere (``--help``, ``--cfg
job``, ``--multirun``, ``--config-dir``). Exit codes: 0 done, 1 failed, 2 wrong usage or bad input.
"""

import difflib
import importlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from encoders.errors import InputError
from multimodal.verbs.mistyped import find_flag_problems, find_setting_problems
from multimodal.verbs.positional import spell_out, spell_out_push
from multimodal.verbs.settings_page import settings_page

if TYPE_CHECKING:
    from omegaconf import DictConfig

VERBS = {
    "demo": "simulate a small cohort and run everything below on it",
    "simulate": "write a simulated cohort in real file formats",
    "check": "validate a cohort: every file, id and covariate, all in one pass",
    "encode": "run the frozen encoders over a cohort into the feature store; resumes",
    "align": "train the towers, encoding first what is missing; resumes",
    "evaluate": "retrieval against its permutation null, controls; plan=true for power",
    "embed": "latents for new subjects from a bundle, from VCF, BOLD or both",
    "push": "a bundle to the Hugging Face hub: BUNDLE_DIR OWNER/NAME",
    "report": "one self-contained HTML page about a run",
    "encoders": "list, show NAME, verify NAME WEIGHTS, convert SRC DST, build",
}

_USAGE = """\
genebold aligns personal genomes with fMRI.

usage: genebold VERB [key=value ...]

{verbs}

genebold VERB --help      the verb's settings, with their defaults
genebold VERB --cfg job   the settings as they would be used
genebold VERB --multirun brain=fc,brainlm_vitmae   one run each, and a table that compares them

Start with: genebold demo
"""


# --info takes one too, but may go without.
_FLAGS_WITH_VALUE = (
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn",
    "--config-dir", "-cd", "--experimental-rerun",
)  # fmt: skip


# Verbs that train: their sweeps may search for what is best for people held out of the training.
_WITH_OBJECTIVE = ("align", "demo")
_WITH_PLAIN_WORDS = {"encoders": spell_out, "push": spell_out_push}
# Another root config than ours: Hydra's own help then.
_OTHER_CONFIG = ("--config-path", "-cp", "--config-name", "-cn")


def config_dir() -> Path:
    """Return the folder of the root configs: in the installed package, else in the checkout."""
    installed = Path(__file__).parent / "_configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


def usage() -> str:
    """Return the text of ``genebold --help``."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())
    return _USAGE.format(verbs=verbs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        The verb and its overrides; the process's own arguments by default.
    """
    # torch's large tensors in large pages: less waiting for memory where encoders are trained.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    warnings.formatwarning = partial(_worded_warning, _usual_warning)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if len(words) > 1 and words[0] == "help":
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"genebold {version('genebold')}")
        return 0
    verb, overrides = words[0], words[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        print(f"genebold: no verb '{verb}'.{hint} Verbs: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    return run_verb(verb, overrides)


_usual_warning = warnings.formatwarning
_PACKAGES = tuple(
    str(Path(__file__).parents[1] / name) + os.sep for name in ("encoders", "multimodal")
)


def _worded_warning(
    usual: Callable[..., str],
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Return one line for what our own code warns of: whoever runs a command reads no source."""
    if issubclass(category, UserWarning) and filename.startswith(_PACKAGES):
        return f"genebold: note: {message}\n"
    return usual(message, category, filename, lineno, line)


def run_verb(verb: str, overrides: list[str]) -> int:
    """Compose the verb's configuration with Hydra, run it, and turn errors into exit codes."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    problems = find_flag_problems(verb, overrides, _FLAGS_WITH_VALUE)
    if problems:
        print(_bad_input(verb, InputError(problems)), file=sys.stderr)
        return 2
    overrides = _flags_first(overrides)
    if verb in _WITH_PLAIN_WORDS:
        try:
            overrides = _WITH_PLAIN_WORDS[verb](overrides, _FLAGS_WITH_VALUE)
        except InputError as error:
            print(_bad_input(verb, error), file=sys.stderr)
            return 2
    own_dir = _value_of_flag(overrides, "--config-dir", "-cd")
    if {"-h", "--help"} & set(overrides) and _value_of_flag(overrides, *_OTHER_CONFIG) is None:
        try:
            print(settings_page(verb, _settings(overrides), config_dir(), own_dir), end="")
        except (HydraException, OmegaConfBaseException) as error:
            print(_worded(verb, error, overrides, own_dir), file=sys.stderr)
            return 2
        return 0
    from multimodal.verbs import sweep  # after the help, which is to come at once

    multirun = bool({"-m", "--multirun"} & set(overrides))
    if multirun:
        overrides = [*overrides, *_folders_of_jobs(verb, overrides), *_maximised(overrides)]
        for name in _LAUNCHERS:
            logging.getLogger(name).addFilter(_without_folders_of_jobs)
    overrides = [*overrides, f"hydra.job.name={verb}"]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us as they are; we word them
    exit_code = 0

    def task(config: "DictConfig") -> float | None:
        nonlocal exit_code
        exit_code, objective = _one_job(verb, config)
        return objective

    sys.argv = [f"genebold {verb}", *overrides]
    runner = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=verb)(task)
    try:
        runner()
    except (HydraException, OmegaConfBaseException) as error:
        print(_worded(verb, error, overrides, own_dir), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ngenebold {verb}: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except ValueError as error:  # of a search in which no job came to a value
        if not (multirun and sweep.exit_code()):
            raise
        print(f"genebold {verb}: the sweep ends here, since jobs failed ({error})", file=sys.stderr)
    return sweep.exit_code() if multirun else exit_code


def _one_job(verb: str, config: "DictConfig") -> tuple[int, float | None]:
    """Run a verb as it is configured: its exit code, and what a sweep may look for the best of."""
    from multimodal.verbs import sweep

    module = importlib.import_module(f"multimodal.verbs.{verb}")
    if compared := sweep.left_out():
        print(f"genebold {verb}: note: {compared}", file=sys.stderr)
    objective = None
    try:
        sweep.refuse_search(config, verb in _WITH_OBJECTIVE)
        code = int(module.run(config) or 0)
        if verb in _WITH_OBJECTIVE and not code:
            objective = sweep.objective(config)
    except InputError as error:  # worded here, so that a sweep goes on with its other jobs
        print(_bad_input(verb, error), file=sys.stderr)
        code = 2
    sweep.note_exit_code(code)
    return code, objective


def _maximised(overrides: list[str]) -> list[str]:
    """Return the direction of a search that was asked for on the command line."""
    asked = any(word.lstrip("+") == "hydra/sweeper=optuna" for word in overrides)
    direction = "hydra.sweeper.direction"
    return [f"{direction}=maximize"] if asked and not _is_set(overrides, direction) else []


def _folders_of_jobs(verb: str, overrides: list[str]) -> list[str]:
    """Give each job of a sweep folders of its own; a demo's jobs do not share cohorts either."""
    own = {"output_dir": "${hydra:runtime.output_dir}"}
    if verb == "demo":
        own["cohort.dir"] = "${hydra:runtime.output_dir}/cohort"
        own["features.dir"] = "${hydra:runtime.output_dir}/features"
    return [f"{key}={value}" for key, value in own.items() if not _is_set(overrides, key)]


# Modules that announce the jobs of a sweep, and what we added to each.
_LAUNCHERS = (
    "hydra._internal.core_plugins.basic_launcher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher",
)
_OWN_FOLDER = re.compile(r" [\w.]+=\S*hydra\\?:runtime\S*")


def _without_folders_of_jobs(record: logging.LogRecord) -> bool:
    """Take the folders that `_folders_of_jobs` added out of what is announced of a job."""
    record.msg = _OWN_FOLDER.sub("", str(record.msg))
    return True


def _flags_first(words: list[str]) -> list[str]:
    """Put Hydra's flags before the overrides: its parser takes overrides in one stretch only."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(words)
    for word in rest:
        if word.startswith("-"):
            flags.append(word)
            if word in _FLAGS_WITH_VALUE:
                flags += [value for value in [next(rest, None)] if value is not None]
        else:
            overrides.append(word)
    return [*flags, *overrides]


def _settings(words: list[str]) -> list[str]:
    """Return the overrides among words whose flags come first."""
    flags = [place for place, word in enumerate(words) if word.startswith("-")]
    start = 0
    if flags:
        start = flags[-1] + (2 if words[flags[-1]] in _FLAGS_WITH_VALUE else 1)
    return words[start:]


def _value_of_flag(words: list[str], *names: str) -> str | None:
    for place, word in enumerate(words):
        flag, _, value = word.partition("=")
        if flag in names:
            return value or words[place + 1]
    return None


def _is_set(overrides: list[str], key: str) -> bool:
    return any(word.lstrip("+").split("=", 1)[0] == key for word in overrides)


def _bad_input(verb: str, error: InputError) -> str:
    problems = error.problems
    if len(problems) == 1:
        return f"genebold {verb}: {problems[0]}"
    lines = "\n".join(f"  - {problem}" for problem in problems)
    return f"genebold {verb}: {len(problems)} problems\n{lines}"


def _worded(verb: str, error: Exception, words: list[str], own_dir: str | None) -> str:
    """Return what is wrong with the settings in our words, or else in Hydra's."""
    problems = find_setting_problems(verb, _settings(words), config_dir(), own_dir)
    return _bad_input(verb, InputError(problems)) if problems else _bad_configuration(verb, error)


# Lines of Hydra's messages that speak of its machinery, or advise what would not help.
_OF_HYDRA_ALONE = ("provider=", "Config search path", "To append to your", "See https://hydra.cc")


def _bad_configuration(verb: str, error: Exception) -> str:
    causes: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause).strip()
        if text and not any(text in seen for seen in causes):
            causes.append(text)
        cause = cause.__cause__
    lines = "\n".join(
        f"  {line}"
        for text in causes
        for line in text.splitlines()
        if line.strip() and not line.strip().startswith(_OF_HYDRA_ALONE)
    )
    return (
        f"genebold {verb}: the settings do not fit\n{lines}\n"
        f"  `genebold {verb} --cfg job` shows every key with its value"
    )


def entry() -> None:
    """Run the installed command."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
