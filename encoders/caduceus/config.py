"""Caduceus' configuration: upstream's ``config.json`` read strictly."""

from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from encoders.bookkeeping import is_bookkeeping
from encoders.caduceus.tokenizer import COMPLEMENT, VOCABULARY
from encoders.errors import InputError, Problem
from encoders.mamba import InitializerConfig, SsmConfig

# What upstream's classes for other tasks write beside the architecture.
_OTHER_TASKS = frozenset(("conjoin_eval", "conjoin_test", "conjoin_train"))


@dataclass(frozen=True)
class CaduceusConfig:
    """Architecture of a Caduceus network; defaults of the options are upstream's.

    Parameters
    ----------
    d_model : int
        Width of the hidden state (of each half, with RC parameter sharing).
    n_layer : int
        Number of blocks.
    vocab_size : int
        Rows of the embedding, already rounded up to `pad_vocab_size_multiple`.
    complement_map : tuple of int
        Token id of each token's complement, one for each row of the embedding.
    rcps : bool
        RC parameter sharing (Caduceus-PS); without, Caduceus-Ph.
    bidirectional, bidirectional_strategy, bidirectional_weight_tie
        A second Mamba reads right to left; "add" or "ew_multiply" joins the two; tied, they share
        their outer projections.
    fused_add_norm : bool
        Upstream's fused kernel. With `rcps` it is another function of the same weights: every
        block swaps the two halves first.
    rms_norm, norm_epsilon
        RMSNorm or LayerNorm.
    residual_in_fp32 : bool
        Keep the residual in float32; matters in reduced precision only, and not where windows are
        streamed (`encoders.caduceus.streamed`), which always do.
    tie_word_embeddings : bool
        Whether the language-model head is the embedding matrix (always so with `rcps`).
    ssm, initializer
        Upstream's ``ssm_cfg`` and ``initializer_cfg``.
    """

    d_model: int
    n_layer: int
    vocab_size: int
    complement_map: tuple[int, ...]
    rcps: bool = False
    bidirectional: bool = True
    bidirectional_strategy: Literal["add", "ew_multiply"] = "add"
    bidirectional_weight_tie: bool = True
    fused_add_norm: bool = True
    rms_norm: bool = True
    norm_epsilon: float = 1e-5
    residual_in_fp32: bool = True
    pad_vocab_size_multiple: int = 8
    tie_word_embeddings: bool = True
    ssm: SsmConfig = field(default_factory=SsmConfig)
    initializer: InitializerConfig = field(default_factory=InitializerConfig)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, source: str = "config") -> "CaduceusConfig":
        """Read upstream's constructor arguments, as ``config.json`` holds them.

        Parameters
        ----------
        values : mapping
            At least ``d_model`` and ``n_layer``; the vocabulary defaults to the tokenizer's.
        source : str
            Name of the file for error messages.

        Raises
        ------
        InputError
            Lists all keys that are unknown, missing, or have values this network cannot have.
        """
        problems: list[Problem] = []
        options = {
            k: v for k, v in values.items() if k not in _OTHER_TASKS and not is_bookkeeping(k)
        }
        if options.get("bidirectional_strategy", "") is None:
            # As upstream: null stands for its default, and is not looked at in one direction.
            del options["bidirectional_strategy"]
        ssm = _nested(SsmConfig, options.pop("ssm_cfg", None), f"{source}: ssm_cfg", problems)
        initializer = _nested(
            InitializerConfig,
            options.pop("initializer_cfg", None),
            f"{source}: initializer_cfg",
            problems,
        )
        vocabulary = _vocabulary(options, source, problems)
        known = {f.name for f in fields(cls)} - {"ssm", "initializer"}
        arguments = _checked(options, known, source, problems)
        problems += [
            Problem("config-missing", f"{source}: {name}", "not given", "a positive whole number")
            for name in ("d_model", "n_layer")
            if name not in options
        ]
        if problems:
            raise InputError(problems)
        arguments |= vocabulary
        return cls(**arguments, ssm=ssm, initializer=initializer)

    def as_upstream(self) -> dict[str, Any]:
        """Return the arguments under upstream's names, JSON-ready."""
        values = asdict(self)
        values["ssm_cfg"] = values.pop("ssm")
        values["initializer_cfg"] = values.pop("initializer")
        values["complement_map"] = {str(i): c for i, c in enumerate(self.complement_map)}
        return values


def _nested(kind: type, values: object, where: str, problems: list[Problem]) -> Any:
    if values is None:
        return kind()
    if not isinstance(values, Mapping):
        problems.append(Problem("config-value", where, repr(values), "a mapping"))
        return kind()
    known = {f.name for f in fields(kind)}
    return kind(**_checked(dict(values), known, where, problems))


def _checked(
    options: Mapping[str, Any], known: Set[str], where: str, problems: list[Problem]
) -> dict[str, Any]:
    """Return the known options with good values; note the others as problems."""
    good = {}
    for name, value in options.items():
        if name not in known:
            wanted = f"one of {', '.join(sorted(known))}"
            problems.append(Problem("config-unknown", f"{where}: {name}", f"{value!r}", wanted))
        elif wanted := _unfit(name, value):
            problems.append(Problem("config-value", f"{where}: {name}", f"{value!r}", wanted))
        else:
            good[name] = value
    return good


_CHOICES: dict[str, tuple[str, ...]] = {
    "bidirectional_strategy": ("add", "ew_multiply"),
    "dt_init": ("random", "constant"),
}
_TYPES = {
    f.name: f.type for kind in (CaduceusConfig, SsmConfig, InitializerConfig) for f in fields(kind)
}


def _unfit(name: str, value: object) -> str:
    """Say what the option wants if `value` is not it; an empty string if it is."""
    if name == "complement_map" or (name == "dt_rank" and value == "auto"):
        return ""
    if _TYPES[name] is bool:
        return "" if isinstance(value, bool) else "true or false"
    if name in _CHOICES:
        return "" if value in _CHOICES[name] else f"one of {', '.join(_CHOICES[name])}"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if _TYPES[name] is int or name == "dt_rank":
        return "" if isinstance(value, int) and number and value > 0 else "a positive whole number"
    return "" if number and value > 0 else "a positive number"  # type: ignore[operator]


def _vocabulary(options: dict[str, Any], source: str, problems: list[Problem]) -> dict[str, Any]:
    """Take size and complement map out of the options; round up and fill up as upstream does."""
    size = options.pop("vocab_size", len(VOCABULARY))
    multiple = options.get("pad_vocab_size_multiple", 8)
    if unfit := (_unfit("vocab_size", size) or _unfit("vocab_size", multiple)):
        problems.append(Problem("config-value", f"{source}: vocab_size", f"{size!r}", unfit))
        return {}
    padded = -(-size // multiple) * multiple
    if padded < len(VOCABULARY):
        wanted = f"at least {len(VOCABULARY)}, the tokenizer's"
        problems.append(Problem("config-value", f"{source}: vocab_size", f"{size!r}", wanted))
        return {}
    given = options.pop("complement_map", None)
    table = _complement_table(COMPLEMENT if given is None else given, padded)
    if table is None:
        wanted = "token id -> complement's id, each the other's complement, ids below vocab_size"
        problems.append(Problem("config-value", f"{source}: complement_map", f"{given!r}", wanted))
        return {}
    return {"vocab_size": padded, "complement_map": table}


def _complement_table(given: object, size: int) -> tuple[int, ...] | None:
    """Order the map by key (upstream takes file order, which saving changes); None if unfit."""
    if not isinstance(given, Mapping):
        return None
    try:
        table = {int(key): int(value) for key, value in given.items()}
    except (TypeError, ValueError):
        return None
    full = [table.get(token, token) for token in range(size)]
    if not all(0 <= token < size for token in (*table, *full)):
        return None
    return tuple(full) if all(full[full[token]] == token for token in range(size)) else None
