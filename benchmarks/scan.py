"""The selective scan alone: how much faster than upstream's reference, forward and backward.

One thread, the published width (512 channels, 16 states, time steps of rank 16), both strands in
the batch; projection of the time steps, softplus and skip connection are part of it. Medians of
five rounds in which each contender runs once; the native kernels at every instruction set this CPU
has.

    python benchmarks/scan.py            # all, and the table in benchmarks/results
    python benchmarks/scan.py --short    # short sequences, two rounds; nothing is written
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from tables import at_least, at_most, heading, markdown, publish
from timing import Timed, keep_memory, median_seconds, rounds_of, timed
from torch import Tensor
from yardstick import reference_scan

from encoders.selective_scan import library, list_backends, selective_scan

CHANNELS, STATES, RANK, STRANDS = 512, 16, 16, 2
YARDSTICK = "yardstick"
# How many times the yardstick's speed is asked for.
FORWARD_BOUNDS = {"torch": 7, "cpu, baseline": 12, "cpu, avx2": 35, "cpu, avx512": 60}
BACKWARD_BOUND = 2.5
# Rounding of float32 states over thousands of positions; anything larger is another function.
AGREES = 1e-4


@dataclass(frozen=True)
class Sizes:
    """What is run: lengths in positions, rounds, and how far the yardstick goes along."""

    forward: int
    lengths: tuple[int, ...]
    rounds: int
    yardstick_forward: int
    yardstick_backward: int


FULL = Sizes(2048, (256, 1024, 4096, 16_384), 5, yardstick_forward=1024, yardstick_backward=256)
SHORT = Sizes(512, (256, 1024), 2, yardstick_forward=256, yardstick_backward=0)


@dataclass(frozen=True)
class Inputs:
    """What a scan takes at the published width, in our layout [B, L, D]."""

    u: Tensor
    delta: Tensor  # [B, L, rank]
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    delta_weight: Tensor
    delta_bias: Tensor

    @classmethod
    def draw(cls, length: int, *, seed: int = 0) -> "Inputs":
        """Draw values like those of a network with fresh weights: time steps of 0.001 to 0.1."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        steps = 0.001 * 100 ** torch.rand(CHANNELS, generator=generator)
        return cls(
            u=normal(STRANDS, length, CHANNELS),
            delta=normal(STRANDS, length, RANK),
            A=-torch.arange(1.0, STATES + 1).repeat(CHANNELS, 1),
            B=normal(STRANDS, length, STATES),
            C=normal(STRANDS, length, STATES),
            D=torch.ones(CHANNELS),
            delta_weight=(torch.rand(CHANNELS, RANK, generator=generator) - 0.5) / 2,
            delta_bias=steps + torch.log(-torch.expm1(-steps)),
        )

    def tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]

    def in_upstreams_layout(self) -> "Inputs":
        """Return the sequences as [B, D, L], as upstream's convolution leaves them."""
        turned = {
            name: getattr(self, name).transpose(1, 2).contiguous()
            for name in ("u", "delta", "B", "C")
        }
        return Inputs(**{**{f.name: getattr(self, f.name) for f in fields(self)}, **turned})

    def with_gradients(self) -> "Inputs":
        return Inputs(*(tensor.clone().requires_grad_() for tensor in self.tensors()))


@dataclass(frozen=True)
class Contender:
    """One way to compute the scan."""

    name: str
    scan: Callable[[Inputs], Tensor]
    prepare: Callable[[Inputs], Inputs] = lambda inputs: inputs

    def forward(self, inputs: Inputs) -> Timed:
        """Return the forward pass alone, timed."""
        given = self.prepare(inputs)
        return timed(torch.no_grad()(lambda: self.scan(given)))

    def backward(self, inputs: Inputs) -> Timed:
        """Return the backward pass alone, timed; gradients of all inputs."""
        given = self.prepare(inputs).with_gradients()
        grad = torch.ones_like(given.u)

        def run() -> float:
            y = self.scan(given)
            return timed(lambda: torch.autograd.grad(y, given.tensors(), grad))()

        return run


def run_yardstick(inputs: Inputs) -> Tensor:
    """Run upstream's reference scan on [B, D, L]."""
    delta = inputs.delta_weight @ inputs.delta
    return reference_scan(
        inputs.u, delta, inputs.A, inputs.B, inputs.C, inputs.D,
        delta_bias=inputs.delta_bias, delta_softplus=True,
    )  # fmt: skip


def run_backend(inputs: Inputs, backend: str) -> Tensor:
    """Run one of our backends on [B, L, D]."""
    return selective_scan(
        inputs.u, inputs.delta, inputs.A, inputs.B, inputs.C, inputs.D,
        delta_weight=inputs.delta_weight, delta_bias=inputs.delta_bias, delta_softplus=True,
        backend=backend,
    )  # fmt: skip


@contextmanager
def forced(level: str) -> Iterator[None]:
    """Have the dispatcher take an instruction set that this CPU has.

    Raises
    ------
    RuntimeError
        It takes another.
    """
    before = os.environ.get(library.LEVEL_VARIABLE)
    os.environ[library.LEVEL_VARIABLE] = level
    try:
        if library.level() != level:
            raise RuntimeError(f"asked for {level}, the dispatcher takes {library.level()}")
        yield
    finally:
        del os.environ[library.LEVEL_VARIABLE]
        if before is not None:
            os.environ[library.LEVEL_VARIABLE] = before


class NativeContender(Contender):
    """The native kernels at one instruction set, in the backward pass as well."""

    def forward(self, inputs: Inputs) -> Timed:
        return self._at_level(super().forward(inputs))

    def backward(self, inputs: Inputs) -> Timed:
        return self._at_level(super().backward(inputs))

    def _at_level(self, run: Timed) -> Timed:
        def at_level() -> float:
            with forced(self.name.removeprefix("cpu, ")):
                return run()

        return at_level


def contenders() -> tuple[list[Contender], dict[str, str]]:
    """Return who can run here, and why each of the others cannot."""
    found = [
        Contender(YARDSTICK, run_yardstick, Inputs.in_upstreams_layout),
        Contender("torch", lambda inputs: run_backend(inputs, "torch")),
    ]
    missing = {}
    levels = available_levels()
    for level in library.LEVELS:
        if level in levels:
            found.append(NativeContender(f"cpu, {level}", lambda i: run_backend(i, "cpu")))
        else:
            built = "cpu" in list_backends()
            missing[f"cpu, {level}"] = "not on this CPU" if built else "not built"
    return found, missing


def available_levels() -> list[str]:
    """Return the instruction sets the native kernels have on this CPU, lowest first."""
    if "cpu" not in list_backends():
        return []
    before = os.environ.pop(library.LEVEL_VARIABLE, None)
    try:
        best = library.level()
    finally:
        if before is not None:
            os.environ[library.LEVEL_VARIABLE] = before
    return list(library.LEVELS[: library.LEVELS.index(best) + 1])


def ns_each(seconds: float, length: int) -> float:
    """Return nanoseconds per token and channel."""
    return seconds * 1e9 / (STRANDS * length * CHANNELS)


def forward_table(
    runners: list[Contender], missing: dict[str, str], sizes: Sizes, *, kept: bool = False
) -> list[str]:
    """Compare the forward pass of all with the yardstick's, values first.

    The bounds hold where memory is handed out as the system does it, as where they were set.
    """
    inputs = Inputs.draw(sizes.forward)
    apart = {r.name: difference(r, inputs) for r in runners if r.name != YARDSTICK}
    seconds = median_seconds({r.name: r.forward(inputs) for r in runners}, sizes.rounds)
    rows = []
    for name, taken in seconds.items():
        bound = FORWARD_BOUNDS.get(name)
        times = seconds[YARDSTICK] / taken
        faster = "" if bound is None else f"{times:.1f} times" if kept else at_least(times, bound)
        each = f"{ns_each(taken, sizes.forward):,.1f}"
        rows.append([name, each, faster, "" if bound is None else f"{apart[name]:.0e}"])
    rows += [[name, why, f"(at least {FORWARD_BOUNDS[name]})", ""] for name, why in missing.items()]
    header = ["backend", "ns per token and channel", "faster than the yardstick", "differs by"]
    title = f"## Forward, {sizes.forward:,} positions{', memory kept' if kept else ''}"
    return [title, "", *markdown(header, rows)]


def difference(runner: Contender, inputs: Inputs) -> float:
    """Return how far a contender's result is from the yardstick's, over the latter's largest.

    Raises
    ------
    RuntimeError
        It computes something else.
    """
    with torch.no_grad():
        wanted = run_yardstick(inputs.in_upstreams_layout()).transpose(1, 2)
        found = runner.scan(inputs)
    apart = float((found - wanted).abs().max() / wanted.abs().max())
    if apart > AGREES:
        raise RuntimeError(f"{runner.name} differs from the yardstick by {apart:.1e}")
    return apart


Measured = dict[tuple[str, int], float]
"""Seconds, or a ratio, by contender and length."""


def measure_lengths(runners: list[Contender], sizes: Sizes) -> tuple[Measured, Measured, Measured]:
    """Return the seconds of forward and backward at growing lengths, and their ratios.

    Both passes of all run in every round, and a ratio is the median of the rounds' own: the clock
    of a machine that others use as well changes from second to second.
    """
    ahead: Measured = {}
    back: Measured = {}
    ratios: Measured = {}
    for length in sizes.lengths:
        inputs = Inputs.draw(length)
        runs: dict[tuple[str, str], Timed] = {}
        for r in within(runners, length, sizes.yardstick_forward):
            runs[r.name, "forward"] = r.forward(inputs)
            if r in within(runners, length, sizes.yardstick_backward):
                runs[r.name, "backward"] = r.backward(inputs)
        rounds = rounds_of(runs, sizes.rounds)
        for name, way in runs:
            seconds = statistics.median(one[name, way] for one in rounds)
            (ahead if way == "forward" else back)[name, length] = seconds
            if way == "backward":
                ratio = (one[name, "backward"] / one[name, "forward"] for one in rounds)
                ratios[name, length] = statistics.median(ratio)
    return ahead, back, ratios


def within(runners: list[Contender], length: int, limit: int) -> list[Contender]:
    """Leave the yardstick out of lengths beyond its limit."""
    return [runner for runner in runners if runner.name != YARDSTICK or length <= limit]


def length_table(what: str, measured: Measured, names: list[str], sizes: Sizes) -> list[str]:
    """Show what a token and channel costs by length; 1 in the last column is linear."""
    first, last = sizes.lengths[0], sizes.lengths[-1]
    rows = []
    for name in names:
        each = {
            length: ns_each(measured[name, length], length)
            for length in sizes.lengths
            if (name, length) in measured
        }
        cells = [f"{each[length]:,.1f}" if length in each else "" for length in sizes.lengths]
        growth = f"{each[last] / each[first]:.2f}" if last in each else ""
        rows.append([name, *cells, growth])
    header = ["backend", *(f"{length:,}" for length in sizes.lengths), "longest over shortest"]
    return [f"## {what}, ns per token and channel by length", "", *markdown(header, rows)]


def ratio_table(ratios: Measured) -> list[str]:
    """Show what the backward pass costs in forward passes."""
    rows = []
    for (name, length), ratio in sorted(ratios.items(), key=lambda item: item[0][1]):
        bound = "" if name == YARDSTICK else at_most(ratio, BACKWARD_BOUND, "times")
        rows.append([name, f"{length:,}", bound or f"{ratio:,.1f} times"])
    header = ["backend", "positions", "backward over forward"]
    return ["## Backward over forward", "", *markdown(header, rows)]


def main() -> int:
    """Measure, print and (unless short) write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="small and quick; nothing is written")
    short = parser.parse_args().short
    sizes = SHORT if short else FULL
    torch.set_num_threads(1)
    runners, missing = contenders()
    notes = [
        f"{CHANNELS} channels, {STATES} states, rank {RANK}, both strands in the batch, float32, "
        "one thread,",
        f"median of {sizes.rounds}; projection of the time steps, softplus and skip connection "
        "are part of it.",
        "The yardstick is upstream's reference scan, written anew; where a cell is empty it would "
        "take too",
        "long (what a token costs in its backward pass grows with the length). Backward is over a "
        "forward",
        "pass without gradients: the median of the rounds' ratios.",
    ]
    anew = forward_table(runners, missing, sizes)
    if keep_memory():
        notes += [
            "From the second table on memory stays with the process: the time that the system "
            "takes to hand",
            "it out, much of it on virtual machines, is in the first alone.",
        ]
        anew += forward_table(runners, missing, sizes, kept=True)
    lines = [*heading("The selective scan", notes), *anew]
    ahead, back, ratios = measure_lengths(runners, sizes)
    names = [runner.name for runner in runners]
    lines += length_table("Forward", ahead, names, sizes)
    lines += length_table("Backward", back, names, sizes)
    lines += ratio_table(ratios)
    publish("scan", lines, write=not short)
    return 0


if __name__ == "__main__":
    sys.exit(main())
