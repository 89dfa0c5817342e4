"""Cutting what an encoder reads into batches without padding."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import groupby, islice
from typing import TypeVar

T = TypeVar("T")


def equal_batches(
    items: Iterable[T], size_of: Callable[[T], Hashable], most: int
) -> Iterator[list[T]]:
    """Yield items in their order, in batches of one size each; no more is read ahead than a batch.

    Parameters
    ----------
    items : iterable
    size_of : callable
        What must be equal within a batch.
    most : int
        Most items in a batch.
    """
    for _, group in groupby(items, size_of):
        while batch := list(islice(group, most)):
            yield batch
