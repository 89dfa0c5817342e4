"""The selective scan of state-space models, and the convolution before it; several backends."""

from encoders.selective_scan.api import selective_scan
from encoders.selective_scan.choice import backend_for, list_backends
from encoders.selective_scan.convolution import convolve_silu

__all__ = ["backend_for", "convolve_silu", "list_backends", "selective_scan"]
