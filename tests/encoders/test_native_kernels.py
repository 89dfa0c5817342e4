"""The CPU kernels: exact on every instruction set, however the work is cut."""

import gc
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import relative_rms

from encoders.errors import InputError
from encoders.selective_scan import library, list_backends, selective_scan

pytestmark = pytest.mark.skipif(
    not library.is_built(), reason="the native kernels are not built: genebold encoders build"
)
NAMES = ("u", "delta", "A", "B", "C", "D", "weight", "bias")


@pytest.fixture(params=library.LEVELS)
def level(request, monkeypatch) -> str:
    """Force one instruction set, where this CPU has it."""
    monkeypatch.setenv(library.LEVEL_VARIABLE, request.param)
    if library.level() != request.param:
        pytest.skip(f"this CPU has no {request.param}")
    return request.param


def draw(batch: int, length: int, channels: int, states: int, rank: int, seed: int, largest=24.0):
    """Draw float64 arguments, low-rank time steps where `rank` is not zero."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if rank:
        steps, weight, bias = normal(batch, length, rank), normal(channels, rank), normal(channels)
    else:
        spread = torch.rand(batch, length, channels, generator=generator, dtype=torch.float64)
        steps, weight, bias = 1e-4 * (largest / 1e-4) ** spread, None, None
    sequences = normal(batch, length, channels), steps
    decay = -torch.exp(normal(channels, states))
    both = normal(batch, length, states), normal(batch, length, states)
    return [*sequences, decay, *both, normal(channels), weight, bias]


def run(arguments, backend: str, *, reverse: bool = False) -> torch.Tensor:
    *main, weight, bias = arguments
    softplus = weight is not None
    return selective_scan(
        *main, delta_weight=weight, delta_bias=bias, delta_softplus=softplus,
        reverse=reverse, backend=backend,
    )  # fmt: skip


def compare(arguments, *, reverse: bool) -> tuple[float, dict[str, float]]:
    """Return relative RMS errors of the output and of all gradients, against float64."""
    exact = [None if t is None else t.clone().requires_grad_() for t in arguments]
    single = [None if t is None else t.float().requires_grad_() for t in arguments]
    wanted, found = run(exact, "torch", reverse=reverse), run(single, "cpu", reverse=reverse)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(9)).double()
    (wanted * weights).sum().backward()
    (found * weights.float()).sum().backward()
    pairs = zip(NAMES, single, exact, strict=True)
    errors = {name: relative_rms(a.grad, b.grad) for name, a, b in pairs if a is not None}
    return relative_rms(found.detach(), wanted.detach()), errors


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 255, 256, 257])
def test_exact_to_float64(level: str, length: int, reverse: bool, rank: int) -> None:
    arguments = draw(2, length, 37, 16, rank, seed=length)
    output, gradients = compare(arguments, reverse=reverse)
    assert output <= 5e-7
    assert max(gradients.values()) <= 5e-6, gradients


@settings(max_examples=10, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 150),
    channels=st.integers(1, 140),
    states=st.integers(1, 21),
    rank=st.integers(0, 7),
    reverse=st.booleans(),
)
def test_any_shape(batch, length, channels, states, rank, reverse) -> None:
    output, gradients = compare(draw(batch, length, channels, states, rank, 5), reverse=reverse)
    if channels < 8:  # a few sums over all positions, which may cancel: 4e-5 was seen of one
        sums = [gradients.pop(name, 0.0) for name in ("D", "weight", "bias")]
        assert max(sums) <= 1e-3, sums
    assert output <= 1e-6
    assert max(gradients.values()) <= 1e-5, gradients


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [31, 32, 33, 80])
def test_exact_in_spans(length: int, reverse: bool, rank: int, monkeypatch) -> None:
    """However often the backward pass hands on to the positions that were read before."""
    from encoders.selective_scan import cpu

    monkeypatch.setattr(cpu, "SPAN_NUMBERS", 32 * 300)
    _, gradients = compare(draw(2, length, 300, 3, rank, seed=length), reverse=reverse)
    assert max(gradients.values()) <= 5e-6, gradients


def test_autocast_around_the_way_back_rounds_nothing() -> None:
    arguments = [t.float().requires_grad_() for t in draw(1, 40, 16, 4, 3, seed=2)]

    def gradients(*, enabled: bool) -> list[torch.Tensor]:
        y = run(arguments, "cpu")
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return list(torch.autograd.grad(y, arguments, torch.ones_like(y)))

    pairs = zip(gradients(enabled=True), gradients(enabled=False), strict=True)
    assert all(torch.equal(found, wanted) for found, wanted in pairs)


@pytest.mark.slow
def test_exact_over_a_long_sequence() -> None:
    output, gradients = compare(draw(1, 65_537, 3, 16, 0, seed=1), reverse=False)
    assert output <= 5e-7
    assert max(gradients.values()) <= 5e-6, gradients


@pytest.mark.slow
def test_a_long_memory_loses_no_more_than_the_definition_does() -> None:
    arguments = draw(1, 65_537, 3, 16, 0, seed=1, largest=0.01)
    single = [None if t is None else t.float() for t in arguments]
    wanted = run(arguments, "torch")
    assert relative_rms(run(single, "cpu"), wanted) <= relative_rms(
        run(single, "reference"), wanted
    )


def test_reversed_is_flip_scan_flip_bit_for_bit() -> None:
    arguments = [None if t is None else t.float() for t in draw(2, 77, 20, 16, 3, seed=2)]
    flipped = [t.flip(1) if number in (0, 1, 3, 4) else t for number, t in enumerate(arguments)]
    assert torch.equal(run(arguments, "cpu", reverse=True), run(flipped, "cpu").flip(1))


def test_independent_of_neighbours_and_threads(threads) -> None:
    arguments = [None if t is None else t.float() for t in draw(3, 90, 150, 16, 3, seed=3)]
    results = []
    for count in (1, 2):
        threads(count)
        single = [t.clone().requires_grad_() for t in arguments]
        y = run(single, "cpu")
        y.square().sum().backward()
        results.append([y.detach(), *[t.grad for t in single]])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    for row in range(3):
        alone = [t[row : row + 1] if t.ndim == 3 else t for t in arguments]
        assert torch.equal(run(alone, "cpu")[0], results[0][0][row])


def test_strides_and_half_precision() -> None:
    arguments = [None if t is None else t.float() for t in draw(2, 40, 24, 16, 0, seed=4)]
    wide = torch.randn(2, 40, 60)
    wide[..., 5:29] = arguments[0]
    strided = [wide[..., 5:29], *arguments[1:]]
    assert torch.equal(run(strided, "cpu"), run(arguments, "cpu"))
    rounded = [None if t is None else t.bfloat16() for t in arguments]
    y = run(rounded, "cpu")
    assert y.dtype == torch.bfloat16
    exact = run([None if t is None else t.double() for t in rounded], "torch")
    assert relative_rms(y, exact) < 2**-8


def test_not_a_number_is_not_lost() -> None:
    for number in (0, 1, 3):
        arguments = [None if t is None else t.float() for t in draw(1, 40, 20, 16, 3, seed=5)]
        arguments[number][0, 7, 0] = torch.nan
        y = run(arguments, "cpu")
        assert y[0, :7].isfinite().all()
        assert y[0, 7:].isnan().any()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "taps"), [(1, 4), (3, 4), (70, 4), (33, 1), (20, 8)])
def test_convolution(level: str, length: int, taps: int, reverse: bool) -> None:
    from encoders.selective_scan import convolve_silu

    generator = torch.Generator().manual_seed(length)
    shapes = [(2, length, 37), (37, taps), (37,)]
    exact = [torch.randn(shape, generator=generator).double().requires_grad_() for shape in shapes]
    single = [t.detach().float().requires_grad_() for t in exact]
    x = exact[0].flip(1) if reverse else exact[0]
    padded = F.pad(x.mT, (taps - 1, 0))
    wanted = F.silu(F.conv1d(padded, exact[1][:, None], exact[2], groups=37).mT)
    wanted = wanted.flip(1) if reverse else wanted
    found = convolve_silu(*single, reverse=reverse)
    weights = torch.randn(wanted.shape, generator=generator).double()
    (wanted * weights).sum().backward()
    (found * weights.float()).sum().backward()
    assert relative_rms(found.detach(), wanted.detach()) <= 5e-7
    assert all(relative_rms(a.grad, b.grad) <= 5e-6 for a, b in zip(single, exact, strict=True))


def test_silu_far_from_zero(level: str) -> None:
    from encoders.selective_scan import convolve_silu

    x = torch.tensor([-3e38, -1e30, -200.0, -90.0, 0.0, 90.0, 1e30, torch.nan])
    found = convolve_silu(x[None, :, None], torch.ones(1, 1), None)[0, :, 0]
    torch.testing.assert_close(found, F.silu(x), rtol=1e-6, atol=1e-30, equal_nan=True)


def test_operators_are_well_formed() -> None:
    """Shape functions, autograd registration and schemas, as torch.compile wants them."""
    from encoders.selective_scan import cpu

    single = [t.float().requires_grad_() for t in draw(1, 35, 5, 4, 3, seed=6)]
    u, delta, decay, b, c, d, weight, bias = single
    given_to_scan = (u, delta, weight, bias, decay, b, c, d, True, False, True)
    torch.library.opcheck(cpu.scan, given_to_scan, rtol=1e-4, atol=1e-4)
    # Time steps of full rank, and neither bias nor skip connection.
    full_rank = draw(1, 35, 5, 4, 0, seed=6)[:5]
    u, delta, decay, b, c = [t.float().requires_grad_() for t in full_rank]
    bare = (u, delta, None, None, decay, b, c, None, False, True, True)
    torch.library.opcheck(cpu.scan, bare, rtol=1e-4, atol=1e-4)
    convolved = (u, torch.randn(5, 4, requires_grad=True), bias, True)
    torch.library.opcheck(cpu.convolve, convolved, rtol=1e-4, atol=1e-4)


def test_the_cpu_backend_refuses_float64() -> None:
    arguments = draw(1, 4, 3, 2, 0, seed=0)
    with pytest.raises(ValueError, match="float32"):
        run(arguments, "cpu")


def test_an_unknown_level_is_refused(monkeypatch) -> None:
    monkeypatch.setenv(library.LEVEL_VARIABLE, "avx1024")
    with pytest.raises(InputError, match="avx1024"):
        library.level()


def test_without_kernels_the_torch_backend_takes_over(monkeypatch) -> None:
    from encoders.selective_scan import choice

    monkeypatch.setattr(library, "is_built", lambda: False)
    choice._say_slow.cache_clear()
    assert "cpu" not in list_backends()
    with pytest.warns(UserWarning, match="encoders build"):
        assert choice.backend_for(torch.device("cpu")) == "torch"
    choice._say_slow.cache_clear()


def test_no_compiler_is_said() -> None:
    with pytest.raises(InputError, match="install one"):
        library.build(compilers=["no-such-compiler"])


def test_a_failing_compiler_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    before = sorted(library.FOLDER.glob("_native*"))
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no such instruction' >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(InputError, match="no such instruction"):
        library.build(compilers=[str(broken)])
    assert sorted(library.FOLDER.glob("_native*")) == before


def test_an_outdated_library_is_let_go_of(tmp_path: Path, monkeypatch) -> None:
    """Or the one that is built in its place would not be found before a new process."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no compiler")
    built = next(p for p in library.FOLDER.glob("_native*") if p.suffix in library.SUFFIXES)
    source, target = tmp_path / "old.cpp", tmp_path / f"_native{built.suffix}"
    source.write_text('extern "C" int genebold_interface_version(void) { return 1; }\n')
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, source], check=True)
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    assert library._load() is None
    shutil.copy(built, tmp_path / "new")
    (tmp_path / "new").replace(target)
    assert library._load() is not None


def test_one_set_of_compiler_flags_and_one_interface() -> None:
    setup = (Path(__file__).parents[2] / "setup.py").read_text()
    flags = re.search(r"COMPILE_ARGS = \[(.*?)\]", setup, re.DOTALL)
    assert flags is not None
    assert tuple(re.findall(r'"(.*?)"', flags[1])) == library.COMPILE_ARGS
    header = (library.SOURCES / "arguments.h").read_text()
    constants = dict(re.findall(r"#define (\w+) (\d+)", header))
    assert int(constants["INTERFACE_VERSION"]) == library.INTERFACE_VERSION
    assert int(constants["KEPT_EVERY"]) == library.KEPT_EVERY
    assert int(constants["MAX_TAPS"]) == library.MAX_TAPS


def test_loads_no_other_library() -> None:
    """Only the C library: nothing of Python, torch, C++ or OpenMP."""
    built = next(path for path in library.FOLDER.glob("_native*") if path.suffix == ".so")
    if sys.platform != "linux":
        pytest.skip("ldd is Linux's")
    needed = subprocess.run(["ldd", str(built)], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"python|torch|gomp|omp\.so", needed)


def test_without_a_skip_nothing_of_the_input_is_added() -> None:
    arguments = [None if t is None else t.float() for t in draw(1, 3, 2, 2, 0, seed=7)]
    arguments[0][0, 1, 0], arguments[5] = torch.inf, None
    assert torch.equal(run(arguments, "cpu").isnan(), run(arguments, "reference").isnan())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_threads_of_its_own(threads) -> None:
    from encoders.selective_scan import convolve_silu
    from encoders.selective_scan.pieces import _spread

    def work() -> None:
        done: list[object] = []
        _spread(2, 130, 64, lambda *piece: done.append(piece), ())
        os._exit(0 if len(done) == 6 else 1)

    threads(2)
    convolve_silu(torch.randn(2, 50, 130), torch.randn(130, 4), None)
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(timeout=60)  # where it waits for its parent's threads, it waits for ever
    child.kill()
    assert child.exitcode == 0


def test_an_interrupted_call_keeps_its_tensors_until_its_jobs_are_done(threads) -> None:
    from encoders.selective_scan import pieces

    started, released = threading.Event(), threading.Event()
    tensor = torch.ones(3)
    alive = weakref.ref(tensor)
    seen = []

    def job(row: int, first: int, end: int) -> None:
        if first == 0:
            started.wait(10)
            raise KeyboardInterrupt
        started.set()
        released.wait(10)
        seen.append(alive() is not None)

    threads(2)
    with pytest.raises(KeyboardInterrupt):
        pieces._spread(1, 2 * pieces.GROUP, pieces.GROUP, job, (tensor,))
    del tensor
    gc.collect()
    released.set()
    pieces._threads(2).submit(lambda: None).result(10)
    for _ in range(100):
        if seen:
            break
        time.sleep(0.05)
    assert seen == [True]
