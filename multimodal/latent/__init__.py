"""Bundles, and latents for new subjects."""
