"""What a fit keeps as it goes: its history, its best weights, its checkpoints, a progress bar."""

import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor

from encoders.errors import InputError, Problem
from multimodal.align.interruption import Interrupted, StopRequest

HistoryRow = dict[str, float]


class Keeper(Checkpoint):
    """Keeps the history and the best weights, stops a fit that no longer improves, saves it.

    All of its state travels in the checkpoint, so a resumed fit decides as an undisturbed one. Of
    several processes only the first writes; all must take part. Of networks that are split between
    them, only the first keeps the best weights.

    Parameters
    ----------
    start : dict of str to float
        Validation figures of the untrained towers, epoch 0; empty without validation subjects.
    weights : dict of str to Tensor
        What is kept of the untrained module.
    patience : int or None
        Epochs without a lower validation loss after which training stops.
    folder : Path or None
        Where ``last.ckpt`` and ``best.ckpt`` go.
    every : int
        Epochs between checkpoints.
    stop : StopRequest, optional
        Looked at before each step: where a signal came, to any process, a checkpoint is saved and
        training ends.
    first_epoch : int
        From which on all learns that is to: patience counts from there.
    """

    def __init__(
        self,
        start: HistoryRow,
        weights: dict[str, Tensor],
        patience: int | None,
        folder: Path | None,
        every: int,
        stop: StopRequest | None = None,
        *,
        first_epoch: int = 0,
    ) -> None:
        self.patience, self.folder, self.every, self.stop = patience, folder, every, stop
        self.first_epoch = first_epoch
        self.history: list[HistoryRow] = [{"epoch": 0.0, **start}]
        self.best_loss: float | None = start.get("val_loss")
        self.best_epoch = 0
        self.best_weights = _copied(weights)
        self.stopped = False

    def state_dict(self) -> dict[str, Any]:
        """Return all that resuming needs."""
        names = ("history", "best_loss", "best_epoch", "best_weights", "stopped")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the checkpoint was written."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not go on with a fit that had already stopped early."""
        # Decisions are made in every process, and must be the same.
        state = self.state_dict()
        if getattr(pl_module, "sharded", False):
            best = state.pop("best_weights")
            self.best_weights = best if trainer.is_global_zero else {}
        self.load_state_dict(trainer.strategy.broadcast(state))
        if self.stop is not None:
            self.stop.take_over()  # Lightning's own answer to SIGTERM saves nothing
        trainer.should_stop = trainer.should_stop or self.stopped

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save and end training, where a signal asked for it."""
        if not self._asked_to_stop(trainer):
            return
        if self.folder is not None:
            data: Any = getattr(trainer, "datamodule")  # noqa: B009  # set by fit, not declared
            data.begun = (trainer.current_epoch, batch_idx)
            save_checkpoint(trainer, self.folder / "last.ckpt")
        self._end(f"batch {batch_idx} of epoch {trainer.current_epoch + 1}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the epoch, compare it with the best, save."""
        epoch = trainer.current_epoch + 1
        metrics = trainer.callback_metrics
        names = ("train_loss", "val_loss", "val_percentile", "logit_scale")
        row = {name: float(metrics[name]) for name in names if name in metrics}
        self.history.append({"epoch": float(epoch), **row})
        loss = row.get("val_loss")
        better = loss is None or self.best_loss is None or loss < self.best_loss
        if better:
            self.best_loss, self.best_epoch = loss, epoch
            self.best_weights = _copied(pl_module.kept_state())  # type: ignore[operator]
        if loss is not None and self.patience is not None:
            begin = max(self.best_epoch, self.first_epoch)
            self.stopped = epoch - begin >= self.patience
            trainer.should_stop = trainer.should_stop or self.stopped
        if self.folder is not None:
            last = epoch == trainer.max_epochs or self.stopped
            asked = not last and self._asked_to_stop(trainer)
            if loss is not None and better:
                save_checkpoint(trainer, self.folder / "best.ckpt")
            if last or asked or epoch % self.every == 0:
                save_checkpoint(trainer, self.folder / "last.ckpt")
            if asked:
                self._end(f"epoch {epoch}")

    def _asked_to_stop(self, trainer: Trainer) -> bool:
        """Whether a signal came, to this or to another process; the same in each."""
        came = self.stop is not None and self.stop.by is not None
        return bool(trainer.strategy.reduce_boolean_decision(came, all=False))

    def _end(self, after: str) -> None:
        by = self.stop.by if self.stop is not None and self.stop.by else "a signal"
        if self.folder is None:
            raise Interrupted(by, f"after {after}, of which nothing is saved")
        raise Interrupted(by, f"training is saved after {after}")


class EpochBar(Callback):
    """A progress bar over epochs: those of small cohorts have a single step each."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar, at the epoch a resumed fit goes on from."""
        from tqdm.auto import tqdm

        done = trainer.current_epoch
        self.bar = tqdm(total=trainer.max_epochs, initial=done, desc="align", disable=None)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advance."""
        metrics = trainer.progress_bar_metrics
        self.bar.set_postfix({k: f"{float(v):.3f}" for k, v in metrics.items()}, refresh=False)
        self.bar.update()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close."""
        self.bar.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close, so that the error is not written over."""
        if self.bar is not None:
            self.bar.close()


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Write a checkpoint in one step: killed at any moment, the old one or the new one is there."""
    temporary = path.with_name(f".{path.name}.tmp")
    trainer.save_checkpoint(temporary)
    if trainer.is_global_zero:
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    trainer.strategy.barrier()


def prepare_folder(folder: Path, fingerprint: dict[str, str], resume: bool) -> Path | None:
    """Make the checkpoint folder ready and return the checkpoint to resume from, if any.

    Parameters
    ----------
    folder : Path
    fingerprint : dict of str to str
        Digests of the options and of the data; written beside the checkpoints.
    resume : bool
        Whether to go on from ``last.ckpt``; otherwise older checkpoints are moved aside.

    Raises
    ------
    InputError
        The checkpoint belongs to other options or other data.
    """
    stamp, last = folder / "fit.json", folder / "last.ckpt"
    if last.exists() and not resume:
        _move_aside(folder)
    if last.exists():
        found = json.loads(stamp.read_text()) if stamp.exists() else {}
        differing = [name for name, digest in fingerprint.items() if found.get(name) != digest]
        if differing:
            raise InputError(
                Problem(
                    "checkpoint-of-another-fit",
                    str(last),
                    f"written with other {' and '.join(differing)}",
                    f"the {' and '.join(differing)} of this fit",
                    "choose another run folder, or set resume=false to set these checkpoints "
                    "aside and train afresh",
                )
            )
        return last
    folder.mkdir(parents=True, exist_ok=True)
    temporary = stamp.with_name(f".{stamp.name}.tmp")
    with open(temporary, "w") as file:
        json.dump(fingerprint, file, indent=2, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, stamp)
    (folder / "best.ckpt").unlink(missing_ok=True)
    return None


def _move_aside(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(aside)


def _copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
