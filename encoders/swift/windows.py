"""Windows over a grid of space and time: how large, how far moved, and who may attend to whom.

The shifted windows of Liu et al. (ICCV 2021, arXiv:2103.14030) in four dimensions, as upstream's
SwiFT has them (Transconnectome/SwiFT, swin4d_transformer_ver7.py).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

Axes = tuple[int, int, int, int]
_TO_WINDOWS = "b (nh h) (nw w) (nd d) (nt t) c -> (nh nw nd nt) b (h w d t) c"
_TO_GRID = "(nh nw nd nt) b (h w d t) c -> b (nh h) (nw w) (nd d) (nt t) c"


@dataclass(frozen=True)
class Windows:
    """A cut of a grid into windows of equal size; see `fit`.

    Parameters
    ----------
    grid : tuple of int
        Tokens along H, W, D and time.
    window : tuple of int
        Tokens of a window along each axis.
    shift : tuple of int
        How far the windows lie moved along each axis.
    """

    grid: Axes
    window: Axes
    shift: Axes

    @classmethod
    def fit(cls, grid: Axes, window: Axes, *, shifted: bool) -> "Windows":
        """Cut a grid; an axis no longer than the window is one window, and never moved.

        Parameters
        ----------
        grid, window : tuple of int
            Tokens along H, W, D and time.
        shifted : bool
            Whether to move the windows by half their size, rounded down.
        """
        fits = [size <= side for size, side in zip(grid, window, strict=True)]
        pairs = list(zip(grid, window, fits, strict=True))
        sides = [size if fit else side for size, side, fit in pairs]
        shift = [0 if fit or not shifted else side // 2 for _, side, fit in pairs]
        return cls(grid, _axes(sides), _axes(shift))

    @property
    def counts(self) -> Axes:
        """Windows along each axis; the last one may reach beyond the grid."""
        return _axes([-(-size // side) for size, side in zip(self.grid, self.window, strict=True)])

    @property
    def padded(self) -> Axes:
        """The grid's size filled up to whole windows."""
        return _axes([count * side for count, side in zip(self.counts, self.window, strict=True)])

    @property
    def is_shifted(self) -> bool:
        """Whether the windows are moved along any axis."""
        return any(self.shift)

    def split(
        self, hidden: Float[Tensor, "batch h w d t dim"]
    ) -> Float[Tensor, "window batch token dim"]:
        """Cut tokens on the grid into windows.

        The grid is filled with zeros at its far ends, and what a shift moves out at one end of an
        axis comes in at the other. No one hides the zeros: they attend and are attended to.
        """
        if self.padded != self.grid:
            missing = [full - size for full, size in zip(self.padded, self.grid, strict=True)]
            # torch pads the last axis (the channels) first.
            hidden = F.pad(hidden, (0, 0, *(n for m in reversed(missing) for n in (0, m))))
        if self.is_shifted:
            hidden = torch.roll(hidden, [-n for n in self.shift], dims=(1, 2, 3, 4))
        return self._cut(hidden)

    def join(
        self, windows: Float[Tensor, "window batch token dim"]
    ) -> Float[Tensor, "batch h w d t dim"]:
        """Put windows back onto the grid, undoing `split`."""
        sizes = dict(zip(("nh", "nw", "nd", "nt"), self.counts, strict=True))
        sides = dict(zip(("h", "w", "d"), self.window[:3], strict=True))
        hidden = rearrange(windows, _TO_GRID, **sizes, **sides)
        if self.is_shifted:
            hidden = torch.roll(hidden, list(self.shift), dims=(1, 2, 3, 4))
        h, w, d, t = self.grid
        return hidden[:, :h, :w, :d, :t]

    def find_strangers(self, device: torch.device) -> Bool[Tensor, "window query key"] | None:
        """Tell which tokens of a window are no neighbours, because a shift brought them together.

        Returns
        -------
        Tensor [windows, N, N] bool or None
            True between tokens of different regions of the padded grid; None without a shift.
        """
        if not self.is_shifted:
            return None
        regions = torch.zeros((1, 1, 1, 1), dtype=torch.long, device=device)
        for axis, (size, side, shift) in enumerate(
            zip(self.padded, self.window, self.shift, strict=True)
        ):
            place = torch.arange(size, device=device)
            label = (place >= size - side).long() + (place >= size - shift).long()
            shape = [-1 if other == axis else 1 for other in range(4)]
            # An axis that is not moved has a single region.
            regions = 3 * regions + (label if shift else torch.zeros_like(label)).view(shape)
        regions = self._cut(regions[None, ..., None])[:, 0, :, 0]
        return regions[:, :, None] != regions[:, None, :]

    def _cut(
        self, values: Shaped[Tensor, "batch h w d t dim"]
    ) -> Shaped[Tensor, "n batch tok dim"]:
        sides = dict(zip(("h", "w", "d", "t"), self.window, strict=True))
        return rearrange(values, _TO_WINDOWS, **sides)


def _axes(values: list[int]) -> Axes:
    h, w, d, t = values
    return h, w, d, t
