"""Small parts that both families share, under upstream's names."""

from collections.abc import Callable, Iterable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from encoders.recompute import run_layer

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda hidden: F.gelu(hidden, approximate="tanh"),
    "relu": F.relu,
    "selu": F.selu,
    "silu": F.silu,
    "swish": F.silu,
}
# The names the transformers library gives them; plain "gelu" is the exact one.
ACTIVATIONS = tuple(_ACTIVATIONS)


class Intermediate(nn.Module):
    """The widening half of a feed-forward network."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, intermediate_size)
        self.activation = activation

    def forward(self, hidden: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch inner"]:
        """Widen hidden states [..., D] to [..., inner], activated."""
        return _ACTIVATIONS[self.activation](self.dense(hidden))


class LayerStack(nn.Module):
    """Layers one after another, under upstream's name ``layer``."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.recompute_layers = False
        self.layer = nn.ModuleList(layers)

    def forward(self, hidden: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Run tokens [B, N, D] through all layers in turn."""
        for layer in self.layer:
            hidden = run_layer(layer, hidden, recompute=self.recompute_layers)
        return hidden
