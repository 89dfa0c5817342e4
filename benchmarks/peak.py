"""How much memory a process has held at most, on Linux."""

from pathlib import Path


def peak_mib(*, reset: bool = False) -> float:
    """Return the peak resident memory of this process so far, in MiB.

    Parameters
    ----------
    reset : bool
        Forget the past first: the peak starts afresh from what is held now.

    Raises
    ------
    OSError
        No Linux, or ``/proc`` is not mounted.
    """
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in status if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024
