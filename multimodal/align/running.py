"""How training runs, which does not change what it learns: processes, devices, loggers.

Imports neither torch nor lightning.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from encoders.errors import InputError, Problem

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
    strategy : {"auto", "ddp"}
        ``auto`` is distributed data parallel as well where there are several processes.
    logger : tuple of str
        Some of `LOGGERS`, in the ``logs`` folder; none at all is fine.
    """

    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp"] = "auto"
    logger: tuple[str, ...] = ("csv", "tensorboard")

    def __post_init__(self) -> None:
        problems = [
            Problem("bad-option", f"trainer.{name}", repr(getattr(self, name)), "at least 1")
            for name in ("devices", "num_nodes")
            if getattr(self, name) < 1
        ]
        if self.strategy not in ("auto", "ddp"):
            found = repr(self.strategy)
            problems.append(Problem("bad-option", "trainer.strategy", found, "auto or ddp"))
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
    def processes(self) -> int:
        """Of all machines together."""
        return self.devices * self.num_nodes
