"""Caduceus' layers: Mamba, its bidirectional pair, norms, and RC parameter sharing.

With RC parameter sharing a state [B, L, 2 D] has two halves that both lie along the forward
strand; the second is the other strand's state, flipped along length and channels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoders.caduceus.config import CaduceusConfig
from encoders.selective_scan import selective_scan


def stack_strands(
    state: Float[Tensor, "batch length both"],
) -> Float[Tensor, "strand_batch length dim"]:
    """Put both strands into the batch, the second half un-flipped: each as its strand reads."""
    forward, other = state.chunk(2, dim=-1)
    return torch.cat([forward, other.flip(1, 2)])


def join_strands(
    strands: Float[Tensor, "strand_batch length dim"],
) -> Float[Tensor, "batch length both"]:
    """Undo `stack_strands`."""
    forward, other = strands.chunk(2)
    return torch.cat([forward, other.flip(1, 2)], dim=-1)


def swap_halves(state: Float[Tensor, "batch length both"]) -> Float[Tensor, "batch length both"]:
    """Exchange the two halves as they are stored."""
    return state.roll(state.shape[-1] // 2, dims=-1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight``, in float32 at least."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Float[Tensor, "*any dim"]) -> Float[Tensor, "*any dim"]:
        """Normalise over the last dimension; the result keeps the wider type."""
        x = _at_least_float32(x)
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
        x = _at_least_float32(x)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, weight.shape, weight, bias, self.eps)


def make_norm(config: CaduceusConfig) -> RMSNorm | LayerNorm:
    """Make the norm that the configuration asks for."""
    kind = RMSNorm if config.rms_norm else LayerNorm
    return kind(config.d_model, config.norm_epsilon)


class AddNorm:
    """Adds the residual and normalises, with upstream's two ways of rounding.

    In float32 and float64 the two are equal. In reduced precision the fused kernel sums and norms
    in float32 and rounds once; the plain path rounds the sum first.

    Parameters
    ----------
    config : CaduceusConfig
    both_strands : bool
        Whether states have two halves, to be normed each by itself.
    """

    def __init__(self, config: CaduceusConfig, *, both_strands: bool) -> None:
        self.fused = config.fused_add_norm
        self.residual_in_fp32 = config.residual_in_fp32
        self.both_strands = both_strands

    def __call__(
        self, hidden: Tensor, residual: Tensor | None, norm: RMSNorm | LayerNorm
    ) -> tuple[Tensor, Tensor]:
        """Return the normed sum (strands in the batch, if there are two) and the new residual."""
        wide = _at_least_float32(hidden)
        total = wide if self.fused else hidden
        if residual is not None:
            total = total + residual
        normed = total if self.fused else total.to(norm.weight.dtype)
        if self.both_strands:
            normed = stack_strands(normed)
        kept = wide.dtype if self.residual_in_fp32 else hidden.dtype
        return norm(normed).to(hidden.dtype), total.to(kept)


class Mamba(nn.Module):
    """One Mamba block (Gu and Dao 2023, arXiv 2312.00752), reading left to right.

    Parameters
    ----------
    config : CaduceusConfig
    """

    def __init__(self, config: CaduceusConfig) -> None:
        super().__init__()
        inner, ssm = config.d_inner, config.ssm
        self.sizes = [config.dt_rank, ssm.d_state, ssm.d_state]
        self.in_proj = nn.Linear(config.d_model, 2 * inner, bias=ssm.bias)
        self.conv1d = nn.Conv1d(inner, inner, ssm.d_conv, groups=inner, bias=ssm.conv_bias)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(config.dt_rank, inner)
        self.A_log = nn.Parameter(torch.zeros(inner, ssm.d_state))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, config.d_model, bias=ssm.bias)

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """Mix each position with those before it."""
        return self.mix(self.in_proj(x))

    def mix(
        self, projected: Float[Tensor, "batch length two_inner"]
    ) -> Float[Tensor, "batch length dim"]:
        """Do all that follows the input projection."""
        u, gate = projected.chunk(2, dim=-1)
        u = F.silu(self._convolve(u))
        dt, B, C = self.x_proj(u).split(self.sizes, dim=-1)
        dt = _at_least_float32(F.linear(dt, self.dt_proj.weight))
        delta = F.softplus(dt + self.dt_proj.bias.to(dt.dtype))
        A = -torch.exp(_at_least_float32(self.A_log))
        y = selective_scan(u, delta, A, B, C, self.D)
        return self.out_proj(y * F.silu(gate))

    def _convolve(self, u: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """Convolve each channel with its taps, the last tap on the position itself."""
        length, taps = u.shape[1], self.conv1d.kernel_size[0]
        padded = F.pad(_at_least_float32(u), (0, 0, taps - 1, 0))
        weight = self.conv1d.weight.to(padded.dtype)[:, 0].T
        out = padded[:, :length] * weight[0]
        for tap in range(1, taps):
            out = torch.addcmul(out, padded[:, tap : tap + length], weight[tap])
        if self.conv1d.bias is not None:
            out = out + self.conv1d.bias.to(out.dtype)
        return out.to(u.dtype)


class BiMamba(nn.Module):
    """A Mamba for each reading direction, added or multiplied; or only the first.

    Tied, the two share the input and output projections and nothing else.

    Parameters
    ----------
    config : CaduceusConfig
    """

    def __init__(self, config: CaduceusConfig) -> None:
        super().__init__()
        self.multiply = config.bidirectional_strategy == "ew_multiply"
        self.mamba_fwd = Mamba(config)
        self.mamba_rev = Mamba(config) if config.bidirectional else None
        if self.mamba_rev is not None and config.bidirectional_weight_tie:
            self.mamba_rev.in_proj = self.mamba_fwd.in_proj
            self.mamba_rev.out_proj = self.mamba_fwd.out_proj

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """Mix each position with all others."""
        projected = self.mamba_fwd.in_proj(x)
        forward = self.mamba_fwd.mix(projected)
        if self.mamba_rev is None:
            return forward
        if self.mamba_rev.in_proj is not self.mamba_fwd.in_proj:
            projected = self.mamba_rev.in_proj(x)
        backward = self.mamba_rev.mix(projected.flip(1)).flip(1)
        return forward * backward if self.multiply else forward + backward


class Submodule(nn.Module):
    """Holds a module under the name upstream's RC wrapper gives it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.submodule = module


class Block(nn.Module):
    """Add, norm, mix: one layer of Caduceus-Ph.

    Parameters
    ----------
    config : CaduceusConfig
    """

    def __init__(self, config: CaduceusConfig) -> None:
        super().__init__()
        self.norm = make_norm(config)
        self.mixer = BiMamba(config)
        self.add_norm = AddNorm(config, both_strands=False)

    def forward(
        self,
        hidden: Float[Tensor, "batch length dim"],
        residual: Float[Tensor, "batch length dim"] | None,
    ) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch length dim"]]:
        """Return the mixer's output, residual not added, and the new residual."""
        normed, residual = self.add_norm(hidden, residual, self.norm)
        return self.mixer(normed), residual


class RcBlock(nn.Module):
    """One layer of Caduceus-PS: the same block on both strands.

    Parameters
    ----------
    config : CaduceusConfig
        With ``fused_add_norm`` the halves of hidden state and residual are swapped first, as in
        the code that trained the published weights.
    """

    def __init__(self, config: CaduceusConfig) -> None:
        super().__init__()
        self.swaps = config.fused_add_norm
        self.norm = make_rc_norm(config)
        self.mixer = Submodule(BiMamba(config))
        self.add_norm = AddNorm(config, both_strands=True)

    def forward(
        self,
        hidden: Float[Tensor, "batch length both"],
        residual: Float[Tensor, "batch length both"] | None,
    ) -> tuple[Float[Tensor, "batch length both"], Float[Tensor, "batch length both"]]:
        """Return the mixer's output, residual not added, and the new residual."""
        if self.swaps:
            hidden = swap_halves(hidden)
            residual = None if residual is None else swap_halves(residual)
        normed, residual = self.add_norm(hidden, residual, bare_norm(self.norm))
        return join_strands(self.mixer.submodule(normed)), residual


def make_rc_norm(config: CaduceusConfig) -> nn.Module:
    """Make a norm for both strands, under the names of upstream's fused or plain path."""
    norm = make_norm(config)
    return norm if config.fused_add_norm else Submodule(norm)


def bare_norm(norm: nn.Module) -> RMSNorm | LayerNorm:
    """Return the norm itself, out of its wrapper if it has one."""
    bare = norm.submodule if isinstance(norm, Submodule) else norm
    assert isinstance(bare, RMSNorm | LayerNorm)
    return bare


class RcEmbedding(nn.Module):
    """Embeds the letters, and beside them their complements with the channels reversed.

    Parameters
    ----------
    config : CaduceusConfig
    """

    complement_map: Int[Tensor, " vocabulary"]

    def __init__(self, config: CaduceusConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.register_buffer("complement_map", torch.tensor(config.complement_map))

    def forward(self, input_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length both"]:
        """Return both halves, aligned to the forward positions."""
        other = self.embedding(self.complement_map[input_ids])
        return torch.cat([self.embedding(input_ids), other.flip(-1)], dim=-1)


class RcHead(nn.Module):
    """Language-model head that scores both strands with one matrix.

    Parameters
    ----------
    config : CaduceusConfig
    """

    complement_map: Int[Tensor, " vocabulary"]

    def __init__(self, config: CaduceusConfig) -> None:
        super().__init__()
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.register_buffer("complement_map", torch.tensor(config.complement_map))

    def forward(
        self, state: Float[Tensor, "batch length both"]
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Return logits; the other strand votes for the complements."""
        forward, other = state.chunk(2, dim=-1)
        weight = self.lm_head.weight
        return F.linear(forward, weight) + F.linear(other.flip(-1), weight[self.complement_map])
