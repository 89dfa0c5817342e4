"""How training runs, which does not change what it learns: processes, devices, loggers.

Imports neither torch nor lightning.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args

from encoders.errors import InputError, Problem

Strategy = Literal["auto", "ddp", "fsdp"]

LOGGERS = {"csv": None, "tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
"""Loggers by name, with the package each of them needs."""


@dataclass(frozen=True)
class TrainerOptions:
    """The ``trainer`` section: another number of processes trains the same weights, up to rounding.

    Parameters
    ----------
    devices : int
        Processes on each machine; with ``align.accelerator=gpu``, a GPU each.
    num_nodes : int
        Machines.
    strategy : {"auto", "ddp", "fsdp"}
        How several processes train. ``ddp``, and ``auto`` as well: each of them has whole
        networks. ``fsdp``: networks, gradients and the optimiser's state are split between them,
        for encoders too large for one; of one process it is ``auto``.
    logger : tuple of str
        Some of `LOGGERS`, in the ``logs`` folder; none at all is fine.
    """

    devices: int = 1
    num_nodes: int = 1
    strategy: Strategy = "auto"
    logger: tuple[str, ...] = ("csv", "tensorboard")

    def __post_init__(self) -> None:
        problems = [
            Problem("bad-option", f"trainer.{name}", repr(getattr(self, name)), "at least 1")
            for name in ("devices", "num_nodes")
            if getattr(self, name) < 1
        ]
        if self.strategy not in get_args(Strategy):
            found, wanted = repr(self.strategy), "auto, ddp or fsdp"
            problems.append(Problem("bad-option", "trainer.strategy", found, wanted))
        for name in self.logger:
            if name not in LOGGERS:
                wanted = f"some of {', '.join(LOGGERS)}"
                problems.append(Problem("bad-option", "trainer.logger", f"'{name}'", wanted))
            elif (package := LOGGERS[name]) is not None and find_spec(package) is None:
                problems.append(
                    Problem(
                        "package-missing",
                        "trainer.logger",
                        f"'{name}', but the package {package} is not installed",
                        "loggers whose packages are there",
                        f"pip install {package}, or take '{name}' out of trainer.logger",
                    )
                )
        if problems:
            raise InputError(problems)

    @property
    def sharded(self) -> bool:
        """Whether networks are split between processes."""
        return self.strategy == "fsdp" and self.processes > 1

    @property
    def processes(self) -> int:
        """Of all machines together."""
        return self.devices * self.num_nodes
