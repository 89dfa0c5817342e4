"""The decoder half of BrainLM's second family: reconstructs the masked part of the image."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoders.brainlm.config import TrainMode, ViTMAEConfig
from encoders.brainlm.masking import EncoderOutput, restore_tokens
from encoders.brainlm.vitmae import (
    Padding,
    ViTLayer,
    ViTMAEBackbone,
    find_last_columns,
    find_padding,
)
from encoders.recompute import run_layer

VARIANCE_EPS = 1e-6


@dataclass(frozen=True)
class Reconstruction:
    """What the masked autoencoder predicts.

    Parameters
    ----------
    loss : Tensor []
        Mean squared error over masked values of the recording; NaN where nothing is masked.
    logits : Tensor [B, P, T]
        Predicted recording, the mean over the channels.
    channel_logits : Tensor [B, C, P, T]
        The same before the mean.
    patch_logits : Tensor [B, N, patch * patch * C]
        The decoder's own output for every patch of the padded image, channel fastest.
    mask : Tensor [B, P, T]
        1 where a value was masked.
    encoded : EncoderOutput
        What the encoder half gave.
    """

    loss: Float[Tensor, ""]
    logits: Float[Tensor, "batch parcel frame"]
    channel_logits: Float[Tensor, "batch channel parcel frame"]
    patch_logits: Float[Tensor, "batch token value"]
    mask: Float[Tensor, "batch parcel frame"]
    encoded: EncoderOutput


class ViTMAEDecoder(nn.Module):
    """Upstream's ``decoder``."""

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__()
        size = config.decoder_hidden_size
        self.recompute_layers = False
        self.decoder_embed = nn.Linear(config.hidden_size, size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size))
        positions = torch.zeros(1, 1 + config.grid**2, size)
        self.decoder_pos_embed = nn.Parameter(positions, requires_grad=False)
        self.decoder_layers = nn.ModuleList(
            ViTLayer(
                config, size, config.decoder_num_attention_heads, config.decoder_intermediate_size
            )
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.decoder_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.decoder_pred = nn.Linear(size, config.patch_size**2 * config.num_channels)

    def forward(
        self,
        latent: Float[Tensor, "batch kept_and_cls dim"],
        ids_restore: Int[Tensor, "batch token"],
    ) -> Float[Tensor, "batch token value"]:
        """Predict the values of every patch."""
        embedded = self.decoder_embed(latent)
        tokens = restore_tokens(embedded[:, 1:], self.mask_token, ids_restore)
        hidden = torch.cat([embedded[:, :1], tokens], dim=1) + self.decoder_pos_embed
        for layer in self.decoder_layers:
            hidden = run_layer(layer, hidden, recompute=self.recompute_layers)
        return self.decoder_pred(self.decoder_norm(hidden))[:, 1:]


class ViTMAEAutoencoder(ViTMAEBackbone):
    """Encoder and decoder: upstream's ``ViTMAEForPreTraining`` with padding.

    Parameters
    ----------
    config : ViTMAEConfig
    """

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__(config)
        self.decoder = ViTMAEDecoder(config)

    def reconstruct(
        self,
        pixels: Float[Tensor, "batch channel parcel frame"],
        noise: Float[Tensor, "batch token"] | None = None,
        mask_ratio: float | None = None,
        train_mode: TrainMode | None = None,
    ) -> Reconstruction:
        """Mask, encode, decode and compare; arguments as `encode`.

        Parameters
        ----------
        mask_ratio, train_mode : optional
            The configuration's by default.
        """
        config = self.config
        ratio = config.mask_ratio if mask_ratio is None else mask_ratio
        mode = config.train_mode if train_mode is None else train_mode
        encoded = self.encode(pixels, noise, ratio, mode)
        patch_logits = self.decoder(encoded.last_hidden_state, encoded.ids_restore)
        parcels, frames = pixels.shape[2:]
        padding = find_padding(parcels, frames, config.padded_size)
        channel_logits = _crop(self._unpatchify(patch_logits), padding)
        logits = channel_logits.mean(1)
        mask = self._pixel_mask(encoded.mask, padding)
        if mode == "predict_last_pixel":
            last = find_last_columns(frames, padding, config.patch_size, ratio, mode)
            # Nothing is added where no token is masked, as upstream.
            mask[..., -last.frames : -last.frames_in_tokens] = 1
        target = pixels.mean(1)
        if config.norm_pix_loss:
            mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
            target = (target - mean) / (variance + VARIANCE_EPS).sqrt()
        loss = ((logits - target).square() * mask).sum() / mask.sum()
        return Reconstruction(loss, logits, channel_logits, patch_logits, mask, encoded)

    def _unpatchify(
        self, patches: Float[Tensor, "batch token value"]
    ) -> Float[Tensor, "batch channel row column"]:
        return rearrange(
            patches,
            "batch (row column) (p q channel) -> batch channel (row p) (column q)",
            row=self.config.grid,
            p=self.config.patch_size,
            q=self.config.patch_size,
        )

    def _pixel_mask(
        self, mask: Float[Tensor, "batch token"], padding: Padding
    ) -> Float[Tensor, "batch parcel frame"]:
        grid, patch = self.config.grid, self.config.patch_size
        image = mask.unflatten(1, (grid, grid)).repeat_interleave(patch, 1)
        return _crop(image.repeat_interleave(patch, 2), padding)


def _crop(image: Tensor, padding: Padding) -> Tensor:
    rows, columns = image.shape[-2] - padding.rows, image.shape[-1] - padding.columns
    return image[..., padding.rows : rows, padding.columns : columns]
