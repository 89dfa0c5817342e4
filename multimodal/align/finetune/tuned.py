"""One encoder that learns: its network, what it reads, and which of its parameters change."""

from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed import DistError
from torch.distributed.device_mesh import DeviceMesh

from encoders.base import Encoder
from encoders.errors import InputError, Problem
from multimodal.align.finetune.adapters import (
    Reach,
    find_reach,
    modules_called,
    train_adapters,
    train_all,
)
from multimodal.align.finetune.delta import Delta
from multimodal.align.finetune.options import EncoderTuning, FineTuneOptions
from multimodal.align.finetune.rates import innermost_layers
from multimodal.align.sharding import (
    Turns,
    independent,
    put_together_without_gradients,
    shard_unit,
)
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
    turns : Turns or None
        While the encoder is split between processes.

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
        self._reach = reach
        self.turns: Turns | None = None
        if self.tuning.method == "full":
            trained = train_all(network, reach)
            self._base = {n: p.detach().cpu().clone() for n, p in trained.items()}
        else:
            trained = train_adapters(network, reach, self.tuning, seed, where)
        self._names = tuple(trained)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What learns, by its name in the encoder's backbone; shares of it while it is split."""
        return {name: self.encoder.backbone.get_parameter(name) for name in self._names}

    def shard(self, mesh: DeviceMesh) -> None:
        """Split the encoder between processes, its layers one by one; a collective.

        Parameters
        ----------
        mesh : DeviceMesh
            Of one dimension, all processes.

        Raises
        ------
        InputError
            torch cannot split this encoder.
        """
        try:
            self._shard(mesh)
            self._try_once()
        except (InputError, torch.OutOfMemoryError, DistError):
            raise
        # Where code outside of a layer reads the layer's weights, for one.
        except (RuntimeError, NotImplementedError, ValueError, AssertionError) as error:
            name = self.encoder.spec.name
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                Problem(
                    "cannot-split",
                    "trainer.strategy=fsdp",
                    f"{name} cannot be split ({reason})",
                    "an encoder whose layers' weights are read within the layers only",
                    "set trainer.strategy=ddp",
                )
            ) from error

    def _shard(self, mesh: DeviceMesh) -> None:
        network = self.encoder.backbone
        layers = [network.get_submodule(name) for name in self._splittable_layers()]
        units = independent(layers, network)
        with torch.no_grad():
            called = modules_called(self.encoder, lambda: self.inputs.first(self.encoder))
        for unit in units:
            shard_unit(unit, mesh)
        shard_unit(self.encoder, mesh)
        put_together_without_gradients(self.encoder, [unit for unit in units if unit not in called])
        self.turns = Turns(self.encoder)

    def _try_once(self) -> None:
        """Encode something forth and back, and leave nothing of it."""
        with torch.no_grad():
            self.inputs.first(self.encoder)
        with torch.enable_grad():
            self.inputs.first(self.encoder).sum().backward()
        self.encoder.zero_grad()

    def _splittable_layers(self) -> list[str]:
        """Layers that are called, or take no part in the features; others are read from outside."""
        return [
            name
            for name in innermost_layers(self.encoder.backbone)
            if name in self._reach.called
            or not any(reached.startswith(f"{name}.") for reached in self._reach.parameters)
        ]

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
        # Narrow copies of weights must not outlive the layer's turn to be whole.
        cached = self.turns is None
        with torch.autocast(device, torch.bfloat16, enabled=reduced, cache_enabled=cached):
            pooled = self.inputs.pooled(self.encoder, rows, kept_segments)
            return pooled if self.turns is None else self.turns.fill(pooled)

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
        trained = self.trained
        if self.tuning.method == "full":
            return {
                f"{name}:full": (p.detach().cpu().double() - self._base[name].double()).to(p.dtype)
                for name, p in trained.items()
            }
        learned: Delta = {}
        layers: dict[str, Any] = dict(self.encoder.backbone.named_modules())
        for name, layer in layers.items():
            if f"{name}.lora_A.default.weight" not in trained:
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
