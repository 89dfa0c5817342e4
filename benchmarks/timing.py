"""Timing things side by side: in turn, so that a machine that slows down slows them all."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Timed = Callable[[], float]
"""Does its work once and returns the seconds that count."""


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
