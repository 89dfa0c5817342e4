"""Ways to get BrainMT wrong that run without complaint, to see that the comparison notices."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.brainmt.model import BrainMT
from encoders.mamba import Mamba, TwoWayMamba, read

Patch = Callable[[pytest.MonkeyPatch, BrainMT], None]


@dataclass(frozen=True)
class Mistake:
    """A wrong network, or a right one fed wrongly.

    Parameters
    ----------
    patch : callable, optional
        Changes the network in place.
    feed : callable, optional
        Changes the volumes [B, T, C, Y, X, Z].
    two_way_only : bool
        Whether it is one of the two-direction network alone.
    """

    patch: Patch | None = None
    feed: Callable[[Tensor], Tensor] | None = None
    two_way_only: bool = False


def _small_epsilon(_monkeypatch: pytest.MonkeyPatch, network: BrainMT) -> None:
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6


def _small_epsilon_in_mamba(_monkeypatch: pytest.MonkeyPatch, network: BrainMT) -> None:
    network.norm_f.eps /= 10


_GELU = F.gelu


def _exact_gelu_everywhere(monkeypatch: pytest.MonkeyPatch, _network: BrainMT) -> None:
    monkeypatch.setattr(F, "gelu", lambda x, approximate="none": _GELU(x))


def _tanh_gelu_everywhere(monkeypatch: pytest.MonkeyPatch, _network: BrainMT) -> None:
    monkeypatch.setattr(F, "gelu", lambda x, approximate="none": _GELU(x, approximate="tanh"))


def _space_runs_fastest(monkeypatch: pytest.MonkeyPatch, network: BrainMT) -> None:
    embed = network.embed

    def reordered(volumes: Tensor) -> Tensor:
        sequence = embed(volumes)
        tokens = sequence[:, 1:].unflatten(1, (-1, volumes.shape[1])).transpose(1, 2)
        return nn.functional.pad(tokens.flatten(1, 2), (0, 0, 1, 0)) + nn.functional.pad(
            sequence[:, :1], (0, 0, 0, sequence.shape[1] - 1)
        )

    monkeypatch.setattr(network, "embed", reordered)


def _cls_has_a_time(monkeypatch: pytest.MonkeyPatch, network: BrainMT) -> None:
    embed = network.embed

    def timed(volumes: Tensor) -> Tensor:
        sequence = embed(volumes).clone()
        sequence[:, 0] = sequence[:, 0] + network.temporal_pos_embedding[:, 0]
        return sequence

    monkeypatch.setattr(network, "embed", timed)


def _no_final_norm(monkeypatch: pytest.MonkeyPatch, network: BrainMT) -> None:
    monkeypatch.setattr(network.norm_f, "forward", lambda x: x)


def _flips_states_only(monkeypatch: pytest.MonkeyPatch, _network: BrainMT) -> None:
    def mix(self: TwoWayMamba, projected: Tensor) -> Tensor:
        forward, backward = self.readings
        half = projected.shape[-1] // 2
        turned = projected.clone()
        turned[..., :half] = projected[..., :half].flip(1)
        both = read(projected, forward) + read(turned, backward).flip(1)
        return self.out_proj(both)

    monkeypatch.setattr(TwoWayMamba, "mix", mix)


def _divides_by_two(monkeypatch: pytest.MonkeyPatch, _network: BrainMT) -> None:
    mix = TwoWayMamba.mix
    monkeypatch.setattr(TwoWayMamba, "mix", lambda self, projected: mix(self, projected) / 2)


def _forward_alone(monkeypatch: pytest.MonkeyPatch, _network: BrainMT) -> None:
    monkeypatch.setattr(TwoWayMamba, "readings", Mamba.readings)


def _cls_stays_first(monkeypatch: pytest.MonkeyPatch, _network: BrainMT) -> None:
    def mix(self: TwoWayMamba, projected: Tensor) -> Tensor:
        forward, backward = self.readings
        turned = projected.clone()
        turned[:, 1:] = projected[:, 1:].flip(1)
        back = read(turned, backward).clone()
        back[:, 1:] = back[:, 1:].flip(1)
        return self.out_proj(read(projected, forward) + back)

    monkeypatch.setattr(TwoWayMamba, "mix", mix)


def _swap_first_axes(volumes: Tensor) -> Tensor:
    return volumes.transpose(3, 4)


def _swap_last_axes(volumes: Tensor) -> Tensor:
    return volumes.transpose(4, 5)


def _turn_time(volumes: Tensor) -> Tensor:
    return volumes.flip(1)


def _turn_space(volumes: Tensor) -> Tensor:
    return volumes.flip(3)


MISTAKES = {
    "layer norms of epsilon 1e-6": Mistake(_small_epsilon),
    "final norm of a tenth of its epsilon": Mistake(_small_epsilon_in_mamba),
    "exact GELU in the stem": Mistake(_exact_gelu_everywhere),
    "tanh GELU in the MLP": Mistake(_tanh_gelu_everywhere),
    "space fastest": Mistake(_space_runs_fastest),
    "CLS with a time": Mistake(_cls_has_a_time),
    "no final norm": Mistake(_no_final_norm),
    "axes of the file": Mistake(feed=_swap_first_axes),
    "last two axes swapped": Mistake(feed=_swap_last_axes),
    "time turned round": Mistake(feed=_turn_time),
    "an axis turned round": Mistake(feed=_turn_space),
    "gate not turned round": Mistake(_flips_states_only, two_way_only=True),
    "directions averaged": Mistake(_divides_by_two, two_way_only=True),
    "one direction": Mistake(_forward_alone, two_way_only=True),
    "CLS first in both directions": Mistake(_cls_stays_first, two_way_only=True),
}
# Mistakes that are none where there is one frame.
ONE_FRAME_HIDES = ("space fastest", "time turned round")
