"""Where an encoder computes, and in which type."""

import torch

from encoders.base import Encoder


def device_of(encoder: Encoder) -> torch.device:
    """Return the device of an encoder's parameters; the CPU where it has none."""
    parameter = next(encoder.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def dtype_of(encoder: Encoder) -> torch.dtype:
    """Return the type of an encoder's parameters; its own ``dtype``, or float32, without any."""
    parameter = next(encoder.parameters(), None)
    return getattr(encoder, "dtype", torch.float32) if parameter is None else parameter.dtype
