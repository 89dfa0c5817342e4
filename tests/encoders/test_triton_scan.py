"""The Triton kernels, on a GPU or in Triton's interpreter on the CPU.

The interpreter must be asked for before Triton is imported, and would be in the way of
torch.compile: without a GPU the tests run in a process of their own.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scan_cases import INTERPRETED, draw, relative_rms, run, with_gradients

HERE = Path(__file__)
MISSING = "" if find_spec("triton") else "triton is not installed (torch's CUDA builds bring it)"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if not (MISSING or INTERPRETED or torch.cuda.is_available()):
    MISSING = "no GPU; interpreted in a process of their own"
on_kernels = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def interpret(*words: str) -> None:
    """Run tests in a process where Triton interprets; fail as they do."""
    if INTERPRETED or not find_spec("triton"):
        pytest.skip("interpreted already" if INTERPRETED else MISSING)
    plugins = ["-p", "no:cacheprovider", "-p", "triton_interpreter"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", *plugins, *words]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *sys.path])
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert "passed" in ended.stdout


def test_interpreted() -> None:
    interpret(str(HERE), "-m", "not slow")


@pytest.mark.slow
def test_interpreted_in_full() -> None:
    """The test that all backends share; of its lengths those round the edges of tiles of 16."""
    chosen = "triton and not (255 or 256 or 257)"
    interpret(str(HERE.parent / "test_selective_scan.py"), "-k", chosen, "-m", "not slow")


@pytest.mark.slow
def test_interpreted_networks(monkeypatch) -> None:
    """Upstream's gradients of small networks."""
    monkeypatch.setenv("GENEBOLD_SCAN_BACKEND", "triton")
    chosen = "test_gradients and float32"
    interpret(str(HERE.parent / "test_caduceus_parity.py"), "-k", chosen)


def leaves(arguments, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [t.to(DEVICE, dtype).requires_grad_() for t in arguments if t is not None]


def differentiate(y: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return list(torch.autograd.grad((y * weights.to(y)).sum(), inputs))


@on_kernels
@pytest.mark.parametrize(
    ("dtype", "walk", "reverse"),
    [
        (torch.float64, False, False),
        (torch.float64, True, False),
        (torch.float64, False, True),
        (torch.float64, True, True),
        (torch.float32, False, True),
    ],
)
def test_both_ways_through_the_tiles(dtype: torch.dtype, walk: bool, reverse: bool) -> None:
    from encoders.selective_scan import gpu, selective_scan

    length = 35 if dtype == torch.float32 else 19
    u, _, A, B, C, D, _, bias = draw(2, length, 5, 2, 2, seed=1)
    low = 4 * draw(2, length, 5, 1, 1, seed=2)[0]
    exact = leaves((u, low, A, B, C, D, bias), torch.float64)
    rounded = leaves((u, low, A, B, C, D, bias), dtype)
    u, low, A, B, C, D, bias = exact
    wanted = selective_scan(
        u, low, A, B, C, D,
        delta_bias=bias, delta_softplus=True, reverse=reverse, backend="reference",
    )  # fmt: skip
    u, low, A, B, C, D, bias = rounded
    found = gpu.scan(u, low, bias, A, B, C, D, True, reverse, walk)[0]
    bounds = (1e-14, 1e-13) if dtype == torch.float64 else (5e-7, 5e-6)
    assert relative_rms(found, wanted) <= bounds[0]
    pairs = zip(differentiate(found, rounded), differentiate(wanted, exact), strict=True)
    assert max(relative_rms(a, b) for a, b in pairs) <= bounds[1]


@on_kernels
def test_tiles_and_widths_change_rounding_only(monkeypatch) -> None:
    from encoders.selective_scan import gpu

    arguments = [
        None if t is None else t.to(DEVICE, torch.float32) for t in draw(1, 40, 33, 2, 0, seed=3)
    ]
    before = with_gradients(arguments, "triton")
    for name, size in (("TILE", 8), ("WIDTH", 16), ("_CARRY_TILE", 2), ("_CARRY_WIDTH", 16)):
        monkeypatch.setattr(gpu, name, size)
    after = with_gradients(arguments, "triton")
    assert relative_rms(after.pop("y"), before["y"]) <= 3e-7
    assert max(relative_rms(after[name], before[name]) for name in after) <= 5e-6


@on_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_reduced_precision_keeps_its_states_wide(dtype: torch.dtype) -> None:
    arguments = draw(1, 60, 3, 2, 0, seed=4, largest_dt=0.01)
    rounded = [None if t is None else t.to(DEVICE, dtype) for t in arguments]
    y = run(rounded, "triton")
    assert y.dtype == dtype
    wanted = run([None if t is None else t.double() for t in rounded], "torch")
    assert relative_rms(y, wanted) < (2**-8 if dtype == torch.bfloat16 else 2**-11)


@on_kernels
def test_strides_and_no_positions() -> None:
    arguments = [
        None if t is None else t.to(DEVICE, torch.float32) for t in draw(2, 20, 6, 3, 0, seed=5)
    ]
    wide = torch.randn(2, 20, 15, device=DEVICE)
    wide[..., 4:10] = arguments[0]
    assert torch.equal(run([wide[..., 4:10], *arguments[1:]], "triton"), run(arguments, "triton"))
    none = [t[:, :0] if t is not None and t.ndim == 3 else t for t in arguments]
    none[0] = none[0].requires_grad_()
    y = run(none, "triton")
    y.sum().backward()
    assert y.shape == (2, 0, 6)


@on_kernels
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "taps"), [(1, 4), (3, 4), (40, 4), (18, 1)])
def test_convolution(length: int, taps: int, reverse: bool) -> None:
    from encoders.selective_scan import gpu

    generator = torch.Generator().manual_seed(length)
    shapes = [(2, length, 20), (20, taps), (20,)]
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    exact, single = leaves(drawn, torch.float64), leaves(drawn)
    x = exact[0].flip(1) if reverse else exact[0]
    wanted = F.silu(F.conv1d(F.pad(x.mT, (taps - 1, 0)), exact[1][:, None], exact[2], groups=20).mT)
    wanted = wanted.flip(1) if reverse else wanted
    found = gpu.convolve(*single, reverse)
    assert relative_rms(found, wanted) <= 5e-7
    pairs = zip(differentiate(found, single), differentiate(wanted, exact), strict=True)
    assert max(relative_rms(a, b) for a, b in pairs) <= 5e-6
    without = gpu.convolve(single[0], single[1], None, reverse)
    zero = torch.zeros_like(single[2])
    assert torch.equal(without, gpu.convolve(single[0], single[1], zero, reverse))


@on_kernels
def test_operators_are_well_formed() -> None:
    from encoders.selective_scan import gpu

    u, delta, A, B, C, D, _, _ = leaves(
        [*draw(1, 18, 3, 2, 0, seed=6)[:6], torch.ones(3), torch.ones(3)]
    )
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (u, delta, D.detach(), A, B, C, None, False, True, None)
    torch.library.opcheck(gpu.scan, arguments, test_utils=tests)
    convolved = (u, torch.randn(3, 4, device=DEVICE, requires_grad=True), None, True)
    torch.library.opcheck(gpu.convolve, convolved, test_utils=tests)
