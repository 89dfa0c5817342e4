"""Caduceus with a linear score on the pooled window: upstream's sequence classifier.

Upstream: kuleshov-group/caduceus, ``CaduceusForSequenceClassification``; its poolings "first" and
"last" fail there and work here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoders.caduceus.checkpoint import config_values, fill_network, full_names
from encoders.caduceus.config import CaduceusConfig
from encoders.caduceus.model import CaduceusNetwork, reset_network
from encoders.errors import InputError, Problem
from encoders.weights import Weights, read_weights

Pooling = Literal["mean", "max", "first", "last"]
ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]
POOLINGS = ("mean", "max", "first", "last")


@dataclass(frozen=True)
class ClassifierOptions:
    """What upstream's classifier takes beside the configuration of the network.

    Parameters
    ----------
    num_labels : int
        Scores a window: classes, or values to predict.
    pooling : {"mean", "max", "first", "last"}
        Over the length, of each strand as it reads. Padding is pooled like bases, as upstream:
        give windows of one length.
    conjoin_train, conjoin_eval : bool
        Without RC parameter sharing: whether windows come as ids [B, L, 2] of both strands, in
        training and in evaluation. Scores are then the mean over the strands.
    """

    num_labels: int = 2
    pooling: Pooling = "mean"
    conjoin_train: bool = False
    conjoin_eval: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.num_labels < 1:
            found = str(self.num_labels)
            problems.append(Problem("classifier-option", "num_labels", found, "at least 1"))
        if self.pooling not in POOLINGS:
            wanted = f"one of {', '.join(POOLINGS)}"
            problems.append(Problem("classifier-option", "pooling", repr(self.pooling), wanted))
        if problems:
            raise InputError(problems)


class CaduceusForSequenceClassification(CaduceusNetwork):
    """Scores of DNA windows, equal for both strands where both are looked at.

    That is so with RC parameter sharing, and without where `options` conjoin the strands.

    Parameters
    ----------
    config : CaduceusConfig
    options : ClassifierOptions
    """

    def __init__(self, config: CaduceusConfig, options: ClassifierOptions | None = None) -> None:
        super().__init__(config)
        self.options = ClassifierOptions() if options is None else options
        self.score = nn.Linear(config.d_model, self.options.num_labels, bias=False)
        self.reset_parameters()

    def forward(
        self,
        input_ids: Int[Tensor, "batch length *strand"] | None = None,
        *,
        inputs_embeds: Float[Tensor, "batch length width"] | None = None,
    ) -> Float[Tensor, "batch label"]:
        """Return the scores (logits) of each window.

        Parameters
        ----------
        input_ids : Tensor [B, L], or [B, L, 2] where strands are conjoined
            The second of two is the reverse complement as it reads.
        inputs_embeds : Tensor [B, L, width], optional
            What ``caduceus.embed`` gives, instead of ids; not where strands are conjoined.

        Raises
        ------
        ValueError
            Ids of another shape than the options say; neither or both inputs given.
        """
        pooled = self._pool(self._states(input_ids, inputs_embeds))
        if pooled.ndim == 2:
            scores: Tensor = self.score(pooled)
            return scores
        forward, other = pooled.unbind(-1)
        return (self.score(forward) + self.score(other)) / 2

    def _states(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None
    ) -> Float[Tensor, "batch length dim *strand"]:
        if self.config.rcps:
            forward, other = self.caduceus(input_ids, inputs_embeds=inputs_embeds).chunk(2, dim=-1)
            return torch.stack([forward, other.flip(1, 2)], dim=-1)
        conjoined = self.options.conjoin_train if self.training else self.options.conjoin_eval
        if input_ids is None and conjoined:
            raise ValueError("strands are conjoined by their ids [B, L, 2], not by embeddings")
        if input_ids is not None and (input_ids.ndim == 3) != conjoined:
            wanted = "[B, L, 2] of both strands" if conjoined else "[B, L]"
            raise ValueError(f"ids have shape {list(input_ids.shape)}; the options want {wanted}")
        states: Tensor = self.caduceus(input_ids, inputs_embeds=inputs_embeds)
        return states

    def _pool(
        self, states: Float[Tensor, "batch length dim *strand"]
    ) -> Float[Tensor, "batch dim *strand"]:
        if self.options.pooling == "mean":
            return states.mean(dim=1)
        if self.options.pooling == "max":
            return states.amax(dim=1)
        return states[:, 0] if self.options.pooling == "first" else states[:, -1]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw upstream's initial weights from torch's global generator."""
        reset_network(self.caduceus, self.config)
        nn.init.normal_(self.score.weight, std=self.config.initializer.initializer_range)


def load_classifier(
    weights: str | PathLike[str] | Weights | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    options: ClassifierOptions | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
) -> CaduceusForSequenceClassification:
    """Load a classifier in eval mode.

    Parameters
    ----------
    weights : str, path or Weights, optional
        Of upstream's classifier, masked-language model or bare network. ``score.weight`` is drawn
        from `seed` where there is none; a language-model head is not wanted. None for random
        weights throughout.
    options : ClassifierOptions, optional
    config, revision, device, dtype, seed
        As `encoders.caduceus.encoder.load_caduceus`.

    Raises
    ------
    InputError
        As `encoders.caduceus.encoder.load_caduceus`.
    """
    stored = None if weights is None else read_weights(weights, revision=revision)
    values, source = config_values(stored, config)
    parsed = CaduceusConfig.from_mapping(values, source=source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CaduceusForSequenceClassification(parsed, options)
    arithmetic: torch.dtype = getattr(torch, dtype)
    if stored is None:
        network.set_dtype(arithmetic)
    else:
        tensors = full_names(stored.tensors)
        tensors.setdefault("score.weight", network.score.weight.detach().clone())
        heads = [name for name in tensors if name.startswith("lm_head.")]
        fill_network(network, tensors, stored.id, arithmetic, unused=heads)
    return network.to(device).eval()


def classification_loss(
    logits: Float[Tensor, "batch label"],
    labels: Tensor,
    problem_type: ProblemType | None = None,
) -> Float[Tensor, ""]:
    """Return upstream's loss of a classifier's scores.

    Parameters
    ----------
    logits : Tensor [B, K]
    labels : Tensor [B] or [B, K]
        Class of each window, values to predict, or 0 and 1 for each label.
    problem_type : str, optional
        "regression" (mean squared error), "single_label_classification" (cross entropy) or
        "multi_label_classification" (binary cross entropy of each label). By default regression
        for one score, else by whether labels are whole numbers.

    Raises
    ------
    ValueError
        An unknown problem type.
    """
    problem_type = problem_type or _infer_problem(logits, labels)
    if problem_type == "regression":
        return F.mse_loss(logits, labels.reshape(logits.shape).to(logits.dtype))
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits, labels.flatten().long())
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    raise ValueError(
        f"problem_type is {problem_type!r}; it must be 'regression', 'single_label_classification' "
        "or 'multi_label_classification'"
    )


def _infer_problem(logits: Tensor, labels: Tensor) -> ProblemType:
    if logits.shape[1] == 1:
        return "regression"
    several = labels.is_floating_point()
    return "multi_label_classification" if several else "single_label_classification"
