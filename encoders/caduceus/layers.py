"""Caduceus' layers: the bidirectional pair of Mambas, and RC parameter sharing.

With RC parameter sharing a state [B, L, 2 D] has two halves that both lie along the forward
strand; the second is the other strand's state, flipped along length and channels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoders.caduceus.config import CaduceusConfig
from encoders.mamba import AddNorm, LayerNorm, Mamba, RMSNorm, read


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


def make_norm(config: CaduceusConfig) -> RMSNorm | LayerNorm:
    """Make the norm that the configuration asks for."""
    kind = RMSNorm if config.rms_norm else LayerNorm
    return kind(config.d_model, config.norm_epsilon)


def make_add_norm(config: CaduceusConfig) -> AddNorm:
    """Make the sum and norm that the configuration asks for, for both strands where it has two."""
    return AddNorm(
        fused=config.fused_add_norm,
        residual_in_fp32=config.residual_in_fp32,
        before_norm=stack_strands if config.rcps else None,
    )


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
        self.mamba_fwd = Mamba(config.d_model, config.ssm)
        self.mamba_rev = Mamba(config.d_model, config.ssm) if config.bidirectional else None
        self.tied = config.bidirectional_weight_tie
        # The projection is linear, and so serves the sum of both directions as it is.
        self.added_once = self.tied and not self.multiply and not config.ssm.bias
        if self.mamba_rev is not None and self.tied:
            self.mamba_rev.in_proj = self.mamba_fwd.in_proj
            self.mamba_rev.out_proj = self.mamba_fwd.out_proj

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """Mix each position with all others."""
        forward, backward = self.mamba_fwd, self.mamba_rev
        projected = forward.in_proj(x)
        if backward is None:
            return forward.mix(projected)
        if self.added_once:
            both: Tensor = forward.out_proj(read(projected, *forward.readings, *backward.readings))
            return both
        back = projected if self.tied else backward.in_proj(x)
        first, second = forward.mix(projected), backward.mix_back(back)
        return first * second if self.multiply else first + second


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
        self.add_norm = make_add_norm(config)

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
        self.add_norm = make_add_norm(config)

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


def mixer_of(layer: Block | RcBlock) -> BiMamba:
    """Return a layer's mixer, out of its wrapper if it has one."""
    mixer = layer.mixer.submodule if isinstance(layer, RcBlock) else layer.mixer
    assert isinstance(mixer, BiMamba)
    return mixer


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
