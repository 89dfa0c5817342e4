"""The training step with encoders in it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from multimodal.align.aligner import Aligner
from multimodal.align.data import Batch, SegmentSubsets
from multimodal.align.finetune.options import FineTuneOptions
from multimodal.align.finetune.rates import encoder_groups
from multimodal.align.finetune.tuned import TunedEncoder
from multimodal.align.gather import process_count
from multimodal.align.losses import Kinship
from multimodal.align.module import AlignModule, learning_rate_factor
from multimodal.align.options import AlignOptions

_PREFIX = "encoders."


class FineTuneModule(AlignModule):
    """Contrastive training of an `Aligner` together with one or both encoders.

    A side whose encoder learns is fed rows of subjects instead of features, and encodes them. The
    standardisers stay as they were fitted on the frozen encoders' features, so that the first step
    begins where frozen training does. While an encoder is still frozen, its side takes the stored
    features.

    Parameters
    ----------
    aligner : Aligner
        With standardisers fitted on stored features.
    options : AlignOptions
    encoders : mapping of str to TunedEncoder
        By side, "dna" and "brain".
    kinship, confound_classes
        As for `AlignModule`.
    covariates : Tensor [n, c], optional
        Of all subjects, where the towers residualise.
    subsets : SegmentSubsets, optional
        Which segments take part in an epoch's training.
    """

    def __init__(
        self,
        aligner: Aligner,
        options: AlignOptions,
        encoders: Mapping[str, TunedEncoder],
        kinship: Kinship | None = None,
        confound_classes: list[int] | None = None,
        covariates: Float[Tensor, "subject covariate"] | None = None,
        subsets: SegmentSubsets | None = None,
    ) -> None:
        super().__init__(aligner, options, kinship, confound_classes)
        self.encoders = nn.ModuleDict(encoders)
        self.covariates, self.subsets = covariates, subsets

    def tuned(self) -> dict[str, TunedEncoder]:
        """Return the encoders by side."""
        return {
            side: part for side, part in self.encoders.items() if isinstance(part, TunedEncoder)
        }

    def shard(self, mesh: DeviceMesh) -> None:
        """As `AlignModule.shard`; layers of the encoders are split one by one."""
        super().shard(mesh)
        for part in self.tuned().values():
            part.shard(mesh)

    def join(self) -> None:
        """As `AlignModule.join`."""
        super().join()
        for part in self.tuned().values():
            part.turns = None

    def _roots(self) -> list[nn.Module]:
        return [*super()._roots(), *(part.encoder for part in self.tuned().values())]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """As `AlignModule.training_step`."""
        loss = super().training_step(batch, batch_idx)
        if process_count() > 1 and not self.sharded:
            # Other processes wait for each parameter's gradient, also where a side is still frozen
            # or this process has no row.
            for parameter in self._trained().values():
                loss = loss + (parameter * 0).sum()
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave encoders alone that are still frozen, the optimiser's averages included."""
        for side, part in self.tuned().items():
            if not self._learns(side):
                for parameter in part.trained.values():
                    parameter.grad = None

    def kept_state(self) -> dict[str, Tensor]:
        """Return the aligner's state and what the encoders learned."""
        return {**super().kept_state(), **self._gathered(self._trained())}

    def load_kept(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state that `kept_state` gave."""
        own = {name: value for name, value in state.items() if not name.startswith(_PREFIX)}
        super().load_kept(own)
        with torch.no_grad():
            for name, parameter in self._trained().items():
                parameter.copy_(state[name])

    def checkpoint_state(self) -> dict[str, Tensor]:
        """As `AlignModule.checkpoint_state`, without what of the encoders does not change."""
        # By identity, since what is shared within a network has several names.
        trained = {id(parameter) for parameter in self._trained().values()}
        changing = {
            name: value.detach()
            for name, value in self.state_dict(keep_vars=True).items()
            if not name.startswith(_PREFIX) or id(value) in trained
        }
        return self._gathered(changing)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what of the encoders does not change."""
        super().on_save_checkpoint(checkpoint)
        if not self.sharded:
            checkpoint["state_dict"] = self.checkpoint_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what was left out from the encoders as they were loaded."""
        super().on_load_checkpoint(checkpoint)
        own = {name: v for name, v in self.state_dict().items() if name.startswith(_PREFIX)}
        checkpoint["state_dict"] = {**own, **checkpoint["state_dict"]}

    def _trained(self) -> dict[str, nn.Parameter]:
        return {
            f"{_PREFIX}{side}.encoder.backbone.{name}": parameter
            for side, part in self.tuned().items()
            for name, parameter in part.trained.items()
        }

    def _learns(self, side: str) -> bool:
        part = self.tuned().get(side)
        return part is not None and self.current_epoch >= part.tuning.frozen_epochs

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        gene, brain = super()._inputs(batch)
        rows = batch.subject
        assert rows is not None
        return (
            rows if self._learns("dna") else gene,
            rows if self._learns("brain") else brain,
        )

    def _encode(self, gene: Tensor, brain: Tensor) -> tuple[Tensor, Tensor]:
        if self._learns("dna"):
            gene = self._standardised("dna", gene)
        if self._learns("brain"):
            brain = self._standardised("brain", brain)
        return super()._encode(gene, brain)

    def _standardised(self, side: str, rows: Int[Tensor, " row"]) -> Tensor:
        """Encode the subjects at `rows`, and standardise what comes out."""
        tower = self.aligner.gene if side == "dna" else self.aligner.brain
        # Of no rows, the first subject's shape.
        subjects = rows.cpu().numpy() if len(rows) else np.zeros(1, dtype=np.int64)
        kept = None
        if side == "brain" and self.subsets is not None and self.training:
            kept = self.subsets.kept_segments(self.current_epoch)
        # Before and after training the towers may be elsewhere than an encoder that has a GPU.
        place = next(tower.head.parameters())
        pooled = self.encoders[side](subjects, kept).to(place.device)
        extra = None
        if self.covariates is not None:
            extra = self.covariates[torch.from_numpy(subjects)].to(pooled.device)
        return tower.standardise(pooled, extra).to(place.dtype)[: len(rows)]

    def _parameter_groups(self) -> list[dict[str, Any]]:
        groups = super()._parameter_groups()
        for part in self.tuned().values():
            groups += self._groups_of(part)
        return groups

    def _rate_courses(self) -> list[Callable[[int], float]]:
        courses = super()._rate_courses()
        for part in self.tuned().values():
            courses += [self._course_of(part)] * len(self._groups_of(part))
        return courses

    def _groups_of(self, part: TunedEncoder) -> list[dict[str, Any]]:
        tuning, decay = part.tuning, self.options.weight_decay
        network = part.encoder.backbone
        return encoder_groups(
            network, part.trained, tuning.learning_rate, tuning.layer_decay, decay
        )

    def _course_of(self, part: TunedEncoder) -> Callable[[int], float]:
        """The towers' own course, from the first epoch in which the encoder learns."""
        frozen = part.tuning.frozen_epochs
        left = self.options.epochs - frozen
        rest = replace(self.options, epochs=left, fine_tune=FineTuneOptions())
        return lambda epoch: 0.0 if epoch < frozen else learning_rate_factor(epoch - frozen, rest)
