"""How fast each layer of an encoder learns.

timm's ``param_groups_layer_decay`` asks the model for its layers (``group_matcher``, which only its
own models have; without one all is a single group), and writes shares into ``lr_scale``, which
torch's optimisers and schedules do not read. So the layers are found here, and rates are rates.
"""

from typing import Any

from torch import nn

_NEVER_DECAYED = ("A_log", "A_b_log")
"""Logarithms of a state's rates of decay: pulled towards zero, they would not shrink but speed up
(the authors of Mamba mark them so)."""


def layer_depths(network: nn.Module) -> dict[str, int]:
    """Return how deep each parameter lies: 0 before the first layer, then the layer's number.

    Layers are the members of the lists of modules that a network runs one after another (see
    `encoders.recompute`; of all its lists, where it says nothing), in the order in which they were
    made; of lists within lists, those of the innermost. What lies behind a layer and before the
    next counts as part of it.

    Parameters
    ----------
    network : nn.Module
    """
    layers = innermost_layers(network)
    depths: dict[str, int] = {}
    depth, current = 0, ""
    for name, _ in network.named_parameters():
        owner = next((layer for layer in layers if name.startswith(f"{layer}.")), "")
        if owner and owner != current:
            depth, current = depth + 1, owner
        depths[name] = depth
    return depths


def innermost_layers(network: nn.Module) -> list[str]:
    """Return the names of a network's layers, as `layer_depths` tells them, in order."""
    stacks = [name for name, m in network.named_modules() if hasattr(m, "recompute_layers")]
    lists = [
        name
        for name, m in network.named_modules()
        if isinstance(m, nn.ModuleList) and any(True for _ in m.parameters())
    ]
    inside = [name for name in lists if any(_is_below(name, stack) for stack in stacks)] or lists
    return [
        f"{name}.{number}"
        for name in inside
        if not any(_is_below(other, name) for other in inside)
        for number, _ in network.get_submodule(name).named_children()
    ]


def _is_below(name: str, above: str) -> bool:
    return above == "" or name.startswith(f"{above}.")


def encoder_groups(
    network: nn.Module,
    trained: dict[str, nn.Parameter],
    learning_rate: float,
    layer_decay: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Return an optimiser's groups of an encoder's parameters.

    Parameters
    ----------
    network : nn.Module
    trained : dict of str to Parameter
        Those of its parameters that learn, by name.
    learning_rate : float
        Of the last layer.
    layer_decay : float
        Share of the rate from each layer to the one before (Clark et al. 2020, arXiv:2003.10555).
    weight_decay : float
        Of matrices; biases, norms and states' rates are not decayed.
    """
    depths = layer_depths(network)
    deepest = max(depths.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in trained.items():
        decayed = parameter.dim() >= 2 and name.rpartition(".")[2] not in _NEVER_DECAYED
        group = groups.setdefault(
            (depths[name], decayed),
            {
                "params": [],
                "lr": learning_rate * layer_decay ** (deepest - depths[name]),
                "weight_decay": weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
