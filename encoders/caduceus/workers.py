"""Threads that streams of DNA are run by: each computes by itself, torch keeps out of their way.

Knows nothing of networks; `streamed` and `streamed_training` hand it their work.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")


class StoppedError(Exception):
    """Something else failed: the other reader of a stream, another stream, or the caller."""


def run_both(
    first: Callable[[], None], second: Callable[[], None], helper: ThreadPoolExecutor
) -> None:
    """Run one here and the other in the helper, and raise the error of the one that failed."""
    other = helper.submit(second)
    try:
        first()
    except StoppedError:
        other.result()  # if that is why, its own error
        raise
    except BaseException:
        wait([other])
        raise
    other.result()


# Held while workers run: they set the number of torch's threads, partly for the whole process.
_ALONE = threading.Lock()


@contextmanager
def alone() -> Iterator[int]:
    """Have the process' threads to oneself; gives their number, and leaves one to torch.

    Torch's own threads would wait beside the workers for the caller's next operation, each of them
    keeping a core busy. A Python thread that meets torch for the first time meanwhile keeps to the
    one thread it finds; set its number where that matters.
    """
    if torch.get_num_threads() == 1:
        yield 1
        return
    with _ALONE:
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            yield threads
        finally:
            torch.set_num_threads(threads)


@cache
def _workers(name: str, count: int) -> ThreadPoolExecutor:
    """Return threads that compute by themselves, kept from call to call.

    All of them have begun: torch's number that one sets may become the process', which `alone` puts
    back when it is done.
    """
    pool = ThreadPoolExecutor(count, f"genebold-{name}", lambda: torch.set_num_threads(1))
    begun = threading.Barrier(count)
    wait([pool.submit(begun.wait) for _ in range(count)])
    return pool


def _begin_child() -> None:
    """Forget what a forked child has no threads for, the one that held the lock among them."""
    global _ALONE
    _ALONE = threading.Lock()
    _workers.cache_clear()


os.register_at_fork(after_in_child=_begin_child)


def run_all(
    run: Callable[[Job, ThreadPoolExecutor | None], Result],
    jobs: Sequence[Job],
    stop: threading.Event,
    threads: int,
    *,
    two_way: bool,
    long: bool,
) -> list[Result]:
    """Run all jobs on so many threads; each of them computes by itself.

    Parameters
    ----------
    run : callable
        Takes a job, and where its second reader may run beside the first.
    jobs : sequence
    stop : threading.Event
        Set when one has failed.
    threads : int
        As `alone` gives them.
    two_way, long : bool
        Whether there are two readers, and whether a job's memory counts.

    Returns
    -------
    list
        What `run` returned, in the order of the jobs.
    """
    if threads == 1:
        return [run(job, None) for job in jobs]
    paired = two_way and (long or len(jobs) < threads)
    at_once = max(1, threads // 2) if paired else threads
    helpers = _workers("reader", at_once) if paired else None
    workers = _workers("stream", at_once)
    futures: list[Future[Result]] = []
    try:
        futures.extend(workers.submit(run, job, helpers) for job in jobs)
        return _results(futures)
    except BaseException:
        stop.set()
        for future in futures:
            future.cancel()
        wait(futures)
        raise


def _results(futures: list[Future[Result]]) -> list[Result]:
    """Return all results, or raise the first error without waiting for what still runs."""
    ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in ended:
        future.result()
    return [future.result() for future in futures]
