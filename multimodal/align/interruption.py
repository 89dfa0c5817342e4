"""Being asked to stop: SIGTERM, SIGUSR1 and Ctrl-C save what was learned, and end the run in order.

Clusters send one of the first two some time before they take a machine away. Outside training a
signal ends the run at once, since stores and results are written whole or not at all; within it
the signal is noted, and training saves a checkpoint before the next step. A second Ctrl-C does not
wait. Signals that the program around us handles already are left to it: submitit requeues its jobs.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

EXIT_INTERRUPTED = 75
"""Exit code of a run that was asked to stop and can go on: EX_TEMPFAIL of sysexits.h."""
EXIT_CTRL_C = 130
"""Exit code of a run that somebody stopped by Ctrl-C, as of any other program."""


class Interrupted(BaseException):
    """A signal asked the run to stop. No error, and not to be caught as one.

    Parameters
    ----------
    by : str
        The signal's name.
    state : str
        What is saved.

    Attributes
    ----------
    exit_code : int
        Which the process should end with.
    """

    def __init__(self, by: str, state: str = "everything finished so far is kept") -> None:
        super().__init__(f"stopped by {by}: {state}")
        self.exit_code = EXIT_CTRL_C if by == signal.SIGINT.name else EXIT_INTERRUPTED


class StopRequest:
    """Takes the signals' place for a while; see `listening` and `noting`."""

    def __init__(self) -> None:
        self.by: str | None = None
        self._noting = False
        self._taken: tuple[signal.Signals, ...] = SIGNALS

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Handle the signals within the block; elsewhere than in the main thread, do not.

        Raises
        ------
        Interrupted
            On a signal.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        self._taken = tuple(number for number in SIGNALS if _is_ours(number))
        before = [(number, signal.getsignal(number)) for number in self._taken]
        self._take_signals()
        try:
            yield self
        finally:
            for number, handler in before:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Only note signals within the block; raise at its end where nobody looked at them.

        Signals wait until `take_over`, which whoever installs handlers of their own at the block's
        beginning must be followed by.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._noting = True
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            yield
        finally:
            self.take_over()
            self._noting = False
        if self.by is not None:
            raise Interrupted(self.by)

    def take_over(self) -> None:
        """Handle the signals again, whoever took them, those that have come meanwhile first."""
        if threading.current_thread() is threading.main_thread():
            self._take_signals()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _take_signals(self) -> None:
        for number in self._taken:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.by is not None:
            if number == signal.SIGINT:
                raise Interrupted(signal.SIGINT.name, "the last checkpoint is kept")
            return  # the first one is being obeyed
        self.by = signal.Signals(number).name
        if not self._noting:
            raise Interrupted(self.by)


def _is_ours(number: signal.Signals) -> bool:
    handler = signal.getsignal(number)
    if number == signal.SIGINT:
        # Programs that scripts start in the background are to ignore Ctrl-C.
        return handler is not signal.SIG_IGN
    return handler is None or isinstance(handler, signal.Handlers)
