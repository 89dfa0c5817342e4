"""What the convolution's operators, whatever computes them, tell autograd."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def differentiate_convolution(
    convolve: Any, backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
) -> None:
    """Register the gradients of an operator ``(x, weight, bias, reverse)``.

    Parameters
    ----------
    convolve : torch.library.CustomOpDef
    backward : callable
        From ``(grad_y, x, weight, bias, reverse)`` to the gradients of x, weight and bias.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.reverse = inputs
        ctx.save_for_backward(x, weight, bias)

    def gradients(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = backward(grad_y, x, weight, bias, ctx.reverse)
        kept = None if bias is None else grad_bias.to(bias.dtype)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), kept, None

    convolve.register_autograd(gradients, setup_context=save)
