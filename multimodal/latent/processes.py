"""Processes that embed a cohort together: started here, or by torchrun or srun."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from encoders.errors import InputError, Problem
from multimodal.align.processes import Place, place
from multimodal.features.crew import Crew, end_with_parent

if TYPE_CHECKING:
    from torch.distributed import Store

_TO_START = timedelta(minutes=30)
_SRUN_PORT = 29600
_PATIENCE_S = 60.0


@contextmanager
def crew_of(
    processes: int,
    tell: Callable[[str], None],
    work: Callable[..., None],
    *arguments: Any,
) -> Iterator[Crew]:
    """Give this process's part among those that share a piece of work, and start the others.

    Where torchrun or srun started them, none are.

    Parameters
    ----------
    processes : int
        On this machine.
    tell : callable
        Takes a sentence for people: that a process was lost.
    work : callable
        A module's function that does another process's part: takes its `Crew`, and the arguments.
    *arguments
        To be pickled.

    Raises
    ------
    InputError
        Others than `processes` were started, where it is not 1.
    """
    here = place()
    if here.processes > 1:
        if processes not in (1, here.processes):
            found, wanted = f"{here.processes} were started", "1, or as many as were started"
            raise InputError(
                Problem("process-count", f"processes={processes}", found, wanted, "leave it out")
            )
        crew = Crew(here.rank, here.processes, here.local_rank, _meeting_of(here))
        yield crew
        crew.meet("all")  # the first may keep what they meet in
    elif processes == 1:
        yield Crew()
    else:
        with _started(processes, tell, work, arguments) as crew:
            yield crew


@contextmanager
def _started(
    processes: int, tell: Callable[[str], None], work: Callable[..., None], arguments: Any
) -> Iterator[Crew]:
    """Start the other processes of this machine; those that are lost are told of once."""
    import torch
    from torch.distributed import TCPStore

    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = get_context("spawn")
    # Equal threads everywhere: how sums are divided among them can change the last bits.
    own = (processes, meeting.port, torch.get_num_threads(), work, arguments)
    others = {
        rank: context.Process(target=_work, args=(rank, *own)) for rank in range(1, processes)
    }
    told: set[int] = set()

    def lost() -> set[int]:
        gone = {rank for rank, process in others.items() if process.exitcode is not None}
        for rank in sorted(gone - told):
            told.add(rank)
            if code := others[rank].exitcode:
                tell(f"process {rank} of {processes} was lost (exit code {code}); the others go on")
        return gone

    patience_s = 0.0
    try:
        for process in others.values():
            process.start()
        crew = Crew(0, processes, 0, meeting, lost)
        yield crew
        crew.meet("all")
        patience_s = _PATIENCE_S
    finally:
        for process in others.values():
            if process.pid is not None:
                process.join(patience_s)
                process.terminate()
                process.join()


def _work(
    rank: int, processes: int, port: int, threads: int, work: Callable[..., None], arguments: Any
) -> None:
    """Do the part of a process that another one started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # pressed for all; ends with the first
    end_with_parent()
    import torch
    from torch.distributed import TCPStore

    torch.set_num_threads(threads)
    meeting = TCPStore("127.0.0.1", port, is_master=False, timeout=_TO_START)
    crew = Crew(rank, processes, rank, meeting)
    work(crew, *arguments)
    crew.meet("all")


def assist(crew: Crew, work: Callable[[], object]) -> None:
    """Do the part of a process that is not the first: silent, but for what breaks it.

    Parameters
    ----------
    crew : Crew
    work : callable
        The bad input it meets is the first process's to tell.
    """
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            work()
        except InputError as error:
            crew.stop(error.problems)
        except Exception as error:
            # Nobody else may notice: srun lets the others wait for those that broke.
            where, found = (
                f"process {crew.rank} of {crew.processes}",
                f"{type(error).__name__}: {error}",
            )
            fix = "run it with one process to see where it breaks"
            crew.stop([Problem("process-broke", where, found, "no such error", fix)])
            raise


def device_of(crew: Crew, device: str) -> str:
    """Return this process's own GPU where ``cuda`` alone was asked for, and any other as it is."""
    if crew.processes == 1 or device != "cuda":
        return device
    import torch

    return f"cuda:{crew.local_rank % max(1, torch.cuda.device_count())}"


def _meeting_of(here: Place) -> Store:
    """Return the store in which the processes of torchrun or srun meet."""
    from torch.distributed import TCPStore, rendezvous

    if "RANK" in os.environ:
        store: Store
        store, _, _ = next(rendezvous("env://", timeout=_TO_START))
        return store
    from lightning.fabric.plugins.environments import SLURMEnvironment

    nodes = os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1")
    first = os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)
    port = os.environ.get("MASTER_PORT")
    # That of another job than this on the same machine is another.
    port = port or str(_SRUN_PORT + int(os.environ.get("SLURM_JOB_ID", 0)) % 10000)
    return TCPStore(first, int(port), here.processes, here.rank == 0, timeout=_TO_START)
