"""The layers of SwiFT, parameters under upstream's names (Transconnectome/SwiFT).

Modules take and give the layouts that upstream's take and give: channels second outside the
blocks, [B, C, H, W, D, T], and last inside them, [B, H, W, D, T, C].
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from encoders.recompute import run_layer
from encoders.swift.config import SwiFTConfig
from encoders.swift.windows import Axes, Windows

# Not minus infinity: where all neighbours score far below a stranger, upstream lets it through.
STRANGER_PENALTY = -100.0


class PatchEmbed(nn.Module):
    """Blocks of voxels of one frame as tokens: a linear map, upstream's ``patch_embed``."""

    def __init__(self, config: SwiFTConfig) -> None:
        super().__init__()
        self.patch = config.patch_size[:3]
        voxels = self.patch[0] * self.patch[1] * self.patch[2]
        self.fc = nn.Linear(config.in_chans * voxels, config.embed_dim)

    def forward(
        self, volumes: Float[Tensor, "batch channel x y z frame"]
    ) -> Float[Tensor, "batch dim h w d frame"]:
        """Embed volumes; the numbers of a patch are ordered x, y, z, channel."""
        h, w, d = self.patch
        patches = rearrange(
            volumes, "b c (nh h) (nw w) (nd d) t -> b nh nw nd t (h w d c)", h=h, w=w, d=d
        )
        return self.fc(patches).movedim(-1, 1)


class PositionalEmbedding(nn.Module):
    """One learned vector a place, and one a frame, added to the tokens of a stage."""

    def __init__(self, dim: int, grid: Axes) -> None:
        super().__init__()
        h, w, d, frames = grid
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, h, w, d, 1))
        self.time_embed = nn.Parameter(torch.zeros(1, dim, 1, 1, 1, frames))

    def forward(
        self, hidden: Float[Tensor, "batch dim h w d frame"]
    ) -> Float[Tensor, "batch dim h w d frame"]:
        """Add the places, and the first frames for a segment shorter than the model's."""
        return hidden + self.pos_embed + self.time_embed[..., : hidden.shape[-1]]


class WindowAttention(nn.Module):
    """Softmax attention within windows, without a bias for relative position."""

    def __init__(self, config: SwiFTConfig, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.dropout_prob = config.attn_drop_rate
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(config.drop_rate)

    def forward(
        self,
        windows: Float[Tensor, "window batch token dim"],
        strangers: Bool[Tensor, "window token token"] | None = None,
    ) -> Float[Tensor, "window batch token dim"]:
        """Mix the tokens of each window.

        Parameters
        ----------
        windows : Tensor [windows, B, N, C]
        strangers : Tensor [windows, N, N] bool, optional
            Pairs of tokens whose scores are lowered by 100.
        """
        # Segments beside heads: what a window hides is then the same for both, and never copied.
        query, key, value = rearrange(
            self.qkv(windows), "n b t (three h c) -> three n (b h) t c", three=3, h=self.heads
        )
        penalty = None
        if strangers is not None:
            # Filled in place: at published size it is as large as all else in the layer.
            penalty = query.new_zeros(strangers.shape).masked_fill_(strangers, STRANGER_PENALTY)
            penalty = penalty[:, None]
        dropout = self.dropout_prob if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=penalty, dropout_p=dropout
        )
        mixed = rearrange(mixed, "n (b h) t c -> n b t (h c)", h=self.heads)
        return self.proj_drop(self.proj(mixed))


class FeedForward(nn.Module):
    """Two linear maps with an exact GELU between them: upstream's ``mlp``."""

    def __init__(self, config: SwiFTConfig, dim: int) -> None:
        super().__init__()
        inner = int(dim * config.mlp_ratio)
        self.linear1 = nn.Linear(dim, inner)
        self.linear2 = nn.Linear(inner, dim)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., C] to [..., C]."""
        return self.drop(self.linear2(self.drop(F.gelu(self.linear1(hidden)))))


class Block(nn.Module):
    """Attention in windows, then a feed-forward network, each after a norm and with a residual."""

    def __init__(self, config: SwiFTConfig, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(config, dim, heads)
        self.drop_path = make_drop_path(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(config, dim)

    def forward(
        self,
        hidden: Float[Tensor, "batch h w d t dim"],
        windows: Windows,
        strangers: Bool[Tensor, "window token token"] | None = None,
    ) -> Float[Tensor, "batch h w d t dim"]:
        """Run one block; the grid is filled up after the norm, so that its zeros stay zeros."""
        mixed = self.attn(windows.split(self.norm1(hidden)), strangers)
        hidden = hidden + self.drop_path(windows.join(mixed))
        return hidden + self.drop_path(self.mlp(self.norm2(hidden)))


class PatchMerging(nn.Module):
    """Two by two by two neighbours as one token; time stays as it is."""

    def __init__(self, dim: int, factor: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(8 * dim, factor * dim, bias=False)
        self.norm = nn.LayerNorm(8 * dim)

    def forward(
        self, hidden: Float[Tensor, "batch h w d t dim"]
    ) -> Float[Tensor, "batch h2 w2 d2 t merged"]:
        """Halve the grid; neighbours are ordered with the last axis of space fastest."""
        merged = rearrange(hidden, "b (h i) (w j) (d k) t c -> b h w d t (i j k c)", i=2, j=2, k=2)
        return self.reduction(self.norm(merged))


class Stage(nn.Module):
    """Blocks on one grid, then a merging of patches: upstream's ``BasicLayer``.

    Parameters
    ----------
    config : SwiFTConfig
    index : int
        Which stage, from 0.
    window : tuple of int
        Window along H, W, D and time.
    shifts : bool
        Whether the windows of every other block are moved.
    merges : bool
        Whether a merging follows.

    Attributes
    ----------
    recompute_layers : bool
        Gradient checkpointing of the blocks, see `encoders.recompute`.
    """

    def __init__(
        self, config: SwiFTConfig, index: int, window: Axes, *, shifts: bool, merges: bool
    ) -> None:
        super().__init__()
        self.window = window
        self.shifts = shifts
        self.recompute_layers = config.use_checkpoint
        dim = config.dims[index]
        self.blocks = nn.ModuleList(
            Block(config, dim, config.num_heads[index], rate)
            for rate in config.drop_path_rates[index]
        )
        self.downsample = PatchMerging(dim, config.c_multiplier) if merges else None

    def forward(
        self, hidden: Float[Tensor, "batch dim h w d t"]
    ) -> Float[Tensor, "batch merged h2 w2 d2 t"]:
        """Run the stage on the tokens of its grid."""
        _, _, h, w, d, t = hidden.shape
        still = Windows.fit((h, w, d, t), self.window, shifted=False)
        moved = Windows.fit((h, w, d, t), self.window, shifted=self.shifts)
        # One mask for all blocks that need it; the first never does.
        strangers = moved.find_strangers(hidden.device) if len(self.blocks) > 1 else None
        hidden = hidden.movedim(1, -1)
        for index, block in enumerate(self.blocks):
            arguments = (moved, strangers) if index % 2 else (still, None)
            hidden = run_layer(block, hidden, *arguments, recompute=self.recompute_layers)
        if self.downsample is not None:
            hidden = self.downsample(hidden)
        return hidden.movedim(-1, 1)


def make_drop_path(rate: float) -> nn.Module:
    """Return a layer that leaves out whole samples' branches in training, at `rate`."""
    if rate == 0:
        return nn.Identity()
    # timm brings all its models along: only who asks for drop path waits for it.
    from timm.layers import DropPath

    return DropPath(rate)
