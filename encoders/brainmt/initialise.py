"""BrainMT's first weights, drawn as upstream draws them."""

import math

import torch
from torch import Tensor, nn

from encoders.brainmt.config import BrainMTConfig
from encoders.brainmt.model import BrainMT
from encoders.mamba import Mamba, reset_mamba

WEIGHT_STD = 0.02


def make_network(config: BrainMTConfig, seed: int) -> BrainMT:
    """Build a network with upstream's random weights, leaving torch's generator as it was.

    Linear maps are normal with a standard deviation of 0.02, their biases zero (those of the time
    steps too, over mamba_ssm's own); the last map of each residual branch is drawn uniformly and
    shrunk by the root of the number of branches; convolutions are torch's.

    Parameters
    ----------
    config : BrainMTConfig
    seed : int
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = BrainMT(config)
        _reset(network)
    return network


@torch.no_grad()
def _reset(network: BrainMT) -> None:
    for module in network.modules():
        if isinstance(module, Mamba):
            reset_mamba(module)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=WEIGHT_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(network.pos_embed, std=WEIGHT_STD)
    initializer = network.config.initializer_cfg
    if initializer.rescale_prenorm_residual:
        branches = initializer.n_residuals_per_layer * sum(network.config.depth)
        for weight in _last_of_branches(network):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            weight.div_(math.sqrt(branches))


def _last_of_branches(network: BrainMT) -> list[Tensor]:
    mixers = [module for module in network.modules() if isinstance(module, Mamba)]
    return [*(mixer.out_proj.weight for mixer in mixers), network.mlp.fc2.weight]
