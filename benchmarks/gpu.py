"""The selective scan, and windows of DNA through Caduceus-PS, on a GPU: beside the chip's limits.

First every backend is held to the definition in float64; then the scan alone, pooled windows of
131,072 bases and training steps are timed through each backend that runs there. Without a GPU it
says so and writes nothing.

    python benchmarks/gpu.py                 # all, and the table in benchmarks/results
    python benchmarks/gpu.py --short         # short windows; nothing is written
    python benchmarks/gpu.py --device cpu    # tiny, only to see that it runs; nothing is written
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from encoders import load_encoder
from encoders.selective_scan import backend_for, list_backends, selective_scan
from encoders.selective_scan.choice import BACKEND_VARIABLE, refusal

OUTPUT_BOUND, GRADIENT_BOUND = 5e-7, 5e-6
CHECKED_LENGTHS = (1, 2, 31, 32, 33, 255, 256, 257, 4099)
NAMES = ("u", "delta", "A", "B", "C", "D", "weight", "bias")
DTYPES = (torch.float32, torch.bfloat16)
NEEDED_SPEEDUP = 1.5


@dataclass(frozen=True)
class Sizes:
    """How large the measurements are."""

    rows: int = 2
    length: int = 131_072
    channels: int = 512
    states: int = 16
    step_length: int = 16_384
    batches: tuple[int, ...] = (1, 4)
    repeats: int = 5
    copied_numbers: int = 2**28
    matrix: int = 8192
    checked: tuple[int, ...] = CHECKED_LENGTHS
    config: dict[str, Any] = field(default_factory=dict)


FULL = Sizes()
SHORT = Sizes(length=16_384, step_length=2048, repeats=3)
TINY = Sizes(
    1, 64, 8, 4, 32, (1,), 1, 2**16, 64, (1, 33), {"d_model": 8, "n_layer": 1, "ssm_cfg": {}}
)


@dataclass(frozen=True)
class Limits:
    """What the chip was measured to do."""

    bytes_s: float
    flops_s: dict[torch.dtype, float]


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median seconds of a piece of work, after two runs that do not count."""
    found = []
    for _ in range(2 + repeats):
        _finish(device)
        start = time.perf_counter()
        work()
        _finish(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found[2:])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_limits(device: torch.device, sizes: Sizes) -> Limits:
    """Measure the rate of a copy (read and written bytes) and of matrix products."""
    source = torch.zeros(sizes.copied_numbers, device=device)
    target = torch.empty_like(source)
    copying = seconds(lambda: target.copy_(source), device, sizes.repeats)
    flops = {}
    for dtype in DTYPES:
        factor = torch.randn(sizes.matrix, sizes.matrix, device=device).to(dtype)
        flops[dtype] = 2 * sizes.matrix**3 / seconds(lambda m=factor: m @ m, device, sizes.repeats)
    return Limits(2 * source.nbytes / copying, flops)


def backends_on(device: torch.device) -> list[str]:
    """Return the backends that compute there in float32, but for the definition."""
    usable = [name for name in list_backends() if not refusal(name, device, torch.float32)]
    return [name for name in usable if name != "reference"]


def draw(rows: int, length: int, sizes: Sizes, seed: int) -> list[Tensor]:
    """Draw float64 arguments as a Mamba block has them: `NAMES`, time steps up to about 24."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    channels, states, rank = sizes.channels, sizes.states, max(1, sizes.channels // 32)
    weight, bias = normal(channels, rank) * 4 / rank**0.5, normal(channels)
    sequences = normal(rows, length, channels), normal(rows, length, rank)
    both = normal(rows, length, states), normal(rows, length, states)
    return [*sequences, -torch.exp(normal(channels, states)), *both, normal(channels), weight, bias]


def scan(arguments: list[Tensor], backend: str, *, reverse: bool = False) -> Tensor:
    """Run the operation on what `draw` gives."""
    *main, weight, bias = arguments
    return selective_scan(
        *main, delta_weight=weight, delta_bias=bias, delta_softplus=True,
        reverse=reverse, backend=backend,
    )  # fmt: skip


def check(device: torch.device, sizes: Sizes) -> list[list[str]]:
    """Hold every backend to the definition; return a row each: the worst errors, and a verdict."""
    rows = []
    for backend in backends_on(device):
        worst = {"output": 0.0, "gradients": 0.0}
        for length in sizes.checked:
            for reverse in (False, True):
                output, gradients = _errors(device, backend, length, sizes, reverse)
                worst["output"] = max(worst["output"], output)
                worst["gradients"] = max(worst["gradients"], gradients)
        met = worst["output"] <= OUTPUT_BOUND and worst["gradients"] <= GRADIENT_BOUND
        errors = [f"{error:.1e}" for error in worst.values()]
        rows.append([backend, *errors, "met" if met else "NOT MET"])
    return rows


def _errors(
    device: torch.device, backend: str, length: int, sizes: Sizes, reverse: bool
) -> tuple[float, float]:
    drawn = draw(2, length, sizes, length)
    found = []
    for name, dtype in ((backend, torch.float32), ("torch", torch.float64)):
        inputs = [t.to(device, dtype).requires_grad_() for t in drawn]
        y = scan(inputs, name, reverse=reverse)
        weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64, device=device).view_as(y)
        grads = torch.autograd.grad((y * weights.to(dtype)).sum(), inputs)
        found.append([y.detach(), *grads])
    errors = [
        float((a.double() - b).square().mean().sqrt() / b.square().mean().sqrt().clamp(min=1e-300))
        for a, b in zip(*found, strict=True)
    ]
    return errors[0], max(errors[1:])


def measure_scan(device: torch.device, sizes: Sizes, limits: Limits) -> list[list[str]]:
    """Time the scan alone, time steps already projected; return rows."""
    rows = []
    for dtype in DTYPES:
        u, low, A, B, C, D, weight, bias = (
            t.to(device, torch.float32) for t in draw(sizes.rows, sizes.length, sizes, 0)
        )
        inputs = [u.to(dtype), (low @ weight.T).to(dtype), A, B.to(dtype), C.to(dtype), D]
        # Each number read or written once; the backward pass reads them again, and the gradient.
        sequences = sum(t.nbytes for t in inputs[:2] + inputs[3:5])
        moved = {"forward": sequences + inputs[0].nbytes, "backward": 2 * sequences + u.nbytes}
        base: dict[str, float] = {}
        # The torch backend first: ratios are against it.
        for backend in sorted(backends_on(device), key=lambda name: name != "torch"):
            for what, spent in _scan_seconds(inputs, bias, backend, device, sizes).items():
                base.setdefault(what, spent)
                numbers = sizes.rows * sizes.length * sizes.channels
                share = moved[what] / spent / limits.bytes_s
                rows.append(
                    [
                        f"scan {what}, {_short(dtype)}",
                        backend,
                        f"{1e3 * spent:,.2f} ms",
                        f"{1e12 * spent / numbers:,.1f} ps a base and channel",
                        f"{100 * share:.0f}% of the copy rate",
                        f"{base[what] / spent:,.1f} times",
                    ]
                )
    return rows


def _scan_seconds(
    inputs: list[Tensor], bias: Tensor, backend: str, device: torch.device, sizes: Sizes
) -> dict[str, float]:
    def run(given: list[Tensor]) -> Tensor:
        return selective_scan(*given, delta_bias=bias, delta_softplus=True, backend=backend)

    with torch.inference_mode():
        forward = seconds(lambda: run(inputs), device, sizes.repeats)
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    y = run(leaves)
    grad = torch.ones_like(y)
    backward = seconds(
        lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True), device, sizes.repeats
    )
    return {"forward": forward, "backward": backward}


@contextmanager
def through(backend: str) -> Iterator[None]:
    """Send every scan within through one backend."""
    before = os.environ.get(BACKEND_VARIABLE)
    os.environ[BACKEND_VARIABLE] = backend
    try:
        yield
    finally:
        del os.environ[BACKEND_VARIABLE]
        if before is not None:
            os.environ[BACKEND_VARIABLE] = before


def measure_network(
    device: torch.device, sizes: Sizes, limits: Limits
) -> tuple[list[list[str]], dict[str, float]]:
    """Time pooled windows and training steps; return rows, and bases a second by case."""
    rows: list[list[str]] = []
    rates: dict[tuple[str, str], float] = {}
    for training in (False, True):
        length = sizes.step_length if training else sizes.length
        what = "training step, checkpointed" if training else "pooled features"
        for dtype in DTYPES:
            for batch in sizes.batches:
                key = f"{what}, {batch} x {length:,} bases, {_short(dtype)}"
                for backend in sorted(backends_on(device), key=lambda name: name != "torch"):
                    with through(backend):
                        row, rate = _network(device, sizes, limits, dtype, batch, training)
                    rates[key, backend] = rate
                    base = rates[key, "torch"]
                    ratio = f"{rate / base:,.1f} times" if rate and base else ""
                    rows.append([key, backend, *row, ratio])
                    print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    return rows, {" | ".join(key): rate for key, rate in rates.items()}


def _network(
    device: torch.device, sizes: Sizes, limits: Limits, dtype: torch.dtype, batch: int, train: bool
) -> tuple[list[str], float]:
    """Run one case; return its cells, and bases a second (zero where memory did not suffice)."""
    options = {"config": sizes.config} if sizes.config else {}
    encoder: Any = load_encoder("caduceus_ps", dtype=_short(dtype), device=str(device), **options)
    encoder.requires_grad_(train)
    encoder.gradient_checkpointing(train)
    length = sizes.step_length if train else sizes.length
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(0, 4, (batch, length), generator=generator).tolist()
    tokens = encoder.tokenize(["".join("ACGT"[i] for i in row) for row in letters])
    given = [part.to(device) for part in tokens]

    def work() -> None:
        if train:
            encoder.zero_grad(set_to_none=True)
            encoder(*given).sum().backward()
        else:
            with torch.inference_mode():
                encoder(*given)

    try:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        spent = seconds(work, device, sizes.repeats)
    except torch.cuda.OutOfMemoryError:
        return ["out of memory", "", "", ""], 0.0
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else float("nan")
    bases = batch * length
    # Forward, again for the checkpoints, and twice that backward.
    flops = product_flops(encoder.backbone) * bases * (4 if train else 1)
    share = flops / spent / limits.flops_s[dtype]
    cells = [f"{spent:,.3f} s", f"{bases / spent:,.0f} bases/s", f"{peak:.2f} GB"]
    return [*cells, f"{100 * share:.0f}% of matrix products"], bases / spent


def product_flops(network: torch.nn.Module) -> int:
    """Return the FLOPs of matrix products a base, both strands; the least that it takes.

    The outer projections are shared by both directions and linear: once for both is enough.
    """
    weights = sum(
        module.weight.numel()
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and ".mixer." in name
    )
    return 2 * 2 * weights


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def describe_gpu(device: torch.device, limits: Limits) -> str:
    """Say what was measured on, and its limits."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU, only to try"
    rates = ", ".join(
        f"{rate / 1e12:,.1f} TFLOP/s in {_short(dtype)}" for dtype, rate in limits.flops_s.items()
    )
    return f"{name}: copies {limits.bytes_s / 1e9:,.0f} GB/s (read and written), multiplies {rates}"


def verdicts(rates: dict[str, float], backend: str) -> list[str]:
    """Say whether the backend taken is as much faster than its peer as was asked for."""
    lines = []
    for key, rate in rates.items():
        what, name = key.rsplit(" | ", 1)
        if name != backend or "bfloat16" not in what:
            continue
        peer = "mamba_ssm" if f"{what} | mamba_ssm" in rates else "torch"
        other = rates[f"{what} | {peer}"]
        if rate and other and peer != backend:
            word = "met" if rate / other >= NEEDED_SPEEDUP else "not met"
            lines.append(
                f"- {what}: {rate / other:.1f} times {peer} (at least {NEEDED_SPEEDUP}: {word})"
            )
    return lines


def main(words: list[str] | None = None) -> int:
    """Check, measure, print and (in full, on a GPU) write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="where to run; by default the first GPU")
    parser.add_argument("--short", action="store_true", help="short windows; nothing is written")
    arguments = parser.parse_args(words)
    if arguments.device is None and not torch.cuda.is_available():
        print("no GPU here: nothing was measured, nothing was written")
        return 0
    from tables import heading, markdown, publish

    device = torch.device(arguments.device or "cuda")
    on_gpu = device.type == "cuda"
    sizes = (SHORT if arguments.short else FULL) if on_gpu else TINY
    checked = check(device, sizes)
    print("\n".join(" | ".join(row) for row in checked), file=sys.stderr, flush=True)
    if any(row[-1] != "met" for row in checked):
        print("a backend differs from the definition: nothing was measured")
        return 1
    limits = measure_limits(device, sizes)
    chosen = backend_for(device)
    notes = [
        f"{describe_gpu(device, limits)}.",
        "Published size, random weights, median of several runs; ratios are against the torch",
        f"backend in the same run; `{chosen}` is what is taken by itself. Errors are relative RMS",
        f"against float64, at most {OUTPUT_BOUND:g} and {GRADIENT_BOUND:g} wanted.",
    ]
    lines = heading("The selective scan and Caduceus-PS on a GPU", notes)
    lines += markdown(["backend", "error of outputs", "of gradients", "verdict"], checked)
    scans = measure_scan(device, sizes, limits)
    lines += markdown(["what", "backend", "time", "rate", "memory", "over torch"], scans)
    rows, rates = measure_network(device, sizes, limits)
    header = ["what", "backend", "time", "rate", "peak", "arithmetic", "over torch"]
    lines += [*markdown(header, rows), *verdicts(rates, chosen), ""]
    publish("gpu", lines, write=on_gpu and not arguments.short)
    return 0


if __name__ == "__main__":
    sys.exit(main())
