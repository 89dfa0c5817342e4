"""Deliberate mistakes, each made in a network after loading: what the fixtures must tell apart."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.caduceus.config import CaduceusConfig
from encoders.caduceus.layers import BiMamba, RcEmbedding, RcHead, swap_halves
from encoders.caduceus.model import CaduceusForMaskedLM as Network
from encoders.mamba import AddNorm, LayerNorm, Mamba, RMSNorm


class Mistake(NamedTuple):
    """Where a mistake can be made, how, and whether the scores alone show it."""

    possible: Callable[[CaduceusConfig], bool]
    make: Callable[[Network], None]
    scores_only: bool = False


def each(network: Network, *kinds: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kinds)]


def in_each(change: Callable[[nn.Module], None], *kinds: type[nn.Module]):
    def make(network: Network) -> None:
        for module in each(network, *kinds):
            change(module)

    return make


def exchange_gate(network: Network) -> None:
    for projection in {mamba.in_proj for mamba in each(network, Mamba)}:
        for parameter in projection.parameters():
            parameter.data = parameter.data.roll(len(parameter) // 2, dims=0)


def exchange_b_and_c(mamba: nn.Module) -> None:
    rank, states = mamba.dt_proj.in_features, mamba.A_log.shape[1]
    dt, b, c = mamba.x_proj.weight.data.split([rank, states, states])
    mamba.x_proj.weight.data = torch.cat([dt, c, b])


def read_back_with_forward_weights(mixer: nn.Module) -> None:
    mixer.mamba_rev.load_state_dict(mixer.mamba_fwd.state_dict())


def leave_reverse_as_read(mixer: nn.Module) -> None:
    mixer.added_once = False
    mix_back = mixer.mamba_rev.mix_back
    mixer.mamba_rev.mix_back = lambda projected: mix_back(projected).flip(1)


def complement_in_file_order(network: Network) -> None:
    table = network.config.complement_map
    resaved = [table[token] for token in sorted(range(len(table)), key=str)]
    for module in each(network, RcEmbedding, RcHead):
        module.complement_map = torch.tensor(resaved)


def no_swap(network: Network) -> None:
    for layer in network.caduceus.backbone.layers:
        layer.swaps = not layer.swaps


def swap_hidden_alone(network: Network) -> None:
    for layer in network.caduceus.backbone.layers:
        right = layer.forward

        def wrong(hidden: Tensor, residual: Tensor | None, right=right):
            return right(hidden, None if residual is None else swap_halves(residual))

        layer.forward = wrong


def swap_before_the_final_norm(network: Network) -> None:
    core = network.caduceus.backbone
    right = core.add_norm
    core.add_norm = lambda hidden, residual, norm: right(
        swap_halves(hidden), swap_halves(residual), norm
    )


def with_norm(network: Network, norm_of: Callable[[Tensor, nn.Module], Tensor]) -> None:
    """Give all layers another norm of the stored sum, itself as stored."""
    core = network.caduceus.backbone

    def wrong(hidden: Tensor, residual: Tensor | None, norm: nn.Module):
        total = hidden if residual is None else hidden + residual
        first, second = norm_of(total, norm).chunk(2, dim=-1)
        return torch.cat([first, second.flip(1, 2)]), total

    core.add_norm = wrong
    for layer in core.layers:
        assert isinstance(layer.add_norm, AddNorm)
        layer.add_norm = wrong


def norm_second_half_as_stored(network: Network) -> None:
    with_norm(network, lambda x, norm: torch.cat([norm(h) for h in x.chunk(2, dim=-1)], dim=-1))


def norm_both_halves_together(network: Network) -> None:
    def together(x: Tensor, norm: nn.Module) -> Tensor:
        weight = torch.cat([norm.weight, norm.weight.flip(0)])
        if isinstance(norm, LayerNorm):
            bias = torch.cat([norm.bias, norm.bias.flip(0)])
            return F.layer_norm(x, weight.shape, weight, bias, norm.eps)
        return F.rms_norm(x, weight.shape, weight, norm.eps)

    with_norm(network, together)


def other_head(score: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]):
    def make(network: Network) -> None:
        head = network.lm_head

        def wrong(state: Tensor) -> Tensor:
            forward, other = state.chunk(2, dim=-1)
            return score(forward, other, head.lm_head.weight, head.complement_map)

        head.forward = wrong

    return make


def always(config: CaduceusConfig) -> bool:
    return True


def both_ways(config: CaduceusConfig) -> bool:
    return config.bidirectional


def shared_strands(config: CaduceusConfig) -> bool:
    return config.rcps


def swapping(config: CaduceusConfig) -> bool:
    return config.rcps and config.fused_add_norm


def zero(name: str) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        module.get_parameter(name).data.zero_()

    return change


MISTAKES = {
    "half swap left out, or made where there is none": Mistake(shared_strands, no_swap),
    "half swap of the hidden state only": Mistake(swapping, swap_hidden_alone),
    "half swap also before the final norm": Mistake(shared_strands, swap_before_the_final_norm),
    "second half normed as stored": Mistake(shared_strands, norm_second_half_as_stored),
    "one norm over all channels": Mistake(shared_strands, norm_both_halves_together),
    "norm weights left at 1": Mistake(
        always, in_each(lambda norm: norm.weight.data.fill_(1), RMSNorm, LayerNorm)
    ),
    "norm_epsilon ignored": Mistake(
        lambda config: config.norm_epsilon != 1e-5,
        in_each(lambda norm: setattr(norm, "eps", 1e-5), RMSNorm, LayerNorm),
    ),
    "complement map read in file order": Mistake(shared_strands, complement_in_file_order),
    "reverse direction uses forward weights": Mistake(
        both_ways, in_each(read_back_with_forward_weights, BiMamba)
    ),
    "reverse direction not flipped back": Mistake(
        both_ways, in_each(leave_reverse_as_read, BiMamba)
    ),
    "gate and value exchanged": Mistake(always, exchange_gate),
    "convolution taps reversed": Mistake(
        always,
        in_each(lambda m: setattr(m.conv1d.weight, "data", m.conv1d.weight.data.flip(-1)), Mamba),
    ),
    "no convolution bias": Mistake(
        lambda config: config.ssm.conv_bias, in_each(zero("conv1d.bias"), Mamba)
    ),
    "no dt bias": Mistake(always, in_each(zero("dt_proj.bias"), Mamba)),
    "B and C exchanged": Mistake(always, in_each(exchange_b_and_c, Mamba)),
    "no D skip": Mistake(always, in_each(zero("D"), Mamba)),
    "head: second half not flipped over channels": Mistake(
        shared_strands,
        other_head(lambda a, b, W, c: F.linear(a, W) + F.linear(b, W[c])),
        scores_only=True,
    ),
    "head: rows not complemented": Mistake(
        shared_strands,
        other_head(lambda a, b, W, c: F.linear(a, W) + F.linear(b.flip(-1), W)),
        scores_only=True,
    ),
    "head: second half flipped over length": Mistake(
        shared_strands,
        other_head(lambda a, b, W, c: F.linear(a, W) + F.linear(b.flip(1, 2), W[c])),
        scores_only=True,
    ),
    "head: first half only": Mistake(
        shared_strands, other_head(lambda a, b, W, c: F.linear(a, W)), scores_only=True
    ),
}


def zero_order_hold_scan(
    u,
    delta,
    A,
    B,
    C,
    D,
    *,
    delta_weight=None,
    delta_bias=None,
    delta_softplus=False,
    reverse=False,
):
    """The exact zero-order hold for B, ``(exp(dt A) - 1) / A``, where Mamba takes ``dt B``."""
    if delta_weight is not None:
        delta = F.linear(delta, delta_weight)
    if delta_bias is not None:
        delta = delta + delta_bias
    if delta_softplus:
        delta = F.softplus(delta)
    order = range(u.shape[1])
    state = torch.zeros(*u.shape[::2], A.shape[1], dtype=delta.dtype)
    out = {}
    for step in reversed(order) if reverse else order:
        decay = torch.exp(delta[:, step, :, None] * A)
        state = decay * state + (decay - 1) / A * B[:, step, None] * u[:, step, :, None]
        out[step] = (state * C[:, step, None]).sum(-1)
    return torch.stack([out[step] for step in order], dim=1) + D * u
