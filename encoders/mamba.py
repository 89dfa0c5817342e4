"""The Mamba block, its norms and its residual stream, as all state-space encoders here use them.

Gu and Dao 2023, Mamba, arXiv 2312.00752; parameters are named as in state-spaces/mamba.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from encoders.selective_scan import convolve_silu, selective_scan


@dataclass(frozen=True)
class SsmConfig:
    """Options of one Mamba block (upstream's ``ssm_cfg``); defaults are mamba_ssm's.

    Parameters
    ----------
    d_state : int
        States a channel.
    d_conv : int
        Width of the causal convolution, in positions.
    expand : int
        Inner width over model width.
    dt_rank : int or "auto"
        Rank of the time step's projection; "auto" is a sixteenth of the model width, rounded up.
    dt_min, dt_max, dt_init, dt_scale, dt_init_floor
        Initial time steps; they matter for random weights only.
    conv_bias, bias : bool
        Biases of the convolution, and of the two outer projections.
    use_fast_path : bool
        Upstream's choice of kernels; changes no number.
    """

    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | Literal["auto"] = "auto"
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_init: str = "random"
    dt_scale: float = 1.0
    dt_init_floor: float = 1e-4
    conv_bias: bool = True
    bias: bool = False
    use_fast_path: bool = True


@dataclass(frozen=True)
class InitializerConfig:
    """Options of upstream's random initialisation (``initializer_cfg``)."""

    initializer_range: float = 0.02
    rescale_prenorm_residual: bool = True
    n_residuals_per_layer: int = 1


def at_least_float32(values: Tensor) -> Tensor:
    """Return the values in float32, or as they are where they are wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight``, in float32 at least."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Float[Tensor, "*any dim"]) -> Float[Tensor, "*any dim"]:
        """Normalise over the last dimension; the result keeps the wider type."""
        x = at_least_float32(x)
        scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)
        return x * scale * self.weight.to(x.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation with weight and bias, in float32 at least."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Float[Tensor, "*any dim"]) -> Float[Tensor, "*any dim"]:
        """Normalise over the last dimension; the result keeps the wider type."""
        x = at_least_float32(x)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, weight.shape, weight, bias, self.eps)


class AddNorm:
    """Adds the residual and normalises, with upstream's two ways of rounding.

    In float32 and float64 the two are equal. In reduced precision the fused kernel sums and norms
    in float32 and rounds once; the plain path rounds the sum first.

    Parameters
    ----------
    fused, residual_in_fp32 : bool
        Upstream's ``fused_add_norm`` and ``residual_in_fp32``.
    before_norm : callable, optional
        What to do to the sum on its way into the norm; the residual does not see it.
    """

    def __init__(
        self,
        *,
        fused: bool,
        residual_in_fp32: bool,
        before_norm: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.fused = fused
        self.residual_in_fp32 = residual_in_fp32
        self.before_norm = before_norm

    def __call__(
        self, hidden: Tensor, residual: Tensor | None, norm: RMSNorm | LayerNorm
    ) -> tuple[Tensor, Tensor]:
        """Return the normed sum in the type of `hidden`, and the sum as the new residual."""
        wide = at_least_float32(hidden)
        total = wide if self.fused else hidden
        if residual is not None:
            total = total + residual
        normed = total if self.fused else total.to(norm.weight.dtype)
        if self.before_norm is not None:
            normed = self.before_norm(normed)
        kept = wide.dtype if self.residual_in_fp32 else hidden.dtype
        return norm(normed).to(hidden.dtype), total.to(kept)


class Reading(NamedTuple):
    """The parameters with which a Mamba block reads in one direction."""

    conv1d: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A_log: nn.Parameter
    D: nn.Parameter


def read(
    projected: Float[Tensor, "batch length two_inner"],
    *readings: Reading,
) -> Float[Tensor, "batch length inner"]:
    """Convolve, scan and gate: from left to right, and with a second reading back as well.

    Parameters
    ----------
    projected : Tensor [B, L, 2 I]
        Input and gate, as the input projection gives them.
    *readings : Reading
        The forward direction, then the backward one if there is one; the two are added.

    Returns
    -------
    Tensor [B, L, I]
        Wants the output projection yet.
    """
    u, gate = projected.chunk(2, dim=-1)
    mixed = _unroll(u, readings[0])
    if not torch.is_grad_enabled():  # fresh memory takes as long as the sum
        for backward in readings[1:]:
            mixed += _unroll(u, backward, reverse=True)
        return mixed.mul_(F.silu(gate))
    for backward in readings[1:]:
        mixed = mixed + _unroll(u, backward, reverse=True)
    return mixed * F.silu(gate)


def read_back(
    projected: Float[Tensor, "batch length two_inner"], reading: Reading
) -> Float[Tensor, "batch length inner"]:
    """Do what `read` does from right to left only."""
    u, gate = projected.chunk(2, dim=-1)
    return _unroll(u, reading, reverse=True) * F.silu(gate)


def _unroll(
    u: Float[Tensor, "batch length inner"], reading: Reading, *, reverse: bool = False
) -> Float[Tensor, "batch length inner"]:
    """Convolve and scan in one direction."""
    conv1d, dt_proj = reading.conv1d, reading.dt_proj
    u = convolve_silu(u, conv1d.weight[:, 0], conv1d.bias, reverse=reverse)
    rank, states = dt_proj.in_features, reading.A_log.shape[1]
    dt, B, C = reading.x_proj(u).split([rank, states, states], dim=-1)
    weight: Tensor | None = dt_proj.weight
    if dt.dtype != at_least_float32(dt).dtype:
        # Upstream rounds the projected time steps; in full precision the scan projects them.
        dt, weight = F.linear(dt, dt_proj.weight), None
    A = -torch.exp(at_least_float32(reading.A_log))
    return selective_scan(
        u, dt, A, B, C, reading.D,
        delta_weight=weight, delta_bias=dt_proj.bias, delta_softplus=True, reverse=reverse,
    )  # fmt: skip


class Mamba(nn.Module):
    """One Mamba block, reading left to right.

    Parameters
    ----------
    d_model : int
        Width of the states it takes and gives.
    ssm : SsmConfig
    """

    def __init__(self, d_model: int, ssm: SsmConfig) -> None:
        super().__init__()
        self.ssm = ssm
        inner = ssm.expand * d_model
        rank = math.ceil(d_model / 16) if ssm.dt_rank == "auto" else ssm.dt_rank
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=ssm.bias)
        self.conv1d = nn.Conv1d(inner, inner, ssm.d_conv, groups=inner, bias=ssm.conv_bias)
        self.x_proj = nn.Linear(inner, rank + 2 * ssm.d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.zeros(inner, ssm.d_state))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=ssm.bias)

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The parameters of each direction it reads in, forward first."""
        return (Reading(self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D),)

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """Mix each position with those that its directions have read."""
        return self.mix(self.in_proj(x))

    def mix(
        self, projected: Float[Tensor, "batch length two_inner"]
    ) -> Float[Tensor, "batch length dim"]:
        """Do all that follows the input projection."""
        mixed: Tensor = self.out_proj(read(projected, *self.readings))
        return mixed

    def mix_back(
        self, projected: Float[Tensor, "batch length two_inner"]
    ) -> Float[Tensor, "batch length dim"]:
        """Do what `mix` does from right to left."""
        mixed: Tensor = self.out_proj(read_back(projected, self.readings[0]))
        return mixed


class TwoWayMamba(Mamba):
    """A Mamba block that reads both ways between one input and one output projection.

    Each direction has a convolution, time steps and states of its own, those of the backward one
    named ``*_b``; what the two give is added. This is Vision Mamba's ``bimamba_type="v2"`` without
    its division by two (Zhu et al. 2024, arXiv 2401.09417), which VideoMamba uses as well.

    Parameters
    ----------
    d_model : int
        Width of the states it takes and gives.
    ssm : SsmConfig
    """

    def __init__(self, d_model: int, ssm: SsmConfig) -> None:
        super().__init__(d_model, ssm)
        inner, rank = self.dt_proj.out_features, self.dt_proj.in_features
        self.A_b_log = nn.Parameter(torch.zeros(inner, ssm.d_state))
        self.D_b = nn.Parameter(torch.ones(inner))
        self.conv1d_b = nn.Conv1d(inner, inner, ssm.d_conv, groups=inner, bias=ssm.conv_bias)
        self.x_proj_b = nn.Linear(inner, rank + 2 * ssm.d_state, bias=False)
        self.dt_proj_b = nn.Linear(rank, inner)

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The parameters of each direction it reads in, forward first."""
        backward = Reading(self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b)
        return (*super().readings, backward)


def uses_scan(module: nn.Module) -> bool:
    """Tell whether a network has Mamba blocks anywhere in it."""
    return any(isinstance(block, Mamba) for block in module.modules())


def cast_mamba(module: nn.Module, dtype: torch.dtype) -> None:
    """Change the arithmetic; ``A_log`` and ``D`` of all blocks stay in float32 at least.

    Parameters
    ----------
    module : nn.Module
        A network with Mamba blocks anywhere in it; changed in place.
    dtype : torch.dtype
    """
    wide = torch.promote_types(dtype, torch.float32)
    blocks = [block for block in module.modules() if isinstance(block, Mamba)]
    kept = [
        (parameter, parameter.data.to(wide))
        for block in blocks
        for reading in block.readings
        for parameter in (reading.A_log, reading.D)
    ]
    module.to(dtype)
    for parameter, values in kept:
        parameter.data = values


@torch.no_grad()
def reset_mamba(mamba: Mamba) -> None:
    """Draw time steps log-uniformly, let states decay at rates 1 to N: mamba_ssm's first weights.

    The input projection, the convolution and ``x_proj`` keep what they have.
    """
    ssm = mamba.ssm
    low, high = math.log(ssm.dt_min), math.log(ssm.dt_max)
    for reading in mamba.readings:
        bound = reading.dt_proj.in_features**-0.5 * ssm.dt_scale
        if ssm.dt_init == "constant":
            nn.init.constant_(reading.dt_proj.weight, bound)
        else:
            nn.init.uniform_(reading.dt_proj.weight, -bound, bound)
        uniform = torch.rand(reading.dt_proj.out_features)
        dt = torch.exp(low + (high - low) * uniform).clamp(min=ssm.dt_init_floor)
        # The inverse of softplus, so that the bias alone gives these time steps.
        reading.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        rates = torch.arange(1.0, ssm.d_state + 1)
        reading.A_log.copy_(torch.log(rates).expand_as(reading.A_log))
        nn.init.ones_(reading.D)
    nn.init.kaiming_uniform_(mamba.out_proj.weight, a=math.sqrt(5))
