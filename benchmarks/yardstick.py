"""Caduceus as upstream computes it where its kernels are missing: what speed is measured against.

Written anew from the formulas of state-spaces/mamba (``selective_scan_ref`` and ``Mamba``'s slow
path) and kuleshov-group/caduceus (the bidirectional wrapper and RC parameter sharing), in their
layout [B, D, L] and with all that they hold at once. Checked against numbers that upstream's own
code gave, in tests/benchmarks. One thing is kinder to it than upstream is to itself: both strands
run in one batch, where upstream runs them one after the other.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoders.caduceus.layers import RcBlock
from encoders.caduceus.model import CaduceusForMaskedLM
from encoders.mamba import Mamba


def reference_scan(
    u: Float[Tensor, "batch channel length"],
    delta: Float[Tensor, "batch channel length"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch state length"],
    C: Float[Tensor, "batch state length"],
    D: Float[Tensor, " channel"] | None = None,
    *,
    z: Float[Tensor, "batch channel length"] | None = None,
    delta_bias: Float[Tensor, " channel"] | None = None,
    delta_softplus: bool = False,
) -> Float[Tensor, "batch channel length"]:
    """Run the selective scan with every decay and input laid out beforehand, as upstream does.

    Parameters
    ----------
    u, delta : Tensor [B, D, L]
        Input and time steps.
    A : Tensor [D, N]
    B, C : Tensor [B, N, L]
    D, delta_bias : Tensor [D], optional
        Skip connection; what is added to the time steps.
    z : Tensor [B, D, L], optional
        The gate; its SiLU multiplies the result.
    delta_softplus : bool
        Whether the time steps go through softplus after the bias.

    Returns
    -------
    Tensor [B, D, L]
        In the type of `u`; computed in float32 at least.

    References
    ----------
    Gu and Dao 2023, Mamba, arXiv 2312.00752, algorithm 2; state-spaces/mamba,
    ``mamba_ssm/ops/selective_scan_interface.py``.
    """
    wide = torch.promote_types(torch.promote_types(u.dtype, A.dtype), torch.float32)
    x, delta, B, C = (values.to(wide) for values in (u, delta, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(wide)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A.to(wide)))
    pushed = torch.einsum("bdl,bnl,bdl->bdln", delta, B, x)
    state = x.new_zeros(x.shape[0], *A.shape)
    outputs = []
    for position in range(x.shape[2]):
        state = decay[:, :, position] * state + pushed[:, :, position]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, position]))
    y = torch.stack(outputs, dim=2) if outputs else torch.zeros_like(x)
    if D is not None:
        y = y + x * D.to(wide)[:, None]
    if z is not None:
        y = y * F.silu(z.to(wide))
    return y.to(u.dtype)


class YardstickMamba(nn.Module):
    """One Mamba block as upstream runs it without kernels; its parameters are another block's.

    Parameters
    ----------
    mamba : Mamba
        Whose parameters it shares.
    """

    def __init__(self, mamba: Mamba) -> None:
        super().__init__()
        self.mamba = mamba

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """Project, convolve, scan and gate in [B, D, L], and project back."""
        mamba, (batch, length, _) = self.mamba, x.shape
        projected = mamba.in_proj.weight @ rearrange(x, "b l d -> d (b l)")
        if mamba.in_proj.bias is not None:
            projected = projected + mamba.in_proj.bias[:, None]
        u, z = rearrange(projected, "i (b l) -> b i l", b=batch).chunk(2, dim=1)
        taps, channels = mamba.conv1d.weight.shape[-1], u.shape[1]
        u = F.conv1d(u, mamba.conv1d.weight, mamba.conv1d.bias, padding=taps - 1, groups=channels)
        u = F.silu(u[..., :length])
        rank, states = mamba.dt_proj.weight.shape[1], mamba.A_log.shape[1]
        low, B, C = mamba.x_proj(rearrange(u, "b d l -> (b l) d")).split([rank, states, states], 1)
        delta = rearrange(mamba.dt_proj.weight @ low.T, "d (b l) -> b d l", b=batch)
        B, C = (rearrange(part, "(b l) n -> b n l", b=batch).contiguous() for part in (B, C))
        A = -torch.exp(mamba.A_log)
        y = reference_scan(
            u, delta, A, B, C, mamba.D, z=z, delta_bias=mamba.dt_proj.bias, delta_softplus=True
        )
        mixed: Tensor = mamba.out_proj(rearrange(y, "b d l -> b l d"))
        return mixed


class TwoStrandBlock(nn.Module):
    """A Caduceus-PS block around any Mamba: both directions and strands by flipping.

    Each direction projects for itself, whether the weights are tied or not; the reverse one and the
    other strand are flipped on the way in and out.

    Parameters
    ----------
    block : RcBlock
        Whose parameters it takes.
    make_mamba : callable
        Makes, from the parameters of a `Mamba`, the module that runs in its stead.
    """

    def __init__(
        self, block: RcBlock, make_mamba: Callable[[Mamba], nn.Module] = YardstickMamba
    ) -> None:
        super().__init__()
        pair = block.mixer.submodule
        self.swaps, self.multiply = block.swaps, pair.multiply
        self.norm = _bare(block.norm)
        self.mamba_fwd = make_mamba(pair.mamba_fwd)
        self.mamba_rev = None if pair.mamba_rev is None else make_mamba(pair.mamba_rev)

    def forward(
        self,
        hidden: Float[Tensor, "batch length both"],
        residual: Float[Tensor, "batch length both"] | None = None,
    ) -> tuple[Float[Tensor, "batch length both"], Float[Tensor, "batch length both"]]:
        """Return the mixer's output, residual not added, and the new residual."""
        total = hidden if residual is None else hidden + residual
        if self.swaps:
            first, second = total.chunk(2, dim=-1)
            total = torch.cat([second, first], dim=-1)
        mixed = self._mix(_normed(_strands(total), self.norm))
        return _joined(mixed), total

    def _mix(self, x: Tensor) -> Tensor:
        forward: Tensor = self.mamba_fwd(x)
        if self.mamba_rev is None:
            return forward
        backward = self.mamba_rev(x.flip(1)).flip(1)
        return forward * backward if self.multiply else forward + backward


class YardstickCaduceus(nn.Module):
    """A whole Caduceus-PS that upstream's slow path computes; its parameters are another's.

    Parameters
    ----------
    network : CaduceusForMaskedLM
        With RC parameter sharing.
    """

    def __init__(self, network: CaduceusForMaskedLM) -> None:
        super().__init__()
        backbone = network.caduceus.backbone
        words = backbone.embeddings["word_embeddings"]
        self.embedding, self.complement_map = words.embedding, words.complement_map
        self.layers = nn.ModuleList(TwoStrandBlock(block) for block in backbone.layers)
        self.norm_f = _bare(backbone.norm_f)

    def embed(self, input_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length both"]:
        """Return the embeddings that the blocks take."""
        other = self.embedding(self.complement_map[input_ids].flip(1)).flip(1, 2)
        return torch.cat([self.embedding(input_ids), other], dim=-1)

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        *,
        inputs_embeds: Float[Tensor, "batch length both"] | None = None,
    ) -> Float[Tensor, "batch length both"]:
        """Return upstream's last hidden state, from ids or from what `embed` gives for them."""
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids)
        hidden, residual = inputs_embeds, None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        total = hidden if residual is None else hidden + residual
        return _joined(_normed(_strands(total), self.norm_f))


def _bare(norm: nn.Module) -> nn.Module:
    """Return the norm out of the wrapper in which upstream's plain path names it."""
    return getattr(norm, "submodule", norm)


def _normed(x: Tensor, norm: nn.Module) -> Tensor:
    bias = getattr(norm, "bias", None)
    if bias is None:
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
    return F.layer_norm(x, x.shape[-1:], norm.weight, bias, norm.eps)


def _strands(state: Tensor) -> Tensor:
    """Put both halves into the batch, each as its own strand reads."""
    forward, other = state.chunk(2, dim=-1)
    return torch.cat([forward, other.flip(1, 2)])


def _joined(strands: Tensor) -> Tensor:
    forward, other = strands.chunk(2)
    return torch.cat([forward, other.flip(1, 2)], dim=-1)
