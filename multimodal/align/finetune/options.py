"""What fine-tuning can be told: which encoders, how, how fast. Imports neither torch nor peft."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from encoders.errors import Problem

SIDES = ("dna", "brain")
_LORA_ONLY = ("rank", "alpha", "targets")


@dataclass(frozen=True)
class EncoderTuning:
    """How one side's encoder is fine-tuned.

    Parameters
    ----------
    method : {"lora", "full"}
        ``lora`` leaves the encoder as it is and learns a low-rank change of its linear layers (Hu
        et al. 2021, arXiv:2106.09685). ``full`` learns all that reaches its features.
    learning_rate : float
        Of the encoder; the towers' is ``align.learning_rate``.
    layer_decay : float
        Each layer learns at this share of the next one's rate, the last at the full one.
    frozen_epochs : int
        Epochs at the start in which only the towers learn, on stored features.
    rank : int
        Of the change, for ``lora``.
    alpha : int
        The change counts alpha / rank times, for ``lora``.
    targets : tuple of str
        Ends of the names of the linear layers that are changed, such as ``in_proj``, for ``lora``;
        empty for all.
    """

    method: Literal["lora", "full"] = "lora"
    learning_rate: float = 1e-4
    layer_decay: float = 1.0
    frozen_epochs: int = 0
    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class FineTuneOptions:
    """Fine-tuning of the encoders inside the training step; without sides they stay frozen.

    Parameters
    ----------
    sides : tuple of str
        Which encoders are fine-tuned: some of "dna", "brain".
    dna, brain : EncoderTuning
    gradient_checkpointing : bool
        Compute each layer a second time instead of keeping what is inside it.
    bf16 : bool
        Run the encoders' training steps in bfloat16 where that is safe (autocast).
    """

    sides: tuple[str, ...] = ()
    dna: EncoderTuning = field(default_factory=EncoderTuning)
    brain: EncoderTuning = field(default_factory=EncoderTuning)
    gradient_checkpointing: bool = False
    bf16: bool = False

    def of(self, side: str) -> EncoderTuning:
        """Return the settings of one side's encoder."""
        tuning: EncoderTuning = getattr(self, side)
        return tuning

    def last_start(self) -> int:
        """Return the epochs after which every encoder learns that is to."""
        return max((self.of(side).frozen_epochs for side in self.sides), default=0)

    def shaping(self) -> dict[str, Any]:
        """Return, of `as_dict`, what shapes weights: nothing that is said of frozen sides."""
        if not self.sides:
            return {}
        frozen = [side for side in SIDES if side not in self.sides]
        return {name: value for name, value in self.as_dict().items() if name not in frozen}

    def as_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON-ready values."""
        values = asdict(self)
        values["sides"] = list(self.sides)
        for side in SIDES:
            values[side]["targets"] = list(self.of(side).targets)
        return values


def fine_tune_from(values: Mapping[str, Any]) -> tuple[FineTuneOptions, list[Problem]]:
    """Make options from a nested, possibly partial mapping.

    Returns
    -------
    FineTuneOptions
        The defaults where there are problems.
    list of Problem
        Keys that there are not.
    """
    problems = _unknown_keys(values, FineTuneOptions, "align.fine_tune")
    given = {side: dict(values.get(side, {})) for side in SIDES}
    for side in SIDES:
        problems += _unknown_keys(given[side], EncoderTuning, f"align.fine_tune.{side}")
    if problems:
        return FineTuneOptions(), problems
    tunings = {
        side: EncoderTuning(**{**own, "targets": tuple(own.get("targets", ()))})
        for side, own in given.items()
    }
    rest = {name: value for name, value in values.items() if name not in SIDES}
    return FineTuneOptions(**{**rest, **tunings, "sides": tuple(rest.get("sides", ()))}), []


def find_fine_tune_problems(options: FineTuneOptions, epochs: int) -> list[Problem]:
    """Find values out of range, and settings that the method does not look at.

    What is said of sides that stay frozen is passed over: an experiment sweeps over sides.

    Parameters
    ----------
    options : FineTuneOptions
    epochs : int
        Of the whole training.
    """
    where = "align.fine_tune"
    unknown = [side for side in options.sides if side not in SIDES]
    if unknown or len(set(options.sides)) < len(options.sides):
        found = f"[{', '.join(map(str, options.sides))}]"
        wanted = "[], [dna], [brain] or [dna, brain]"
        return [Problem("bad-option", f"{where}.sides", found, wanted)]
    problems = []
    if options.sides and not epochs:
        found, wanted = "0, with encoders to fine-tune", "at least 1"
        fix = f"leave {where}.sides empty to keep encoders frozen"
        problems.append(Problem("bad-option", "align.epochs", found, wanted, fix))
    for name in ("gradient_checkpointing", "bf16"):
        if not isinstance(getattr(options, name), bool):
            found = repr(getattr(options, name))
            problems.append(Problem("bad-option", f"{where}.{name}", found, "true or false"))
    for side in options.sides:
        problems += _tuning_problems(options.of(side), f"{where}.{side}", epochs)
    return problems


def _tuning_problems(tuning: EncoderTuning, where: str, epochs: int) -> list[Problem]:
    checks: list[tuple[str, Callable[[Any], bool], str]] = [
        ("method", lambda v: v in ("lora", "full"), "lora or full"),
        ("learning_rate", lambda v: v > 0, "more than 0"),
        ("layer_decay", lambda v: 0 < v <= 1, "more than 0, at most 1"),
        (
            "frozen_epochs",
            lambda v: isinstance(v, int) and 0 <= v < max(epochs, 1),
            f"a whole number from 0 to less than align.epochs={epochs}",
        ),
        ("rank", lambda v: isinstance(v, int) and v >= 1, "a whole number from 1"),
        ("alpha", lambda v: isinstance(v, int) and v >= 1, "a whole number from 1"),
        ("targets", lambda v: all(isinstance(name, str) and name for name in v), "names"),
    ]
    problems = [
        Problem("bad-option", f"{where}.{name}", repr(getattr(tuning, name)), wanted)
        for name, good, wanted in checks
        if not _fits(good, getattr(tuning, name))
    ]
    if tuning.method == "full":
        default = EncoderTuning()
        problems += [
            Problem(
                "option-of-another-method",
                f"{where}.{name}",
                f"{getattr(tuning, name)!r}, which method=full does not look at",
                f"method=lora with it, or {getattr(default, name)!r} as it was",
            )
            for name in _LORA_ONLY
            if getattr(tuning, name) != getattr(default, name)
        ]
    return problems


def _fits(good: Callable[[Any], bool], value: Any) -> bool:
    try:
        return good(value)
    except TypeError:
        return False


def _names(cls: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cls))


def _unknown_keys(values: Mapping[str, Any], cls: type, where: str) -> list[Problem]:
    return [
        Problem("unknown-key", f"{where}.{key}", "unknown key", "one of " + ", ".join(_names(cls)))
        for key in values
        if key not in _names(cls)
    ]
