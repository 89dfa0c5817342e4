"""BrainMT itself, its parameters named as upstream names them.

Kannan et al. 2025, BrainMT: A Hybrid Mamba-Transformer Architecture for Modeling Long-Range
Dependencies in Functional MRI Data, arXiv 2506.22591; upstream: arunkumar-kannan/BrainMT-fMRI.
"""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from encoders.brainmt.config import BrainMTConfig, token_grid
from encoders.brainmt.layers import (
    Attention,
    ConvBlock,
    Downsample,
    DropPath,
    MambaLayer,
    Mlp,
    PatchEmbed,
    make_add_norm,
    make_norm,
)
from encoders.recompute import run_layer

# Voxels that go through the stem at once: it widens a frame many times over, and frames do not see
# each other there. On a CPU one frame of the published size, because nine at once leave its caches
# (a quarter more time for each) and hold nine times the memory; an accelerator wants more at once.
_STEM_VOXELS = 2**20
_STEM_VOXELS_ACCELERATOR = 2**23


class BrainMT(nn.Module):
    """Stem, Mamba layers, attention blocks and head.

    Axes of a volume are in upstream's order: the file's second axis, y, comes before its first.

    Parameters
    ----------
    config : BrainMTConfig

    Attributes
    ----------
    recompute_layers : bool
        Whether activations are recomputed in the backward pass instead of kept (gradient
        checkpointing); gradients are the same.
    """

    def __init__(self, config: BrainMTConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute_layers = config.use_checkpoint
        width, rates = config.embed_dim, config.drop_path_rates
        mamba_layers = config.depth[0]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.num_patches, width))
        self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, config.num_frames, width))
        self.norm = nn.LayerNorm(width)
        self.patch_embed = PatchEmbed(config)
        self.conv_block0 = ConvBlock(config.stem_dim)
        self.downsample0 = Downsample(config.stem_dim)
        self.conv_block1 = ConvBlock(2 * config.stem_dim)
        self.downsample1 = Downsample(2 * config.stem_dim)
        self.pos_drop = nn.Dropout(config.drop_rate)
        self.head_drop = nn.Dropout(config.fc_drop_rate)
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else nn.Identity()
        # A layer drops what the layer before it gave, at that one's rate; the first drops nothing.
        entering = [0.0, *rates][:mamba_layers]
        self.layers = nn.ModuleList(MambaLayer(config, rate) for rate in entering)
        self.drop_path = DropPath(config.drop_path_rate)
        self.drop_path_attn = nn.ModuleList(DropPath(rate) for rate in rates[mamba_layers:])
        self.blocks = nn.ModuleList(Attention(config) for _ in range(config.depth[1]))
        self.mlp = Mlp(config)
        self.norm_f = make_norm(config)
        self.add_norm = make_add_norm(config)

    def forward(
        self, volumes: Float[Tensor, "batch frame channel y x z"]
    ) -> Float[Tensor, "batch token dim"]:
        """Return the last hidden state, after the last attention block; no norm follows.

        Parameters
        ----------
        volumes : Tensor [B, T, C, Y, X, Z]

        Returns
        -------
        Tensor [B, 1 + N T, D]
            The CLS token, then token n of frame t in row 1 + n T + t.

        Raises
        ------
        ValueError
            Axes, channels, frames or tokens of a frame that are not the configuration's.
        """
        hidden = self.embed(volumes)
        residual, recompute = None, self.recompute_layers
        for layer in self.layers:
            hidden, residual = run_layer(layer, hidden, residual, recompute=recompute)
        hidden, _ = self.add_norm(self.drop_path(hidden), residual, self.norm_f)
        for attention, drop_path in zip(self.blocks, self.drop_path_attn, strict=True):
            hidden = run_layer(self._attend, hidden, attention, drop_path, recompute=recompute)
        return hidden

    def forward_features(
        self, volumes: Float[Tensor, "batch frame channel y x z"]
    ) -> Float[Tensor, "batch dim"]:
        """Return the CLS token of `forward`, which is what the head takes; raises alike."""
        return self(volumes)[:, 0]

    def predict(
        self, volumes: Float[Tensor, "batch frame channel y x z"]
    ) -> Float[Tensor, "batch output"]:
        """Return what the head makes of `forward_features`: upstream's output.

        A regression's value or a classification's logits; the features themselves in a network
        without a head. Raises as `forward`.
        """
        out: Tensor = self.head(self.head_drop(self.forward_features(volumes)))
        return out

    def embed(
        self, volumes: Float[Tensor, "batch frame channel y x z"]
    ) -> Float[Tensor, "batch token dim"]:
        """Return the sequence that the first Mamba layer takes, in the order of `forward`."""
        self._check(volumes)
        maps = self._stem(volumes.flatten(0, 1))
        tokens = rearrange(maps, "(b t) c d h w -> b (d h w) t c", b=len(volumes))
        tokens = tokens + self.pos_embed[:, 1:].unsqueeze(2)
        tokens = tokens + self.temporal_pos_embedding.unsqueeze(1)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        sequence: Tensor = self.pos_drop(torch.cat([cls, tokens.flatten(1, 2)], dim=1))
        return sequence

    def _stem(self, frames: Float[Tensor, "n channel y x z"]) -> Float[Tensor, "n dim d h w"]:
        voxels = _STEM_VOXELS if frames.device.type == "cpu" else _STEM_VOXELS_ACCELERATOR
        at_once = max(1, voxels // math.prod(frames.shape[2:]))
        parts = frames.split(at_once)
        recompute = self.recompute_layers
        return torch.cat([run_layer(self._convolve, part, recompute=recompute) for part in parts])

    def _convolve(self, frames: Float[Tensor, "n channel y x z"]) -> Float[Tensor, "n dim d h w"]:
        maps = self.downsample0(self.conv_block0(self.patch_embed(frames)))
        reduced: Tensor = self.downsample1(self.conv_block1(maps))
        return reduced

    def _attend(
        self, hidden: Float[Tensor, "batch token dim"], attention: nn.Module, drop_path: nn.Module
    ) -> Float[Tensor, "batch token dim"]:
        hidden = hidden + drop_path(attention(self.norm(hidden)))
        return hidden + drop_path(self.mlp(self.norm(hidden)))

    def _check(self, volumes: Tensor) -> None:
        config = self.config
        if volumes.ndim != 6:
            raise ValueError(f"volumes want [B, T, C, Y, X, Z]; got {volumes.ndim} axes")
        frames, channels, *shape = volumes.shape[1:]
        if channels != config.in_chans:
            raise ValueError(f"{channels} channels; the network takes {config.in_chans}")
        if frames != config.num_frames and config.num_frames != 1:
            raise ValueError(f"{frames} frames; the network takes {config.num_frames}")
        grid = token_grid(shape)
        if math.prod(grid) != config.num_patches:
            raise ValueError(
                f"volumes of {shape} give {list(grid)}, that is {math.prod(grid)} tokens a frame; "
                f"the network has positions for {config.num_patches}"
            )
