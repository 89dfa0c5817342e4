"""Timing things side by side: in turn, so that a machine that slows down slows them all."""

import statistics
import time
from collections.abc import Callable, Mapping

Timed = Callable[[], float]
"""Does its work once and returns the seconds that count."""


def timed(work: Callable[[], object]) -> Timed:
    """Make of a piece of work one that tells how many seconds it took."""

    def run() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return run


def median_seconds(contenders: Mapping[str, Timed], repeats: int) -> dict[str, float]:
    """Return the median seconds of each contender over rounds in which each runs once.

    Parameters
    ----------
    contenders : mapping of str to Timed
    repeats : int
        Rounds that count; one more goes before them.
    """
    rounds = [{name: run() for name, run in contenders.items()} for _ in range(1 + repeats)]
    return {name: statistics.median(one[name] for one in rounds[1:]) for name in contenders}
