"""SwiFT's backbone, parameters under the names of upstream's ``SwinTransformer4D``.

After Kim et al., "SwiFT: Swin 4D fMRI Transformer", NeurIPS 2023, arXiv:2307.05916. Upstream's code
differs from the paper's figure in that no relative position bias is learned and that the final norm
is stored and never applied.
"""

from jaxtyping import Float
from torch import Tensor, nn

from encoders.errors import InputError, Problem
from encoders.swift.config import SwiFTConfig
from encoders.swift.layers import PatchEmbed, PositionalEmbedding, Stage


class SwiFTBackbone(nn.Module):
    """Patches, then stages of windowed attention, each on half the grid of the one before.

    Parameters
    ----------
    config : SwiFTConfig
    """

    def __init__(self, config: SwiFTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.pos_drop = nn.Dropout(config.drop_rate)
        places = zip(config.dims, config.grids, strict=True)
        self.pos_embeds = nn.ModuleList(PositionalEmbedding(dim, grid) for dim, grid in places)
        self.layers = nn.ModuleList(make_stages(config))
        # In every checkpoint, and without a part in the output.
        self.norm = nn.LayerNorm(config.feature_dim)

    def forward(
        self, volumes: Float[Tensor, "batch channel x y z frame"]
    ) -> Float[Tensor, "batch dim h w d frame"]:
        """Return upstream's last hidden state: the feature map of the last stage.

        Parameters
        ----------
        volumes : Tensor [B, C, X, Y, Z, T]
            C and X, Y, Z as ``config.in_chans`` and ``config.img_size`` say; T at most
            ``config.img_size[3]``. Any floating type: they are turned to that of the weights.

        Returns
        -------
        Tensor [B, D, X', Y', Z', T]
            Time is never merged.

        Raises
        ------
        InputError
            Volumes of another size.
        """
        check_volumes(volumes, self.config)
        hidden = self.pos_drop(self.patch_embed(volumes.to(self.patch_embed.fc.weight.dtype)))
        # Of a single stage upstream stores two and runs the first.
        for place, stage in zip(self.pos_embeds, self.layers, strict=False):
            hidden = stage(place(hidden))
        return hidden


def make_stages(config: SwiFTConfig) -> list[Stage]:
    """Build the stages: the first with windows of its own, the last over all of space if asked."""
    count = len(config.depths)
    first = Stage(config, 0, config.first_window_size, shifts=True, merges=count > 1)
    middle = [
        Stage(config, index, config.window_size, shifts=True, merges=True)
        for index in range(1, count - 1)
    ]
    full = config.last_layer_full_MSA
    # Full attention is over space: time is cut into windows all the same, never moved.
    h, w, d, _ = config.grids[-1]
    window = (h, w, d, config.window_size[3]) if full else config.window_size
    last = Stage(config, count - 1, window, shifts=not full, merges=False)
    return [first, *middle, last]


def check_volumes(volumes: Tensor, config: SwiFTConfig) -> None:
    """Refuse volumes of another size than the configuration's, or more frames.

    Raises
    ------
    InputError
        Every axis that does not fit.
    """
    if volumes.ndim != 6:
        wanted = "six: segments, channels, x, y, z, frames"
        found = f"{volumes.ndim} axes"
        raise InputError(Problem("segment-shape", "swift: volumes", found, wanted))
    _, channels, *sides, frames = volumes.shape
    x, y, z, longest = config.img_size
    wanted_sizes = {"channels": config.in_chans, "x": x, "y": y, "z": z}
    problems = [
        Problem("segment-size", f"swift: {name}", str(found), str(wanted))
        for (name, wanted), found in zip(wanted_sizes.items(), (channels, *sides), strict=True)
        if found != wanted
    ]
    if not 1 <= frames <= longest:
        where = "swift: frames"
        problems.append(Problem("segment-size", where, str(frames), f"from 1 to {longest}"))
    if problems:
        raise InputError(problems)


def pool(
    features: Float[Tensor, "batch dim h w d frame"],
) -> Float[Tensor, "batch dim"]:
    """Average a feature map over space and time, as all of upstream's heads do."""
    return features.flatten(2).mean(2)
