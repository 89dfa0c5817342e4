"""One window of 131,072 bases through the published Caduceus-PS: seconds and peak memory.

Pooled features of one window by 1 and 2 threads, in float32 and bfloat16, and a training step on a
shorter one with gradient checkpointing and without: each in a process of its own. The memory is how
far the peak rises above the interpreter with torch loaded, network and input included. In the same
process, before and after, the products and scans alone are timed that none of it can do without.

    python benchmarks/windows.py                     # all, and the table in benchmarks/results
    python benchmarks/windows.py --length-bp 16384   # another window; nothing is written
    python benchmarks/windows.py --short             # short windows; nothing is written
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

import psutil
import torch
from peak import peak_mib

LENGTH_BP, STEP_BP = 131_072, 16_384
SHORT_BP, SHORT_STEP_BP = 512, 256
# The yardstick's block is timed at this length, where all it holds still fits into 2 GB.
BLOCK_BP, SHORT_BLOCK_BP, BLOCK_ROUNDS = 4096, 256, 3
LAYERS = 16
# What the step without checkpointing takes, at its full length.
PLAIN_STEP_GB = 16
WARM_UP_BP = 32
LIMIT_S = 7200.0


KINDS = {
    "forward": "pooled features",
    "step": "training step, checkpointed",
    "plain step": "training step, not checkpointed",
}


@dataclass(frozen=True)
class Case:
    """One measurement: what is run, and what is asked of it at the full lengths."""

    what: str  # "forward", "step", or "plain step", without checkpointing
    dtype: str
    threads: int
    length_bp: int
    bound_s: float | None = None
    bound_gb: float | None = None

    @property
    def title(self) -> str:
        """What the table calls it."""
        return f"{KINDS[self.what]}, {self.length_bp:,} bases, {self.dtype}"


@dataclass(frozen=True)
class Found:
    """Seconds, those of its floor, and GB (10^9 bytes) above the interpreter with torch loaded."""

    seconds: float
    floor_s: float | None
    peak_gb: float


def cases(length_bp: int, step_bp: int) -> list[Case]:
    """Return what is measured; bounds stand where they were asked for."""
    full = (length_bp, step_bp) == (LENGTH_BP, STEP_BP)
    bounds_s = {("forward", "float32"): 45, ("forward", "bfloat16"): 30, ("step", "float32"): 25}
    bounds_gb = {"forward": 1, "step": 2}
    listed = []
    for what, dtype in bounds_s:
        for threads in (1, 2):
            length = length_bp if what == "forward" else step_bp
            bound_s = bounds_s[what, dtype] if full and threads == 2 else None
            bound_gb = bounds_gb[what] if full and threads == 2 else None
            listed.append(Case(what, dtype, threads, length, bound_s, bound_gb))
    return [*listed, Case("plain step", "float32", 2, step_bp)]


def in_process(case: Case) -> Found | str:
    """Measure a case in a process of its own; where it fails, say how."""
    wanted_gb = PLAIN_STEP_GB * case.length_bp / STEP_BP
    if case.what == "plain step" and psutil.virtual_memory().available < 1e9 * wanted_gb:
        return f"not run: {wanted_gb:.0f} GB are not free"
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(case.threads))
    try:
        ended = subprocess.run(
            [sys.executable, __file__, "--measure", json.dumps(asdict(case))],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **threads},
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"not within {LIMIT_S:,.0f} s"
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines()
        return f"failed: {lines[-1] if lines else f'ended with {ended.returncode}'}"
    return Found(**json.loads(ended.stdout.splitlines()[-1]))


def measure(case: Case) -> Found:
    """Run a case here, once, after a short window that does not count."""
    torch.set_num_threads(case.threads)
    before = peak_mib(reset=True)
    from floor import floor_seconds

    from encoders import load_encoder

    encoder = load_encoder("caduceus_ps", dtype=case.dtype)
    training = case.what != "forward"
    encoder.requires_grad_(training)
    encoder.gradient_checkpointing(case.what == "step")

    def run(length_bp: int) -> float:
        tokens = encoder.tokenize([window_of(length_bp)])
        start = time.perf_counter()
        if training:
            encoder(*tokens).sum().backward()
        else:
            with torch.inference_mode():
                encoder(*tokens)
        return time.perf_counter() - start

    def floor() -> float | None:
        if case.dtype != "float32" or case.what == "plain step":
            return None
        return floor_seconds(encoder, case.length_bp, training=training)

    run(WARM_UP_BP)
    encoder.zero_grad(set_to_none=True)
    floors = [floor()]
    seconds = run(case.length_bp)
    peak_gb = (peak_mib() - before) * 2**20 / 1e9
    floors.append(floor())
    known = [floor_s for floor_s in floors if floor_s is not None]
    return Found(seconds, sum(known) / len(known) if known else None, peak_gb)


def window_of(length_bp: int) -> str:
    """Draw a window's letters."""
    generator = torch.Generator().manual_seed(length_bp)
    return "".join("ACGT"[i] for i in torch.randint(0, 4, (length_bp,), generator=generator))


def yardstick_line(length_bp: int, block_bp: int) -> tuple[str, float]:
    """Extrapolate the yardstick's seconds for a window from one block of a shorter one.

    Returns
    -------
    line : str
        What was measured and how it was extrapolated, in words.
    seconds : float
        For all layers, on one thread.
    """
    from block import yardstick_seconds

    torch.set_num_threads(1)
    one = yardstick_seconds(block_bp, BLOCK_ROUNDS)
    seconds = one * LAYERS * length_bp / block_bp
    line = (
        f"Upstream's slow path would take {seconds:,.0f} s for the {length_bp:,} bases on one "
        "thread. This is extrapolated,\n"
        f"not measured: one block of the yardstick takes {one:.2f} s at {block_bp:,} bases (median "
        f"of {BLOCK_ROUNDS}), times\n"
        f"{LAYERS} layers, times {length_bp / block_bp:g} for the length."
    )
    return line, seconds


def row(case: Case, found: Found | str, yardstick_s: float) -> list[str]:
    """Return a table's row."""
    from tables import at_most

    if isinstance(found, str):
        return [case.title, str(case.threads), found, "", "", ""]
    seconds = f"{found.seconds:,.2f} s"
    if case.bound_s is not None:
        seconds = at_most(found.seconds, case.bound_s, "s")
    memory = f"{found.peak_gb:.2f} GB"
    if case.bound_gb is not None:
        memory = at_most(found.peak_gb, case.bound_gb, "GB")
    forward = case.what == "forward" and case.threads == 1
    faster = f"about {yardstick_s / found.seconds:,.0f} times" if forward else ""
    floor = "" if found.floor_s is None else f"{found.floor_s:,.2f} s"
    return [case.title, str(case.threads), seconds, floor, memory, faster]


def main() -> int:
    """Measure every case in a process of its own, print and (for all) write the table."""
    from tables import heading, markdown, publish

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="small and quick; nothing is written")
    parser.add_argument(
        "--length-bp", type=int, help=f"bases of the window, {LENGTH_BP} by default"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(asdict(measure(Case(**json.loads(arguments.measure))))))
        return 0
    short = arguments.short
    length_bp = arguments.length_bp or (SHORT_BP if short else LENGTH_BP)
    step_bp = SHORT_STEP_BP if short else STEP_BP
    line, yardstick_s = yardstick_line(length_bp, SHORT_BLOCK_BP if short else BLOCK_BP)
    rows = []
    for case in cases(length_bp, step_bp):
        rows.append(row(case, in_process(case), yardstick_s))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    notes = [
        f"Published size ({LAYERS} layers), random weights, one window, a single run each after a "
        "short one; memory is",
        "the peak above the interpreter with torch loaded, in 10^9 bytes: network, input and, in "
        "training, all",
        "gradients are in it. The step is forward and backward of the summed pooled features. "
        "The floor is what",
        "its matrix products and scans take by themselves, with as many threads, in memory that is "
        "in the cache:",
        "the mean of just before and just after, in the same process.",
        *line.splitlines(),
    ]
    header = [
        "what", "threads", "seconds", "floor here", "peak memory", "over the extrapolated yardstick"
    ]  # fmt: skip
    lines = heading("One window through Caduceus-PS", notes)
    write = not short and arguments.length_bp is None
    publish("windows", [*lines, *markdown(header, rows)], write=write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
