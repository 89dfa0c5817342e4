"""A call of a CPU kernel in pieces: batch rows and groups of channels, side by side in threads.

Groups that are summed over have a fixed size: what the kernels find does not depend on how many
threads there are. Knows the kernels' interface, and nothing of what they compute.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from encoders.selective_scan import library

GROUP = 256


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="genebold-scan")


# A forked child has the pool but none of its threads.
os.register_at_fork(after_in_child=_threads.cache_clear)


def _spread(
    rows: int,
    channels: int,
    group: int,
    job: Callable[[int, int, int], None],
    held: Sequence[Tensor | None],
) -> None:
    """Call ``job(row, first channel, end)`` for every row and group of channels.

    The kernels see addresses only: `held`, the tensors behind them, lives as long as any job,
    whatever interrupts this function.
    """
    pieces = [
        (row, first, min(first + group, channels))
        for row in range(rows)
        for first in range(0, channels, group)
    ]
    threads = min(torch.get_num_threads(), len(pieces))
    if threads <= 1:
        for piece in pieces:
            job(*piece)
        return
    futures = [_threads(threads).submit(_do, job, piece, held) for piece in pieces]
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()


def _do(
    job: Callable[[int, int, int], None],
    piece: tuple[int, int, int],
    held: Sequence[Tensor | None],
) -> None:
    job(*piece)


def run_pieces(
    function: str,
    whole: library.ScanForward | library.ScanBackward | library.Convolution,
    shape: torch.Size,
    held: Sequence[Tensor | None],
    group: int = GROUP,
) -> None:
    """Call a kernel on every row and channel of [B, L, D]; it reads and writes `held`."""

    def job(row: int, first: int, end: int) -> None:
        part = type(whole).from_buffer_copy(whole)
        where = part.forward if isinstance(part, library.ScanBackward) else part
        where.row_begin, where.row_end = row, row + 1
        where.channel_begin, where.channel_end = first, end
        library.call(function, part)

    _spread(shape[0], shape[2], group, job, held)


def wide_group(rows: int, channels: int) -> int:
    """Return as many channels a piece as keep all threads at work: whole rows are read fastest.

    For what sums nothing over channels, so that the number changes no result.
    """
    pieces = max(1, torch.get_num_threads() // max(1, rows))
    return max(GROUP, -(-channels // (GROUP * pieces)) * GROUP)
