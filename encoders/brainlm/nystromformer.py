"""BrainLM's first family: a token a parcel and stretch of time, Nystromformer layers.

Parameters are named as in upstream's ``BrainLMForPretraining`` (vandijklab/BrainLM), so that its
checkpoints load without a map. Attention: Xiong et al., "Nystromformer", AAAI 2021,
arXiv:2102.03902; every published BrainLM uses its exact path (as many landmarks as segments).
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from encoders.brainlm.config import NystromformerConfig
from encoders.brainlm.layers import Intermediate, LayerStack
from encoders.brainlm.masking import EncoderOutput, count_kept, default_noise, encode_kept

MAX_TIME_PATCHES = 5000
TIME_CODE_DROPOUT = 0.1
PSEUDO_INVERSE_STEPS = 6


class TimeCode(nn.Module):
    """Adds a sine/cosine code of the time patch's number, the same for every parcel."""

    pe: Tensor

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("pe", make_time_code(hidden_size))
        self.dropout = nn.Dropout(TIME_CODE_DROPOUT)

    def forward(
        self, tokens: Float[Tensor, "batch parcel patch dim"]
    ) -> Float[Tensor, "batch parcel patch dim"]:
        """Add the codes to tokens [B, P, patches, D]; ValueError beyond the last code."""
        patches = tokens.shape[2]
        if patches > MAX_TIME_PATCHES:
            raise ValueError(f"{patches} time patches; the time code ends at {MAX_TIME_PATCHES}")
        return self.dropout(tokens + self.pe[:patches])


def make_time_code(hidden_size: int) -> Float[Tensor, "patch dim"]:
    """Return the sine/cosine code of every time patch (Vaswani et al. 2017)."""
    frequency = 10000.0 ** -(np.arange(0, hidden_size, 2) / hidden_size)
    angle = np.arange(MAX_TIME_PATCHES)[:, None] * frequency
    code = np.stack([np.sin(angle), np.cos(angle)], axis=2).reshape(MAX_TIME_PATCHES, hidden_size)
    return torch.from_numpy(code.astype(np.float32))


class SelfAttention(nn.Module):
    """Attention over all tokens, plus a convolution of the values along the token axis.

    Through the convolution the result depends on the order of the tokens.
    """

    def __init__(self, config: NystromformerConfig, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.exact = config.exact_attention
        self.landmarks = config.num_landmarks
        self.sequence_length = config.segment_means_seq_len
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.conv: nn.Conv2d | None = None
        if config.conv_kernel_size is not None:
            # Holds the weight in upstream's shape [heads, 1, kernel, 1]; see _convolve.
            kernel = (config.conv_kernel_size, 1)
            self.conv = nn.Conv2d(heads, heads, kernel, groups=heads, bias=False)

    def forward(self, hidden: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Mix tokens [B, N, D]; ValueError where N is not the approximation's."""
        query, key, value = (
            self._split(project(hidden)) for project in (self.query, self.key, self.value)
        )
        if self.exact:
            context = F.scaled_dot_product_attention(query, key, value)
        else:
            context = self._nystrom(query, key, value)
        if self.conv is not None:
            context = context + _convolve(value, self.conv.weight)
        return context.transpose(1, 2).flatten(2)

    def _split(
        self, hidden: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch head token part"]:
        return hidden.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _nystrom(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Approximate attention through means over segments of the sequence."""
        tokens, part = query.shape[2:]
        if tokens != self.sequence_length:
            raise ValueError(
                f"{tokens} tokens with the CLS token, but segment_means_seq_len is "
                f"{self.sequence_length}: with num_landmarks ({self.landmarks}) unlike "
                "segment_means_seq_len the two must be equal"
            )
        query_means = query.unflatten(2, (self.landmarks, -1)).mean(3)
        key_means = key.unflatten(2, (self.landmarks, -1)).mean(3)
        between_means = (query_means @ key_means.mT * part**-0.5).softmax(-1)
        # From the right, so that both outer factors are plain attention and never stored.
        gathered = F.scaled_dot_product_attention(query_means, key, value)
        spread = _pseudo_inverse(between_means) @ gathered
        return F.scaled_dot_product_attention(query, key_means, spread)


def _convolve(
    value: Float[Tensor, "batch head token part"], weight: Float[Tensor, "head 1 kernel 1"]
) -> Float[Tensor, "batch head token part"]:
    """Convolve every head's values along the token axis, one kernel a head, zeros at the ends.

    A 1D convolution over each dimension by itself: the 2D one that upstream calls gives a wrong
    float32 weight gradient under oneDNN (torch 2.13, kernel 65, two heads or more).
    """
    batch, heads, tokens, part = value.shape
    rows = value.permute(0, 3, 1, 2).reshape(batch * part, heads, tokens)
    mixed = F.conv1d(rows, weight.squeeze(3), padding=weight.shape[2] // 2, groups=heads)
    return mixed.unflatten(0, (batch, part)).permute(0, 2, 3, 1)


def _pseudo_inverse(
    matrix: Float[Tensor, "batch head landmark landmark"],
) -> Float[Tensor, "batch head landmark landmark"]:
    """Six steps of an iteration towards the Moore-Penrose inverse (Razavi et al. 2014).

    The start is scaled by the largest column sum over the WHOLE batch, as upstream does; a
    segment's result is its own only when it is alone in the batch.
    """
    identity = torch.eye(matrix.shape[-1], device=matrix.device, dtype=matrix.dtype)
    inverse = matrix.mT / matrix.sum(-2).max()
    for _ in range(PSEUDO_INVERSE_STEPS):
        product = matrix @ inverse
        inner = 15 * identity - product @ (7 * identity - product)
        inverse = 0.25 * inverse @ (13 * identity - product @ inner)
    return inverse


class AddAndNorm(nn.Module):
    """Projects, adds the residual, normalises after (post layer norm)."""

    def __init__(self, config: NystromformerConfig, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(input_size, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, inner: Tensor, residual: Tensor) -> Tensor:
        """Return the norm of `inner` [B, N, I], projected, plus `residual` [B, N, D]."""
        return self.LayerNorm(self.dropout(self.dense(inner)) + residual)


class Attention(nn.Module):
    """Self-attention with its output projection, residual and layer norm."""

    def __init__(self, config: NystromformerConfig, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.self = SelfAttention(config, hidden_size, heads)
        self.output = AddAndNorm(config, hidden_size, hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix tokens [B, N, D], residual and norm included."""
        return self.output(self.self(hidden), hidden)


class NystromformerLayer(nn.Module):
    """Attention, then a feed-forward network, each with residual and layer norm after it."""

    def __init__(
        self, config: NystromformerConfig, hidden_size: int, heads: int, intermediate_size: int
    ) -> None:
        super().__init__()
        self.attention = Attention(config, hidden_size, heads)
        self.intermediate = Intermediate(hidden_size, intermediate_size, config.hidden_act)
        self.output = AddAndNorm(config, intermediate_size, hidden_size)

    def forward(self, hidden: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Run one layer on tokens [B, N, D]."""
        hidden = self.attention(hidden)
        return self.output(self.intermediate(hidden), hidden)


class Embeddings(nn.Module):
    """Tokens of a recording: time patch + coordinates of the parcel + code of the time patch."""

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.patch = config.timepoint_patching_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size))
        self.signal_embedding_projection = nn.Linear(self.patch, size)
        self.xyz_embedding_projection = nn.Linear(3, size)
        self.pos_embedding = TimeCode(size)

    def forward(
        self, signal: Float[Tensor, "batch parcel frame"], xyz: Float[Tensor, "batch parcel 3"]
    ) -> Float[Tensor, "batch token dim"]:
        """Return the tokens, parcel by parcel: token = parcel * patches + time patch."""
        if xyz.shape != (*signal.shape[:2], 3):
            raise ValueError(
                f"xyz has shape {list(xyz.shape)}; it must be {[*signal.shape[:2], 3]}, "
                "one coordinate a parcel and recording"
            )
        if signal.shape[2] % self.patch:
            raise ValueError(
                f"{signal.shape[2]} frames cannot be cut into time patches of {self.patch}"
            )
        patches = self.signal_embedding_projection(signal.unflatten(2, (-1, self.patch)))
        place = self.xyz_embedding_projection(xyz)[:, :, None]
        return self.pos_embedding(patches + place).flatten(1, 2)


class NystromformerModel(nn.Module):
    """Embeddings, layers and the final layer norm: upstream's ``vit``."""

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.num_attention_heads
        self.embeddings = Embeddings(config)
        self.encoder = LayerStack(
            NystromformerLayer(config, size, heads, config.intermediate_size)
            for _ in range(config.num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps)


class NystromformerBackbone(nn.Module):
    """The encoder half of ``BrainLMForPretraining``, parameters under upstream's names.

    Parameters
    ----------
    config : NystromformerConfig
    """

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = NystromformerModel(config)

    def forward(
        self,
        signal: Float[Tensor, "batch parcel frame"],
        xyz: Float[Tensor, "batch parcel 3"],
        noise: Float[Tensor, "batch token"] | None = None,
        mask_ratio: float = 0.0,
    ) -> Float[Tensor, "batch kept_and_cls dim"]:
        """Return the last hidden state, CLS token first; arguments as `encode`."""
        return self.encode(signal, xyz, noise, mask_ratio).last_hidden_state

    def encode(
        self,
        signal: Float[Tensor, "batch parcel frame"],
        xyz: Float[Tensor, "batch parcel 3"],
        noise: Float[Tensor, "batch token"] | None = None,
        mask_ratio: float = 0.0,
    ) -> EncoderOutput:
        """Encode recordings.

        Parameters
        ----------
        signal : Tensor [B, P, T]
            Parcel time series, T a multiple of ``timepoint_patching_size``.
        xyz : Tensor [B, P, 3]
            Parcel coordinates in mm.
        noise : Tensor [B, N], optional
            One number a token (N = P * time patches): tokens are kept and ordered by it. By
            default tokens stay in natural order when nothing is masked, and are drawn at random
            (torch's global generator) otherwise.
        mask_ratio : float
            Share of tokens left out; the configuration's own value is for pretraining only.

        Returns
        -------
        EncoderOutput

        Raises
        ------
        ValueError
            Shapes that do not fit each other or the configuration.
        """
        tokens = self.vit.embeddings(signal, xyz)
        if noise is None:
            noise = default_noise(tokens, mask_ratio)
        kept = count_kept(tokens.shape[1], mask_ratio)
        return encode_kept(
            tokens,
            self.vit.embeddings.cls_token,
            noise,
            kept,
            layers=self.vit.encoder,
            final_norm=self.vit.layernorm,
        )
