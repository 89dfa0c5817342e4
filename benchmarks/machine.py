"""What a benchmark's table says about where it ran."""

import os
import platform
import subprocess
import time
from pathlib import Path

# Instruction sets that decide how fast scans and matrix products can be, as Linux names them.
_TOLD_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
_MATRIX_SIZE = 1024
# Some CPUs take half a second for a product in bfloat16.
_ENOUGH_S = 2.0


def describe_machine() -> str:
    """Return processor, cores and Python version in words."""
    facts = _cpu_facts()
    model = facts.get("model name") or platform.processor() or platform.machine()
    # Virtual machines often leave the name at the maker's; the numbers tell which CPU it is.
    numbers = [f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts]
    present = set(facts.get("flags", facts.get("Features", "")).split())
    told = [flag for flag in _TOLD_FLAGS if flag in present]
    details = ", ".join([*numbers, " ".join(told)]).strip(", ")
    model = f"{model} ({details})" if details else model
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def describe_commit() -> str:
    """Return the commit checked out here in words, and whether code differs from it."""
    commit = _git("rev-parse", "--short", "HEAD")
    if commit is None:
        return "no commit"
    # Tables of an hour ago are no other code.
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results")
    return f"commit {commit}{' with changes' if changed else ''}"


def _git(*words: str) -> str | None:
    folder = Path(__file__).parent
    found = subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=folder)
    return found.stdout.strip() if found.returncode == 0 else None


def matrix_rate_gflops(dtype: str = "float32", *, repeats: int = 7) -> float:
    """Measure this machine's matrix products on one thread, through torch.

    Parameters
    ----------
    dtype : str
        A torch type's name.
    repeats : int
        Products to take the best of, after one that does not count; fewer where they are slow.

    Returns
    -------
    float
        GFLOP/s of square products, a multiplication and an addition counted as two.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        factor = torch.randn(_MATRIX_SIZE, _MATRIX_SIZE).to(getattr(torch, dtype))
        seconds: list[float] = []
        while len(seconds) <= 1 or (len(seconds) <= repeats and sum(seconds) < _ENOUGH_S):
            start = time.perf_counter()
            torch.mm(factor, factor)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 2 * _MATRIX_SIZE**3 / min(seconds[1:]) / 1e9


def describe_matrix_rates() -> str:
    """Return the matrix-product rates of one thread in words, so that machines can be compared."""
    rates = {dtype: matrix_rate_gflops(dtype) for dtype in ("float32", "bfloat16")}
    told = " and ".join(f"{rate:,.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items())
    return f"matrix products of {_MATRIX_SIZE:,} rows on one thread: {told}"


def _cpu_facts() -> dict[str, str]:
    """Return what Linux says of the first processor; nothing elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return {}
    pairs = [line.partition(":") for line in cpuinfo.read_text().split("\n\n")[0].splitlines()]
    return {key.strip(): value.strip() for key, _, value in pairs}
