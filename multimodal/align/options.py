"""Everything that training the towers can be told. Imports neither torch nor lightning."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from encoders.errors import InputError, Problem
from multimodal.align.finetune.options import (
    FineTuneOptions,
    find_fine_tune_problems,
    fine_tune_from,
)

Check = tuple[str, Callable[[Any], bool], str]

LossName = Literal[
    "info_nce", "siglip", "debiased", "soft_target", "nt_xent", "vicreg", "barlow_twins"
]
LOSSES: tuple[str, ...] = get_args(LossName)


def _one_of(*names: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in names, " or ".join(names)


def _positive(value: Any) -> bool:
    return value > 0


def _not_negative(value: Any) -> bool:
    return value >= 0


def _names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _count_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, int) and value >= 1)


@dataclass(frozen=True)
class SideOptions:
    """One tower, gene or brain.

    Parameters
    ----------
    scale : {"window", "dimension", "none"}
        What is brought to unit variance before the PCA. ``dimension`` amplifies rare variants.
    components : int or None
        Most principal components kept, fitted on training subjects; None for no PCA.
    explained_variance : float
        Keep no more components than explain this share of the variance.
    whitening_shrinkage : float
        0 gives components equal variance, 1 leaves their relative variance as it is.
    head : {"mlp", "linear"}
    dropout : float
    """

    scale: Literal["window", "dimension", "none"] = "window"
    components: int | None = 32
    explained_variance: float = 1.0
    whitening_shrinkage: float = 0.5
    head: Literal["mlp", "linear"] = "mlp"
    dropout: float = 0.5


@dataclass(frozen=True)
class AlignOptions:
    """Hyper-parameters of the towers and their training; defaults suit cohorts of hundreds.

    Parameters
    ----------
    gene, brain : SideOptions
        The two towers.
    strand_merge : {"sum_absdiff", "mean", "sum", "max", "concat"}
        How the strands of a DNA feature come together; all but ``concat`` are RC-invariant.
    region_pooling : {"concat", "mean", "attention"}
    attention_heads : int
        Queries of attention pooling.
    segment_weighting : {"motion", "mean"}
        Segments and runs weighted by framewise displacement, or alike.
    hidden_dim, latent_dim : int
        Widths of the heads.
    residualise : bool
        Regress the covariates out of both sides, by coefficients fitted on training subjects.
    start : {"cca", "random"}
        Heads start from a regularised canonical correlation analysis of the training subjects, or
        from random weights.
    cca_ridge : float
        Ridge of that analysis, as a share of each side's mean variance.
    epochs : int
        Most epochs; with no validation subjects, all of them are run.
    patience : int or None
        Stop after so many epochs without a lower validation loss; None to never stop early.
    batch_size : int or None
        Subjects a step; None for all training subjects at once.
    batch_strata : tuple of str
        Columns of participants.tsv: each batch is drawn from people who agree in all of them, so
        that what they differ in cannot solve the task. Empty: from everybody.
    adversary : tuple of str
        Columns that an adversary reads from the latents, which unlearn them. Empty: none.
    adversary_weight : float
        Of the adversary's loss, beside 1 for the alignment's; 0 for no adversary.
    adversary_learning_rate : float
        AdamW's for the adversary's own weights: it has to follow the latents, so larger.
    learning_rate, weight_decay : float
        AdamW's; biases, norms and the temperature are not decayed.
    schedule : {"cosine", "constant"}
    warmup_epochs : int
    gradient_clip : float or None
        Largest gradient norm.
    accumulate : int
        Parts in which a step's batch goes through the towers, one in memory at a time.
    accumulation : {"cached", "plain"}
        How parts become one update. ``cached``: one loss of all latents, as if the batch were
        whole (`multimodal.align.gradient_cache`). ``plain``: the mean of each part's own loss,
        which is another update: rows have their own part's rows as negatives only.
    loss : str
        One of `LOSSES`; `multimodal.align.losses` says what each is.
    temperature : float
        Where the learned softmax temperature starts.
    max_logit_scale : float
        Largest 1 / temperature.
    bias : float
        Where the learned bias of ``siglip`` starts.
    positive_share : float
        Chance that an unrelated candidate is as good a match, for ``debiased``.
    kinship_weight : float
        Share of a relative in the target, times twice the kinship, for ``soft_target``.
    invariance_weight, variance_weight, covariance_weight : float
        Of the terms of ``vicreg``.
    redundancy_weight : float
        Of correlations between dimensions in ``barlow_twins``.
    chunk_rows : int or None
        Larger batches hold so many rows of similarities at a time, and never all; None holds all.
    augment_segments : bool
        Train on one random subset of each subject's segments an epoch instead of all.
    fine_tune : FineTuneOptions
        Encoders that are trained inside the step; by default they stay frozen.
    checkpoint_every : int
        Epochs between checkpoints, where a fit has a folder.
    accelerator : {"cpu", "gpu", "auto"}
        Where the towers train. Bit-for-bit resumption is promised on one CPU process only.
    seed : int
    """

    gene: SideOptions = field(default_factory=SideOptions)
    brain: SideOptions = field(default_factory=SideOptions)
    strand_merge: Literal["sum_absdiff", "mean", "sum", "max", "concat"] = "mean"
    region_pooling: Literal["concat", "mean", "attention"] = "concat"
    attention_heads: int = 4
    segment_weighting: Literal["motion", "mean"] = "motion"
    hidden_dim: int = 1024
    latent_dim: int = 512
    residualise: bool = False
    start: Literal["cca", "random"] = "cca"
    cca_ridge: float = 0.1
    epochs: int = 60
    patience: int | None = 20
    batch_size: int | None = None
    batch_strata: tuple[str, ...] = ()
    adversary: tuple[str, ...] = ()
    adversary_weight: float = 0.1
    adversary_learning_rate: float = 1e-3
    learning_rate: float = 3e-5
    weight_decay: float = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: int = 5
    gradient_clip: float | None = 1.0
    accumulate: int = 1
    accumulation: Literal["cached", "plain"] = "cached"
    loss: LossName = "info_nce"
    temperature: float = 0.2
    max_logit_scale: float = 100.0
    bias: float = -10.0
    positive_share: float = 0.05
    kinship_weight: float = 0.5
    invariance_weight: float = 25.0
    variance_weight: float = 25.0
    covariance_weight: float = 1.0
    redundancy_weight: float = 0.005
    chunk_rows: int | None = 2048
    augment_segments: bool = False
    fine_tune: FineTuneOptions = field(default_factory=FineTuneOptions)
    checkpoint_every: int = 1
    accelerator: Literal["cpu", "gpu", "auto"] = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        problems = _find_problems(self, "align", _ALIGN_CHECKS)
        for name in _NAMES:
            if isinstance(getattr(self, name), list):  # as JSON has them
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for side in ("gene", "brain"):
            problems += _find_problems(getattr(self, side), f"align.{side}", _SIDE_CHECKS)
        problems += _loss_problems(self)
        problems += find_fine_tune_problems(self.fine_tune, self.epochs)
        if problems:
            raise InputError(problems)

    def as_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON-ready values."""
        lists = {name: list(getattr(self, name)) for name in _NAMES}
        return {**asdict(self), **lists, "fine_tune": self.fine_tune.as_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AlignOptions":
        """Make options from a (nested, possibly partial) mapping.

        Raises
        ------
        InputError
            A key is unknown or a value out of range; all of them are listed.
        """
        problems = _unknown_keys(values, cls, "align")
        sides: dict[str, SideOptions] = {}
        for side in ("gene", "brain"):
            given = dict(values.get(side, {}))
            problems += _unknown_keys(given, SideOptions, f"align.{side}")
            if not problems:
                sides[side] = SideOptions(**given)
        fine_tune, unknown = fine_tune_from(values.get("fine_tune", {}))
        problems += unknown
        if problems:
            raise InputError(problems)
        return cls(**{**values, **sides, "fine_tune": fine_tune})

    def fingerprint(self) -> str:
        """Digest of all that shapes the trained weights; not of how often they are saved."""
        beside = ("checkpoint_every", "fine_tune")
        shaping = {k: v for k, v in self.as_dict().items() if k not in beside}
        if tuning := self.fine_tune.shaping():
            shaping["fine_tune"] = tuning
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:32]


_NAMES = ("batch_strata", "adversary")

_OPTIONS_OF_A_LOSS = {
    "bias": "siglip",
    "positive_share": "debiased",
    "kinship_weight": "soft_target",
    "invariance_weight": "vicreg",
    "variance_weight": "vicreg",
    "covariance_weight": "vicreg",
    "redundancy_weight": "barlow_twins",
}

_SIDE_CHECKS: list[Check] = [
    ("scale", *_one_of("window", "dimension", "none")),
    ("components", _count_or_none, "a whole number from 1, or null"),
    ("explained_variance", lambda v: 0 < v <= 1, "more than 0, at most 1"),
    ("whitening_shrinkage", lambda v: 0 <= v <= 1, "from 0 to 1"),
    ("head", *_one_of("mlp", "linear")),
    ("dropout", lambda v: 0 <= v < 1, "at least 0, less than 1"),
]

_ALIGN_CHECKS: list[Check] = [
    ("strand_merge", *_one_of("sum_absdiff", "mean", "sum", "max", "concat")),
    ("region_pooling", *_one_of("concat", "mean", "attention")),
    ("attention_heads", lambda v: v >= 1, "at least 1"),
    ("segment_weighting", *_one_of("motion", "mean")),
    ("hidden_dim", lambda v: v >= 1, "at least 1"),
    ("latent_dim", lambda v: v >= 2, "at least 2"),
    ("start", *_one_of("cca", "random")),
    ("cca_ridge", _positive, "more than 0"),
    ("epochs", _not_negative, "at least 0"),
    ("patience", _count_or_none, "a whole number from 1, or null"),
    ("batch_size", lambda v: v is None or v >= 2, "at least 2, or null for all subjects at once"),
    ("batch_strata", _names, "a list of columns"),
    ("adversary", _names, "a list of columns"),
    ("adversary_weight", _not_negative, "at least 0"),
    ("adversary_learning_rate", _positive, "more than 0"),
    ("learning_rate", _positive, "more than 0"),
    ("weight_decay", _not_negative, "at least 0"),
    ("schedule", *_one_of("cosine", "constant")),
    ("warmup_epochs", _not_negative, "at least 0"),
    ("gradient_clip", lambda v: v is None or v > 0, "more than 0, or null"),
    ("accumulate", lambda v: isinstance(v, int) and v >= 1, "a whole number from 1"),
    ("accumulation", *_one_of("cached", "plain")),
    ("loss", *_one_of(*LOSSES)),
    ("temperature", _positive, "more than 0"),
    ("max_logit_scale", lambda v: v >= 1, "at least 1"),
    ("bias", lambda v: abs(v) < float("inf"), "a finite number"),
    ("positive_share", lambda v: 0 <= v < 1, "at least 0, less than 1"),
    ("kinship_weight", lambda v: 0 < v <= 1, "more than 0, at most 1"),
    ("invariance_weight", _not_negative, "at least 0"),
    ("variance_weight", _not_negative, "at least 0"),
    ("covariance_weight", _not_negative, "at least 0"),
    ("redundancy_weight", _not_negative, "at least 0"),
    ("chunk_rows", _count_or_none, "a whole number from 1, or null"),
    ("checkpoint_every", lambda v: v >= 1, "at least 1"),
    ("accelerator", *_one_of("cpu", "gpu", "auto")),
    ("seed", _not_negative, "at least 0"),
]


def _find_problems(options: Any, where: str, checks: list[Check]) -> list[Problem]:
    problems = []
    for name, good, wanted in checks:
        value = getattr(options, name)
        try:
            fine = good(value)
        except TypeError:
            fine = False
        if not fine:
            problems.append(Problem("bad-option", f"{where}.{name}", repr(value), wanted))
    return problems


def _loss_problems(options: AlignOptions) -> list[Problem]:
    """Settings that the chosen loss does not look at: whoever changed them expects an effect."""
    default = {f.name: f.default for f in fields(options)}
    return [
        Problem(
            "option-of-another-loss",
            f"align.{name}",
            f"{getattr(options, name)!r}, which loss={options.loss} does not look at",
            f"loss={loss} with it, or {default[name]!r} as it was",
        )
        for name, loss in _OPTIONS_OF_A_LOSS.items()
        if options.loss in LOSSES
        and options.loss != loss
        and getattr(options, name) != default[name]
    ]


def _unknown_keys(values: Mapping[str, Any], cls: type, where: str) -> list[Problem]:
    known = [f.name for f in fields(cls)]
    return [
        Problem("unknown-key", f"{where}.{key}", "unknown key", "one of " + ", ".join(known))
        for key in values
        if key not in known
    ]
