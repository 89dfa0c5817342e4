"""The products of Caduceus' layers, by the native kernels where they can and else by torch."""

import threading
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from encoders.caduceus.scratch import Scratch
from encoders.mamba import at_least_float32
from encoders.selective_scan import library
from encoders.selective_scan.products import Packed, multiplies, multiply, pack


@cache
def _torch_multiplies(dtype: torch.dtype) -> bool:
    """Tell whether torch's products in a reduced precision are faster here than float32's."""
    return dtype == torch.bfloat16 and _has("avx512_bf16", "amx_bf16", "bf16")


@cache
def _has(*capabilities: str) -> bool:
    known: Callable[[], dict[str, object]] | None = getattr(torch.cpu, "get_capabilities", None)
    found = known() if known is not None else {}
    return any(found.get(name) for name in capabilities)


def is_native(dtype: torch.dtype) -> bool:
    """Tell whether the native kernels are to multiply float32 with weights of a type."""
    # Units for whole tiles of bfloat16 are several times faster than any vectors: torch's then.
    return multiplies(dtype) and not (dtype == torch.bfloat16 and _has("amx_bf16"))


class Product:
    """A linear map of values in float32 or more.

    Weights of fewer bits are multiplied as such where this CPU has instructions for it. What they
    are multiplied with is rounded then, and what comes out as well where torch multiplies.
    Elsewhere they are widened, and nothing is rounded.

    Parameters
    ----------
    weight : Tensor [N, K]
    bias : Tensor [N], optional
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        narrow = is_native(weight.dtype) or _torch_multiplies(weight.dtype)
        self.weight = weight if narrow else at_least_float32(weight)
        self.bias = None if bias is None else at_least_float32(bias).contiguous()
        self._lock = threading.Lock()
        self._forwards: Packed | None = None
        self._backwards: Packed | None = None

    @property
    def _packed(self) -> Packed:
        # Once for all threads: the kernels are told where it lies, and others must not replace it.
        with self._lock:
            if self._forwards is None:
                self._forwards = pack(self.weight)
            return self._forwards

    @property
    def _packed_back(self) -> Packed:
        with self._lock:
            if self._backwards is None:
                self._backwards = pack(self.weight.T)
            return self._backwards

    def arguments(self) -> library.Product:
        """Describe it to the kernels; see `Packed.arguments`."""
        return self._packed.arguments(self.bias)

    def into(self, out: Tensor, x: Tensor, scratch: Scratch) -> Tensor:
        """Put the product of x [R, T, K] into dense memory [R, T, N], and return that."""
        rows, flat = x.flatten(0, 1), out.view(-1, out.shape[-1])
        if self._is_native(x):
            multiply(rows, self._packed, flat, bias=self.bias)
        elif self.weight.dtype != x.dtype:
            flat.copy_(self._rounded(rows, scratch))
            if self.bias is not None:
                flat += self.bias
        elif self.bias is None:
            torch.mm(rows, self.weight.T, out=flat)
        else:
            torch.addmm(self.bias, rows, self.weight.T, out=flat)
        return out

    def add_to(self, out: Tensor, x: Tensor, scratch: Scratch) -> None:
        """Add the product of x [R, T, K] to what lies in dense memory [R, T, N]."""
        rows, flat = x.flatten(0, 1), out.view(-1, out.shape[-1])
        if self._is_native(x):
            multiply(rows, self._packed, flat, bias=self.bias, add=True)
            return
        if self.weight.dtype != x.dtype:
            flat += self._rounded(rows, scratch)
        else:
            torch.addmm(flat, rows, self.weight.T, out=flat)
        if self.bias is not None:
            flat += self.bias

    def back_into(self, out: Tensor, grad: Tensor, *, add: bool = False) -> None:
        """Put the gradient before the product, of that behind it [R, T, N], into [R, T, K].

        Parameters
        ----------
        out : Tensor [R, T, K]
            Dense memory.
        grad : Tensor [R, T, N]
            In the type of the weights.
        add : bool
            Whether to add to what is there.
        """
        rows, flat = grad.flatten(0, 1), out.view(-1, out.shape[-1])
        if self._is_native(grad):
            multiply(rows, self._packed_back, flat, add=add)
        elif add:
            flat.addmm_(rows, self.weight)
        else:
            torch.mm(rows, self.weight, out=flat)

    def _is_native(self, x: Tensor) -> bool:
        return x.dtype == torch.float32 and is_native(self.weight.dtype)

    def _rounded(self, rows: Tensor, scratch: Scratch) -> Tensor:
        dtype = self.weight.dtype
        narrow = scratch.take("rounded", rows.shape, dtype).copy_(rows)
        found = scratch.take("product", (len(rows), len(self.weight)), dtype)
        return torch.mm(narrow, self.weight.T, out=found)
