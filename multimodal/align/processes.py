"""Several processes that train together: who is which, how they meet, what the first does alone.

torchrun and srun start processes and say in the environment which each one is. Where neither did,
`companions` starts the others on this machine. The first process does what must be done once
(encode, write, rename); the rest wait for it.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from encoders.errors import InputError, Problem
from multimodal.align.running import TrainerOptions

T = TypeVar("T")

_LONGEST_WAIT = timedelta(days=7)  # encoding a cohort takes its time
_SRUN_PORT = 29500


@dataclass(frozen=True)
class Place:
    """Which of the processes this one is.

    Parameters
    ----------
    rank : int
        Among all processes, from 0.
    local_rank : int
        Among those of this machine, from 0.
    processes : int
        In all.
    """

    rank: int = 0
    local_rank: int = 0
    processes: int = 1


def place() -> Place:
    """Return this process's place, as torchrun or srun say it in the environment."""
    found = os.environ
    if "RANK" in found and "WORLD_SIZE" in found:
        local = int(found.get("LOCAL_RANK", 0))
        return Place(int(found["RANK"]), local, int(found["WORLD_SIZE"]))
    if "SLURM_STEP_NUM_TASKS" in found and "SLURM_PROCID" in found:
        local, tasks = int(found.get("SLURM_LOCALID", 0)), int(found["SLURM_STEP_NUM_TASKS"])
        return Place(int(found["SLURM_PROCID"]), local, tasks)
    return Place()


class Processes:
    """This process and those that it has met.

    Parameters
    ----------
    here : Place
    group : optional
        torch.distributed's group, of CPU tensors, in which they wait for each other.
    """

    def __init__(self, here: Place, group: Any = None) -> None:
        self.here, self._group = here, group

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.here.rank == 0

    def from_first(self, make: Callable[[], T]) -> T:
        """Let the first process make something while the others wait, and give it to all.

        Raises
        ------
        SystemExit
            In the others, where the first failed; it says why.
        """
        if self._group is None:
            return make()
        import torch.distributed as dist

        parcel: list[Any] = [False, None]
        try:
            if self.is_first:
                parcel = [True, make()]
        finally:
            dist.broadcast_object_list(parcel, src=0, group=self._group)
        done, made = parcel
        if not done:
            raise SystemExit(1)
        value: T = made
        return value


_met: Processes | None = None


@contextmanager
def joined(options: TrainerOptions, accelerator: str) -> Iterator[Processes]:
    """Meet the other processes, unless that is done already or there are none, and part again.

    Parameters
    ----------
    options : TrainerOptions
    accelerator : {"cpu", "gpu", "auto"}

    Raises
    ------
    InputError
        As many processes were started as the options do not say.
    """
    global _met
    here = place()
    if _met is not None or here.processes == 1:
        yield _met or Processes(here)
        return
    refuse_other_number(here.processes, options)
    import torch
    import torch.distributed as dist

    _announce(here, options)
    on_gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.cuda.set_device(here.local_rank)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, rank=here.rank, world_size=here.processes)
    try:
        _met = Processes(here, dist.new_group(backend="gloo", timeout=_LONGEST_WAIT))
        yield _met
    finally:
        _met = None
        dist.destroy_process_group()


@contextmanager
def companions(
    options: TrainerOptions, work: Callable[..., None], *arguments: Any
) -> Iterator[None]:
    """Start the other processes of this machine, each doing `work`, where nobody else did.

    Parameters
    ----------
    options : TrainerOptions
    work : callable
        A module's function; it finds its `place` and should meet this process by `joined`.
    *arguments
        What `work` takes, to be pickled.

    Raises
    ------
    InputError
        Several machines are wanted, whose processes torchrun or srun must start; or others than
        the options say were started.
    """
    here = place()
    if here.processes == 1 and options.num_nodes > 1:
        raise InputError(
            Problem(
                "not-launched",
                f"trainer.num_nodes={options.num_nodes}",
                "one process, started by hand",
                f"{options.devices} processes on each of {options.num_nodes} machines",
                "start the command by torchrun on each machine, or by srun",
            )
        )
    if here.processes > 1 or options.processes == 1:
        refuse_other_number(here.processes, options)
        yield
        return
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    context = multiprocessing.get_context("spawn")
    started = [
        context.Process(
            target=_work_at,
            args=(_environment(rank, options, address), work, arguments),
            daemon=True,
        )
        for rank in range(1, options.processes)
    ]
    own = _environment(0, options, address)
    before = {name: os.environ.get(name) for name in own}
    for process in started:
        process.start()
    os.environ.update(own)
    patience_s = 0.0
    try:
        yield
        patience_s = 60.0
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        for process in started:
            process.join(patience_s)
            process.terminate()


def _work_at(environment: dict[str, str], work: Callable[..., None], arguments: Any) -> None:
    os.environ.update(environment)
    work(*arguments)


def _environment(rank: int, options: TrainerOptions, address: dict[str, str]) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % options.devices),
        "NODE_RANK": str(rank // options.devices),
        "WORLD_SIZE": str(options.processes),
        **address,
    }


def _announce(here: Place, options: TrainerOptions) -> None:
    """Say in torch's own words what srun said in its; torchrun has."""
    if "RANK" in os.environ:
        return
    from lightning.fabric.plugins.environments import SLURMEnvironment

    nodes = os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1")
    address = {
        "MASTER_ADDR": os.environ.get(
            "MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes)
        ),
        "MASTER_PORT": os.environ.get("MASTER_PORT", str(_port_of_job())),
    }
    os.environ.update(_environment(here.rank, options, address))


def _port_of_job() -> int:
    """Return a port that the processes of one Slurm job agree upon, and those of another do not."""
    return _SRUN_PORT + int(os.environ.get("SLURM_JOB_ID", 0)) % 10000


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def refuse_other_number(started: int, options: TrainerOptions) -> None:
    """Raise `InputError` where not as many processes were started as the options say."""
    if started == options.processes:
        return
    raise InputError(
        Problem(
            "process-count",
            f"trainer.devices={options.devices}, trainer.num_nodes={options.num_nodes}",
            f"{started} processes were started",
            f"{options.processes}, devices on each of num_nodes machines",
            "set both to what torchrun or srun start",
        )
    )


def refuse_several(verb: str) -> None:
    """Raise `InputError` where several processes were started for what a single one does.

    Parameters
    ----------
    verb : str
        Of the command line.
    """
    started = place().processes
    if started == 1:
        return
    raise InputError(
        Problem(
            "process-count",
            "torchrun or srun",
            f"{started} processes of `genebold {verb}` were started",
            "one, since all of them would write the same files",
            f"run `genebold {verb}` without torchrun, or by srun --ntasks=1",
        )
    )
