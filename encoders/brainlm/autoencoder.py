"""The whole masked autoencoders, decoder included, to reconstruct recordings or to train on.

Pretraining goes on from a published checkpoint, or from nothing, with upstream's masking and loss::

    network = load_vitmae_autoencoder("vandijklab/brainlm/vitmae_111M").train()
    set_gradient_checkpointing(network)            # encoders.recompute; less memory, same gradients
    output = network.reconstruct(pixels)           # masks as network.config.mask_ratio says
    output.loss.backward()
    ...
    save_network(network, network.config, folder)  # encoders.brainlm.checkpoint

``reconstruct`` takes the noise that decides which tokens are masked, so that a run repeats exactly.
The loss is the mean over masked values: squared errors, or absolute ones where a
`NystromformerConfig` has ``loss_fn`` "mae"; where a `ViTMAEConfig` has ``norm_pix_loss``, against
each parcel's own frames scaled to mean 0 and variance 1. Where nothing is masked it is NaN.

The published weights are licensed CC-BY-NC-ND-4.0, which does not allow sharing derivatives: what
is trained on from them stays with whoever trained it.
"""

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

    Returns
    -------
    NystromformerAutoencoder
        ``reconstruct(signal [B, P, T], xyz [B, P, 3])`` gives loss, predicted signal and mask.
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

    Returns
    -------
    ViTMAEAutoencoder
        ``reconstruct(pixels [B, C, P, T])`` gives loss, predicted recording and mask.
    """
    stored, arguments = read_checkpoint(weights, config, revision, PUBLISHED_VITMAE)
    network = build(ViTMAEAutoencoder, arguments)
    fill(network, stored, (), seed, dtype)
    return network.to(device).eval()
