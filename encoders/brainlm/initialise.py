"""Fresh weights: seeded, equal on every machine, and not degenerate at any width.

Upstream's own scheme (normal, standard deviation 0.02) is meant as the start of a long training;
in a narrow network used untrained it lets almost nothing of the input through to the CLS token.
"""

import math

import torch
from torch import Tensor, nn

# Parcel coordinates reach about 70 mm; this brings them near one.
TYPICAL_COORDINATE_MM = 50.0
# Pixels are robust-scaled values over 5.6 (see encoders.brainlm.encoder): about this large.
TYPICAL_PIXEL = 0.15
TOKEN_STD = 0.02


def initialise(network: nn.Module, seed: int) -> None:
    """Give a newly built backbone or autoencoder its random parameters, from `seed`.

    Weights are normal with a standard deviation of one over the root of the number of inputs and
    over their typical size, cut at two deviations; biases are zero, position codes of the image
    sine and cosine.

    Parameters
    ----------
    network : nn.Module
        Float32, on the CPU.
    seed : int
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                _fill(module, _typical_input(name), generator)
        for name, parameter in network.named_parameters():
            if name.endswith(("cls_token", "mask_token")):
                parameter.normal_(std=TOKEN_STD, generator=generator)
            elif name.endswith(("position_embeddings", "decoder_pos_embed")):
                parameter.copy_(make_grid_code(parameter.shape[1] - 1, parameter.shape[2]))


def _typical_input(name: str) -> float:
    if "xyz" in name:
        return TYPICAL_COORDINATE_MM
    return TYPICAL_PIXEL if "patch_embeddings" in name else 1.0


def make_grid_code(tokens: int, hidden_size: int) -> Tensor:
    """Return upstream's 2D sine/cosine code [1, 1 + tokens, hidden_size]; zero for the CLS token.

    The first half of the dimensions codes the column, the second half the row; in each, sines
    come before cosines.
    """
    grid = math.isqrt(tokens)
    steps = torch.arange(grid, dtype=torch.float64)
    quarter = hidden_size // 4
    omega = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = steps[:, None] * omega
    line = torch.cat([angle.sin(), angle.cos()], dim=1)
    columns = line.expand(grid, grid, -1)
    rows = line[:, None].expand(grid, grid, -1)
    code = torch.cat([columns, rows], dim=2).flatten(0, 1)
    return torch.cat([torch.zeros(1, hidden_size, dtype=code.dtype), code])[None]


def _fill(module: nn.Linear | nn.Conv2d, scale: float, generator: torch.Generator) -> None:
    std = 1 / (scale * math.sqrt(module.weight[0].numel()))
    nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
    if module.bias is not None:
        module.bias.zero_()
