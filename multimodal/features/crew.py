"""Several processes that share one piece of work: who takes what on, and who waits for whom.

Work is cut into named pieces, and whoever comes first takes a piece on. In the end the first
process goes over all of it once more, finds the pieces there, and does what a process that was
lost has left; so what comes out is what it alone would have made. They talk through a key-value
store of torch.distributed, given from outside: this module imports no torch.
"""

import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import wait
from typing import Any, TypeVar

from encoders.errors import InputError, Problem

T = TypeVar("T")
Takes = Callable[[str], bool]
"""Whether a piece of work, known by its name, is this process's to do."""

_LONGEST_WAIT = timedelta(days=7)  # encoding a cohort takes its time
_LOOK_AGAIN_S = 0.05
_STOPPED = "stopped"


def take_all(piece: str) -> bool:
    """Take every piece on, as a process that works alone."""
    return True


class Crew:
    """This process and those that it shares work with; by default there are none.

    Parameters
    ----------
    rank : int
        Of this process among all, from 0.
    processes : int
        In all.
    local_rank : int
        Among those of this machine, from 0.
    meeting : torch.distributed.Store, optional
        Which all of them see; wanted where there are several.
    lost : callable, optional
        Returns the ranks that have ended; asked in the first process. Without it, whoever started
        the processes ends all when one is lost, as torchrun does.
    """

    def __init__(
        self,
        rank: int = 0,
        processes: int = 1,
        local_rank: int = 0,
        meeting: Any = None,
        lost: Callable[[], set[int]] = set,
    ) -> None:
        self.rank, self.processes, self.local_rank = rank, processes, local_rank
        self._meeting, self._lost = meeting, lost

    @property
    def is_first(self) -> bool:
        """Whether this process speaks, opens and finishes."""
        return self.rank == 0

    def from_first(self, what: str, make: Callable[[], T]) -> T:
        """Let the first process make something while the others wait, and give it to all.

        Parameters
        ----------
        what : str
            A name that nothing else goes by.
        make : callable
            Returns what JSON can say.
        """
        if self.processes == 1:
            return make()
        if self.is_first:
            made = make()
            self._meeting.set(what, json.dumps(made))
            return made
        self._meeting.wait([what], _LONGEST_WAIT)
        heard: T = json.loads(self._meeting.get(what))
        return heard

    def share_out(self, what: str, work: Callable[[Takes, bool], None]) -> None:
        """Do a piece of work together; once it returns in the first process, all of it is done.

        Parameters
        ----------
        what : str
            A name that nothing else goes by.
        work : callable
            Goes over all pieces and does those that are not done yet and are its own to do, by
            the `Takes` it is given; told as well whether people are to see how far it is. The
            first process calls it again, to do whatever is left.

        Raises
        ------
        InputError
            Of whichever process met bad input that ends the work.
        """
        if self.processes > 1:
            work(partial(self._takes, what), self.is_first)
            self.meet(what)
        if self.is_first:
            work(take_all, self.processes == 1)

    def meet(self, what: str) -> None:
        """Say that this process is done with something; the first waits for the others.

        Raises
        ------
        InputError
            As `share_out`.
        """
        if self.processes == 1:
            return
        if not self.is_first:
            self._meeting.set(_done(what, self.rank), "")
            return
        waited_for = set(range(1, self.processes))
        while waited_for:
            gone = self._lost()  # before looking: it may have done its part and ended
            arrived = {who for who in waited_for if self._meeting.check([_done(what, who)])}
            waited_for -= arrived | gone
            self._raise_if_stopped()
            if waited_for:
                time.sleep(_LOOK_AGAIN_S)

    def stop(self, problems: Sequence[Problem]) -> None:
        """Let all processes stop, each after the piece it is at, and give this reason."""
        told = [dataclasses.asdict(problem) for problem in problems]
        self._meeting.set(_STOPPED, json.dumps(told))

    def _takes(self, what: str, piece: str) -> bool:
        self._raise_if_stopped()
        return bool(self._meeting.add(f"{what}: {piece}", 1) == 1)

    def _raise_if_stopped(self) -> None:
        if self._meeting.check([_STOPPED]):
            told = json.loads(self._meeting.get(_STOPPED))
            raise InputError([Problem(**problem) for problem in told])


def end_with_parent() -> None:
    """Let this process end when the one that started it is killed; it would wait for ever."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _done(what: str, rank: int) -> str:
    return f"{what}: done by {rank}"
