"""The scan's backends against the definition: values, gradients, extremes, memory."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import Arguments, draw, place_for, relative_rms, run, with_gradients

from encoders.errors import InputError
from encoders.selective_scan import backend_for, chunked, list_backends, selective_scan
from encoders.selective_scan.choice import BACKEND_VARIABLE, BACKENDS

NAMES = ("u", "delta", "A", "B", "C", "D")
# Torch computes exp2 and softplus of a tensor's last few numbers, which fill no vector, by other
# instructions than the rest: the last bit of a decay depends on where it lies. Ours does not.
TORCHS_OWN, LAST_BIT = ("torch", "reference"), 2e-7


def make_inputs(batch=2, length=33, channels=5, states=4, *, largest_dt=24.0, seed=0):
    """Draw float64 inputs; time steps from tiny to `largest_dt`, log-uniform."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spread = torch.rand(batch, length, channels, generator=generator, dtype=torch.float64)
    delta = 1e-4 * (largest_dt / 1e-4) ** spread
    decay = -torch.exp(normal(channels, states))
    u = normal(batch, length, channels)
    return [
        u,
        delta,
        decay,
        normal(batch, length, states),
        normal(batch, length, states),
        normal(channels),
    ]


def assert_same(found: torch.Tensor, wanted: torch.Tensor, backend: str) -> None:
    """Hold our own kernels to the same bits, torch's functions to the same but for the last."""
    if backend in TORCHS_OWN:
        assert relative_rms(found, wanted) <= LAST_BIT
    else:
        assert torch.equal(found, wanted)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


@pytest.fixture
def small_parts(monkeypatch) -> None:
    """Shrink the working set, so that rows, channels and blocks are all cut."""
    monkeypatch.setattr(chunked, "_STEP_NUMBERS", {"cpu": 64})
    monkeypatch.setattr(chunked, "MOST_TILES", 3)


@pytest.mark.parametrize("length", [1, 2, 3, 31, 32, 33, 257, 1025, 2048])
@pytest.mark.parametrize("largest_dt", [0.1, 24.0])
def test_equals_the_definition(length: int, largest_dt: float) -> None:
    inputs = make_inputs(length=length, largest_dt=largest_dt, seed=length)
    wanted = selective_scan(*inputs, backend="reference")
    assert relative_error(selective_scan(*inputs, backend="torch"), wanted) < 1e-12
    single = [tensor.float() for tensor in inputs]
    assert relative_error(selective_scan(*single, backend="torch"), wanted) < 2e-6


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 300),
    channels=st.integers(1, 70),
    states=st.integers(1, 17),
    seed=st.integers(0, 999),
)
def test_any_shape(batch: int, length: int, channels: int, states: int, seed: int) -> None:
    inputs = make_inputs(batch, length, channels, states, seed=seed)
    wanted = selective_scan(*inputs, backend="reference")
    assert relative_error(selective_scan(*inputs, backend="torch"), wanted) < 1e-12


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (2, 33, 40, 3), (3, 257, 5, 4), (1, 2049, 33, 2)])
def test_gradients(shape: tuple[int, ...]) -> None:
    inputs = [tensor.requires_grad_() for tensor in make_inputs(*shape, seed=1)]
    weights = torch.randn(shape[:3], generator=torch.Generator().manual_seed(2)).double()
    found, wanted = (
        torch.autograd.grad((selective_scan(*inputs, backend=name) * weights).sum(), inputs)
        for name in ("torch", "reference")
    )
    for name, a, b in zip(NAMES, found, wanted, strict=True):
        assert relative_error(a, b) < 1e-10, name


def test_gradients_in_float32() -> None:
    inputs = make_inputs(2, 257, 5, 4, seed=3)
    exact = [tensor.clone().requires_grad_() for tensor in inputs]
    single = [tensor.float().requires_grad_() for tensor in inputs]
    wanted = torch.autograd.grad(selective_scan(*exact, backend="reference").sum(), exact)
    found = torch.autograd.grad(selective_scan(*single, backend="torch").sum(), single)
    for name, a, b in zip(NAMES, found, wanted, strict=True):
        assert relative_error(a, b) < 1e-5, name


def test_only_wanted_gradients_are_given() -> None:
    u, *rest = make_inputs()
    u.requires_grad_()
    selective_scan(u, *rest).sum().backward()
    assert u.grad is not None
    assert all(tensor.grad is None for tensor in rest)


def test_remembers_across_blocks() -> None:
    """A state with hardly any decay carries one input over thousands of positions."""
    length = 5000
    u = torch.zeros(1, length, 1)
    u[0, 0] = 1
    ones = torch.ones(1, length, 1)
    y = selective_scan(u, 1e-6 * ones, -torch.ones(1, 1), ones, ones)
    assert y[0, -1, 0] == pytest.approx(1e-6, rel=6e-3)


def test_extreme_steps_stay_finite() -> None:
    inputs = make_inputs(1, 300, 3, 4)
    inputs[1] = torch.full_like(inputs[1], 24.0)
    inputs[2] = torch.full_like(inputs[2], -16.0)
    single = [tensor.float().requires_grad_() for tensor in inputs]
    y = selective_scan(*single)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(tensor.grad).all() for tensor in single)


def test_causal() -> None:
    inputs = make_inputs(1, 200, 3, 4)
    before = selective_scan(*inputs)
    inputs[0][:, 120:] += 1
    after = selective_scan(*inputs)
    assert torch.equal(before[:, :120], after[:, :120])
    assert not torch.equal(before[:, 120:], after[:, 120:])


def test_rows_do_not_depend_on_their_neighbours() -> None:
    inputs = make_inputs(5, 130, 40, 16)
    together = selective_scan(*inputs)
    for row in range(5):
        alone = [t[row : row + 1] if t.ndim == 3 else t for t in inputs]
        torch.testing.assert_close(selective_scan(*alone)[0], together[row], atol=0, rtol=1e-12)


def test_repeats_bit_for_bit_and_in_inference_mode() -> None:
    inputs = [tensor.float() for tensor in make_inputs()]
    with torch.inference_mode():
        inside = selective_scan(*inputs)
    outside = selective_scan(*[tensor.requires_grad_() for tensor in inputs])
    assert torch.equal(inside, outside)
    assert torch.equal(outside, selective_scan(*inputs))


def test_half_precision_keeps_its_states_wide() -> None:
    exact = make_inputs(1, 2000, 3, 4, largest_dt=0.01)
    rounded = [tensor.bfloat16() for tensor in exact]
    y = selective_scan(*rounded)
    assert y.dtype == torch.bfloat16
    wanted = selective_scan(*[tensor.double() for tensor in rounded], backend="reference")
    assert relative_error(y, wanted) < 2**-8


def test_no_positions() -> None:
    inputs = [tensor.requires_grad_() for tensor in make_inputs(length=0)]
    y = selective_scan(*inputs)
    y.sum().backward()
    assert y.shape == (2, 0, 5)
    assert not inputs[2].grad.any()


def test_strided_inputs() -> None:
    inputs = make_inputs()
    strided = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in inputs]
    assert torch.equal(selective_scan(*strided), selective_scan(*inputs))


def test_wrong_arguments() -> None:
    inputs = make_inputs()
    with pytest.raises(ValueError, match="B has shape"):
        selective_scan(*inputs[:3], inputs[3][:, 1:], *inputs[4:])
    with pytest.raises(ValueError, match="unknown scan backend"):
        selective_scan(*inputs, backend="abacus")
    assert backend_for(torch.device("cpu")) in list_backends()


def test_the_environment_chooses(monkeypatch) -> None:
    cpu = torch.device("cpu")
    for name in {*list_backends()} - {"triton", "mamba_ssm"}:
        monkeypatch.setenv(BACKEND_VARIABLE, name)
        assert backend_for(cpu) == name
    monkeypatch.setenv(BACKEND_VARIABLE, "reference")
    single = [tensor.float() for tensor in make_inputs()]
    assert torch.equal(selective_scan(*single), selective_scan(*single, backend="reference"))
    for name in ("abacus", "cpu"):
        monkeypatch.setenv(BACKEND_VARIABLE, name)
        with pytest.raises(InputError, match=BACKEND_VARIABLE):
            selective_scan(*make_inputs())
    monkeypatch.setenv(BACKEND_VARIABLE, "")
    assert backend_for(cpu, torch.float64) == "torch"


def test_softplus_steps_of_a_mamba_block() -> None:
    """Time steps as the network makes them, through softplus, differentiate through too."""
    inputs = make_inputs(1, 65, 3, 2)
    raw = torch.randn(1, 65, 3, dtype=torch.float64, requires_grad=True)
    found, wanted = (
        torch.autograd.grad(
            selective_scan(inputs[0], F.softplus(raw), *inputs[2:], backend=name).sum(), raw
        )[0]
        for name in ("torch", "reference")
    )
    assert relative_error(found, wanted) < 1e-12


@cache
def defined(length: int, rank: int, reverse: bool) -> tuple[Arguments, dict[str, torch.Tensor]]:
    """Return arguments, and what the definition makes of them in float64."""
    arguments = draw(2, length, 20, 5, rank, seed=length)
    return arguments, with_gradients(arguments, "reference", reverse=reverse)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 255, 256, 257])
def test_exact_to_float64(backend: str, length: int, rank: int, reverse: bool) -> None:
    """All backends on identical inputs, in float32 against the definition in float64."""
    device = place_for(backend)
    arguments, wanted = defined(length, rank, reverse)
    single = [None if t is None else t.float().to(device) for t in arguments]
    found = with_gradients(single, backend, reverse=reverse)
    errors = {name: relative_rms(found[name], wanted[name]) for name in wanted}
    assert errors.pop("y") <= 5e-7
    assert max(errors.values()) <= 5e-6, errors


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_exact_over_a_long_sequence(backend: str) -> None:
    device = place_for(backend)
    arguments = draw(1, 65_537, 3, 16, 0, seed=1)
    wanted = with_gradients(arguments, "torch")
    found = with_gradients(
        [None if t is None else t.float().to(device) for t in arguments], backend
    )
    errors = {name: relative_rms(found[name], wanted[name]) for name in wanted}
    assert errors.pop("y") <= 5e-7
    assert max(errors.values()) <= 5e-6, errors


@pytest.mark.parametrize("backend", BACKENDS)
def test_alone_or_among_neighbours(backend: str) -> None:
    device = place_for(backend)
    arguments = draw(3, 70, 20, 5, 0, seed=2)
    single = [None if t is None else t.float().to(device) for t in arguments]
    together = run(single, backend)
    for row in range(3):
        alone = [t[row : row + 1] if t is not None and t.ndim == 3 else t for t in single]
        assert_same(run(alone, backend)[0], together[row], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_reversed_is_flip_scan_flip(backend: str) -> None:
    device = place_for(backend)
    single = [None if t is None else t.float().to(device) for t in draw(2, 70, 20, 5, 3, seed=3)]
    flipped = [t.flip(1) if t is not None and t.ndim == 3 else t for t in single]
    found, wanted = run(single, backend, reverse=True), run(flipped, backend).flip(1)
    assert_same(found, wanted, backend)


@pytest.mark.slow
def test_the_torch_backend_compiles() -> None:
    single = [t.float().requires_grad_() for t in make_inputs(1, 35, 5, 4)]
    torch.library.opcheck(chunked.forward, (*single[:5], True), rtol=1e-4, atol=1e-4)

    def scan(*tensors: torch.Tensor) -> torch.Tensor:
        return selective_scan(*tensors, backend="torch")

    compiled = torch.compile(scan, backend="aot_eager", fullgraph=True)
    for inputs in (single, [t.detach().double().requires_grad_() for t in single]):
        found, wanted = compiled(*inputs), scan(*inputs)
        assert torch.equal(found, wanted)
        pairs = zip(*(torch.autograd.grad(y.sum(), inputs) for y in (found, wanted)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_threads_change_nothing(threads) -> None:
    single = [t.float() for t in make_inputs(2, 130, 600, 16)]
    results = []
    for count in (1, 2):
        threads(count)
        results.append(selective_scan(*single, backend="torch"))
    assert torch.equal(*results)


@pytest.fixture
def fake_mamba_ssm(monkeypatch) -> None:
    """Stand in for the package: its documented function, computed by our definition."""
    from encoders.selective_scan import selective_scan as ours

    def selective_scan_fn(
        u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
        return_last_state=False,
    ):  # fmt: skip
        assert z is None
        assert not return_last_state
        assert u.dtype == delta.dtype == B.dtype == C.dtype
        assert A.dtype == torch.float32
        assert all(values.is_contiguous() for values in (u, delta, B, C))
        return ours(
            u.mT, delta.mT, A, B.mT, C.mT, D,
            delta_bias=delta_bias, delta_softplus=delta_softplus, backend="reference",
        ).mT  # fmt: skip

    names = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].selective_scan_fn = selective_scan_fn  # type: ignore[attr-defined]


@pytest.mark.usefixtures("fake_mamba_ssm")
@pytest.mark.parametrize("reverse", [False, True])
def test_mamba_ssm_is_given_its_own_layout(reverse: bool) -> None:
    from encoders.selective_scan import upstream

    u, delta, A, B, C, D = (t.float().requires_grad_() for t in make_inputs(2, 9, 5, 4))
    bias = torch.randn(5, requires_grad=True)
    y = upstream.scan(u, delta, bias, A, B, C, D, True, reverse)
    wanted = selective_scan(
        u, delta, A, B, C, D,
        delta_bias=bias, delta_softplus=True, reverse=reverse, backend="reference",
    )  # fmt: skip
    torch.testing.assert_close(y, wanted)
    for a, b in zip(
        torch.autograd.grad(y.sum(), (u, A, bias)),
        torch.autograd.grad(wanted.sum(), (u, A, bias)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    rounded = (t.detach().bfloat16() for t in (u, delta))
    assert upstream.scan(*rounded, bias, A, B, C, D, True, reverse).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_parity_fixtures_through_every_backend(backend: str) -> None:
    """The native kernels run them in the usual way; float64 always goes through torch there."""
    here = Path(__file__).parent
    files = [here / "test_caduceus_parity.py", here / "test_brainmt_parity.py"]
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *map(str, files)]
    environment = {**os.environ, BACKEND_VARIABLE: backend}
    ended = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stdout[-3000:]
