"""Timing things side by side: in turn, so that a machine that slows down slows them all."""

import ctypes
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Timed = Callable[[], float]
"""Does its work once and returns the seconds that count."""


# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_memory() -> bool:
    """Have what is freed stay with the process, where its C library can: tell whether it can.

    On a virtual machine that hands idle memory back to its host, large tensors cost several
    milliseconds a MB when touched for the first time: more than the work that is to be timed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def timed(work: Callable[[], object]) -> Timed:
    """Make of a piece of work one that tells how many seconds it took."""

    def run() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return run


def rounds_of(contenders: Mapping[Key, Timed], repeats: int) -> list[dict[Key, float]]:
    """Return the seconds of each contender, round by round; in a round each runs once.

    Parameters
    ----------
    contenders : mapping to Timed
    repeats : int
        Rounds that count; one more goes before them.
    """
    rounds = [{name: run() for name, run in contenders.items()} for _ in range(1 + repeats)]
    return rounds[1:]


def median_seconds(contenders: Mapping[Key, Timed], repeats: int) -> dict[Key, float]:
    """Return the median seconds of each contender over `rounds_of` them."""
    rounds = rounds_of(contenders, repeats)
    return {name: statistics.median(one[name] for one in rounds) for name in contenders}
