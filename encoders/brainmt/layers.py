"""BrainMT's layers: the convolutional stem, a Mamba layer, attention, and the MLP they share."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from encoders.brainmt.config import BrainMTConfig
from encoders.mamba import AddNorm, LayerNorm, Mamba, RMSNorm, TwoWayMamba

# Without oneDNN a CPU's convolutions turn everything back to channels first.
_CPU_TAKES_CHANNELS_LAST = torch.backends.mkldnn.is_available()


class DropPath(nn.Module):
    """Stochastic depth: in training, a sample's branch is dropped whole (Huang et al. 2016).

    What is kept is divided by the share kept. timm has the same, but importing it takes seconds
    and brings every vision model it knows.

    Parameters
    ----------
    rate : float
        Share of samples dropped; at 0 nothing is drawn.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop some of the samples of x [B, ...]; all are kept in eval mode."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty(len(x), *(1 for _ in x.shape[1:])).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))


def lay_out(maps: Float[Tensor, "n dim d h w"]) -> Float[Tensor, "n dim d h w"]:
    """Return maps with the channels of a voxel side by side, where convolutions are no slower so.

    The norms over channels then copy nothing. Convolutions pass the layout on by themselves, so
    weights stay as they are, and with them state dicts and files. cuDNN and oneDNN have no such
    kernels in float64, and other devices are left alone.

    Parameters
    ----------
    maps : Tensor [n, D, d, h, w]
    """
    takes = maps.is_cuda or (maps.device.type == "cpu" and _CPU_TAKES_CHANNELS_LAST)
    if not takes or maps.dtype == torch.float64:
        return maps
    return maps.contiguous(memory_format=torch.channels_last_3d)


def _halve(channels: int, out_channels: int) -> nn.Conv3d:
    return nn.Conv3d(channels, out_channels, kernel_size=3, stride=2, padding=1, bias=False)


class PatchEmbed(nn.Module):
    """Two convolutions, each halving the volume, each followed by ReLU.

    Parameters
    ----------
    config : BrainMTConfig
    """

    def __init__(self, config: BrainMTConfig) -> None:
        super().__init__()
        self.conv_down = nn.Sequential(
            _halve(config.in_chans, config.stem_in_dim),
            nn.ReLU(inplace=True),
            _halve(config.stem_in_dim, config.stem_dim),
            nn.ReLU(inplace=True),
        )

    def forward(self, frames: Float[Tensor, "n channel d h w"]) -> Float[Tensor, "n dim d4 h4 w4"]:
        """Embed frames, a quarter of their voxels along each axis, in the layout of `lay_out`.

        The maps between the two convolutions are the largest of all: turning them would cost more
        than it saves.
        """
        return lay_out(self.conv_down(frames))


class ConvBlock(nn.Module):
    """A residual block: convolution, norm, tanh-GELU, convolution, norm.

    Parameters
    ----------
    channels : int
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, kernel_size=3, padding=1)
        self.norm1 = nn.LayerNorm(channels)
        self.conv2 = nn.Conv3d(channels, channels, kernel_size=3, padding=1)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, maps: Float[Tensor, "n dim d h w"]) -> Float[Tensor, "n dim d h w"]:
        """Refine the maps; norms go over the channels of each voxel."""
        inner = F.gelu(_over_channels(self.norm1, self.conv1(maps)), approximate="tanh")
        return maps + _over_channels(self.norm2, self.conv2(inner))


def _over_channels(norm: nn.LayerNorm, maps: Tensor) -> Tensor:
    normed: Tensor = norm(maps.movedim(1, -1))
    return normed.movedim(-1, 1)


class Downsample(nn.Module):
    """Halve the volume and double the channels.

    Parameters
    ----------
    channels : int
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Sequential(_halve(channels, 2 * channels))

    def forward(self, maps: Float[Tensor, "n dim d h w"]) -> Float[Tensor, "n dim2 d2 h2 w2"]:
        """Convolve with stride 2."""
        reduced: Tensor = self.reduction(maps)
        return reduced


def make_norm(config: BrainMTConfig) -> RMSNorm | LayerNorm:
    """Make a norm of the Mamba layers, as the configuration asks for."""
    kind = RMSNorm if config.rms_norm else LayerNorm
    return kind(config.embed_dim, config.norm_epsilon)


def make_add_norm(config: BrainMTConfig) -> AddNorm:
    """Make the sum with the residual and its norm, rounded as the configuration says."""
    return AddNorm(fused=config.fused_add_norm, residual_in_fp32=config.residual_in_fp32)


class MambaLayer(nn.Module):
    """Drop, add, norm, mix.

    Parameters
    ----------
    config : BrainMTConfig
    drop_path_rate : float
        Of the branch that comes in, which is the output of the layer before.
    """

    def __init__(self, config: BrainMTConfig, drop_path_rate: float) -> None:
        super().__init__()
        mamba = TwoWayMamba if config.bidirectional else Mamba
        self.mixer = mamba(config.embed_dim, config.ssm_cfg)
        self.norm = make_norm(config)
        self.drop_path = DropPath(drop_path_rate)
        self.add_norm = make_add_norm(config)

    def forward(
        self,
        hidden: Float[Tensor, "batch token dim"],
        residual: Float[Tensor, "batch token dim"] | None,
    ) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "batch token dim"]]:
        """Return the mixer's output, residual not added, and the new residual.

        Without a residual `hidden` is the sequence of tokens itself, of which nothing is dropped.
        """
        branch = hidden if residual is None else self.drop_path(hidden)
        normed, residual = self.add_norm(branch, residual, self.norm)
        return self.mixer(normed), residual


class Attention(nn.Module):
    """Multi-head softmax attention over all tokens.

    Parameters
    ----------
    config : BrainMTConfig
    """

    def __init__(self, config: BrainMTConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.dropout_rate = config.attn_drop_rate
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)
        self.proj_drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Mix the tokens, residual not added."""
        projected = self.qkv(x).unflatten(2, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind()
        dropout = self.dropout_rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        out: Tensor = self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))
        return out


class Mlp(nn.Module):
    """Two linear maps with GELU between them, twice as wide inside.

    Parameters
    ----------
    config : BrainMTConfig
    """

    def __init__(self, config: BrainMTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, 2 * config.embed_dim)
        self.fc2 = nn.Linear(2 * config.embed_dim, config.embed_dim)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Transform each token, residual not added."""
        out: Tensor = self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))
        return out
