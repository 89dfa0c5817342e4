"""The decoder half of BrainLM's first family: reconstructs the masked stretches of time."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoders.brainlm.config import NystromformerConfig
from encoders.brainlm.masking import EncoderOutput, restore_tokens
from encoders.brainlm.nystromformer import NystromformerBackbone, NystromformerLayer, TimeCode
from encoders.recompute import run_layer

LEAKY_SLOPE = 0.1


@dataclass(frozen=True)
class Reconstruction:
    """What the masked autoencoder predicts; S time patches of L frames a parcel.

    Parameters
    ----------
    loss : Tensor []
        Mean error over masked values; NaN where nothing is masked.
    logits : Tensor [B, P, S, L]
        Predicted signal, masked or not.
    mask : Tensor [B, P, S]
        1 where a stretch was masked.
    encoded : EncoderOutput
        What the encoder half gave.
    """

    loss: Float[Tensor, ""]
    logits: Float[Tensor, "batch parcel patch frame"]
    mask: Float[Tensor, "batch parcel patch"]
    encoded: EncoderOutput


class NystromformerDecoder(nn.Module):
    """Upstream's ``decoder``, without its ``decoder_pred``, which is stored and never used."""

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__()
        size, patch = config.decoder_hidden_size, config.timepoint_patching_size
        self.use_tanh = config.use_tanh_decoder
        self.recompute_layers = False
        self.decoder_embed = nn.Linear(config.hidden_size, size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size))
        self.decoder_xyz_projection = nn.Linear(3, config.hidden_size)
        self.pos_embedding = TimeCode(config.hidden_size)
        self.decoder_layers = nn.ModuleList(
            NystromformerLayer(
                config, size, config.decoder_num_attention_heads, config.decoder_intermediate_size
            )
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.decoder_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.decoder_pred1 = nn.Linear(size, size // 2)
        self.decoder_pred2 = nn.Linear(size // 2, patch)

    def forward(
        self,
        latent: Float[Tensor, "batch kept_and_cls dim"],
        xyz: Float[Tensor, "batch parcel 3"],
        ids_restore: Int[Tensor, "batch token"],
    ) -> Float[Tensor, "batch parcel patch frame"]:
        """Predict every time patch of every parcel."""
        parcels = xyz.shape[1]
        embedded = self.decoder_embed(latent)
        tokens = restore_tokens(embedded[:, 1:], self.mask_token, ids_restore)
        placed = tokens.unflatten(1, (parcels, -1)) + self.decoder_xyz_projection(xyz)[:, :, None]
        hidden = torch.cat([embedded[:, :1], self.pos_embedding(placed).flatten(1, 2)], dim=1)
        for layer in self.decoder_layers:
            hidden = run_layer(layer, hidden, recompute=self.recompute_layers)
        hidden = F.leaky_relu(self.decoder_pred1(self.decoder_norm(hidden)), LEAKY_SLOPE)
        logits = self.decoder_pred2(hidden)[:, 1:]
        if self.use_tanh:
            logits = logits.tanh()
        return logits.unflatten(1, (parcels, -1))


class NystromformerAutoencoder(NystromformerBackbone):
    """Encoder and decoder: upstream's ``BrainLMForPretraining``.

    Parameters
    ----------
    config : NystromformerConfig
    """

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__(config)
        self.decoder = NystromformerDecoder(config)

    def reconstruct(
        self,
        signal: Float[Tensor, "batch parcel frame"],
        xyz: Float[Tensor, "batch parcel 3"],
        noise: Float[Tensor, "batch token"] | None = None,
        mask_ratio: float | None = None,
    ) -> Reconstruction:
        """Mask, encode, decode and compare; arguments as `encode`.

        Parameters
        ----------
        mask_ratio : float, optional
            The configuration's by default.
        """
        ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
        encoded = self.encode(signal, xyz, noise, ratio)
        logits = self.decoder(encoded.last_hidden_state, xyz, encoded.ids_restore)
        mask = encoded.mask.reshape(logits.shape[:3])
        difference = (logits - signal.reshape(logits.shape)) * mask[..., None]
        error = difference.square() if self.config.loss_fn == "mse" else difference.abs()
        loss = error.sum() / (mask.sum() * logits.shape[3])
        return Reconstruction(loss, logits, mask, encoded)
