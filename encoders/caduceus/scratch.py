"""Memory that streams of DNA use over and over."""

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from encoders.large_pages import in_large_pages


class Scratch(threading.local):
    """Memory that each thread uses over and over: new memory is mapped, cleared, unmapped again.

    Threads of one process wait for one another there, and longer than the sums take.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return uninitialised memory of the CPU, the same whenever a thread gives this name.

        Parameters
        ----------
        name : str
            Of a use; what it was taken for the last time is overwritten.
        shape : sequence of int
        dtype : torch.dtype
        """
        count = math.prod(shape)
        held = self._held.get((name, dtype))
        if held is None or held.numel() < count:
            held = in_large_pages(torch.empty(count, dtype=dtype, device="cpu"))
            self._held[name, dtype] = held
        return held[:count].view(*shape)
