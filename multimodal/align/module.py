"""One training step of the towers, as Lightning wants it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import register_fsdp_forward_method
from torchmetrics import MeanMetric

from multimodal.align.adversary import Adversary
from multimodal.align.aligner import Aligner
from multimodal.align.data import Batch
from multimodal.align.gather import gather_rows, process_count, rows_by_process
from multimodal.align.gradient_cache import encode_cached, encode_part, split_rows
from multimodal.align.losses import AlignLoss, Kinship, rank_percentiles
from multimodal.align.losses.choice import Pairs
from multimodal.align.options import AlignOptions
from multimodal.align.sharding import (
    ShardedAdamW,
    Shards,
    average_whole_gradients,
    clip_gradients,
    gathered,
    shard_unit,
)


class AlignModule(LightningModule):
    """Contrastive training of an `Aligner` on standardised features.

    A training step's loss is that of all processes' rows together (`multimodal.align.gather`);
    validation galleries are whole in every process.

    Logs ``train_loss``, ``val_loss``, ``val_percentile`` (mean rank percentile in the validation
    gallery: 1 best, 0.5 chance) and ``logit_scale`` (1 / temperature) each epoch.

    Parameters
    ----------
    aligner : Aligner
        With fitted standardisers.
    options : AlignOptions
    kinship : Kinship, optional
        Coefficients of pairs of subjects, for losses that look at them.
    confound_classes : list of int, optional
        Number of values of each confound that an adversary reads; none for no adversary.
    """

    def __init__(
        self,
        aligner: Aligner,
        options: AlignOptions,
        kinship: Kinship | None = None,
        confound_classes: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.aligner, self.options = aligner, options
        self.loss = AlignLoss(options)
        self.kinship = Kinship.none() if kinship is None else kinship
        self.adversary: Adversary | None = None
        if confound_classes:
            self.adversary = Adversary(options.latent_dim, confound_classes)
        self.save_hyperparameters({"align": options.as_dict()})
        self.train_loss, self.val_loss = MeanMetric(), MeanMetric()
        self.val_percentile = MeanMetric()
        self._shards: Shards | None = None

    @property
    def sharded(self) -> bool:
        """Whether the networks are split between the processes."""
        return self._shards is not None

    def shard(self, mesh: DeviceMesh) -> None:
        """Split the networks between the processes of a mesh, until `join`; a collective."""
        self._shards = Shards(self._roots())
        for tower in (self.aligner.gene, self.aligner.brain):
            shard_unit(tower, mesh)
            register_fsdp_forward_method(tower, "project")

    def join(self) -> None:
        """Put the networks together again, on the CPU in every process; a collective."""
        if self._shards is not None:
            self._shards.join()
            self._shards = None

    def _roots(self) -> list[nn.Module]:
        """All that `shard` splits."""
        return [self.aligner.gene, self.aligner.brain]

    def logit_scale(self) -> Tensor:
        """Learned inverse temperature, between 1 and the largest allowed."""
        top = math.log(self.options.max_logit_scale)
        return self.aligner.log_scale.clamp(0.0, top).exp()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Contrastive loss of one batch, its dropout drawn from seed, epoch and batch alone."""
        torch.manual_seed(self._step_seed(batch_idx))
        plain = self.options.accumulation == "plain" and self.options.accumulate > 1
        loss = self._plain_accumulation(batch) if plain else self._global_loss(batch)
        self.train_loss.update(loss.detach(), len(batch.relatives))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and retrieval in one validation gallery."""
        loss, percentiles = self.gallery_figures(batch)
        self.val_loss.update(loss, len(batch.relatives))
        self.val_percentile.update(percentiles)

    def gallery_figures(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of a validation gallery, and the rank percentile of each of its rows that counts."""
        pairs = self._pairs(*self._encode(*self._inputs(batch)), batch.relatives, batch.subject)
        percentiles = rank_percentiles(pairs.gene, pairs.brain, batch.relatives)
        return self.loss(pairs, self.logit_scale()), percentiles

    def on_validation_epoch_end(self) -> None:
        """Log the validation gallery's figures."""
        self.log("val_loss", self.val_loss.compute())
        self.log("val_percentile", self.val_percentile.compute(), prog_bar=True)
        self.val_loss.reset()
        self.val_percentile.reset()

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training figures."""
        self.log("train_loss", self.train_loss.compute(), prog_bar=True)
        self.log("logit_scale", self.logit_scale().detach())
        self.train_loss.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the training loss of an epoch that is not over, of all processes."""
        with self.train_loss.sync_context():
            state = self.train_loss.metric_state
            checkpoint["train_loss"] = {
                name: value.clone() for name, value in state.items() if isinstance(value, Tensor)
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the epoch's training loss, in one of the processes."""
        if self.global_rank == 0:
            for name, value in checkpoint.get("train_loss", {}).items():
                setattr(self.train_loss, name, value.to(self.device))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW on all that learns, with the learning rates' courses by epochs."""
        options = self.options
        groups = self._parameter_groups()
        kind = ShardedAdamW if self.sharded else torch.optim.AdamW
        optimizer = kind(groups, lr=options.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_courses())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "epoch"},
        }

    def on_after_backward(self) -> None:
        """Keep equal in all processes what is not split, as distributed data parallel does."""
        if self.sharded:
            average_whole_gradients(self.parameters())

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of the gradient of all parameters, split or not."""
        if not self.sharded:
            super().configure_gradient_clipping(
                optimizer, gradient_clip_val, gradient_clip_algorithm
            )
        elif gradient_clip_val:
            clip_gradients(
                (p for group in optimizer.param_groups for p in group["params"]), gradient_clip_val
            )

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds; of split networks, in the first process only."""
        return self._gathered(self.state_dict())

    def kept_state(self) -> dict[str, Tensor]:
        """Return all that was learned and is kept of the best epoch, as `checkpoint_state`."""
        return self._gathered(self.aligner.state_dict())

    def _gathered(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return gathered(state, keep=self.global_rank == 0) if self.sharded else dict(state)

    def load_kept(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state that `kept_state` gave."""
        self.aligner.load_state_dict(state)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        everything = [*self.aligner.parameters(), *self.loss.parameters()]
        parameters = [p for p in everything if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {
                "params": [p for p in parameters if p.dim() >= 2],
                "weight_decay": self.options.weight_decay,
            },
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        if self.adversary is not None:
            # It has to keep up with latents that evade it.
            reading = {"params": list(self.adversary.parameters()), "weight_decay": 0.0}
            groups.append({**reading, "lr": self.options.adversary_learning_rate})
        return groups

    def _rate_courses(self) -> list[Callable[[int], float]]:
        """One for each of the parameter groups."""
        groups = 2 if self.adversary is None else 3
        return [lambda epoch: learning_rate_factor(epoch, self.options)] * groups

    def _step_seed(self, batch_idx: int) -> int:
        # A resumed run must draw the dropout masks that an undisturbed one draws at this step, and
        # no process may draw those of another.
        rank = [self.global_rank] if self.global_rank else []
        words = np.random.SeedSequence([self.options.seed, self.current_epoch, batch_idx, *rank])
        return int(words.generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What `_encode` takes of a batch: a row for each of its rows."""
        return batch.gene, batch.brain

    def _encode(self, gene: Tensor, brain: Tensor) -> tuple[Tensor, Tensor]:
        return self.aligner.gene.project(gene), self.aligner.brain.project(brain)

    def _global_loss(self, batch: Batch) -> Tensor:
        """Loss of all processes' rows, encoded here at once or in parts, by gradient caching."""
        parts = self.options.accumulate
        if parts > 1:
            gene, brain = encode_cached(
                self._encode, self._inputs(batch), parts, sharded=self.sharded
            )
        else:
            gene, brain = self._encode(*self._inputs(batch))
        return self._gathered_loss(gene, brain, batch)[0]

    def _plain_accumulation(self, batch: Batch) -> Tensor:
        """Mean of the losses of parts, each with its own rows only; weighted by their rows."""
        known = {name: table for name, table in batch._asdict().items() if table is not None}
        found = []
        for piece in split_rows(list(known.values()), self.options.accumulate):
            part = Batch(**dict(zip(known, piece, strict=True)))
            gene, brain = encode_part(self._encode, self._inputs(part), sharded=self.sharded)
            found.append(self._gathered_loss(gene, brain, part))
        losses, rows = zip(*found, strict=True)
        weight = torch.tensor(rows, dtype=losses[0].dtype, device=losses[0].device)
        return (torch.stack(losses) * weight).sum() / weight.sum().clamp(min=1)

    def _gathered_loss(self, gene: Tensor, brain: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Loss of all processes' latents, the same in each, and how many rows it is of."""
        relatives, subject, confounds = batch.relatives, batch.subject, batch.confounds
        if process_count() > 1:
            counts = rows_by_process(len(gene), gene.device)
            gene, brain = gather_rows(gene, counts), gather_rows(brain, counts)
            relatives = gather_rows(relatives, counts)
            subject = None if subject is None else gather_rows(subject, counts)
            confounds = None if confounds is None else gather_rows(confounds, counts)
        loss = self.loss(self._pairs(gene, brain, relatives, subject), self.logit_scale())
        if self.adversary is not None and confounds is not None:
            loss = loss + self.options.adversary_weight * self.adversary(gene, brain, confounds)
        return loss, len(gene)

    def _pairs(
        self, gene: Tensor, brain: Tensor, relatives: Tensor, subject: Tensor | None
    ) -> Pairs:
        known = Kinship.none(gene.device) if subject is None else self.kinship.among(subject)
        return Pairs(gene, brain, relatives, known)


def learning_rate_factor(epoch: int, options: AlignOptions) -> float:
    """Share of the full learning rate at an epoch: linear warm-up, then constant or half a cosine.

    Parameters
    ----------
    epoch : int
        From 0.
    options : AlignOptions
    """
    warmup = min(options.warmup_epochs, options.epochs)
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    if options.schedule == "constant":
        return 1.0
    progress = (epoch - warmup) / max(1, options.epochs - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
