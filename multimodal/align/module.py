"""One training step of the towers, as Lightning wants it."""

import math

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torchmetrics import MeanMetric

from multimodal.align.aligner import Aligner
from multimodal.align.data import Batch
from multimodal.align.losses import info_nce, rank_percentiles
from multimodal.align.options import AlignOptions


class AlignModule(LightningModule):
    """Contrastive training of an `Aligner` on standardised features.

    Logs ``train_loss``, ``val_loss``, ``val_percentile`` (mean rank percentile in the validation
    gallery: 1 best, 0.5 chance) and ``logit_scale`` (1 / temperature) each epoch.

    Parameters
    ----------
    aligner : Aligner
        With fitted standardisers.
    options : AlignOptions
    """

    def __init__(self, aligner: Aligner, options: AlignOptions) -> None:
        super().__init__()
        self.aligner, self.options = aligner, options
        self.save_hyperparameters({"align": options.as_dict()})
        self.train_loss, self.val_loss = MeanMetric(), MeanMetric()
        self.val_percentile = MeanMetric()

    def logit_scale(self) -> Tensor:
        """Learned inverse temperature, between 1 and the largest allowed."""
        top = math.log(self.options.max_logit_scale)
        return self.aligner.log_scale.clamp(0.0, top).exp()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Contrastive loss of one batch, its dropout drawn from seed, epoch and batch alone."""
        torch.manual_seed(self._step_seed(batch_idx))
        loss = self._loss(batch)[0]
        self.train_loss.update(loss.detach(), len(batch.relatives))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and retrieval in one validation gallery."""
        loss, gene, brain = self._loss(batch)
        percentiles = rank_percentiles(gene, brain, batch.relatives)
        self.val_loss.update(loss, len(batch.relatives))
        self.val_percentile.update(percentiles)

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

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW on the towers' parameters, with the learning rate's course by epochs."""
        options = self.options
        parameters = [p for p in self.aligner.parameters() if p.requires_grad]
        groups = [
            {
                "params": [p for p in parameters if p.dim() >= 2],
                "weight_decay": options.weight_decay,
            },
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: learning_rate_factor(epoch, options)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "epoch"},
        }

    def _step_seed(self, batch_idx: int) -> int:
        # A resumed run must draw the dropout masks that an undisturbed one draws at this step.
        words = np.random.SeedSequence([self.options.seed, self.current_epoch, batch_idx])
        return int(words.generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        gene, brain = self.aligner.gene.project(batch.gene), self.aligner.brain.project(batch.brain)
        return info_nce(gene, brain, self.logit_scale(), batch.relatives), gene, brain


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
