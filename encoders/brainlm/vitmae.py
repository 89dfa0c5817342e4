"""BrainLM's second family (111M, 650M): a recording as a padded image, read by a ViT-MAE.

Parameters are named as in upstream's ``ViTMAEForPreTraining`` with padding (vandijklab/BrainLM,
after He et al., "Masked Autoencoders", CVPR 2022, arXiv:2111.06377), so that its checkpoints load
without a map.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from encoders.brainlm.config import TRAIN_MODES, TrainMode, ViTMAEConfig
from encoders.brainlm.layers import Intermediate, LayerStack
from encoders.brainlm.masking import EncoderOutput, count_kept, default_noise, encode_kept

PADDING_VALUE = -1.0


@dataclass(frozen=True)
class Padding:
    """How many values surround the recording: `rows` above and below, `columns` left and right."""

    rows: int
    columns: int


def find_padding(parcels: int, frames: int, padded_size: int) -> Padding:
    """Return the padding that centres a recording in a square image.

    Raises
    ------
    ValueError
        The recording is larger than the image, or cannot be centred (an odd difference).
    """
    for name, size in (("parcels", parcels), ("frames", frames)):
        if size > padded_size or (padded_size - size) % 2:
            raise ValueError(
                f"{size} {name}; the padded image takes an even number up to {padded_size}"
            )
    return Padding((padded_size - parcels) // 2, (padded_size - frames) // 2)


@dataclass(frozen=True)
class LastColumns:
    """Which columns of patches `predict_last` hides, and what else it takes away.

    Parameters
    ----------
    start, stop : int
        Columns of patches that are masked as tokens.
    zero_start, zero_stop : int
        Columns of the padded image set to zero, because their patch is only partly hidden
        (`predict_last_pixel`; empty otherwise).
    frames : int
        Frames to predict.
    frames_in_tokens : int
        How many of them lie in masked tokens; below zero where the last token is not masked and
        reaches into the padding.
    """

    start: int
    stop: int
    zero_start: int
    zero_stop: int
    frames: int
    frames_in_tokens: int


def find_last_columns(
    frames: int, padding: Padding, patch: int, mask_ratio: float, train_mode: TrainMode
) -> LastColumns:
    """Return what the two predict-last modes hide: the last ``int(mask_ratio * frames)`` frames.

    ``predict_last`` hides every patch that holds one of them, so that up to a patch's frames more
    are hidden; ``predict_last_pixel`` hides the patches that hold nothing else, and sets the
    remaining frames to zero.
    """
    end = padding.columns + frames
    hidden = int(mask_ratio * frames)
    stop = math.ceil(end / patch)
    first = end - hidden
    start = first // patch if train_mode == "predict_last" else math.ceil(first / patch)
    zero_stop = start * patch
    in_tokens = end - zero_stop
    zeros = max(hidden - in_tokens, 0) if train_mode == "predict_last_pixel" else 0
    return LastColumns(start, stop, zero_stop - zeros, zero_stop, hidden, in_tokens)


class SelfAttention(nn.Module):
    """Plain multi-head softmax attention."""

    def __init__(self, config: ViTMAEConfig, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.query = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.key = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.value = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)

    def forward(self, hidden: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Mix tokens [B, N, D]."""
        query, key, value = (
            project(hidden).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        dropout = self.dropout_prob if self.training else 0.0
        context = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return context.transpose(1, 2).flatten(2)


class Projection(nn.Module):
    """A linear map with dropout, under upstream's name ``dense``."""

    def __init__(self, config: ViTMAEConfig, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(input_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor) -> Tensor:
        """Project hidden states [..., inputs] to [..., D]."""
        return self.dropout(self.dense(hidden))


class Attention(nn.Module):
    """Self-attention with its output projection."""

    def __init__(self, config: ViTMAEConfig, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(config, hidden_size, heads)
        self.output = Projection(config, hidden_size, hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix tokens [B, N, D], residual not added."""
        return self.output(self.attention(hidden))


class ViTLayer(nn.Module):
    """Attention, then a feed-forward network, each after a layer norm and with a residual."""

    def __init__(
        self, config: ViTMAEConfig, hidden_size: int, heads: int, intermediate_size: int
    ) -> None:
        super().__init__()
        self.attention = Attention(config, hidden_size, heads)
        self.intermediate = Intermediate(hidden_size, intermediate_size, config.hidden_act)
        self.output = Projection(config, intermediate_size, hidden_size)
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Run one layer on tokens [B, N, D]."""
        hidden = hidden + self.attention(self.layernorm_before(hidden))
        return hidden + self.output(self.intermediate(self.layernorm_after(hidden)))


class PatchEmbeddings(nn.Module):
    """Square patches, row by row: token = row * grid + column."""

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, patch, stride=patch)

    def forward(
        self, image: Float[Tensor, "batch channel row column"]
    ) -> Float[Tensor, "batch token dim"]:
        """Embed the patches of an image [B, C, side, side] as tokens [B, grid * grid, D]."""
        return self.projection(image).flatten(2).transpose(1, 2)


class Embeddings(nn.Module):
    """Patches with their position embeddings, which are stored, not recomputed."""

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size))
        self.patch_embeddings = PatchEmbeddings(config)
        positions = torch.zeros(1, 1 + config.grid**2, size)
        self.position_embeddings = nn.Parameter(positions, requires_grad=False)

    def forward(
        self, image: Float[Tensor, "batch channel row column"]
    ) -> Float[Tensor, "batch token dim"]:
        """Return the tokens [B, grid * grid, D] of an image, without the CLS token."""
        return self.patch_embeddings(image) + self.position_embeddings[:, 1:]

    def positioned_cls(self) -> Float[Tensor, "1 1 dim"]:
        """Return the CLS token with its position."""
        return self.cls_token + self.position_embeddings[:, :1]


class ViTMAEModel(nn.Module):
    """Embeddings, layers and the final layer norm: upstream's ``vit``."""

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.num_attention_heads
        self.embeddings = Embeddings(config)
        self.encoder = LayerStack(
            ViTLayer(config, size, heads, config.intermediate_size)
            for _ in range(config.num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps)


class ViTMAEBackbone(nn.Module):
    """The encoder half of ``ViTMAEForPreTraining``, parameters under upstream's names.

    Parameters
    ----------
    config : ViTMAEConfig
    """

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = ViTMAEModel(config)

    def forward(
        self,
        pixels: Float[Tensor, "batch channel parcel frame"],
        noise: Float[Tensor, "batch token"] | None = None,
        mask_ratio: float = 0.0,
        train_mode: TrainMode = "auto_encode",
    ) -> Float[Tensor, "batch kept_and_cls dim"]:
        """Return the last hidden state, CLS token first; arguments as `encode`."""
        return self.encode(pixels, noise, mask_ratio, train_mode).last_hidden_state

    def encode(
        self,
        pixels: Float[Tensor, "batch channel parcel frame"],
        noise: Float[Tensor, "batch token"] | None = None,
        mask_ratio: float = 0.0,
        train_mode: TrainMode = "auto_encode",
    ) -> EncoderOutput:
        """Pad recordings to the image and encode them.

        Parameters
        ----------
        pixels : Tensor [B, C, P, T]
            Recordings, parcels in ascending order of Y, repeated over the C channels. A padded
            image goes through as it is.
        noise : Tensor [B, N], optional
            One number a token (N = grid * grid): in ``auto_encode`` tokens are kept and ordered
            by it. By default tokens stay in natural order when nothing is masked, and are drawn
            at random (torch's global generator) otherwise. The other modes do not use it.
        mask_ratio : float
            Share of tokens (``auto_encode``) or of frames (other modes) left out; the
            configuration's own value is for pretraining only.
        train_mode : {"auto_encode", "predict_last", "predict_last_pixel"}
            ``auto_encode`` masks by noise, the others the end of the recording. These mask up to
            a column of patches even at ratio 0, so features are always taken in ``auto_encode``.

        Returns
        -------
        EncoderOutput

        Raises
        ------
        ValueError
            Shapes that do not fit each other or the configuration.
        """
        channels, parcels, frames = pixels.shape[1:]
        if channels != self.config.num_channels:
            raise ValueError(f"{channels} channels; the model takes {self.config.num_channels}")
        if train_mode not in TRAIN_MODES:
            raise ValueError(f"train_mode is {train_mode!r}; one of {', '.join(TRAIN_MODES)}")
        padding = find_padding(parcels, frames, self.config.padded_size)
        sides = (padding.columns, padding.columns, padding.rows, padding.rows)
        image = F.pad(pixels, sides, value=PADDING_VALUE)
        if train_mode == "auto_encode":
            tokens = self.vit.embeddings(image)
            noise = default_noise(tokens, mask_ratio) if noise is None else noise
            kept = count_kept(tokens.shape[1], mask_ratio)
        else:
            patch, grid = self.config.patch_size, self.config.grid
            last = find_last_columns(frames, padding, patch, mask_ratio, train_mode)
            image[..., last.zero_start : last.zero_stop] = 0
            tokens = self.vit.embeddings(image)
            hidden = image.new_zeros(len(image), grid, grid)
            hidden[..., last.start : last.stop] = 1
            noise = hidden.flatten(1)
            kept = grid * (grid - (last.stop - last.start))
        return encode_kept(
            tokens,
            self.vit.embeddings.positioned_cls(),
            noise,
            kept,
            layers=self.vit.encoder,
            final_norm=self.vit.layernorm,
        )
