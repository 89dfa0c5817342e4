"""The scan and the short convolution on CPUs: autograd around the compiled kernels."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from encoders.large_pages import in_large_pages
from encoders.selective_scan import library
from encoders.selective_scan.convolution_gradients import differentiate_convolution
from encoders.selective_scan.library import SequenceView, address
from encoders.selective_scan.pieces import GROUP, run_pieces, wide_group

# Numbers of one sequence that the scan goes back over at once, 1,024 positions at the published
# width: what is found of the time steps there stays in cache for their projection.
SPAN_NUMBERS = 2**19
_NEW = torch.library.custom_op


def _new(*shape: int) -> Tensor:
    """Return memory for a kernel: float32 here, whatever torch's defaults have been set to."""
    return in_large_pages(torch.empty(shape, dtype=torch.float32, device="cpu"))


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def rowwise(values: Tensor) -> Tensor:
    """Return float32 values whose last axis is contiguous, copied only where they are not."""
    values = values.float()
    return values if values.stride(-1) == 1 or values.shape[-1] == 1 else values.contiguous()


def dense(values: Tensor | None) -> Tensor | None:
    """Return float32 values that lie densely; None for None."""
    return None if values is None else values.float().contiguous()


def scan_arguments(
    u: Tensor,
    low: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    activate: bool,
    reverse: bool,
) -> library.ScanForward:
    """Describe a scan to the kernels; rows, channels and where results go are still to be said."""
    return library.ScanForward(
        length=u.shape[1],
        channels=u.shape[2],
        states=A.shape[1],
        rank=0 if weight is None else weight.shape[1],
        reverse=reverse,
        activate=activate,
        u=SequenceView.of(u),
        low=SequenceView.of(low),
        b=SequenceView.of(B),
        c=SequenceView.of(C),
        weight=address(weight),
        bias=address(bias),
        a=address(A),
        skip=address(D),
    )


def _tiles(length: int) -> int:
    return -(-length // library.KEPT_EVERY)


@_NEW("genebold::cpu_scan", mutates_args=(), device_types="cpu")
def scan(
    u: Tensor,
    low: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    activate: bool,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Run `encoders.selective_scan.selective_scan` on the CPU, in float32.

    Returns
    -------
    y : Tensor [B, L, D]
    kept : Tensor [B, tiles, N, D]
        States that the backward pass starts from; empty unless `keep`.
    """
    u, low, B, C = map(rowwise, (u, low, B, C))
    weight, bias, A, D = dense(weight), dense(bias), A.float().contiguous(), dense(D)
    y = _new(*u.shape)
    tiles = _tiles(u.shape[1]) if keep else 0
    kept = _new(u.shape[0], tiles, A.shape[1], u.shape[2])
    whole = scan_arguments(u, low, weight, bias, A, B, C, D, activate, reverse)
    whole.y = SequenceView.of(y)
    whole.kept = SequenceView.of(kept if keep else None)

    held = (u, low, weight, bias, A, B, C, D, y, kept)
    run_pieces("scan_forward", whole, u.shape, held, wide_group(u.shape[0], u.shape[2]))
    return y, kept


@scan.register_fake
def _(
    u: Tensor,
    low: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    activate: bool,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    tiles = _tiles(u.shape[1]) if keep else 0
    kept = u.new_empty(u.shape[0], tiles, A.shape[1], u.shape[2], dtype=torch.float32)
    return u.new_empty(u.shape, dtype=torch.float32), kept


@_NEW("genebold::cpu_scan_backward", mutates_args=(), device_types="cpu")
def scan_backward(
    grad_y: Tensor,
    u: Tensor,
    low: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    kept: Tensor,
    activate: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `scan`'s tensors, float32; of no size where they are None."""
    grad_y, u, low, B, C = map(rowwise, (grad_y, u, low, B, C))
    weight, bias, A, D = dense(weight), dense(bias), A.float().contiguous(), dense(D)
    rows, length, channels = u.shape
    if kept.shape[1] != _tiles(length):
        raise RuntimeError(
            "the scan was run without gradients in mind and kept no states to go back from; "
            "run it with inputs that require gradients"
        )
    grad_u, grad_low, grad_b, grad_c = (_new(*values.shape) for values in (u, low, B, C))
    rank = 0 if weight is None else weight.shape[1]
    grad_weight, grad_a = _zeros(rank, channels), _zeros(A.shape[1], channels)
    grad_bias, grad_skip = _zeros(channels), _zeros(channels)
    steps, span = grad_low, max(1, length)
    if weight is not None:
        parts = max(1, SPAN_NUMBERS // max(1, channels) // library.KEPT_EVERY)
        span = parts * library.KEPT_EVERY
        steps = _new(rows, min(span, length), channels)
    carry = _zeros(rows, A.shape[1], channels)
    held = (u, low, weight, bias, A, B, C, D, kept)
    for begin in reversed(range(0, length, span)):
        end = min(begin + span, length)
        where = slice(length - end, length - begin) if reverse else slice(begin, end)
        step = steps[:, where] if weight is None else steps[:, : end - begin]
        forward = scan_arguments(
            u[:, where], low[:, where], weight, bias, A, B[:, where], C[:, where], D, activate,
            reverse,
        )  # fmt: skip
        forward.kept = SequenceView.of(kept[:, begin // library.KEPT_EVERY :])
        around = (grad_y[:, where], grad_u[:, where], step, carry)
        whole, sums = scan_back_arguments(forward, *around, GROUP)
        run_pieces("scan_backward", whole, around[0].shape, (*held, *around, *sums))
        found = sums.total()
        grad_b[:, where], grad_c[:, where] = found.b_c.chunk(2, dim=-1)
        grad_a += found.a
        grad_skip += found.skip
        if bias is not None:
            grad_bias += step.sum(dim=(0, 1))
        if weight is not None:
            with torch.autocast("cpu", enabled=False):  # whatever the caller has on
                grad_low[:, where] = step @ weight
                # The narrow side is the one that products turn round.
                grad_weight.addmm_(low[:, where].flatten(0, 1).T, step.flatten(0, 1))
    # An operator's outputs share no memory, with each other or with what it was given.
    return (
        grad_u, grad_low, _new(0) if weight is None else _turned(grad_weight),
        _new(0) if bias is None else grad_bias, _turned(grad_a), grad_b, grad_c,
        _new(0) if D is None else grad_skip,
    )  # fmt: skip


def _turned(values: Tensor) -> Tensor:
    return values.T.clone(memory_format=torch.contiguous_format)


class ScanSums(NamedTuple):
    """What the kernel sums on its way back.

    Parameters
    ----------
    b_c : Tensor [groups, B, T, 2 N]
    a : Tensor [B, N, D]
    skip : Tensor [B, D]
    """

    b_c: Tensor
    a: Tensor
    skip: Tensor

    def total(self) -> "ScanSums":
        """Return [B, T, 2 N], [N, D] and [D]: over the groups, and over the rows."""
        return ScanSums(*(values.sum(dim=0) for values in self))


def scan_back_arguments(
    forward: library.ScanForward,
    grad_y: Tensor,
    grad_u: Tensor,
    grad_step: Tensor,
    carry: Tensor,
    group: int,
) -> tuple[library.ScanBackward, ScanSums]:
    """Describe the way back over positions [B, T, D] to the kernels.

    Parameters
    ----------
    forward : ScanForward
        With what it kept.
    grad_y, grad_u, grad_step : Tensor [B, T, D]
        Gradients of the outputs, which are read, and of the inputs and softplus' argument.
    carry : Tensor [B, N, D]
        Gradient of the state behind the positions; that of the one before them in the end.
    group : int
        Channels that B's and C's gradients are summed over at once.

    Returns
    -------
    arguments : ScanBackward
    sums : ScanSums
        Memory that the kernel fills; it must be held until then.
    """
    rows, length, channels = grad_y.shape
    b_c = _new(-(-channels // group), rows, length, 2 * forward.states)
    sums = ScanSums(b_c, _new(*carry.shape), _new(rows, channels))
    arguments = library.ScanBackward(
        forward=forward,
        grad_y=SequenceView.of(grad_y),
        grad_u=SequenceView.of(grad_u),
        grad_low=SequenceView.of(grad_step),
        grad_b_c=address(sums.b_c),
        group=group,
        rows=rows,
        grad_a=address(sums.a),
        grad_skip=address(sums.skip),
        carry=address(carry),
    )
    return arguments, sums


@scan_backward.register_fake
def _(
    grad_y: Tensor,
    u: Tensor,
    low: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    kept: Tensor,
    activate: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def like(of: Tensor | None) -> Tensor:
        return u.new_empty(0 if of is None else of.shape, dtype=torch.float32)

    return (
        like(u), like(low), like(weight), like(bias), like(A), like(B), like(C), like(D)
    )  # fmt: skip


def _save_scan(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    u, low, weight, bias, A, B, C, D, activate, reverse, _ = inputs
    ctx.save_for_backward(u, low, weight, bias, A, B, C, D, output[1])
    ctx.activate, ctx.reverse = activate, reverse
    ctx.set_materialize_grads(False)  # zeros for the kept states, as large as u, for nothing


def _scan_gradients(ctx: Any, grad_y: Tensor, _: None) -> tuple[Tensor | None, ...]:
    *saved, kept = ctx.saved_tensors
    found = scan_backward(grad_y, *saved, kept, ctx.activate, ctx.reverse)
    typed = [
        None if of is None else grad.to(of.dtype) for grad, of in zip(found, saved, strict=True)
    ]
    return (*typed, None, None, None)


scan.register_autograd(_scan_gradients, setup_context=_save_scan)


@_NEW("genebold::cpu_convolve", mutates_args=(), device_types="cpu")
def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """Convolve and apply SiLU as `selective_scan.convolve_silu`, in float32; 8 taps at most."""
    x, weight, bias = rowwise(x), weight.float().contiguous(), dense(bias)
    y = _new(*x.shape)
    whole = convolution_arguments(x, weight, bias, reverse)
    whole.y = SequenceView.of(y)
    run_pieces("convolve", whole, x.shape, (x, weight, bias, y), wide_group(x.shape[0], x.shape[2]))
    return y


@convolve.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


@_NEW("genebold::cpu_convolve_backward", mutates_args=(), device_types="cpu")
def convolve_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_y, x = rowwise(grad_y), rowwise(x)
    weight, bias = weight.float().contiguous(), dense(bias)
    rows, _, channels = x.shape
    grad_x = _new(*x.shape)
    grad_weight, grad_bias = _new(rows, *weight.shape), _new(rows, channels)
    whole = convolution_arguments(x, weight, bias, reverse)
    whole.grad_y, whole.grad_x = SequenceView.of(grad_y), SequenceView.of(grad_x)
    whole.grad_weight, whole.grad_bias = address(grad_weight), address(grad_bias)
    held = (grad_y, x, weight, bias, grad_x, grad_weight, grad_bias)
    run_pieces("convolve_backward", whole, x.shape, held)
    return grad_x, grad_weight.sum(dim=0), grad_bias.sum(dim=0)


@convolve_backward.register_fake
def _(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    def new(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=torch.float32)

    return new(*x.shape), new(*weight.shape), new(x.shape[2])


def convolution_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool
) -> library.Convolution:
    """Describe a convolution to the kernels; rows, channels and results are still to be said."""
    return library.Convolution(
        length=x.shape[1],
        channels=x.shape[2],
        taps=weight.shape[1],
        reverse=reverse,
        x=SequenceView.of(x),
        weight=address(weight),
        bias=address(bias),
    )


differentiate_convolution(convolve, convolve_backward)
