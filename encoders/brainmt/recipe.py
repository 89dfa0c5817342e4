"""How upstream trains BrainMT: optimiser groups, learning rates, split and losses.

Two things are not what upstream's configuration suggests, and both are offered here as they run
and as they read:

- its rules for layer-wise rates and for tensors without weight decay go by names, but the model is
  wrapped first, which puts ``module.`` before every name, so that neither rule ever matches;
- its schedule is laid out in batches and stepped once an epoch, so that the learning rate stays
  close to its minimum.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import TensorDataset, random_split

from encoders.brainmt.model import BrainMT

LEARNING_RATE = 2e-4
MINIMUM_LEARNING_RATE = 1e-6
WEIGHT_DECAY = 0.05
LAYER_DECAY = 0.75
WARMUP_EPOCHS = 5
CYCLE_EPOCHS = 35
ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-6
_EMBEDDINGS = ("pos_embed", "cls_token", "temporal_pos_embedding")


def parameter_groups(
    network: BrainMT,
    *,
    by_layer: bool = False,
    weight_decay: float = WEIGHT_DECAY,
    layer_decay: float = LAYER_DECAY,
) -> list[dict[str, Any]]:
    """Sort the parameters into groups for an optimiser.

    Parameters
    ----------
    network : BrainMT
    by_layer : bool
        False gives the groups that upstream trains with: everything of two and more dimensions
        decays, the rest does not. True applies its rules for names as they read: embeddings do
        not decay either, and the stem's first part and the attention blocks get an ``lr_scale``.
        Upstream's schedule never multiplies by that.
    weight_decay : float
        Of the groups that decay.
    layer_decay : float
        ``lr_scale`` of a layer over that of the next.

    Returns
    -------
    list of dict
        ``params``, their ``names``, ``weight_decay`` and ``lr_scale``, in the order in which the
        network's parameters first ask for them.
    """
    last = sum(network.config.depth) + 1
    groups: dict[tuple[bool, int], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not (by_layer and name in _EMBEDDINGS)
        layer = _layer_of(name, last) if by_layer else last
        group = groups.setdefault(
            (decays, layer),
            {
                "params": [],
                "names": [],
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": layer_decay ** (last - layer),
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _layer_of(name: str, last: int) -> int:
    """Number the layers as upstream does: by rules for vision transformers, Mamba layers last."""
    first, *rest = name.split(".")
    if first in ("cls_token", "pos_embed", "patch_embed"):
        return 0
    return int(rest[0]) + 1 if first == "blocks" else last


def learning_rate(
    step: int,
    *,
    warmup_steps: int,
    cycle_steps: int,
    cycle_mult: float = 1.0,
    gamma: float = 1.0,
    maximum: float = LEARNING_RATE,
    minimum: float = MINIMUM_LEARNING_RATE,
) -> float:
    """Return the rate after `step` steps: linear warm-up, then a cosine down, and again.

    Parameters
    ----------
    step : int
        From 0.
    warmup_steps : int
        Of each cycle, below `cycle_steps`.
    cycle_steps : int
        Of the first cycle, its warm-up among them.
    cycle_mult : float
        Length of a cycle after its warm-up, over that of the cycle before.
    gamma : float
        Highest rate of a cycle over that of the cycle before.
    maximum, minimum : float
        Of the first cycle.
    """
    while step >= cycle_steps:
        step -= cycle_steps
        cycle_steps = int((cycle_steps - warmup_steps) * cycle_mult) + warmup_steps
        maximum *= gamma
    if step < warmup_steps:
        return minimum + (maximum - minimum) * step / warmup_steps
    done = (step - warmup_steps) / (cycle_steps - warmup_steps)
    return minimum + (maximum - minimum) * (1 + math.cos(math.pi * done)) / 2


def make_optimiser(
    network: BrainMT, *, batches_per_epoch: int, by_layer: bool = False
) -> tuple[AdamW, LambdaLR]:
    """Make upstream's optimiser and its schedule.

    Parameters
    ----------
    network : BrainMT
    batches_per_epoch : int
        Lays the schedule out. Step it once an epoch to train as upstream does, or once a batch to
        train as its configuration reads.
    by_layer : bool
        See `parameter_groups`.
    """
    groups = [
        {key: value for key, value in group.items() if key != "names"}
        for group in parameter_groups(network, by_layer=by_layer)
    ]
    optimiser = AdamW(groups, lr=LEARNING_RATE, betas=ADAM_BETAS, eps=ADAM_EPSILON)

    def share(step: int) -> float:
        rate = learning_rate(
            step,
            warmup_steps=WARMUP_EPOCHS * batches_per_epoch,
            cycle_steps=CYCLE_EPOCHS * batches_per_epoch,
        )
        return rate / LEARNING_RATE

    return optimiser, LambdaLR(optimiser, share)


class Split(NamedTuple):
    """Rows of the subjects of each part, in the order upstream's loaders see them."""

    train: list[int]
    validation: list[int]
    test: list[int]


def split_subjects(subjects: int, seed: int = 0) -> Split:
    """Split subjects at random into 70%, 15% and the rest.

    Relatives may come to lie in different parts; `multimodal.cohort.splits` keeps them together.

    Parameters
    ----------
    subjects : int
        How many there are.
    seed : int
    """
    train, validation = int(0.7 * subjects), int(0.15 * subjects)
    sizes = [train, validation, subjects - train - validation]
    generator = torch.Generator().manual_seed(seed)
    rows = TensorDataset(torch.arange(subjects))
    parts = random_split(rows, sizes, generator=generator)
    return Split(*(list(part.indices) for part in parts))


def task_loss(
    prediction: Float[Tensor, "batch one"],
    target: Float[Tensor, " batch"],
    task: Literal["regression", "classification"],
) -> Float[Tensor, ""]:
    """Return upstream's loss of a head with one output.

    Parameters
    ----------
    prediction : Tensor [B, 1]
        As `BrainMT.predict` gives it.
    target : Tensor [B]
        The trait, normalised; or 0 and 1.
    task : {"regression", "classification"}
        Mean squared error, or binary cross entropy of logits.
    """
    given = prediction.squeeze(1)
    wanted = target.to(given.dtype)
    if task == "regression":
        return F.mse_loss(given, wanted)
    return F.binary_cross_entropy_with_logits(given, wanted)
