"""The selective scan of state-space models, and the convolution before it; several backends."""

from encoders.selective_scan.api import backend_for, list_backends, selective_scan
from encoders.selective_scan.convolution import convolve_silu

__all__ = ["backend_for", "convolve_silu", "list_backends", "selective_scan"]
