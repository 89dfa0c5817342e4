"""Gradient checkpointing: less memory in training, for the time of a second forward pass.

A module that runs layers one after another has the attribute ``recompute_layers``, False at first,
and calls each of them through `run_layer`. Outputs and gradients are the same either way; but
Caduceus' layers may then be run tile by tile (`encoders.caduceus.streamed_training`), which sums in
another order.

What torch holds falls as it should (a step of BrainLM 13M: from 473 to 168 MiB by torch's own
count), while the resident memory of a fresh process can rise all the same, for two reasons that lie
outside the networks. The first checkpoint of a process makes torch import its compiler, 155 MiB and
some seconds, once; any optimiser of torch does so too. And the C library keeps freed blocks below
32 MiB for later instead of giving them back (``MALLOC_MMAP_THRESHOLD_=65536`` in the environment
makes it, at little cost in time).
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
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
    if not recompute or not torch.is_grad_enabled():
        return layer(*inputs)
    outputs = checkpoint(layer, *inputs, use_reentrant=False)
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    if first.device.type == "cpu" and first.nbytes >= _LARGE and not torch.compiler.is_compiling():
        _give_back()
        if first.requires_grad:
            first.register_hook(_give_back)
    return outputs


# Bytes of a layer's output from which on asking for memory anew is no matter of time.
_LARGE = 2**22


def _give_back(_: Tensor | None = None) -> None:
    """Give freed memory back to the system, between two layers of either pass.

    What a layer frees has holes of what it keeps, and the next layer's tensors fit none of them:
    without this, a process grows by what is inside a layer with every layer.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return trim


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
