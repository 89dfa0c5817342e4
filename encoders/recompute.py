"""Gradient checkpointing: less memory in training, for the time of a second forward pass.

A module that runs layers one after another has the attribute ``recompute_layers``, False at first,
and calls each of them through `run_layer`. Outputs and gradients are the same either way.

What torch holds falls as it should (a step of BrainLM 13M: from 473 to 168 MiB by torch's own
count), while the resident memory of a fresh process can rise all the same, for two reasons that lie
outside the networks. The first checkpoint of a process makes torch import its compiler, 155 MiB and
some seconds, once; any optimiser of torch does so too. And the C library keeps freed blocks below
32 MiB for later instead of giving them back (``MALLOC_MMAP_THRESHOLD_=65536`` in the environment
makes it, at little cost in time).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run_layer(layer: Callable[..., Any], *inputs: Any, recompute: bool) -> Any:
    """Run a layer; with `recompute`, forget what is inside it and compute it again for gradients.

    Parameters
    ----------
    layer : callable
        A module, or a function that calls several.
    *inputs
        Its positional arguments.
    recompute : bool
        Without effect where no gradients are recorded. Dropout draws the same both times.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)


def set_gradient_checkpointing(network: nn.Module, enabled: bool = True) -> None:
    """Switch gradient checkpointing of all layers of a network on or off.

    Raises
    ------
    ValueError
        The network has no layers that can be recomputed.
    """
    stacks = [m for m in network.modules() if hasattr(m, "recompute_layers")]
    if not stacks:
        raise ValueError(f"{type(network).__name__} has no layers that can be recomputed")
    for stack in stacks:
        stack.recompute_layers = enabled  # type: ignore[assignment]
