"""Every setting is looked at before anything is read, simulated or encoded."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from omegaconf import DictConfig

from encoders.errors import InputError, Problem
from multimodal.align.finetune.options import EncoderTuning, FineTuneOptions
from multimodal.align.options import AlignOptions, SideOptions
from multimodal.align.running import TrainerOptions
from multimodal.bold.options import BoldOptions
from multimodal.evaluate.summary import EvaluateOptions
from multimodal.features.options import GenomeOptions
from multimodal.verbs.settings import flag, options, plain

T = TypeVar("T")

METHODS = ("auto", "crossfit", "heldout")


@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """The ``split`` section: how participants are divided.

    Parameters
    ----------
    file : str or None
        A table participant_id, split; None draws one.
    train, validation, test : float
        Shares.
    seed : int
    kinship_threshold : float
        Pairs from this kinship on are relatives.
    """

    file: str | None = None
    train: float = 0.7
    validation: float = 0.1
    test: float = 0.2
    seed: int = 0
    kinship_threshold: float = 0.0442

    def __post_init__(self) -> None:
        shares = (self.train, self.validation, self.test)
        if self.file is None and (min(shares) < 0 or abs(sum(shares) - 1) > 1e-8):
            found = ", ".join(f"{share:g}" for share in shares)
            wanted = "shares that are not negative and sum to 1"
            where = "split.train, split.validation, split.test"
            raise InputError(Problem("split-fractions", where, found, wanted))


@dataclasses.dataclass(frozen=True)
class _Course:
    """What the ``evaluation`` section holds beside `EvaluateOptions`."""

    method: str = "auto"
    crossfit_below: int = 500
    folds: int = 5
    strata: tuple[str, ...] = ()
    covariates_only: bool = True

    def __post_init__(self) -> None:
        problems = []
        if self.method not in METHODS:
            wanted = f"one of {', '.join(METHODS)}"
            problems.append(Problem("bad-value", "evaluation.method", f"'{self.method}'", wanted))
        if self.folds < 2:
            problems.append(Problem("bad-value", "evaluation.folds", f"{self.folds}", "at least 2"))
        if problems:
            raise InputError(problems)


@dataclasses.dataclass(frozen=True)
class _Batches:
    """What a ``dna`` or ``brain`` section says of the work, not of the encoder."""

    batch_size: int = 1
    workers: int = 0


@dataclasses.dataclass(frozen=True)
class _Lists:
    covariates: tuple[str, ...] = ()


def refuse_bad_settings(config: DictConfig) -> None:
    """Build the option objects of every section there is.

    Raises
    ------
    InputError
        All that does not fit, of all sections.
    """
    problems: list[Problem] = []

    def collect(section: str, build: Callable[[dict[str, Any]], Any]) -> None:
        if section not in config:
            return
        try:
            build(plain(config[section]))
        except InputError as error:
            problems.extend(error.problems)

    for side in ("dna", "brain"):
        collect(side, lambda values, key=side: _chosen(_Batches, values, key))  # type: ignore[misc]
    collect("genome", lambda values: options(GenomeOptions, values, "genome"))
    collect("bold", lambda values: options(BoldOptions, values, "bold"))
    collect("align", align_options)
    collect("trainer", lambda values: options(TrainerOptions, values, "trainer"))
    collect("split", lambda values: options(SplitOptions, values, "split"))
    collect("evaluation", evaluate_options)
    collect("evaluation", lambda values: _chosen(_Course, values, "evaluation"))
    try:
        if "covariates" in config:
            options(_Lists, {"covariates": plain_list(config.covariates)}, "")
        if "resume" in config:
            flag(config.resume, "resume")
    except InputError as error:
        problems.extend(error.problems)
    if problems:
        raise InputError(problems)


def plain_list(values: Any) -> Any:
    """Return a list of the configuration as a plain one, anything else as it is."""
    from omegaconf import ListConfig

    return list(values) if isinstance(values, ListConfig) else values


def _chosen(cls: type, values: dict[str, Any], key: str) -> Any:
    """Build `cls` from those of a section's values that it knows."""
    names = [field.name for field in dataclasses.fields(cls) if field.name in values]
    return options(cls, {name: values[name] for name in names}, key)


def align_options(section: dict[str, Any]) -> AlignOptions:
    """Return the ``align`` section as options; every key's type is checked."""
    problems: list[Problem] = []

    def build(cls: type[T], values: dict[str, Any], key: str) -> T:
        try:
            return options(cls, values, key)
        except InputError as error:
            problems.extend(error.problems)
            return cls()

    towers = {
        side: build(SideOptions, section[side], f"align.{side}") for side in ("gene", "brain")
    }
    tuning = dict(section.get("fine_tune", {}))
    tuning |= {
        side: build(EncoderTuning, tuning[side], f"align.fine_tune.{side}")
        for side in ("dna", "brain")
        if side in tuning
    }
    fine_tune = build(FineTuneOptions, tuning, "align.fine_tune")
    choices = build(AlignOptions, {**section, **towers, "fine_tune": fine_tune}, "align")
    if problems:
        raise InputError(problems)
    return choices


def trainer_options(config: DictConfig) -> TrainerOptions:
    """Return the ``trainer`` section as options; the defaults where there is none."""
    return options(TrainerOptions, plain(config.get("trainer")), "trainer")


def evaluate_options(evaluation: dict[str, Any]) -> EvaluateOptions:
    """Return the options of `multimodal.evaluate` among the ``evaluation`` section's."""
    chosen: EvaluateOptions = _chosen(EvaluateOptions, evaluation, "evaluation")
    return chosen
