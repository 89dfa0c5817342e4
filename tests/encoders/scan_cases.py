"""Inputs of the selective scan for all of its backends, and how far two results lie apart."""

import os

import pytest
import torch
from torch import Tensor

from encoders.selective_scan import selective_scan
from encoders.selective_scan.choice import refusal

NAMES = ("u", "delta", "A", "B", "C", "D", "weight", "bias")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
Arguments = list[Tensor | None]


def draw(
    batch: int,
    length: int,
    channels: int,
    states: int,
    rank: int,
    *,
    seed: int,
    largest_dt: float = 24.0,
) -> Arguments:
    """Draw float64 arguments; a `rank` of zero means time steps as they are, up to `largest_dt`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if rank:
        steps, weight, bias = normal(batch, length, rank), normal(channels, rank), normal(channels)
    else:
        spread = torch.rand(batch, length, channels, generator=generator, dtype=torch.float64)
        steps, weight, bias = 1e-4 * (largest_dt / 1e-4) ** spread, None, None
    u, decay = normal(batch, length, channels), -torch.exp(normal(channels, states))
    both = normal(batch, length, states), normal(batch, length, states)
    return [u, steps, decay, *both, normal(channels), weight, bias]


def place_for(backend: str, dtype: torch.dtype = torch.float32) -> torch.device:
    """Return where a backend can compute; skip the test where that is nowhere here."""
    reasons = []
    for name in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        device = torch.device(name)
        reasons.append(refusal(backend, device, dtype))
        if not reasons[-1]:
            return device
    pytest.skip(reasons[-1])


def run(arguments: Arguments, backend: str, *, reverse: bool = False) -> Tensor:
    """Scan, with softplus where time steps are of low rank."""
    u, steps, A, B, C, D, weight, bias = arguments
    assert u is not None
    assert steps is not None
    assert A is not None
    assert B is not None
    assert C is not None
    return selective_scan(
        u, steps, A, B, C, D, delta_weight=weight, delta_bias=bias,
        delta_softplus=weight is not None, reverse=reverse, backend=backend,
    )  # fmt: skip


def with_gradients(
    arguments: Arguments, backend: str, *, reverse: bool = False
) -> dict[str, Tensor]:
    """Return the output, as ``y``, and the gradients of all arguments, of a random functional."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in arguments]
    y = run(leaves, backend, reverse=reverse)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (y * weights.to(y)).sum().backward()
    pairs = zip(NAMES, leaves, strict=True)
    found = {name: leaf.grad for name, leaf in pairs if leaf is not None and leaf.grad is not None}
    return {"y": y.detach(), **found}


def relative_rms(found: Tensor, wanted: Tensor) -> float:
    """Return the RMS error over the RMS of what is wanted; the error itself where that is zero."""
    wanted = wanted.detach().double().cpu()
    error = (found.detach().double().cpu() - wanted).square().mean().sqrt()
    scale = wanted.square().mean().sqrt()
    return float(error / scale) if scale > 0 else float(error)
