"""Processes of a test's own, each of which trains as one of several."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing


def run_in_processes(processes: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call ``work(rank, processes, *arguments)`` in as many processes, and wait for them."""
    # A fork need not import all over again, but autograd refuses it where it has device threads.
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    started = [
        context.Process(target=work, args=(rank, processes, *arguments))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=300)
        process.kill()
    assert [process.exitcode for process in started] == [0] * processes


def found_by(processes: int, folder: Path) -> list[dict[str, Any]]:
    """Return what each of them saved."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]
