"""Products with weights by the native kernels, in the memory they are to go to.

Where other libraries' products cannot add to float32 memory, or read float32 and multiply in
bfloat16, or are slower on some makers' CPUs. Each number is summed over the depth from first to
last: it does not depend on how many rows are multiplied at once, nor on the number of threads.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from encoders.selective_scan import library
from encoders.selective_scan.choice import backend_for
from encoders.selective_scan.library import PANEL, address


def multiplies(dtype: torch.dtype) -> bool:
    """Tell whether the kernels multiply float32 with weights of a type here and now."""
    if backend_for(torch.device("cpu"), torch.float32) != "cpu":
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and library.multiplies_bfloat16())


@dataclass(frozen=True)
class Packed:
    """Weights as the kernels read them: `PANEL` columns side by side, along the depth.

    Attributes
    ----------
    values : Tensor [panels, depth, PANEL], or of bfloat16 [panels, depth / 2, 2 PANEL]
        The latter with two numbers of the depth for each column. Zeros where there is nothing.
    width, depth : int
    """

    values: Tensor
    width: int
    depth: int

    def arguments(self, bias: Tensor | None = None) -> library.Product:
        """Describe a product to the kernels; what is multiplied is still to be said."""
        return library.Product(
            depth=self.depth,
            width=self.width,
            bfloat16=self.values.dtype == torch.bfloat16,
            weight=address(self.values),
            bias=address(bias),
        )


def pack(weight: Float[Tensor, "width depth"]) -> Packed:
    """Lay weights out for `multiply`.

    Parameters
    ----------
    weight : Tensor [N, K]
        In float32 or bfloat16.
    """
    width, depth = weight.shape
    words = weight
    if weight.dtype == torch.bfloat16:
        even = F.pad(weight, (0, 1)) if depth % 2 else weight.contiguous()
        words = even.view(torch.int32)
    values = words.new_empty(-(-width // PANEL), words.shape[1], PANEL)
    arguments = library.Packing(
        depth=words.shape[1],
        width=width,
        row=words.stride(0),
        column=words.stride(1),
        from_=address(words),
        to=address(values),
    )
    library.call("pack", arguments)
    return Packed(values.view(weight.dtype), width, depth)


def multiply(
    x: Float[Tensor, "rows depth"],
    packed: Packed,
    out: Float[Tensor, "rows width"],
    *,
    bias: Float[Tensor, " width"] | None = None,
    add: bool = False,
) -> None:
    """Put ``x @ weight.T + bias`` into memory, or add it to what is there.

    Parameters
    ----------
    x : Tensor [M, K]
        In float32. Rounded on the way where the weights are in bfloat16; sums are not.
    packed : Packed
        Of weights that the kernels can multiply with here (`multiplies`).
    out : Tensor [M, N]
        In float32; its rows lie densely.
    bias : Tensor [N], optional
        In float32.
    add : bool
    """
    x = x if x.stride(1) == 1 else x.contiguous()
    arguments = packed.arguments(bias)
    arguments.rows, arguments.accumulate = x.shape[0], add
    arguments.x_row, arguments.y_row = x.stride(0), out.stride(0)
    arguments.x, arguments.y = address(x), address(out)
    library.call("multiply", arguments)
