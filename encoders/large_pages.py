"""Large tensors in large pages: handed out 4 KiB at a time, memory costs more than the sums."""

import ctypes
import mmap
from collections.abc import Callable
from functools import cache

from torch import Tensor

# Bytes from which on it pays: two pages of 2 MiB.
_LARGE = 2**22


def in_large_pages(values: Tensor) -> Tensor:
    """Ask the system to back a new tensor of the CPU by large pages, and return it.

    Parameters
    ----------
    values : Tensor
        Memory that nothing was written to yet, otherwise the advice comes too late for it. Without
        effect where it is small, or where the system has no such pages or does not give them.

    Returns
    -------
    Tensor
        The same one.
    """
    advise = _madvise()
    if advise is not None and values.nbytes >= _LARGE:
        start = -(-values.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = values.data_ptr() + values.nbytes - start
        advise(start, length, mmap.MADV_HUGEPAGE)
    return values


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError):
        return None
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    advise.restype = ctypes.c_int
    found: Callable[[int, int, int], int] = advise
    return found
