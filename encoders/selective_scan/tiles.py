"""The convolution, the scan and the norm over a sequence that comes tile by tile.

What one tile leaves behind (the state, the last positions before the convolution) the next one
takes up, so that a long sequence needs the memory of a short one. Nothing here records gradients;
`tile_gradients` has the way back. The native kernels compute it where `backend_for` says so, else
torch.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from encoders.selective_scan import library
from encoders.selective_scan.api import selective_scan
from encoders.selective_scan.choice import backend_for
from encoders.selective_scan.convolution import convolve_silu
from encoders.selective_scan.library import SequenceView, address


def _is_native(values: Tensor, wide: torch.dtype) -> bool:
    return backend_for(values.device, wide) == "cpu"


def convolve_tile(
    x: Float[Tensor, "batch length channel"],
    start: int,
    end: int,
    weight: Float[Tensor, "channel taps"],
    bias: Float[Tensor, " channel"] | None,
    *,
    reverse: bool = False,
    out: Float[Tensor, "batch tile channel"] | None = None,
) -> Float[Tensor, "batch tile channel"]:
    """Return positions `start` to `end` of `convolve_silu`.

    Parameters
    ----------
    x : Tensor [B, L, D]
        The whole sequence, of which only the tile and the taps - 1 positions read before it are
        looked at.
    start, end : int
        The tile.
    weight, bias, reverse
        As `encoders.selective_scan.convolve_silu` takes them.
    out : Tensor [B, end - start, D], optional
        Room for the result in float32, lying densely: new memory may cost as much as the sums.
        Used where it can be.

    Returns
    -------
    Tensor [B, end - start, D]
        In the type of `x`.
    """
    taps = weight.shape[1]
    before = min(taps - 1, x.shape[1] - end if reverse else start)
    read = x[:, start : end + before] if reverse else x[:, start - before : end]
    mine = slice(0, end - start) if reverse else slice(before, None)
    wide = torch.promote_types(x.dtype, torch.float32)
    if taps > library.MAX_TAPS or not _is_native(x, wide):
        return convolve_silu(read, weight, bias, reverse=reverse)[:, mine]
    from encoders.selective_scan import cpu

    read, weight, bias = cpu.rowwise(read), weight.float().contiguous(), cpu.dense(bias)
    y = _room((x.shape[0], end - start, x.shape[2]), out)
    arguments = cpu.convolution_arguments(read[:, mine], weight, bias, reverse)
    arguments.row_end, arguments.channel_end = x.shape[0], x.shape[2]
    arguments.y, arguments.before = SequenceView.of(y), before
    library.call("convolve", arguments)
    return y.to(x.dtype)


def _room(shape: tuple[int, ...], out: Tensor | None) -> Tensor:
    if out is not None and out.dtype == torch.float32:
        return out
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def scan_tile(
    u: Float[Tensor, "batch tile channel"],
    delta: Float[Tensor, "batch tile rank"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch tile state"],
    C: Float[Tensor, "batch tile state"],
    D: Float[Tensor, " channel"] | None,
    state: Float[Tensor, "batch state channel"],
    *,
    delta_weight: Float[Tensor, "channel rank"] | None = None,
    delta_bias: Float[Tensor, " channel"] | None = None,
    reverse: bool = False,
    into: Float[Tensor, "batch tile channel"],
    add: bool = False,
    gate: Float[Tensor, "batch tile channel"] | None = None,
) -> None:
    """Run `selective_scan` with softplus over one tile, from where the tile before it ended.

    Parameters
    ----------
    u, delta, A, B, C, D, delta_weight, delta_bias, reverse
        As `encoders.selective_scan.selective_scan` takes them.
    state : Tensor [B, N, D]
        The state before the tile in the order of reading, in float32 at least; overwritten by the
        one after it.
    into : Tensor [B, T, D]
        Where the result goes, in the type of `u`.
    add : bool
        Whether to add it to what is there.
    gate : Tensor [B, T, D], optional
        What is there in the end is multiplied by SiLU of this.
    """
    if _is_native(u, state.dtype):
        values = (u, delta, A, B, C, D, delta_weight, delta_bias)
        if u.dtype == into.dtype == torch.float32 and into.stride(-1) == 1:
            return scan_natively(*values, state, reverse, into, add, gate)
        y = torch.empty(u.shape, dtype=torch.float32, device="cpu")
        scan_natively(*values, state, reverse, y, False, None)
        return _put(y.to(u.dtype), into, add, gate)
    wide = state.dtype
    delta, u_wide, B, C = (values.to(wide) for values in (delta, u, B, C))
    if delta_weight is not None:
        delta = F.linear(delta, delta_weight.to(wide))
    if delta_bias is not None:
        delta = delta + delta_bias.to(wide)
    delta, A = F.softplus(delta), A.to(wide)
    y = selective_scan(u_wide, delta, A, B, C, D, reverse=reverse)
    y = y + _carry(state, u_wide, delta, A, B, C, reverse)
    return _put(y.to(u.dtype), into, add, gate)


def _put(y: Tensor, into: Tensor, add: bool, gate: Tensor | None) -> None:
    if add:
        y = y + into
    into.copy_(y if gate is None else y * F.silu(gate))


def _carry(
    state: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: bool
) -> Tensor:
    """Return what the state before a tile adds to its outputs, and bring the state to its end."""
    if reverse:
        u, delta, B, C = (values.flip(1) for values in (u, delta, B, C))
    since = delta.cumsum(dim=1)
    # What follows a position is summed by itself: a difference of sums would lose its digits.
    until = delta.flip(1).cumsum(dim=1).flip(1)
    until = F.pad(until[:, 1:], (0, 0, 0, 1))
    added = torch.einsum("btn,btnd,bnd->btd", C, torch.exp(since.unsqueeze(2) * A.T), state)
    gained = torch.einsum("btn,btnd,btd->bnd", B, torch.exp(until.unsqueeze(2) * A.T), delta * u)
    state.copy_(torch.exp(since[:, -1].unsqueeze(1) * A.T) * state + gained)
    return added.flip(1) if reverse else added


def scan_natively(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    state: Tensor,
    reverse: bool,
    into: Tensor,
    add: bool,
    gate: Tensor | None,
    kept: Tensor | None = None,
) -> None:
    """Do what `scan_tile` does by the native kernels, and keep the states to go back from."""
    from encoders.selective_scan import cpu

    u, delta, B, C = (cpu.rowwise(values) for values in (u, delta, B, C))
    weight, bias, D = (cpu.dense(values) for values in (weight, bias, D))
    A = A.float().contiguous()
    assert state.is_contiguous(), "a state lies densely"
    gate = None if gate is None else cpu.rowwise(gate)
    arguments = cpu.scan_arguments(u, delta, weight, bias, A, B, C, D, True, reverse)
    arguments.row_end, arguments.channel_end = u.shape[0], u.shape[2]
    arguments.accumulate, arguments.gate = add, SequenceView.of(gate)
    arguments.y, arguments.state = SequenceView.of(into), address(state)
    arguments.kept = SequenceView.of(kept)
    library.call("scan_forward", arguments)


def norm_tile(
    x: Float[Tensor, "batch tile dim"],
    weight: Float[Tensor, " dim"],
    bias: Float[Tensor, " dim"] | None,
    eps: float,
    *,
    centre: bool,
    out: Float[Tensor, "batch tile dim"] | None = None,
) -> Float[Tensor, "batch tile dim"]:
    """Return ``x / sqrt(mean(x^2) + eps) * weight + bias``; with `centre`, a layer norm.

    Parameters
    ----------
    x : Tensor [B, T, D]
        In float32 at least.
    weight : Tensor [D]
    bias : Tensor [D], optional
    eps : float
    centre : bool
        Whether the mean is taken off first.
    out : Tensor [B, T, D], optional
        Room for the result, as `convolve_tile` takes it.

    Returns
    -------
    Tensor [B, T, D]
    """
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if not _is_native(x, x.dtype) or x.stride(-1) != 1:
        if centre:
            return F.layer_norm(x, weight.shape, weight, bias, eps)
        scaled = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight
        return scaled if bias is None else scaled + bias
    y = _room(tuple(x.shape), out)
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    arguments = library.Norm(
        rows=x.shape[0],
        length=x.shape[1],
        width=x.shape[2],
        centre=centre,
        x=SequenceView.of(x),
        y=SequenceView.of(y),
        weight=address(weight),
        bias=address(bias),
        epsilon=eps,
    )
    library.call("norm", arguments)
    return y
