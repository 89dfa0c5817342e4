"""One encoder that learns: its network, what it reads, and which of its parameters change."""

from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from encoders.base import Encoder
from encoders.errors import InputError, Problem
from multimodal.align.finetune.adapters import Reach, find_reach, train_adapters, train_all
from multimodal.align.finetune.delta import Delta
from multimodal.align.finetune.options import EncoderTuning, FineTuneOptions
from multimodal.features.devices import device_of


class Inputs(Protocol):
    """What an encoder reads of each subject: `GenomeInputs` or `BrainInputs`."""

    def pooled(
        self, encoder: Any, rows: np.ndarray, kept_segments: np.ndarray | None = None
    ) -> Tensor:
        """Encode subjects as the feature store would: [n, W, D] float64."""
        ...

    def first(self, encoder: Any) -> Tensor:
        """Encode something that all parts of a feature come from."""
        ...


class TunedEncoder(nn.Module):
    """An encoder inside the training step.

    It stays in eval mode: the features of two people differ in the fourth digit, and dropout that
    differs between a haplotype and the reference would drown that.

    Parameters
    ----------
    side : {"dna", "brain"}
    encoder : Encoder
        Changed in place.
    inputs : GenomeInputs or BrainInputs
    options : FineTuneOptions
    seed : int
        Of LoRA's adapters.

    Attributes
    ----------
    trained : dict of str to Parameter
        What learns, by its name in the encoder's backbone.

    Raises
    ------
    InputError
        The encoder has nothing to learn, LoRA has no layers to change, or no layers can be
        recomputed where gradient checkpointing is asked for.
    """

    def __init__(
        self, side: str, encoder: Encoder, inputs: Inputs, options: FineTuneOptions, seed: int
    ) -> None:
        super().__init__()
        self.encoder, self.inputs = encoder, inputs
        self.tuning: EncoderTuning = options.of(side)
        self.bf16 = options.bf16
        network, where = encoder.backbone, f"align.fine_tune.{side}"
        if options.gradient_checkpointing:
            _switch_on_checkpointing(encoder)
        encoder.eval()
        reach = Reach([], [])
        if any(True for _ in network.parameters()):
            reach = find_reach(network, lambda: inputs.first(encoder))
        if not reach.parameters:
            found = f"{encoder.spec.name} has no weights that its features' gradients reach"
            fix = f"take {side} out of align.fine_tune.sides"
            raise InputError(
                Problem("nothing-to-tune", where, found, "an encoder that can learn", fix)
            )
        self._base: Delta = {}
        if self.tuning.method == "full":
            self.trained = train_all(network, reach)
            self._base = {n: p.detach().cpu().clone() for n, p in self.trained.items()}
        else:
            self.trained = train_adapters(network, reach, self.tuning, seed, where)

    def train(self, mode: bool = True) -> "TunedEncoder":
        """Stay in eval mode."""
        return super().train(False)

    def forward(
        self, rows: np.ndarray, kept_segments: np.ndarray | None = None
    ) -> Float[Tensor, "subject window dim"]:
        """Encode and pool subjects, as the feature store's features are pooled.

        Parameters
        ----------
        rows : ndarray of int
            At least one subject.
        kept_segments : ndarray of int, optional
            The rows of the brain features that take part; all by default.
        """
        device = device_of(self.encoder).type
        # What only chooses the epoch is computed as the bundle will compute it.
        reduced = self.bf16 and torch.is_grad_enabled()
        with torch.autocast(device, torch.bfloat16, enabled=reduced):
            return self.inputs.pooled(self.encoder, rows, kept_segments)

    @torch.no_grad()
    def rounding_ratio(self, rows: np.ndarray) -> float:
        """Variance between subjects over that which bfloat16's rounding adds to it.

        Parameters
        ----------
        rows : ndarray of int
            At least two subjects.
        """
        exact = self.inputs.pooled(self.encoder, rows)
        with torch.autocast(device_of(self.encoder).type, torch.bfloat16):
            reduced = self.inputs.pooled(self.encoder, rows)
        noise = float((reduced - exact).square().mean())
        return float(exact.var(dim=0).mean()) / noise if noise else float("inf")

    @torch.no_grad()
    def delta(self) -> Delta:
        """Return what was learned, to be applied to the encoder as it came."""
        if self.tuning.method == "full":
            return {
                f"{name}:full": (p.detach().cpu().double() - self._base[name].double()).to(p.dtype)
                for name, p in self.trained.items()
            }
        learned: Delta = {}
        layers: dict[str, Any] = dict(self.encoder.backbone.named_modules())
        for name, layer in layers.items():
            if f"{name}.lora_A.default.weight" not in self.trained:
                continue
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            scaled = up * layer.scaling["default"]
            learned[f"{name}.weight:down"] = down.detach().cpu().clone()
            learned[f"{name}.weight:up"] = scaled.detach().cpu().clone()
        return learned


def _switch_on_checkpointing(encoder: Encoder) -> None:
    try:
        encoder.gradient_checkpointing()
    except ValueError as error:
        raise InputError(
            Problem(
                "no-checkpointing",
                "align.fine_tune.gradient_checkpointing",
                f"true, but of {encoder.spec.name}, {error}",
                "an encoder whose layers can be recomputed",
                "set it to false, and align.accumulate to more parts",
            )
        ) from error
