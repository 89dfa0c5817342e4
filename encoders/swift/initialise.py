"""Fresh weights: seeded, and equal on every machine."""

import math

import torch
from torch import Tensor, nn

# Upstream's scale of its position tables.
POSITION_STD = 0.02


def initialise(network: nn.Module, seed: int) -> None:
    """Give a newly built backbone, or one with a head, its random parameters from `seed`.

    Weights are normal with a standard deviation of one over the root of the number of inputs,
    position tables with one of 0.02, both cut at two deviations; biases are zero.

    Parameters
    ----------
    network : nn.Module
        Float32, on the CPU.
    seed : int
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                std = 1 / math.sqrt(module.in_features)
                _fill(module.weight, std, generator)
                if module.bias is not None:
                    module.bias.zero_()
        for name, parameter in network.named_parameters():
            if name.endswith(("pos_embed", "time_embed")):
                _fill(parameter, POSITION_STD, generator)


def _fill(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)
