"""The whole masked autoencoders, decoder included, to reconstruct recordings or to train on."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from encoders.brainlm.checkpoint import UNUSED_NYSTROMFORMER, build, fill, read_checkpoint
from encoders.brainlm.config import PUBLISHED_NYSTROMFORMER, PUBLISHED_VITMAE
from encoders.brainlm.nystromformer_decoder import NystromformerAutoencoder
from encoders.brainlm.vitmae_decoder import ViTMAEAutoencoder


def load_nystromformer_autoencoder(
    weights: str | PathLike[str] | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
) -> NystromformerAutoencoder:
    """Load upstream's ``BrainLMForPretraining`` in eval mode.

    Parameters and errors as `encoders.brainlm.encoder.load_nystromformer`.
    """
    stored, arguments = read_checkpoint(weights, config, revision, PUBLISHED_NYSTROMFORMER)
    network = build(NystromformerAutoencoder, arguments)
    fill(network, stored, UNUSED_NYSTROMFORMER, seed, dtype)
    return network.to(device).eval()


def load_vitmae_autoencoder(
    weights: str | PathLike[str] | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
) -> ViTMAEAutoencoder:
    """Load upstream's ``ViTMAEForPreTraining`` with padding in eval mode.

    Parameters and errors as `encoders.brainlm.encoder.load_vitmae`.
    """
    stored, arguments = read_checkpoint(weights, config, revision, PUBLISHED_VITMAE)
    network = build(ViTMAEAutoencoder, arguments)
    fill(network, stored, (), seed, dtype)
    return network.to(device).eval()
