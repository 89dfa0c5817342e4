"""Caduceus: bidirectional, reverse-complement aware DNA language model (Schiff et al. 2024)."""
