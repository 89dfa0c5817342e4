"""Bundles, and latents for new subjects."""

from multimodal.latent.api import LoadedAligner, load_aligner

__all__ = ["LoadedAligner", "load_aligner"]
